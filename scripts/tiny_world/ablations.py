"""Judges, selectors and losses side by side on the tiny world: every combination of a grid, over several seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pydantic import Field
from scipy.stats import t as student

from selfreward.recipe.base import Settings
from selfreward.recipe.loader import RecipeFile, read
from selfreward.report.status import status
from selfreward.runs.run import Run
from selfreward.runs.stored import RECIPE

# Of the last model: heading, stage, figure, digits.
FIGURES = (
    ("gold, sampled", "evaluate", "gold_sampled", 3),
    ("greedy passed", "evaluate", "passed_greedy", 3),
    ("tokens", "evaluate", "response_tokens", 2),
    ("canaries accepted", "evaluate", "canary_accepted", 3),
)
JUDGING = (
    ("pairwise accuracy", "evaluate", "judge_pairwise_accuracy", 3),
    ("5-best", "evaluate", "judge_5_best", 3),
    ("exact match", "evaluate", "judge_exact_match", 3),
    ("Spearman", "evaluate", "judge_spearman", 3),
    ("Kendall", "evaluate", "judge_kendall", 3),
    ("scored", "evaluate", "judge_scored", 3),
)


class Combination(Settings):
    """One row of the table."""

    remedy: str = Field(description="What it is, in a few words.")
    settings: list[str] = Field(default_factory=list, description="Its KEY=VALUE over the grid's.")
    own_seed: bool = Field(
        False, description="Make a seed stage of its own, as its judge learns another prompt. Else the first row's."
    )


class Grid(Settings):
    """What is compared: a recipe, settings for all, and the rows."""

    recipe: RecipeFile
    settings: list[str] = Field(default_factory=list)
    combinations: dict[str, Combination] = Field(min_length=2)


@dataclass(frozen=True, eq=False)
class Cell:
    """One combination with one seed, and the run it is."""

    grid: Grid
    home: Path  # where the relative paths of the grid's settings start
    combination: str
    seed: int
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / f"{self.combination}-{self.seed}"

    @property
    def leader(self) -> Path:
        """The run whose seed stage it shares."""
        return self.folder / f"{next(iter(self.grid.combinations))}-{self.seed}"

    @property
    def leads(self) -> bool:
        return self.run == self.leader or self.grid.combinations[self.combination].own_seed

    def settings(self) -> list[str]:
        """The overrides of the grid's recipe."""
        place = [f"name={self.run.name}", f"seed={self.seed}", f"run_dir={self.folder}"]
        return [*place, *self.grid.settings, *self.grid.combinations[self.combination].settings]

    def commands(self) -> Iterator[list[str]]:
        """What a person would type to make this run, or to go on with it."""
        if (self.run / RECIPE).is_file():
            yield ["resume", str(self.run)]
        elif self.leads:
            yield ["run", str(self.grid.recipe), *self.settings()]
        else:
            own = self.grid.combinations[self.combination].settings
            yield ["fork", str(self.leader), "--iteration", "1", "--to", self.run.name, *own]
            yield ["resume", str(self.run)]

    def perform(self) -> int:
        """Makes the run; what it says goes to a log beside it. Returns the exit status of the last command."""
        if _state(self) is not None:
            return 0
        # With two threads a process, two processes on two cores would wait for each other most of the time.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for command in self.commands():
            with self.run.with_suffix(".log").open("a") as log:
                words = [sys.executable, "-m", "selfreward", *command]
                ended = subprocess.run(words, stdout=log, stderr=log, env=environment, cwd=self.home, check=False)
            if ended.returncode:
                return ended.returncode
        return 0


def cells(path: Path, seeds: Sequence[int], folder: Path, only: Sequence[str] = ()) -> list[Cell]:
    """Every run of a grid.

    Args:
        path: the grid.
        seeds: each is a run of every combination.
        folder: where the runs go.
        only: names of combinations, the first one being always among them. Empty: all.

    Raises:
        RecipeError: the grid can't be read.
        ValueError: a name that the grid has not.
    """
    grid = read(Grid, path)
    if unknown := set(only) - set(grid.combinations):
        raise ValueError(f"no combination is called {sorted(unknown)}. There are: {', '.join(grid.combinations)}")
    leader = next(iter(grid.combinations))
    wanted = [name for name in grid.combinations if not only or name in only or name == leader]
    home = path.resolve().parent
    return [Cell(grid, home, name, seed, folder.resolve()) for name in wanted for seed in seeds]


def perform(every: Sequence[Cell], jobs: int) -> dict[Cell, int]:
    """Makes all runs, those with a seed stage of their own first, and returns how each ended."""
    ends: dict[Cell, int] = {}
    for cell in every:
        cell.folder.mkdir(parents=True, exist_ok=True)
    for leads in (True, False):
        these = [cell for cell in every if cell.leads == leads]
        with ThreadPoolExecutor(jobs) as pool:
            for cell, status_ in zip(these, pool.map(Cell.perform, these), strict=True):
                ends[cell] = status_
                print(f"{cell.run.name}: {'done' if status_ == 0 else f'ended with {status_}'}", file=sys.stderr)
    return ends


def report(every: Sequence[Cell]) -> str:
    """Three Markdown tables, mean ± standard deviation over seeds: what was gained, judging, and what it took."""
    grid = every[0].grid
    states = {cell: state for cell in every if (state := _state(cell)) is not None}
    rows = [(name, [c for c in states if c.combination == name]) for name in grid.combinations]
    rows = [(name, these) for name, these in rows if these]
    leader = next(iter(grid.combinations))
    first = {cell.seed: states[cell] for cell in states if cell.combination == leader}
    last = [
        "M1's gold",
        "gain of the loop",
        f"last model, against {leader}'s (95 %)",
        *(heading for heading, *_ in FIGURES),
    ]
    gained = [
        [
            name,
            grid.combinations[name].remedy,
            _spread([_gold(states[c][0]) for c in these], 3),
            _spread([_gold(states[c][-1]) - _gold(states[c][0]) for c in these], 3),
            _gain([(first[c.seed], states[c]) for c in these if c.seed in first]),
            *_last(these, states, FIGURES),
        ]
        for name, these in rows
    ]
    judging = [[name, *_last(these, states, JUDGING)] for name, these in rows]
    took = [[name, *_took([states[c] for c in these])] for name, these in rows]
    return "\n\n".join(
        [
            _table(["", "", *last], gained),
            _table(["judge of the last model", *(heading for heading, *_ in JUDGING)], judging),
            _table(["over all iterations", "seeds", "unparsed", "ties", "pairs", "seconds"], took),
        ]
    )


def _state(cell: Cell) -> list[dict[str, Any]] | None:
    """The figures of each iteration of a finished run, the seed's first; None for one that is not finished."""
    if not (cell.run / RECIPE).is_file():
        return None
    state = status(Run.open(cell.run))
    return [entry["stages"] for entry in state["iterations"]] if state["done"] else None


def _last(these: Sequence[Cell], states: dict[Cell, Any], figures: Sequence[tuple[str, str, str, int]]) -> list[str]:
    return [_spread([states[c][-1][stage].get(name) for c in these], digits) for _, stage, name, digits in figures]


def _gold(stages: dict[str, Any]) -> float:
    return float(stages["evaluate"]["gold_sampled"])


def _gain(beside: Sequence[tuple[Any, Any]]) -> str:
    """Mean difference in gold to the first row with the same seeds, and its 95 % interval by Student's t."""
    gains = [_gold(b[-1]) - _gold(a[-1]) for a, b in beside]
    if not any(gains) or len(gains) < 2:
        return ""
    half = float(student.ppf(0.975, len(gains) - 1)) * stdev(gains) / sqrt(len(gains))
    return f"{mean(gains):+.3f} [{mean(gains) - half:+.3f}, {mean(gains) + half:+.3f}]"


def _took(runs: Sequence[Any]) -> list[str]:
    loops = [run[1:] for run in runs]
    unparsed = [mean(1 - it["judgements"]["parse_rate"] for it in loop) for loop in loops]
    ties = [sum(it["pairs"].get("rejected_tie", 0) for it in loop) for loop in loops]
    pairs = [sum(it["pairs"]["pairs"] for it in loop) for loop in loops]
    seconds = [sum(stage["seconds"] for it in loop for stage in it.values()) for loop in loops]
    return [str(len(runs)), _spread(unparsed, 4), _spread(ties, 1), _spread(pairs, 0), _spread(seconds, 0)]


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [float(value) for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.{digits}f}" + (f" ± {stdev(known):.{digits}f}" if len(known) > 1 else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
