"""A run of every released version opens, verifies and goes on.

Each folder of ``old_runs`` was cut off in the middle of the judgements of its first iteration, with the recipe, data
and model that it was started with beside it.
"""

import shutil
from pathlib import Path

import pytest

from selfreward import loop
from selfreward.report.status import lines, status
from selfreward.report.verify import verify
from selfreward.runs import history
from selfreward.runs.run import Run
from selfreward.runtime.atomic import is_whole_line

VERSIONS = sorted((Path(__file__).parent / "old_runs").iterdir())


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_run_of_an_earlier_version_goes_on(version: Path, tmp_path: Path) -> None:
    shutil.copytree(version, tmp_path / "old")
    path = tmp_path / "old" / "run"
    assert verify(path).problems == []
    assert "begun: 1/judgements" in lines(status(Run.open(path)))
    before = (path / "iter_1/responses/records.jsonl").read_bytes()
    files = {"model.path": "model", "prompts.path": "prompts.jsonl", "judge.template": "judge.txt"}
    recipe = history.recipe_of(path, [f"{name}={tmp_path}/old/{file}" for name, file in files.items()])
    finished = loop.run(recipe)
    assert status(finished)["done"]
    assert finished.stage("judgements", 1).summary["resumed"] > 0
    assert (path / "iter_1/responses/records.jsonl").read_bytes() == before
    assert verify(path).problems == []
    assert all(map(is_whole_line, (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)))
