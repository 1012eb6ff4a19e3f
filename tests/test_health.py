"""Collapse made on purpose is seen in the iteration in which it begins, and a healthy run raises no alarm."""

import json
from pathlib import Path

import pytest
from conftest import make_random_model

import selfreward
from selfreward.engines.scripted import ScriptedEngine
from selfreward.rundir import Run, iteration_of

TASKS = [f"Name {n} animals." for n in ("one", "two", "three", "four")]
WORDS = "ant bear camel deer elk fox goat horse".split()


def is_judge(text: str) -> bool:
    return text.startswith("Review")


def iteration_served(model: str) -> int:
    """The t of the M_t that an engine serves, from its folder."""
    return iteration_of(f"{Path(model).parent.name}/model") + 1


class Collapsing(ScriptedEngine):
    """Healthy with M1; from M2 on one of three diseases."""

    disease: str

    @classmethod
    def script(cls, model: str, text: str, seed: int) -> str:
        sick = cls.disease if iteration_served(model) > 1 else ""
        if is_judge(text):
            return "one\nScore: 3" if sick == "constant" else f"one\nScore: {seed % 6}"
        words = [WORDS[(seed >> shift) % len(WORDS)] for shift in (0, 3, 6)]
        if sick == "long":
            return " ".join(words * 3)
        return "fox" if sick == "mode" else " ".join(words)


class Constant(Collapsing):
    disease = "constant"


class Long(Collapsing):
    disease = "long"


class Mode(Collapsing):
    disease = "mode"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("health")
    make_random_model(folder / "model", seed=0)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in TASKS))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    path = folder / "run.yaml"
    path.write_text(f"""
name: health
run_dir: {folder}/runs
iterations: 2
model: {{path: model, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 4}}
judge: {{template: judge.txt, votes: 1}}
training:
  dpo: {{max_steps: 1, learning_rate: 1e-3, per_device_train_batch_size: 4, gradient_checkpointing: false}}
engine: {{name: "scripts:Numbers"}}
""")
    return path


def alarms(run: Run) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [(line["iteration"], line["sign"]) for line in lines if line["stage"] == "health"]


def start(recipe: Path, name: str, *overrides: str) -> Run:
    return selfreward.run(selfreward.load_recipe(recipe, [f"name={name}", *overrides]))


def test_a_healthy_run_raises_no_alarm(recipe: Path) -> None:
    assert alarms(start(recipe, "healthy")) == []


def test_growing_responses_are_told_in_the_iteration_where_they_begin(recipe: Path) -> None:
    run = start(recipe, "long", "engine.name=test_health:Long")
    sign = "responses grow: 10.0 tokens, 2.50 times those of iteration 1, more than health.max_length_ratio 2"
    assert alarms(run) == [(2, sign)]


def test_mode_collapse_is_told_before_the_run_ends_for_want_of_pairs(recipe: Path) -> None:
    with pytest.raises(ValueError, match="iteration 2 made no pair"):
        start(recipe, "mode", "engine.name=test_health:Mode")
    run = Run.open(recipe.parent / "runs" / "mode")
    assert alarms(run) == [(2, "mode collapse: distinct 0, less than health.min_distinct 0.05")]


def test_constant_scores_end_the_run_as_there_is_nothing_to_train_on(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"iteration 2 made no pair of 4 prompts \(4 tie\)"):
        start(recipe, "constant", "engine.name=test_health:Constant")


def test_a_halt_keeps_the_stage_and_names_the_ways_out(recipe: Path) -> None:
    engine = "engine.name=test_health:Long"
    with pytest.raises(ValueError, match=r"iteration 2: responses: responses grow: .*--from-iteration 2.*action=warn"):
        start(recipe, "halted", engine, "health.action=halt")
    run = Run.open(recipe.parent / "runs" / "halted")
    assert run.stage("responses", 2).done
    assert not run.stage("pairs", 2).done
    with pytest.raises(ValueError, match="responses grow"):
        start(recipe, "halted", engine, "health.action=halt")
    start(recipe, "halted", engine)
    assert run.stage("train", 2).done
