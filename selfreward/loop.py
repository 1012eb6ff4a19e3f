"""The loop: a plan of stages, and a ``for`` that performs what is not done yet.

Names, as in arXiv 2401.10020: M0 is the base model and M1 the seed model. Iteration t samples and judges
with M_t and trains M_{t+1}; its evaluation measures M_{t+1}, so the one of iteration 0 measures M1.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from selfreward import stages
from selfreward.config import Recipe
from selfreward.environment import record_environment
from selfreward.launchers import launch_training
from selfreward.progress import console
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary
from selfreward.tracking import Trackers


@dataclass(frozen=True)
class Step:
    """One stage of one iteration."""

    stage: str
    iteration: int

    def __str__(self) -> str:
        return f"{f'iteration {self.iteration}' if self.iteration else 'seed'}: {self.stage}"


def plan(recipe: Recipe) -> list[Step]:
    """Every step of a run in its order."""
    steps = [Step("train", 0)] if recipe.seed_data is not None else []
    evaluated = recipe.evaluation.prompts is not None or recipe.evaluation.judging is not None
    steps += [Step("evaluate", 0)] if evaluated else []
    for iteration in range(1, recipe.iterations + 1):
        names = [name for name in stages.NAMES if name != "evaluate" or evaluated]
        steps += [Step(name, iteration) for name in names]
    return steps


def run(recipe: Recipe) -> Run:
    """Runs a recipe to its end; finished stages of an earlier start are kept.

    Returns:
        The run, whose records can be read with :meth:`Run.dataset`.

    Raises:
        ValueError: bad data, no pairs to train on, or a loss that is not a number.
    """
    current = Run.create(recipe)
    record_environment(current)
    with Engines(recipe) as engines, Trackers(current) as trackers:
        for step in plan(recipe):
            if not current.stage(step.stage, step.iteration).done:
                summary = perform(current, step, engines)
                trackers.log(step.iteration, step.stage, summary)
    return current


def find_step(recipe: Recipe, stage: str, iteration: int) -> Step:
    """The step of the plan with that name. Raises ValueError if the plan has none."""
    steps = plan(recipe)
    step = Step(stage, iteration)
    if step not in steps:
        known = ", ".join(f"{s.stage} --iteration {s.iteration}" for s in steps)
        raise ValueError(f"the plan has no stage {stage} in iteration {iteration}. It has: {known}")
    return step


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
        ValueError: the step is done, or one that it needs is not.
    """
    folder = run.stage(step.stage, step.iteration)
    if folder.done:
        raise ValueError(f"{folder.path} is finished, and a run is never overwritten")
    unfinished = [s for s in before(run.recipe, step) if not run.stage(s.stage, s.iteration).done]
    if unfinished:
        raise ValueError(f"{step} comes after {unfinished[0]}, which is not finished")
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


def before(recipe: Recipe, step: Step) -> list[Step]:
    """The steps whose results a step may read: all earlier ones but the evaluations of other iterations."""
    steps = plan(recipe)
    return [
        s for s in steps[: steps.index(step)] if s.stage != "evaluate" or (step.stage == "evaluate" and not s.iteration)
    ]


def _words(summary: Summary) -> str:
    figures = {name: value for name, value in summary.items() if value is not None}
    return ", ".join(f"{name} {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in figures.items())
