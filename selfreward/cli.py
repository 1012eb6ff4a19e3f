"""The command line: thin verbs over the same functions that Python callers use."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from selfreward import stages
from selfreward.config import load_recipe
from selfreward.progress import console

app = typer.Typer(
    help="A language model that samples, judges and trains itself: self-rewarding DPO (arXiv 2401.10020).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

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
def run(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Runs a recipe. Run it again after an interruption: finished stages are kept."""
    from selfreward import loop, status

    finished = loop.run(load_recipe(recipe, overrides or []))
    _print_table(status.status(finished))
    print(finished.path)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="STAGE", help=f"One of {', '.join(stages.NAMES)}.")],
    run: RunArgument,
    iteration: Annotated[int, typer.Option(help="The iteration, from 1; 0 is the seed.")],
) -> None:
    """Performs one stage of an existing run, also under `accelerate launch -m selfreward`."""
    from selfreward import loop
    from selfreward.launchers import leave_group
    from selfreward.plan import find_step
    from selfreward.rundir import Run
    from selfreward.serving import Engines

    current = Run.open(run)
    step = find_step(current.recipe, name, iteration)
    with Engines(current.recipe) as engines:
        loop.perform_here(current, step, engines)
    leave_group()


@app.command()
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: everything, as JSON.")] = False,
) -> None:
    """Shows what a run has done, its counts and its figures."""
    from selfreward import status as report
    from selfreward.rundir import Run

    state = report.status(Run.open(run))
    if as_json:
        print(json.dumps(state, indent=2))
        return
    _print_table(state)
    left = [f"{e['iteration']}/{name}" for e in state["iterations"] for name, s in e["stages"].items() if not s["done"]]
    print(f"left to do: {', '.join(left)}" if left else "finished")


def _print_table(state: dict[str, object]) -> None:
    from rich.console import Console

    from selfreward.status import table

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
    try:
        app()
    except (ValueError, ChildProcessError) as error:
        if os.environ.get("SELFREWARD_DEBUG"):
            raise
        console.print(f"error: {error}", style="red", markup=False)
        console.print("(SELFREWARD_DEBUG=1 shows where it was raised)", style="dim")
        sys.exit(1)
