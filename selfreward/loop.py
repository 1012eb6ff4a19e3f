"""The loop: a ``for`` over the plan that performs what is not done yet."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from selfreward.errors import Stopped
from selfreward.estimates import disk
from selfreward.evaluation import health
from selfreward.judges import panel_of
from selfreward.launchers import launch
from selfreward.launchers.base import Launcher
from selfreward.preflight import preflight, require_engine
from selfreward.recipe import registry
from selfreward.recipe.recipe import Recipe
from selfreward.report.tracking import Trackers
from selfreward.runs import history
from selfreward.runs.environment import record_environment
from selfreward.runs.folders import StageFolder, make_folder
from selfreward.runs.plan import inputs, plan
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Step, Summary
from selfreward.runtime.lock import RunLock
from selfreward.runtime.progress import console, in_words
from selfreward.runtime.ranks import is_first, world_size
from selfreward.runtime.shutdown import stop
from selfreward.serving.engines import Engines
from selfreward.stages.overlap import sample_and_judge

StageFunction = Callable[[Run, Step, Engines], Summary]

POLL_S = 0.2  # seconds between two looks at whether the first rank is done


def run(recipe: Recipe) -> Run:
    """Runs a recipe to its end; what an earlier start finished is kept.

    Returns:
        The run, whose records can be read with :meth:`Run.dataset`.

    Raises:
        ValueError: bad data, no pairs to train on, or a loss that is not a number.
        ChildProcessError: a training in a process of its own failed.
        SelfrewardError: the run was stopped, or its disk, engine, lock or files don't let it go on.
    """
    preflight(recipe)
    require_engine(recipe)
    if world_size() > 1:
        return _among_ranks(recipe)
    return _drive(recipe, launch.find_launcher(recipe))


def _among_ranks(recipe: Recipe) -> Run:
    """The run as the first rank drives it; another rank opens what the first one has made."""
    ranks = launch.torchrun_launcher(recipe)
    if not ranks.first:
        return Run.open(ranks.follow())
    finished = _drive(recipe, ranks)
    ranks.close(str(finished.path))
    return finished


def _drive(recipe: Recipe, launcher: Launcher) -> Run:
    launch.require_layout(recipe, launcher)
    with RunLock(make_folder(recipe)):
        current = history.start(recipe)
        record_environment(current)
        try:
            _go_through(current, launcher)
        except Stopped as stopped:
            raise Stopped(f"{stopped}. Go on with: selfreward resume {shlex.quote(str(current.path))}") from None
    return current


def _go_through(run: Run, launcher: Launcher) -> None:
    steps = {step: run.folder(step) for step in plan(run.recipe)}
    logged = run.logged()
    for step, folder in steps.items():
        if folder.done:
            folder.sweep()
            if (step.iteration, step.stage) not in logged:
                # It was killed between its marker and its log, or a fork brought it along.
                run.log({"iteration": step.iteration, "stage": step.stage, **folder.summary})
            health.require(run, step, folder.summary)
    with Engines(run, launcher) as engines, Trackers(run) as trackers:
        for step, folder in steps.items():
            if not folder.done:
                for done, summary in perform(run, step, engines):
                    trackers.log(done.iteration, done.stage, summary)


def perform(run: Run, step: Step, engines: Engines) -> list[tuple[Step, Summary]]:
    """Performs one step, training where the recipe says so; judging by the same model goes along with sampling."""
    if STAGES[step.stage].trains:
        engines.make_room()
        if launch.launch_training(run, step, engines.launcher):
            return [(step, run.folder(step).summary)]
    judging = Step("judgements", step.iteration)
    if step.stage == "responses" and panel_of(run.recipe).is_policy and not run.folder(judging).done:
        return perform_together(run, step, judging, engines)
    return [(step, perform_here(run, step, engines))]


def perform_together(run: Run, sampling: Step, judging: Step, engines: Engines) -> list[tuple[Step, Summary]]:
    """Performs sampling and judging as one, and commits the one before the other."""
    _announce(run, sampling, judging)
    run.begin(sampling)
    run.begin(judging)
    started = time.monotonic()
    summaries = sample_and_judge(run, sampling, judging, engines)
    # The two share their time; a sum over the stages has it once.
    seconds = (round(time.monotonic() - started, 2), 0.0)
    for step, summary, share in zip((sampling, judging), summaries, seconds, strict=True):
        _commit(run, step, {**summary, "seconds": share})
    return list(zip((sampling, judging), summaries, strict=True))


def perform_here(run: Run, step: Step, engines: Engines) -> Summary:
    """Performs one step in this process. Under a launcher, the first rank keeps the books.

    Raises:
        ValueError: the step is done, one that it needs is not, or it can't be shared by several ranks.
        Stopped: the run was asked to stop.
    """
    folder = run.folder(step)
    if folder.done:
        raise ValueError(f"{folder.path} is finished, and a run is never overwritten")
    unfinished = [s for s in inputs(run.recipe, step) if not run.folder(s).done]
    if unfinished:
        raise ValueError(f"{step} comes after {unfinished[0]}, which is not finished")
    if not STAGES[step.stage].trains and world_size() > 1:
        raise ValueError(f"{step} can't be shared by {world_size()} ranks: launch train alone that way")
    if is_first():
        _announce(run, step)
        run.begin(step)
    started = time.monotonic()
    function: StageFunction = registry.load_stage(STAGES[step.stage].function or step.stage)
    summary = function(run, step, engines)
    summary["seconds"] = round(time.monotonic() - started, 2)
    if is_first():
        _commit(run, step, summary)
    else:
        _wait_for_first(folder)
    return summary


def _wait_for_first(folder: StageFolder) -> None:
    """The first rank merges, for longer than a collective operation of the ranks would wait."""
    while not folder.done:
        stop.check()
        time.sleep(POLL_S)


def _announce(run: Run, *steps: Step) -> None:
    """Tells what begins. Raises Stopped if the run was asked to stop, DiskFull if there is no room."""
    stop.check()
    disk.require(run, steps)
    console.print(" and ".join(map(str, steps)))


def _commit(run: Run, step: Step, summary: Summary) -> None:
    run.commit(step, summary)
    run.log({"iteration": step.iteration, "stage": step.stage, **summary})
    console.print(f"  {in_words(summary)}", soft_wrap=True)
    health.watch(run, step, summary)
