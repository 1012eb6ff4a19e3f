"""The command line: thin verbs over the same functions that Python callers use."""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfreward.data.commands import app as data_app
from selfreward.errors import Damaged, SelfrewardError, Stopped, disk_error
from selfreward.launchers.logs import report
from selfreward.recipe.loader import edit
from selfreward.recipe.recipe import Recipe, load_recipe
from selfreward.runs.stages import STAGES
from selfreward.runtime import redact
from selfreward.runtime.progress import console
from selfreward.runtime.ranks import is_first, world_size
from selfreward.runtime.shutdown import stop

if TYPE_CHECKING:
    from selfreward.runs.run import Run

app = typer.Typer(
    help="A language model that samples, judges and trains itself: self-rewarding DPO (arXiv 2401.10020).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.add_typer(data_app, name="data")

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart/run.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's, such as iterations=1."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Reads and checks a recipe and prints the plan. Loads no model and needs no GPU."""
    from selfreward.preflight import describe, preflight

    settings = load_recipe(recipe, overrides or [])
    preflight(settings)
    print(describe(settings))


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a node. Empty: those of this machine.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Which GPU, such as H100: its memory and speed.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory of a GPU, such as 80GiB.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: everything, as JSON.")] = False,
) -> None:
    """Says what a run takes: processes, memory, tokens, hours and disk, and what will not fit. Loads no weights."""
    from selfreward.estimates.machine import machine
    from selfreward.estimates.run_estimate import RunEstimate
    from selfreward.estimates.tables import as_dict, lines

    estimate = RunEstimate(load_recipe(recipe, overrides or []), machine(gpus, gpu_memory, nodes, gpu))
    print(json.dumps(as_dict(estimate), indent=2) if as_json else "\n".join(lines(estimate)))


FromIteration = Annotated[
    int | None, typer.Option(min=0, help="Set this iteration and the later ones aside, and make them anew.")
]
Remake = Annotated[bool, typer.Option("--remake", help="Set aside what an edit touches, and make that anew.")]


@app.command()
def run(
    recipe: RecipeArgument, overrides: Overrides = None, from_iteration: FromIteration = None, remake: Remake = False
) -> None:
    """Runs a recipe. Run it again after an interruption, or `resume` the run: it goes on where it stopped."""
    _run(load_recipe(recipe, overrides or []), from_iteration, remake)


@app.command()
def resume(
    run: RunArgument, overrides: Overrides = None, from_iteration: FromIteration = None, remake: Remake = False
) -> None:
    """Goes on with a run exactly where it stopped, or from an earlier iteration, with edited settings if any."""
    from selfreward.runs.history import recipe_of

    _run(recipe_of(run, overrides or []), from_iteration, remake)


def _run(recipe: Recipe, from_iteration: int | None, remake: bool) -> None:
    from selfreward import loop
    from selfreward.preflight import preflight
    from selfreward.runs import history

    stop.listen(recipe.launch.grace)
    if from_iteration is not None or remake:
        preflight(recipe)
        aside = history.remake(recipe) if from_iteration is None else history.go_back(recipe, from_iteration)
        print(f"set aside in {aside}" if aside else "nothing to set aside", file=sys.stderr)
    drives = is_first()
    finished = loop.run(recipe)
    if drives:
        _show(finished)


train_app = typer.Typer(help="Trains by itself what the loop trains in its stages.", no_args_is_help=True)
app.add_typer(train_app, name="train")


@train_app.command()
def sft(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Instruction data: a file, or a folder that `selfreward data` made.")
    ],
    model: Annotated[str, typer.Option(help="The student: a folder or a hub model.")],
    out: Annotated[Path, typer.Option(help="The run folder; the student will be in seed/model.")],
    overrides: Overrides = None,
) -> None:
    """Trains a student on instruction data by SFT: the seed stage of a loop, with its checkpoints and markers."""
    from selfreward.data.job import rows_of

    settings = {
        "name": out.name,
        "run_dir": str(out.parent),
        "iterations": 0,
        "model": {"path": model},
        "seed_data": {"ift": str(rows_of(data))},
    }
    _run(edit(Recipe, settings, overrides or []), None, False)


@app.command()
def fork(
    run: RunArgument,
    iteration: Annotated[int, typer.Option(help="The first iteration of the new run that is its own.")],
    to: Annotated[str, typer.Option(metavar="NAME", help="The new run: a name beside RUN, or a path.")],
    overrides: Overrides = None,
) -> None:
    """Makes a new run that shares what a run did before an iteration. Files are linked, not copied."""
    from selfreward.preflight import preflight
    from selfreward.runs import history

    preflight(history.recipe_of_fork(run, to, overrides or []))
    made = history.fork(run, iteration, to, overrides or [])
    print(f"{made.path}\nGo on with: selfreward resume {shlex.quote(str(made.path))}")


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="STAGE", help=f"One of {', '.join(STAGES)}.")],
    run: RunArgument,
    iteration: Annotated[int, typer.Option(help="The iteration, from 1; 0 is the seed.")],
) -> None:
    """Performs one stage of an existing run, also under `accelerate launch -m selfreward`."""
    from selfreward import loop
    from selfreward.launchers.base import end_with_agent
    from selfreward.launchers.launch import leave_group
    from selfreward.runs.plan import find_step
    from selfreward.runs.run import Run
    from selfreward.runtime.gpus import take_one
    from selfreward.runtime.lock import RunLock, watch_holder
    from selfreward.serving.engines import Engines

    end_with_agent()
    if name in STAGES and STAGES[name].trains and world_size() == 1:
        take_one()
    current = Run.open(run)
    step = find_step(current.recipe, name, iteration)
    stop.listen(current.recipe.launch.grace)
    watch_holder(current.path)
    with RunLock(current.path), Engines(current) as engines:
        loop.perform_here(current, step, engines)
        leave_group()


@app.command()
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: everything, as JSON.")] = False,
) -> None:
    """Shows what a run has done, is doing and has left, what is stale or set aside, and its figures."""
    from selfreward.report import status as report
    from selfreward.runs.run import Run

    state = report.status(Run.open(run))
    if as_json:
        print(json.dumps(state, indent=2))
        return
    _print_table(state)
    for line in report.lines(state):
        print(line)


@app.command()
def verify(run: RunArgument) -> None:
    """Recomputes every hash and follows every link of a run; names each file and record that is not right."""
    from selfreward.report.verify import verify as verify_run

    report = verify_run(Path(run))
    for problem in report.problems:
        print(problem)
    print(report.summary)
    if report.problems:
        raise typer.Exit(Damaged.exit_status)


@app.command()
def trace(
    run: RunArgument,
    pair_id: Annotated[str, typer.Argument(metavar="PAIR_ID", help="The id of a pair, or its first digits.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs: everything, as JSON.")] = False,
) -> None:
    """Shows everything behind a preference pair: prompt, responses, votes, models, seeds, versions."""
    from selfreward.report.pair_trace import text
    from selfreward.report.pair_trace import trace as trace_pair
    from selfreward.runs.run import Run

    found = trace_pair(Run.open(run), pair_id)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else text(found))


def _show(finished: Run) -> None:
    from selfreward.report import status

    _print_table(status.status(finished))
    print(finished.path)


def _print_table(state: dict[str, object]) -> None:
    from rich.console import Console

    from selfreward.report.status import table

    width = None if sys.stdout.isatty() else 140
    Console(width=width, highlight=False).print(table(state))


def _version(wanted: bool) -> None:
    if wanted:
        from selfreward import __version__

        print(f"selfreward {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """The options of the command itself."""


# The libraries' own bars and start-up remarks would bury the run's, and none is to report home. A user's settings win.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TQDM_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


def main() -> None:
    """Entry point: what a user can mend is a message and exit status 1, never a traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore", FutureWarning)
    redact.install()
    try:
        redact.refuse(sys.argv[1:])
        app()
    except Stopped as error:
        console.print(str(error), style="yellow", markup=False, soft_wrap=True)
        sys.exit(error.exit_status)
    except Exception as error:
        named = disk_error(error) or error
        report(named)
        mendable = isinstance(named, (ValueError, ChildProcessError, SelfrewardError, OSError))
        if not mendable or os.environ.get("SELFREWARD_DEBUG"):
            raise
        console.print(f"error: {named}", style="red", markup=False, soft_wrap=True)
        console.print("(SELFREWARD_DEBUG=1 shows where it was raised)", style="dim")
        sys.exit(named.exit_status if isinstance(named, SelfrewardError) else 1)
