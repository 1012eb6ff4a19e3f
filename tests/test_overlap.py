"""Sampling and judging by one model go on together, and give what they give one after the other."""

import asyncio
import json
from pathlib import Path

import pytest

import selfreward
from scripts import REVIEW, numbers
from selfreward import loop
from selfreward.engines.scripted import ScriptedEngine
from selfreward.judges.additive import AdditiveJudge
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines

TASKS = [f"Name {n} animals." for n in ("one", "two", "three", "four")]


class HeldBack(ScriptedEngine):
    """Does not answer the last task before a review was asked for: a barrier between the two would never end."""

    script = staticmethod(numbers)

    async def generate(self, messages, params, seeds):
        text = messages[-1]["content"]
        if text.startswith(REVIEW):
            type(self).reviewed = True
        while text == TASKS[-1] and not getattr(type(self), "reviewed", False):
            await asyncio.sleep(0.01)
        return await super().generate(messages, params, seeds)


class AllAtOnce(AdditiveJudge):
    """Wants all responses to a prompt, as a judge does that compares them."""

    pointwise = False

    async def judge(self, engine, prompt, responses, seed):
        assert len(responses) == 4
        return await super().judge(engine, prompt, responses, seed)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_random_model: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in TASKS))
    (tmp_path / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: {tmp_path}/runs
iterations: 1
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 4}}
judge: {{template: judge.txt, votes: 2}}
engine: {{name: "scripts:Numbers"}}
""")
    return tmp_path / "run.yaml"


def together(path: Path, *overrides: str) -> Run:
    run = Run.create(selfreward.load_recipe(path, list(overrides)))
    with Engines(run) as engines:
        loop.perform(run, Step("prompts", 1), engines)
        assert len(loop.perform(run, Step("responses", 1), engines)) == 2
    return run


def records(run: Run) -> list[bytes]:
    return [(run.stage(stage, 1).path / "records.jsonl").read_bytes() for stage in ("responses", "judgements")]


@pytest.mark.timeout(60)
def test_a_response_is_judged_while_others_are_sampled(recipe_file: Path) -> None:
    run = together(recipe_file, "engine.name=test_overlap:HeldBack")
    assert run.stage("judgements", 1).summary["judgements"] == 32


@pytest.mark.parametrize("judge", ["additive", "test_overlap:AllAtOnce"])
@pytest.mark.parametrize("limit", [1, 3, 256])
def test_the_records_are_those_of_one_stage_after_the_other(recipe_file: Path, judge: str, limit: int) -> None:
    both = together(recipe_file, f"judge.name={judge}", f"engine.max_in_flight={limit}")
    apart = Run.create(selfreward.load_recipe(recipe_file, ["name=apart", f"judge.name={judge}"]))
    with Engines(apart) as engines:
        for stage in ("prompts", "responses", "judgements"):
            loop.perform_here(apart, Step(stage, 1), engines)
    assert records(both) == records(apart)
    digests = [[run.stage(stage, 1).digest for stage in ("responses", "judgements")] for run in (both, apart)]
    assert digests[0] == digests[1]
