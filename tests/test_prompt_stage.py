"""The stage that makes prompts: iteration after iteration, in one process and in several, after edits of the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfreward.engines import Completion, SamplingParams
from selfreward.preflight import check_prompts
from selfreward.recipe.loader import RecipeError, edit
from selfreward.recipe.recipe import Recipe
from selfreward.records import Message, Prompt, Removal
from selfreward.runs.plan import inputs
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.stages.prompts import stage

Reply = Callable[[str, int], str]


class Served:
    """Both the engines of a run and the one engine that they are."""

    model = "M1"
    in_flight = 8

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.failures: dict[str, int] = {}

    def policy(self, path: str) -> Served:
        return self

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        return [Completion(self._reply(messages[-1]["content"], seed), "stop", 1) for seed in seeds]


def words(text: str, seed: int) -> str:
    """A document becomes a question about it; else a new task of words that no other seed has."""
    if "Document 7 " in text and "Score" not in text:
        return "Write a short poem about the silent winter moon tonight"
    if match := re.search(r"Document (\d+) ", text):
        n = match[1]
        return "Score: 5" if "Score" in text else f"Tell what a{n} b{n} c{n} d{n} e{n} says"
    return f"1. Name all x{seed} y{seed} z{seed}"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run of a folder's recipe with these prompts; it is opened anew each time."""

    def run(name: str, prompts: dict[str, Any], **settings: Any) -> Run:
        model = tmp_path / "model"
        model.mkdir(exist_ok=True)
        data = {"name": name, "run_dir": str(tmp_path), "model": {"path": str(model)}, "prompts": prompts, **settings}
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Run(folder.resolve(), edit(Recipe, data, []))

    return run


def perform(run: Run, iteration: int, reply: Reply = words) -> Summary:
    step = Step("prompts", iteration)
    run.begin(step)
    summary = stage(run, Step("prompts", iteration), Served(reply))  # type: ignore[arg-type]
    run.commit(step, summary)
    return summary


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def mixture(tmp_path: Path) -> dict[str, Any]:
    """Self-Instruct in the first iteration alone, and documents, one of which leads to a near-copy of a seed."""
    seeds = ["Write a short poem about the silent winter moon", *(f"Compute q{i} w{i} e{i} r{i}" for i in range(7))]
    part = {"human": 2, "machine": 0, "tasks": 1, "instances": 0, "requests": 2}
    return {
        "source": "mixture",
        "num": 6,
        "filters": {"use": ["rouge_l"]},
        "parts": [
            {
                "source": "self_instruct",
                "path": write(tmp_path / "seeds.jsonl", [{"instruction": seed} for seed in seeds]),
                "weight": [1, 0],
                "self_instruct": part,
            },
            {
                "source": "backtranslation",
                "path": write(tmp_path / "docs.jsonl", [{"text": f"Document {i} says much"} for i in range(30)]),
            },
        ],
    }


def test_a_run_in_one_process_equals_one_that_was_started_for_each_iteration(
    make_run: Callable[..., Run], mixture: dict[str, Any]
) -> None:
    whole = make_run("whole", mixture)
    for iteration in (1, 2, 3):
        perform(whole, iteration)
        perform(make_run("parts", mixture), iteration)
    parts = make_run("parts", mixture)
    for iteration in (1, 2, 3):
        for name in ("records.jsonl", "tasks.jsonl", "removed.jsonl"):
            ours, theirs = ((run.stage("prompts", iteration).path / name).read_bytes() for run in (whole, parts))
            assert ours == theirs
    [near] = [r for t in (1, 2, 3) for r in whole.records("removed_prompts", t, Removal) if r.filter == "rouge_l"]
    assert near.neighbour == "Write a short poem about the silent winter moon"


def test_what_filters_looked_at_and_kept_is_the_share_that_is_accepted(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    rows = [{"prompt": f"Tell a{i} b{i} c{i} d{i}"} for i in range(6)] + [{"prompt": "Tell a0 b0 c0 d0 now"}]
    prompts = {"path": write(tmp_path / "rows.jsonl", rows), "filters": {"use": ["rouge_l"]}}
    summary = perform(make_run("filtered", prompts), 1)
    assert (summary["prompts"], summary["removed_rouge_l"]) == (6, 1)
    assert summary["accepted"] == pytest.approx(6 / 7)


def test_a_recipe_may_turn_to_another_source(
    make_run: Callable[..., Run], tmp_path: Path, mixture: dict[str, Any]
) -> None:
    rows = [{"prompt": f"Tell a{i} b{i} c{i} d{i}"} for i in range(4)]
    first = {"path": write(tmp_path / "rows.jsonl", rows), "num": 2}
    perform(make_run("edited", first), 1)
    run = make_run("edited", mixture)
    perform(run, 2)
    assert len(run.records("prompts", 2, Prompt)) == 6
    assert Step("prompts", 1) in inputs(run.recipe, Step("prompts", 2))


def test_rows_that_run_out_are_said_and_counted(make_run: Callable[..., Run], tmp_path: Path, capfd: Any) -> None:
    documents = [{"text": f"Document {i} says much"} for i in range(3)]
    run = make_run("short", {"source": "backtranslation", "num": 5, "path": write(tmp_path / "docs.jsonl", documents)})
    summary = perform(run, 1)
    assert (summary["prompts"], summary["gave_up"]) == (3, 1)
    assert "prompts: 3 of 5, as rows or documents are used up" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"iteration 2: backtranslation gave no prompt\. .*Add rows"):
        perform(run, 2)


def test_settings_that_only_parts_read_are_refused_beside_them(
    make_run: Callable[..., Run], mixture: dict[str, Any]
) -> None:
    with pytest.raises(
        RecipeError, match=r"source is mixture, whose parts have .* of their own\. Move license, by into"
    ):
        make_run("own", {**mixture, "by": "seed", "license": "mit"})


def test_weights_beyond_the_run_are_let_be(make_run: Callable[..., Run], mixture: dict[str, Any]) -> None:
    parts = [{**part, "weight": [1, 1, 0]} for part in mixture["parts"]]
    run = make_run("weights", {**mixture, "parts": parts}, iterations=2)
    check_prompts(run.recipe.prompts, None)
    with pytest.raises(RecipeError, match="all weights are 0 in iteration 3"):
        make_run("weights", {**mixture, "parts": parts}, iterations=3)


def test_the_current_template_stays_where_nothing_is_known_to_be_better(
    make_run: Callable[..., Run], mixture: dict[str, Any]
) -> None:
    def reply(text: str, seed: int) -> str:
        if "<prompt>" in text or "{examples}" in text:
            return "<prompt>Write nothing at all after\n<examples>\n{examples}\n</examples>\n{number} {num}</prompt>"
        return "hm" if "nothing at all" in text or "1 to 5" in text else words(text, seed)

    [part, _] = mixture["parts"]
    searching = {**part["self_instruct"], "template_variants": 2, "template_budget": 2}
    prompts = {"source": "self_instruct", "path": part["path"], "num": 3, "filters": {"use": ["rouge_l"]}}
    summary = perform(make_run("search", {**prompts, "self_instruct": searching}), 1, reply)
    assert summary["prompts"] == 3
    assert (summary["template_variants"], summary["template_changed"]) == (1, 0)
