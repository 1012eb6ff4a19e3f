"""The run folder: what is on disk decides what happened."""

import json

import pytest

from selfreward import load_recipe
from selfreward.records import Rejection
from selfreward.rundir import Run, write_json


@pytest.fixture
def recipe(tmp_path, tiny_random_model):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    path = tmp_path / "run.yaml"
    blocks = f"model: {{path: {tiny_random_model}}}\nprompts: {{path: prompts.jsonl}}\n"
    path.write_text(f"name: test\nrun_dir: {tmp_path}/runs\n{blocks}")
    return load_recipe(path)


def test_a_run_opens_with_the_recipe_it_was_made_with(recipe):
    made = Run.create(recipe)
    opened = Run.open(made.path)
    assert opened.recipe.model_dump() == recipe.model_dump()
    assert opened.path == made.path


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"no run in .*resolved.json is missing. Start one with: selfreward run RECIPE"
    ):
        Run.open(tmp_path)


def test_a_stage_is_done_when_its_marker_is_there(recipe):
    folder = Run.create(recipe).stage("pairs", 1)
    folder.begin()
    folder.write("records.jsonl", [Rejection("p", "tie")])
    assert not folder.done
    folder.commit({"pairs": 1})
    assert folder.done
    assert folder.summary == {"pairs": 1}
    assert {path.name for path in folder.path.iterdir()} == {"records.jsonl", "stage.json"}


def test_an_unfinished_attempt_is_cleared(recipe):
    folder = Run.create(recipe).stage("pairs", 1)
    folder.begin()
    (folder.path / "records.jsonl.tmp").write_text("torn")
    folder.begin()
    assert list(folder.path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(recipe):
    folder = Run.create(recipe).stage("pairs", 1)
    folder.begin()
    folder.write("records.jsonl", [Rejection("p", "tie")])

    def failing():
        yield Rejection("q", "tie")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.write("records.jsonl", failing())
    assert "q" not in (folder.path / "records.jsonl").read_text()


def test_models_are_counted_as_in_the_paper(recipe):
    run = Run.create(recipe)
    assert run.model_path(0) == run.model_path(1) == recipe.model.path
    assert run.model_path(2) == str(run.path / "iter_1" / "model")


def test_json_is_written_whole(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
