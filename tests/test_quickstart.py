"""The real command with the real vLLM and TRL, in small."""

import asyncio
import json
import subprocess
import sys

import pytest
import torch
from conftest import make_random_model
from safetensors.torch import load_file

from selfreward.engines import SamplingParams
from selfreward.engines.transformers import TransformersEngine
from selfreward.recipe.engine_settings import EngineSettings
from selfreward.records import Judgement, Measurement, PreferencePair, Prompt, Rejection, Response
from selfreward.runs.run import Run
from selfreward.tiny import world

SMALL = (
    "iterations=2",
    "prompts.num=24",
    "responses.n=4",
    "judge.votes=1",
    "training.sft.max_steps=30",
    "training.dpo.max_steps=3",
    "evaluation.n=1",
    "evaluation.prompts=recipes/ablations/heldout_prompts.jsonl",
    "evaluation.judging=recipes/ablations/heldout_judging.jsonl",
)
UNEVALUATED = [f"evaluation.{name}=null" for name in ("prompts", "judging", "scorer", "pass_score")]


def selfreward(*arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "selfreward", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(folder):
    result = selfreward("run", "recipes/quickstart/run.yaml", f"run_dir={folder}", *SMALL)
    return result, Run.open(folder / "quickstart")


def test_the_command_ends_with_a_table_and_the_path_of_the_run(finished):
    result, run = finished
    assert result.stdout.strip().splitlines()[-1] == str(run.path)
    for word in ("M1", "M2", "M3", "gold, sampled", "judge Spearman", "greedy passed"):
        assert word in result.stdout


def test_the_records_add_up(finished):
    _, run = finished
    for iteration in (1, 2):
        responses = run.records("responses", iteration, Response)
        judgements = run.records("judgements", iteration, Judgement)
        pairs = run.records("pairs", iteration, PreferencePair)
        rejections = run.records("rejections", iteration, Rejection)
        assert (len(responses), len(judgements)) == (96, 96)
        assert len(pairs) + len(rejections) == 24
        texts = {r.id: r.text for r in responses}
        scores = {j.subject_ids[0]: j.score for j in judgements}
        for pair in pairs:
            assert pair.chosen[0]["content"] == texts[pair.chosen_id]
            assert pair.score_chosen == scores[pair.chosen_id] > pair.score_rejected == scores[pair.rejected_id]
        assert len(run.records("measurements", iteration, Measurement)) == 400


def test_the_model_can_judge_after_the_seed_stage(finished):
    _, run = finished
    seed = run.stage("evaluate", 0).summary
    assert seed["judge_scored"] > 0.95
    assert seed["judge_spearman"] > 0.5


def test_the_model_that_was_served_is_the_one_that_was_trained(finished):
    """Another engine, from the files of M2, gives the greedy responses that vLLM gave when it was evaluated."""
    _, run = finished
    path = run.model_path(2)
    engine = TransformersEngine(path, run.recipe.model, EngineSettings(name="transformers"))
    texts = [json.loads(line)["prompt"] for line in run.recipe.evaluation.prompts.open()][:40]
    greedy = SamplingParams(0.0, 1.0, run.recipe.responses.max_tokens)

    async def everything() -> list[str]:
        chats = [[{"role": "user", "content": text}] for text in texts]
        answers = await asyncio.gather(*(engine.generate(chat, greedy, [0]) for chat in chats))
        return [answer.text for [answer] in answers]

    recorded = {m.prompt_id: m.text for m in run.records("measurements", 1, Measurement) if m.k is None}
    expected = [recorded[Prompt.make([{"role": "user", "content": text}], "").id] for text in texts]
    assert asyncio.run(everything()) == expected
    before = {m.prompt_id: m.text for m in run.records("measurements", 0, Measurement) if m.k is None}
    assert before != recorded


def test_a_second_start_repeats_nothing(finished, folder):
    _, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("records.jsonl")}
    selfreward("run", "recipes/quickstart/run.yaml", f"run_dir={folder}", *SMALL)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("records.jsonl")} == before
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["stage"] == "start"


def test_status_for_people_and_for_programs(finished):
    _, run = finished
    state = json.loads(selfreward("status", str(run.path), "--json").stdout)
    assert state["done"]
    assert state["iterations"][1]["stages"]["pairs"]["pairs"] > 0
    assert "finished" in selfreward("status", str(run.path)).stdout


def test_the_model_makes_its_own_prompts(tmp_path):
    held_out = SMALL[7]
    small = (f"run_dir={tmp_path}", "iterations=1", "prompts.num=16", *SMALL[2:7], held_out, "evaluation.judging=null")
    selfreward("run", "recipes/self-instruct/run.yaml", *small, "training.sft.max_steps=50")
    run = Run.open(tmp_path / "self-instruct")
    prompts = [prompt.text for prompt in run.records("prompts", 1, Prompt)]
    assert len(set(prompts)) == 16
    assert sum(is_a_task(prompt) for prompt in prompts) >= 12
    assert not {*prompts} & {json.loads(line)["prompt"] for line in run.recipe.evaluation.prompts.open()}
    figures = run.stage("prompts", 1).summary
    assert figures["candidates"] >= 16
    assert 0 < figures["accepted"] <= 1
    assert run.records("pairs", 1, PreferencePair)


def is_a_task(text: str) -> bool:
    try:
        world.parse(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("recipe", "architecture"), [("llama-3.1-8b-instruct", "llama"), ("qwen2.5-0.5b-instruct", "qwen2")]
)
def test_a_recipe_for_a_real_model_runs_with_a_small_one_in_its_place(tmp_path, monkeypatch, recipe, architecture):
    model = make_random_model(tmp_path / "model", seed=0, architecture=architecture)
    monkeypatch.setenv("PYTHONPATH", "tests")
    settings = (
        f"model.path={model}",
        f"run_dir={tmp_path}",
        "iterations=1",
        "prompts.num=8",
        "responses.n=8",
        "responses.max_tokens=256",
        "judge.name=scripts:AnyText",
        "judge.max_tokens=8",
        "training.dpo.max_steps=3",
        "training.dpo.learning_rate=1e-3",
        "engine.vllm.max_model_len=1024",
        "engine.vllm.gpu_memory_utilization=0.2",
    )
    selfreward("run", f"recipes/{recipe}/run.yaml", *settings)
    run = Run.open(tmp_path / recipe)
    assert run.stage("train", 1).done
    assert run.records("pairs", 1, PreferencePair)
    dtypes = {tensor.dtype for tensor in load_file(f"{run.model_path(2)}/model.safetensors").values()}
    assert dtypes == {torch.bfloat16}
