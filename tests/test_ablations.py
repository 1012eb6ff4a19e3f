"""The grid of ablations: every combination is a recipe, and the command runs, goes on and reports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import SMALL_QUICKSTART, held_out
from tiny_world.ablations import Grid, cells

from selfreward.preflight import preflight
from selfreward.recipe.loader import read
from selfreward.recipe.recipe import load_recipe

ROOT = Path(__file__).parents[1]
GRID = ROOT / "recipes" / "ablations" / "grid.yaml"
PROMPTS = GRID.with_name("prompts.yaml")
NAMES = list(read(Grid, GRID).combinations)
EVERY = [(grid, name) for grid in (GRID, PROMPTS) for name in read(Grid, grid).combinations]


@pytest.mark.parametrize(("grid", "name"), EVERY, ids=[name for _, name in EVERY])
def test_every_combination_is_a_recipe_that_can_be_run(grid: Path, name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(grid.parent)
    [cell] = [cell for cell in cells(grid, [0], tmp_path, [name]) if cell.combination == name]
    preflight(load_recipe(cell.grid.recipe, cell.settings()))


def test_combinations_differ_from_each_other() -> None:
    assert len({str(c.settings) for c in read(Grid, GRID).combinations.values()}) == len(NAMES) >= 10


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no combination is called \['magic'\]\. There are: additive"):
        cells(GRID, [0], tmp_path, ["magic"])


def test_the_command_runs_shares_the_seed_stage_goes_on_and_reports(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    small = [*SMALL_QUICKSTART, *held_out(tmp_path), "iterations=1", "responses.max_tokens=8", "evaluation.canaries=2"]
    grid.write_text(f"""
recipe: {GRID.parents[1] / "quickstart" / "run.yaml"}
settings: {small}
combinations:
  plain: {{remedy: as it is}}
  wide: {{remedy: clear pairs, settings: [selection.min_margin=0.5]}}
""")
    command = [sys.executable, str(ROOT / "scripts/tiny.py"), "ablate", str(grid), "--seeds", "1", "--run-dir", "runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, check=False)
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/*.log"))
    assert done.returncode == 0, done.stderr + logs
    plain, wide = (tmp_path / "runs" / name for name in ("plain-0", "wide-0"))
    assert os.path.samefile(*(run / "seed" / "model" / "model.safetensors" for run in (plain, wide)))
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| plain", "| wide"))]
    assert len(rows) == 6  # two combinations in three tables
    gold, gain, beside = rows[0].split(" | ")[2:5]
    assert 0 <= float(gold) <= 5
    assert -5 < float(gain) < 5
    assert beside == ""  # it is what the others are compared with
    # The runs are finished: the same command reads them, and makes nothing anew.
    before = (wide / "metrics.jsonl").read_bytes()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, check=True)
    assert again.stdout == done.stdout
    assert (wide / "metrics.jsonl").read_bytes() == before
