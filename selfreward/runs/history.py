"""Going on with another recipe without losing anything: what is refused, set aside, or forked. No torch."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfreward.recipe.recipe import Recipe, edited_recipe
from selfreward.runs.fingerprint import Change, changes
from selfreward.runs.folders import StageFolder, iteration_of, make_folder
from selfreward.runs.model_files import fetch_all
from selfreward.runs.plan import inputs, plan
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Step
from selfreward.runs.stored import MARKER, ORIGIN, RECIPE
from selfreward.runtime.atomic import read_sealed, sync, write_sealed
from selfreward.runtime.lock import RunLock


def start(recipe: Recipe) -> Run:
    """Opens the recipe's run folder, making it if it is not there, with the hub's models on this machine.

    Raises:
        ValueError: the folder is a link, or holds finished stages that this recipe would make otherwise.
    """
    fetch_all(recipe.prompts, recipe.model, *(judge.model for judge in (recipe.judge, *recipe.judge.members)))
    refuse_stale(Run(make_folder(recipe), recipe))
    return Run.create(recipe)


def stale(run: Run) -> dict[Step, list[Change]]:
    """The finished stages that the run's recipe would make otherwise, each with its own changes.

    A stage without changes of its own is stale because one that it reads is. What was settled, as the past of a
    fork is, belongs to an earlier recipe and is not compared.
    """
    found: dict[Step, list[Change]] = {}
    for step in plan(run.recipe):
        folder = run.folder(step)
        if not folder.done or step.iteration < run.first_iteration:
            continue
        own = changes(folder.marker["reads"], run.reads(step))
        if own or any(s in found for s in inputs(run.recipe, step)):
            found[step] = own
    return found


def refuse_stale(run: Run) -> None:
    """Raises ValueError if the run's recipe would make a finished stage otherwise, with the ways to go on."""
    found = stale(run)
    if not found:
        return
    changed = list({change.key: change for own in found.values() for change in own}.values())
    first, path = min(step.iteration for step in found), shlex.quote(str(run.path))
    restored = "with the old files back in place, goes" if any(c.is_file for c in changed) else "goes"
    lines = [
        f"{run.path} has finished stages that this recipe would make otherwise, and a run is never overwritten.",
        "What differs:",
        *(f"  {change}" for change in changed),
        f"Stages it touches: {', '.join(map(str, found))}",
        "Go on with one of:",
        "  the same command with --remake",
        "      sets these stages aside, and makes them anew",
        f"  the same command with --from-iteration {first}",
        f"      sets aside all of iteration {first} and what follows, and makes them anew",
    ]
    if first:
        lines += [
            f"  selfreward fork {path} --iteration {first} --to NAME{_edits(run)}",
            "      makes a new run, which shares what is before",
        ]
    lines += [f"  selfreward resume {path}", f"      {restored} on with the recipe that the run has"]
    raise ValueError("\n".join(lines))


def _edits(run: Run) -> str:
    """What distinguishes the run's recipe from the one it was made with, as it is typed on a command line."""
    stored = run.path / RECIPE
    before = read_sealed(stored) if stored.is_file() else {}
    words = _differences(before, run.recipe.model_dump(mode="json"))
    return "".join(f" {shlex.quote(word)}" for word in words if word.partition("=")[0] not in ("name", "run_dir"))


def _differences(before: Any, after: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in after.items():
            yield from _differences(before.get(name), value, f"{key}.{name}" if key else name)
    elif before != after:
        yield f"{key}={after if isinstance(after, str) else json.dumps(after)}"


def recipe_of(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an existing run, with ``key=value`` edits, for the place where the run is now.

    Raises:
        ValueError: there is no run, or the recipe can't be run (any more).
    """
    where = Run.open(path).path
    return _placed(where, where, overrides)


def recipe_of_fork(path: Path, to: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a fork of a run, with ``key=value`` edits: ``to`` is a name beside the run, or a path.

    Raises:
        ValueError: there is no run, or the recipe can't be run.
    """
    source = Run.open(path).path
    return _placed(source, (Path(to) if os.sep in to else source.parent / to).absolute(), overrides)


def _placed(stored: Path, where: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of the run at ``stored`` for a run at ``where``."""
    resolved = read_sealed(stored / RECIPE)
    return edited_recipe({**resolved, "name": where.name, "run_dir": str(where.parent)}, overrides)


def go_back(recipe: Recipe, iteration: int) -> Path | None:
    """Sets an iteration of the recipe's run and all later ones aside, so that they are made anew by this recipe.

    Returns:
        The numbered folder that they are in; None if the run had not come that far.

    Raises:
        ValueError: the run has not come near that iteration, or the recipe asks for another past.
    """
    with RunLock(make_folder(recipe)):
        run = Run(make_folder(recipe), recipe)
        made = sorted((name.name for name in run.path.iterdir() if iteration_of(name.name) >= 0), key=iteration_of)
        if iteration > max(map(iteration_of, made), default=0) + 1:
            raise ValueError(f"{run.path} has nothing of iteration {iteration - 1} or later to go on from")
        if iteration:
            _refuse_another_past(Run.open(run.path).recipe, recipe)
        if any(step.iteration < iteration for step in stale(run)) or run.first_iteration > iteration:
            write_sealed(run.path / ORIGIN, {**run.origin, "settled": iteration})
        names = [name for name in reversed(made) if iteration_of(name) >= iteration]
        aside = run.set_aside(names, f"resumed from iteration {iteration}") if names else None
        write_sealed(run.path / RECIPE, recipe.model_dump(mode="json"))
    return aside


def remake(recipe: Recipe) -> Path | None:
    """Sets the stages aside that the recipe would make otherwise, or not at all, and no others.

    Returns:
        The numbered folder that they are in; None if there are none.
    """
    with RunLock(make_folder(recipe)):
        run = Run(make_folder(recipe), recipe)
        unwanted = {*stale(run), *_left_over(run)}
        last_first = sorted(unwanted, key=lambda step: (step.iteration, [*STAGES].index(step.stage)), reverse=True)
        folders = [run.folder(step) for step in last_first]
        names = [name for folder in folders for name in _with_model(folder)]
        aside = run.set_aside(names, "made otherwise by an edited recipe") if names else None
        write_sealed(run.path / RECIPE, recipe.model_dump(mode="json"))
    return aside


def _left_over(run: Run) -> Iterator[Step]:
    """The finished stages that the recipe no longer has, in the iterations that it holds for."""
    steps = set(plan(run.recipe))
    for iteration in range(run.first_iteration, run.recipe.iterations + 1):
        for name in STAGES:
            step = Step(name, iteration)
            if step not in steps and run.stage(name, iteration).done:
                yield step


def _with_model(folder: StageFolder) -> list[str]:
    """A training's folder, and that of its model; the one with the marker first."""
    return [folder.name] if folder.model is None else [folder.name, str(folder.model.relative_to(folder.root))]


def _refuse_another_past(before: Recipe, after: Recipe) -> None:
    if (before.seed_data is None) != (after.seed_data is None):
        raise ValueError(
            "seed_data decides which model the first iteration starts from, and can't be added to or taken from a run "
            "that keeps its first iterations. Make it anew with --from-iteration 0, or give it a name of its own"
        )


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
    recipe = recipe_of_fork(path, to, overrides)
    target = recipe.run_dir / recipe.name
    _refuse_another_past(source.recipe, recipe)
    shared = _past(source, iteration)
    if target.exists():
        raise ValueError(f"{target} exists, and a run is never overwritten. Choose another name, or remove it")
    origin = {"run": source.path.name, "iteration": iteration}
    try:
        with RunLock(make_folder(recipe)):
            made = Run(make_folder(recipe), recipe)
            for step in shared:
                _link(source.folder(step), made.path)
            write_sealed(made.path / ORIGIN, {"settled": iteration, "forked_from": origin})
            write_sealed(made.path / RECIPE, recipe.model_dump(mode="json"))
            made.log({"stage": "fork", **origin})
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return made


def _past(source: Run, iteration: int) -> list[Step]:
    """The steps before an iteration. Raises ValueError if they are not all finished."""
    last = source.recipe.iterations + 1
    if not 1 <= iteration <= last:
        raise ValueError(f"{source.path} can be forked at iterations 1 to {last}, and not at {iteration}")
    shared = [step for step in plan(source.recipe) if step.iteration < iteration]
    unfinished = [step for step in shared if not source.folder(step).done]
    if unfinished:
        raise ValueError(f"{source.path} can't be forked at iteration {iteration}: {unfinished[0]} is not finished")
    return shared


def _link(folder: StageFolder, root: Path) -> None:
    """Links the files of a finished stage, its marker last."""
    marker = folder.path / MARKER
    for file in [*(path for path in folder.files() if path != marker), marker]:
        target = root / file.relative_to(folder.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError as error:
            raise ValueError(
                f"{target} can't be a link to {file}: {error.strerror}. "
                "Fork to the same file system, one that has hard links"
            ) from error
        sync(target.parent)
