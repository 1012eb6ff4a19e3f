"""Going back in a run without losing anything: iterations set aside, and forks that share a past. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from selfreward.config import Recipe, edited_recipe
from selfreward.durable import read_sealed, sync_tree, write_sealed
from selfreward.fingerprint import stale
from selfreward.lock import RunLock
from selfreward.plan import plan
from selfreward.preflight import preflight
from selfreward.rundir import ORIGIN, RECIPE, Run, iteration_folder, iteration_of, make_folder


def recipe_of(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an existing run, with ``key=value`` edits, for the place where the run is now.

    Raises:
        ValueError: there is no run, or the recipe can't be run (any more).
    """
    where = Run.open(path).path
    resolved = read_sealed(where / RECIPE)
    return edited_recipe({**resolved, "name": where.name, "run_dir": str(where.parent)}, overrides)


def go_back(recipe: Recipe, iteration: int) -> Path:
    """Sets an iteration of the recipe's run and all later ones aside, so that they are made anew by this recipe.

    Returns:
        The numbered folder that they are in.

    Raises:
        ValueError: the run has nothing of that iteration.
    """
    with RunLock(make_folder(recipe)):
        run = Run(make_folder(recipe), recipe)
        names = [
            path.name for path in run.path.iterdir() if _is_iteration(path) and iteration_of(path.name) >= iteration
        ]
        if not names:
            raise ValueError(f"{run.path} has nothing of iteration {iteration} or later to set aside")
        aside = run.set_aside(names, f"resumed from iteration {iteration}")
        _settle(run, iteration)
    return aside


def _is_iteration(path: Path) -> bool:
    return path.name == "seed" or path.name.startswith("iter_")


def _settle(run: Run, iteration: int) -> None:
    """Takes the past as it is where the edited recipe would have made it otherwise."""
    if stale(run) or run.settled > iteration:
        write_sealed(run.path / ORIGIN, {**run.origin, "settled": iteration})


def fork(path: Path, iteration: int, to: str, overrides: Sequence[str] = ()) -> Run:
    """Makes a run that goes on from the model that another one's iteration starts from.

    The files of the shared past are hard links: they take no room, and stay when the other run is deleted.

    Args:
        path: the run.
        iteration: the first iteration that is the new run's own, from 1.
        to: a name for a run beside the other one, or a path.
        overrides: ``key=value`` edits of the recipe.

    Raises:
        ValueError: the new run exists, is on another file system, or the past is not finished.
    """
    source = Run.open(path)
    target = Path(to) if os.sep in to else source.path.parent / to
    recipe = recipe_of(path, [*overrides, f"name={target.name}", f"run_dir={target.parent}"])
    preflight(recipe)
    last = source.recipe.iterations + 1
    if not 1 <= iteration <= last:
        raise ValueError(f"{source.path} can be forked at iterations 1 to {last}, and not at {iteration}")
    shared = [step for step in plan(source.recipe) if step.iteration < iteration]
    unfinished = [step for step in shared if not source.stage(step.stage, step.iteration).done]
    if unfinished:
        raise ValueError(f"{source.path} can't be forked at iteration {iteration}: {unfinished[0]} is not finished")
    if target.exists():
        raise ValueError(f"{target} exists, and a run is never overwritten. Choose another name")
    with RunLock(make_folder(recipe)):
        made = Run(make_folder(recipe), recipe)
        for t in sorted({step.iteration for step in shared}):
            _link(source.path / iteration_folder(t), made.path / iteration_folder(t))
        origin = {"run": source.path.name, "iteration": iteration}
        write_sealed(made.path / ORIGIN, {"settled": iteration, "forked_from": origin})
        write_sealed(made.path / RECIPE, recipe.model_dump(mode="json"))
        made.log({"stage": "fork", **origin})
    return made


def _link(source: Path, target: Path) -> None:
    for folder, _, files in os.walk(source):
        into = target / Path(folder).relative_to(source)
        into.mkdir(parents=True)
        for file in files:
            try:
                os.link(Path(folder, file), into / file)
            except OSError as error:
                raise ValueError(
                    f"{into / file} can't be a link to {folder}/{file}: {error.strerror}. "
                    "Fork to the same file system, one that has hard links"
                ) from error
    sync_tree(target)
