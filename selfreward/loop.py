"""The loop: a ``for`` over the plan that performs what is not done yet."""

from __future__ import annotations

import os
import time

from selfreward import stages
from selfreward.config import Recipe
from selfreward.environment import record_environment
from selfreward.launchers import launch_training
from selfreward.plan import Step, before, plan
from selfreward.preflight import preflight, require_engine
from selfreward.progress import console
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary
from selfreward.tracking import Trackers


def run(recipe: Recipe) -> Run:
    """Runs a recipe to its end; finished stages of an earlier start are kept.

    Returns:
        The run, whose records can be read with :meth:`Run.dataset`.

    Raises:
        ValueError: bad data, no pairs to train on, or a loss that is not a number.
        ChildProcessError: a training in a process of its own failed.
    """
    preflight(recipe)
    require_engine(recipe)
    current = Run.create(recipe)
    record_environment(current)
    with Engines(recipe) as engines, Trackers(current) as trackers:
        for step in plan(recipe):
            if not current.stage(step.stage, step.iteration).done:
                summary = perform(current, step, engines)
                trackers.log(step.iteration, step.stage, summary)
    return current


def perform(run: Run, step: Step, engines: Engines) -> Summary:
    """Performs one step, training where the recipe says so."""
    if step.stage == "train":
        engines.make_room()
        if launch_training(run, step.iteration):
            return run.stage("train", step.iteration).summary
    return perform_here(run, step, engines)


def perform_here(run: Run, step: Step, engines: Engines) -> Summary:
    """Performs one step in this process. Under a launcher, the first rank keeps the books.

    Raises:
        ValueError: the step is done, one that it needs is not, or it can't be shared by several ranks.
    """
    folder = run.stage(step.stage, step.iteration)
    if folder.done:
        raise ValueError(f"{folder.path} is finished, and a run is never overwritten")
    unfinished = [s for s in before(run.recipe, step) if not run.stage(s.stage, s.iteration).done]
    if unfinished:
        raise ValueError(f"{step} comes after {unfinished[0]}, which is not finished")
    if step.stage != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(f"{step} can't be shared by {os.environ['WORLD_SIZE']} ranks: launch train alone that way")
    first = os.environ.get("RANK", "0") == "0"
    if first:
        console.print(f"{step}")
        folder.begin()
    started = time.monotonic()
    summary = stages.load(step.stage)(run, step.iteration, engines)
    summary["seconds"] = round(time.monotonic() - started, 2)
    if first:
        folder.commit(summary)
        run.log({"iteration": step.iteration, "stage": step.stage, **summary})
        console.print(f"  {_words(summary)}", soft_wrap=True)
    return summary


def _words(summary: Summary) -> str:
    figures = {name: value for name, value in summary.items() if value is not None}
    return ", ".join(f"{name} {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in figures.items())
