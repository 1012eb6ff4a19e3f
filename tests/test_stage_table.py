"""A stage is one file and one entry of the table: everything that knows stages by name asks the table."""

from dataclasses import replace
from pathlib import Path

import pytest
from small import small_recipe

import selfreward
from selfreward.estimates.machine import Machine, cpu
from selfreward.estimates.run_estimate import RunEstimate
from selfreward.records import Response
from selfreward.report.status import status
from selfreward.report.verify import verify
from selfreward.runs.history import remake, stale
from selfreward.runs.plan import find_step, inputs, models_of
from selfreward.runs.stages import STAGES, Stage, Step

# Keeps the first response to each prompt, in upper case.
FILE = '''
from dataclasses import replace

from selfreward.records import Response, by_prompt


def stage(run, step, engines):
    """Writes a record for each prompt."""
    firsts = [responses[0] for responses in by_prompt(run.records("responses", step.iteration, Response)).values()]
    run.folder(step).write("shouts.jsonl", [replace(first, text=first.text.upper()) for first in firsts])
    return {"shouts": len(firsts)}
'''
ENTRY = Stage(
    "shouts",
    lambda recipe, t: ("responses.n",),
    reads=("prompts", "responses"),
    records={"shouts": ("shouts.jsonl", Response)},
)
DPO = {"max_steps": 1, "per_device_train_batch_size": 4}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, and the file of the stage among the package's own."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "shouts.py").write_text(FILE)
    monkeypatch.setattr("selfreward.stages.__path__", [*selfreward.stages.__path__, str(tmp_path / "stages")])
    return small_recipe(tmp_path, 4, DPO, engine={"name": "scripts:Numbers"})


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setitem(STAGES, "shouts", ENTRY)
    return ENTRY


def test_a_stage_is_a_file_and_an_entry(recipe: Path, entry: Stage) -> None:
    run = selfreward.run(selfreward.load_recipe(recipe))
    step = Step("shouts", 1)
    assert find_step(run.recipe, "shouts", 1) == step
    assert inputs(run.recipe, step) == [Step("prompts", 1), Step("responses", 1)]
    assert list(models_of(run.recipe, step)) == [1]
    own = [response.text for response in run.records("responses", 1, Response)[::3]]
    assert [response.text for response in run.records("shouts", 1, Response)] == [text.upper() for text in own]
    assert run.dataset("shouts", iteration=1)["text"] == [text.upper() for text in own]
    assert run.folder(step).marker["reads"]["settings"] == {"responses.n": 3}
    [iteration] = status(run)["iterations"]
    assert iteration["stages"]["shouts"]["state"] == "done"
    assert verify(run.path).problems == []
    assert [stage.step for stage in RunEstimate(run.recipe, Machine(1, 0, cpu())).stages][-1] == step


def test_an_edit_makes_it_anew(recipe: Path, entry: Stage) -> None:
    selfreward.run(selfreward.load_recipe(recipe))
    edited = selfreward.Run.open(recipe.parent / "runs" / "test")
    edited.recipe = selfreward.load_recipe(recipe, ["responses.n=4"])
    assert Step("shouts", 1) in stale(edited)
    remake(edited.recipe)
    assert not edited.stage("shouts", 1).done
    run = selfreward.run(edited.recipe)
    assert run.stage("shouts", 1).done


def test_its_file_is_part_of_what_is_proved(recipe: Path, entry: Stage) -> None:
    run = selfreward.run(selfreward.load_recipe(recipe))
    path = run.stage("shouts", 1).path / "shouts.jsonl"
    path.write_bytes(path.read_bytes().replace(b"FOX", b"OWL"))
    assert verify(run.path).problems == [f"{path} is missing or has other bytes than the run wrote"]


def test_without_its_entry_there_is_no_such_stage(recipe: Path) -> None:
    run = selfreward.run(selfreward.load_recipe(recipe))
    assert not (run.path / "iter_1" / "shouts").exists()
    with pytest.raises(ValueError, match=r"the plan has no stage shouts in iteration 1\. It has: prompts"):
        find_step(run.recipe, "shouts", 1)
    with pytest.raises(ValueError, match="no records are called 'shouts'"):
        run.dataset("shouts", iteration=1)


def test_a_stage_may_be_missing_in_some_iterations(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "shouts", replace(ENTRY, planned=lambda recipe, t: t > 1))
    run = selfreward.run(selfreward.load_recipe(recipe))
    assert not (run.path / "iter_1" / "shouts").exists()
