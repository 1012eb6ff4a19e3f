"""The loop with a scripted engine and the real trainers: order, records, resumption, and what goes wrong."""

import asyncio
import json
from itertools import pairwise

import pytest
from safetensors.torch import load_file

import selfreward
from selfreward import loop
from selfreward.records import Judgement, PreferencePair, Prompt, Rejection, Response
from selfreward.report.status import status
from selfreward.runs.plan import find_step, plan
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines


@pytest.fixture
def recipe_file(tmp_path, tiny_random_model):
    """A recipe of two iterations over eight prompts, for a random model, with the additive judge."""
    tasks = [f"Name {n} animals." for n in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in tasks))
    rows = [{"prompt": t, "response": "fox owl", "judgement": "count two yes\nScore: 2"} for t in tasks]
    (tmp_path / "eft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    path = tmp_path / "run.yaml"
    path.write_text(f"""
name: test
run_dir: {tmp_path}/runs
iterations: 2
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 4}}
judge: {{template: judge.txt, votes: 2}}
training:
  sft: {{max_steps: 2}}
  dpo: {{max_steps: 2, learning_rate: 1e-3, per_device_train_batch_size: 4, gradient_checkpointing: false}}
engine: {{name: "scripts:Numbers"}}
""")
    return path


def run(path, *overrides: str) -> Run:
    return selfreward.run(selfreward.load_recipe(path, list(overrides)))


def test_every_prompt_is_a_pair_or_a_named_rejection(recipe_file):
    finished = run(recipe_file)
    for iteration in (1, 2):
        prompts = finished.records("prompts", iteration, Prompt)
        responses = finished.records("responses", iteration, Response)
        judgements = finished.records("judgements", iteration, Judgement)
        pairs = finished.records("pairs", iteration, PreferencePair)
        rejections = finished.records("rejections", iteration, Rejection)
        assert len(prompts) == 8
        assert [r.prompt_id for r in responses] == [p.id for p in prompts for _ in range(4)]
        assert [j.subject_ids[0] for j in judgements] == [r.id for r in responses for _ in range(2)]
        assert sorted([p.prompt_id for p in pairs] + [r.prompt_id for r in rejections]) == sorted(p.id for p in prompts)
        assert all(pair.score_chosen > pair.score_rejected for pair in pairs)
        assert all(len(p.chosen[0]["content"]) > len(p.rejected[0]["content"]) for p in pairs)


def test_the_next_iteration_is_made_with_the_new_model(recipe_file):
    finished = run(recipe_file)
    models = [{r.model for r in finished.records("responses", t, Response)} for t in (1, 2)]
    judges = [{j.model for j in finished.records("judgements", t, Judgement)} for t in (1, 2)]
    assert models == judges == [{"M0"}, {"iter_1/model"}]
    weights = [load_file(f"{finished.model_path(t)}/model.safetensors") for t in (1, 2, 3)]
    for before, after in pairwise(weights):
        assert any(not before[name].equal(after[name]) for name in before)


def test_a_finished_stage_is_kept_and_an_unfinished_one_is_made(recipe_file):
    first = run(recipe_file, "iterations=1")
    marker = first.stage("prompts", 1).path / "stage.json"
    judgements = first.stage("judgements", 1).path
    stamp, before = marker.stat().st_mtime_ns, (judgements / "records.jsonl").read_bytes()
    for stage in ("judgements", "pairs", "train"):
        (first.stage(stage, 1).path / "stage.json").unlink()
    (judgements / "records.jsonl").write_text("torn")
    second = run(recipe_file, "iterations=1")
    assert marker.stat().st_mtime_ns == stamp
    assert (second.stage("judgements", 1).path / "records.jsonl").read_bytes() == before


def test_more_iterations_extend_a_run(recipe_file):
    first = run(recipe_file, "iterations=1")
    stamp = (first.stage("train", 1).path / "stage.json").stat().st_mtime_ns
    second = run(recipe_file, "iterations=2")
    assert (second.stage("train", 1).path / "stage.json").stat().st_mtime_ns == stamp
    assert status(second)["done"]


def test_a_run_is_never_overwritten_by_another_recipe(recipe_file):
    run(recipe_file, "iterations=1")
    with pytest.raises(ValueError, match=r"training.dpo.max_steps: 2 -> 3\nStages it touches: iteration 1: train\n"):
        run(recipe_file, "iterations=1", "training.dpo.max_steps=3")


def test_the_seed_stage_makes_m1(recipe_file):
    finished = run(recipe_file, "iterations=1", "seed_data.ift=ift.jsonl", "seed_data.eft=eft.jsonl")
    assert finished.model_path(1) == str(finished.path / "seed" / "model")
    assert {r.model for r in finished.records("responses", 1, Response)} == {"seed/model"}
    assert finished.stage("train", 0).summary["examples"] == 16


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_rehearsed_judging_data_is_trained_without_a_preference(recipe_file):
    from selfreward.training.dpo import preference_rows

    overrides = ["seed_data.ift=ift.jsonl", "seed_data.eft=eft.jsonl", "training.rehearsal=0.5"]
    overrides += ["training.dpo.loss_type=[sigmoid,sft]", "training.dpo.loss_weights=[1.0,0.5]", "iterations=1"]
    finished = run(recipe_file, *overrides)
    rows = preference_rows(finished, Step("train", 1))
    rehearsed = [row for row in rows if row["chosen"] == row["rejected"]]
    assert len(rehearsed) == round(0.5 * (len(rows) - len(rehearsed)))
    assert all(row["prompt"][0]["content"].startswith("Review this answer.") for row in rehearsed)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("Ties", r"made no pair of 8 prompts \(8 tie\).*\nTies: raise responses.n"),
        ("Mute", r"0.0% of 64 judgements by additive can be read, less than judge.min_parse_rate.*\n  no_score: 'no"),
        ("Sham", r"0.0% of 64 judgements by additive can be read"),
        ("Control", r"made no pair of 8 prompts \(8 control_tokens\)"),
        ("Broken", "the server is on fire. Put it out"),
    ],
)
def test_what_leaves_nothing_to_train_on_is_told(recipe_file, engine, message):
    with pytest.raises(ValueError, match=message):
        run(recipe_file, f"engine.name=scripts:{engine}")


def test_a_low_parse_rate_may_be_accepted_and_nothing_is_asked_again(recipe_file):
    with pytest.raises(ValueError, match="less than judge"):
        run(recipe_file, "engine.name=scripts:Mute")
    with pytest.raises(ValueError, match=r"made no pair of 8 prompts \(8 unscored\).*\nUnscored: [^\n]*\nWhat"):
        run(recipe_file, "engine.name=scripts:Mute", "judge.min_parse_rate=0")
    kept = Run.open("runs/test")
    assert (kept.stage("responses", 1).summary["resumed"], kept.stage("judgements", 1).summary["resumed"]) == (32, 64)


def test_what_was_made_before_an_error_is_kept(recipe_file):
    with pytest.raises(ValueError, match="8 tie"):
        run(recipe_file, "engine.name=scripts:Ties")
    kept = Run.open("runs/test")
    assert len(kept.records("judgements", 1, Judgement)) == 64
    assert not kept.stage("pairs", 1).done


def test_a_loss_that_is_not_a_number_goes_no_further(recipe_file):
    options = ["training.dpo.learning_rate=1e30", "training.dpo.max_grad_norm=1e30", "training.dpo.max_steps=20"]
    with pytest.raises(ValueError, match=r"the training loss became nan in step 2\. Lower the learning_rate"):
        run(recipe_file, *options, "training.dpo.logging_steps=1")
    assert not Run.open("runs/test").stage("train", 1).done


def test_weights_that_are_not_numbers_become_no_model(recipe_file):
    options = ["training.sft.learning_rate=1e30", "training.sft.max_grad_norm=1e30", "training.sft.max_steps=1"]
    seed = ["seed_data.ift=ift.jsonl", "seed_data.eft=eft.jsonl"]
    with pytest.raises(ValueError, match="are not numbers"):
        run(recipe_file, *options, *seed)
    assert not Run.open("runs/test").stage("train", 0).done


def test_a_pair_too_long_to_train_is_rejected_by_name(recipe_file):
    message = r"made no pair of 8 prompts \(8 too_long_to_train\).*\nToo long to train: raise training.dpo.max_length"
    with pytest.raises(ValueError, match=message):
        run(recipe_file, "training.dpo.max_length=8")


def test_a_run_opens_though_its_files_have_moved(recipe_file, tmp_path):
    finished = run(recipe_file, "iterations=1")
    (tmp_path / "prompts.jsonl").unlink()
    assert status(Run.open(finished.path))["done"]


def test_records_can_be_read_as_datasets(recipe_file):
    finished = run(recipe_file, "iterations=1")
    pairs = finished.dataset("pairs", 1)
    assert {"prompt", "chosen", "rejected", "score_chosen"} <= set(pairs.column_names)
    assert finished.dataset("responses", 1).num_rows == 32
    with pytest.raises(ValueError, match=r"no records are called 'pair'\. Known: prompts, tasks"):
        finished.dataset("pair", 1)
    with pytest.raises(ValueError, match="stage pairs of iteration 2 is not finished"):
        finished.dataset("pairs", 2)


def test_metrics_have_every_stage_and_the_trainers_log(recipe_file):
    finished = run(recipe_file, "iterations=1", "training.dpo.logging_steps=1")
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "seconds" in line] == [s.stage for s in plan(finished.recipe)]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    environment = json.loads((finished.path / "environment.json").read_text())
    assert {"torch", "trl", "peft"} <= set(environment["versions"])
    assert environment["determinism"] == "exact"


def test_trackers_get_the_loops_figures(recipe_file):
    finished = run(recipe_file, "iterations=1", "tracking.report_to=[tensorboard]")
    assert list((finished.path / "tracking").rglob("events.out.tfevents.*"))


def test_an_unknown_tracker_is_refused(recipe_file):
    with pytest.raises(ValueError, match=r"accelerate has no tracker 'tensorbord'\. Did you mean tensorboard\?"):
        run(recipe_file, "tracking.report_to=[tensorbord]")


def test_the_loop_runs_in_a_notebook_with_an_event_loop_of_its_own(recipe_file):
    async def cell() -> Run:
        return run(recipe_file, "iterations=1")

    assert status(asyncio.run(cell()))["done"]


def test_a_stage_is_a_command_of_its_own_and_keeps_the_order(recipe_file):
    current = Run.create(selfreward.load_recipe(recipe_file))
    with Engines(current) as engines:
        with pytest.raises(ValueError, match="iteration 1: responses comes after iteration 1: prompts"):
            loop.perform_here(current, Step("responses", 1), engines)
        loop.perform_here(current, Step("prompts", 1), engines)
        with pytest.raises(ValueError, match="is finished, and a run is never overwritten"):
            loop.perform_here(current, Step("prompts", 1), engines)
    with pytest.raises(ValueError, match="the plan has no stage prompts in iteration 3"):
        find_step(current.recipe, "prompts", 3)
