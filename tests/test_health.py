"""Collapse made on purpose is seen in the iteration in which it begins, and a healthy run raises no alarm."""

import json
from pathlib import Path

import pytest
from conftest import make_random_model

import selfreward
from selfreward.engines.scripted import ScriptedEngine
from selfreward.evaluation.health import signs
from selfreward.prompts.base import SourceContext
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Task
from selfreward.runs.folders import iteration_of
from selfreward.runs.run import Run
from selfreward.runs.stages import Step

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


class Writer:
    """A source that writes 24 prompts in an iteration; from the second on, as a subclass has it."""

    def __init__(self, settings: SourceSettings) -> None:
        self._verbs = "Name List Draw Count Praise Rank".split()

    def check(self) -> None:
        pass

    def tasks(self, context: SourceContext) -> list[Task]:
        texts = self.healthy(context) if context.iteration == 1 else self.texts(context)
        return context.filters.filter([Task.make(text, "test") for text in texts])

    def healthy(self, context: SourceContext) -> list[str]:
        pairs = [(verb, word) for verb in self._verbs for word in WORDS[:4]]
        return [f"{verb} the {word} of {n} {context.iteration} lands" for n, (verb, word) in enumerate(pairs)]

    def texts(self, context: SourceContext) -> list[str]:
        return self.healthy(context)


class Narrow(Writer):
    def texts(self, context: SourceContext) -> list[str]:
        return [f"Name the fox of {n} lands" for n in range(100, 124)]


class Stuck(Writer):
    def texts(self, context: SourceContext) -> list[str]:
        context.count("gave_up")
        return [*(["fox"] * 300), *self.healthy(context)[:20]]


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


WRITTEN = ("prompts.num=24", "prompts.filters.use=[length]")


def test_a_source_that_goes_on_writing_raises_no_alarm(recipe: Path) -> None:
    assert alarms(start(recipe, "written", *WRITTEN, "prompts.source=test_health:Writer")) == []


def test_prompts_that_become_one_are_told_with_what_they_were(recipe: Path) -> None:
    run = start(recipe, "narrow", *WRITTEN, "prompts.source=test_health:Narrow")
    assert alarms(run) == [
        (
            2,
            "prompts lose diversity: distinct_roots 0.0417, 96% below 1 of iteration 1, more than "
            "health.max_diversity_drop 0.5",
        )
    ]


def test_a_source_that_makes_nothing_new_is_told(recipe: Path, tmp_path: Path) -> None:
    run = start(recipe, "stuck", *WRITTEN, "prompts.source=test_health:Stuck")
    assert alarms(run) == [
        (2, "hardly anything new is made: accepted 0.0625, less than health.min_accepted 0.1"),
        (2, "nothing new is made any more: 20 prompts, and prompts.num is 24"),
    ]
    off = ["health.min_accepted=null", f"run_dir={tmp_path}"]
    unwatched = Run.create(selfreward.load_recipe(recipe, [*WRITTEN, *off]))
    assert list(signs(unwatched, Step("prompts", 2), run.stage("prompts", 2).summary)) == []


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ((24, 0.9), (24, 0.4), True),
        ((24, 0.9), (24, 0.5), False),
        ((8, 0.9), (8, 0.1), False),
        ((24, 0.9), (60, 0.4), False),
        ((100, 0.9), (5000, 0.4), True),
        ((100, 0.9), (5, 0.4), True),
    ],
)
def test_diversity_is_compared_where_numbers_of_prompts_allow(
    recipe: Path, tmp_path: Path, then: tuple[int, float], now: tuple[int, float], told: bool
) -> None:
    run = Run.create(selfreward.load_recipe(recipe, [f"run_dir={tmp_path}"]))
    for iteration, (prompts, distinct) in enumerate((then, now), start=1):
        step = Step("prompts", iteration)
        run.begin(step)
        run.stage("prompts", iteration).write("records.jsonl", [])
        run.commit(step, {"prompts": prompts, "distinct_2": distinct})
    assert bool(list(signs(run, step, {"prompts": now[0], "distinct_2": now[1]}))) == told


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
