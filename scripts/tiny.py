"""``python scripts/tiny.py``: builds the tiny model and its data from nothing, and measures the quick start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import selfreward

TINY = Path(selfreward.__file__).parent / "tiny"
app = typer.Typer(help="The world of the quick start.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Where to put model/ and data/.")] = TINY,
    data_only: Annotated[bool, typer.Option("--data-only", help="Leave the model as it is.")] = False,
) -> None:
    """Writes the data files (seconds) and trains M0 (20 minutes on two cores)."""
    from tiny_world.make_data import write_data
    from tiny_world.pretrain import pretrain

    write_data(out / "data")
    if not data_only:
        pretrain(out / "model")


@app.command()
def measure(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.")] = 5,
    run_dir: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/seeds"),
    recipe: Annotated[Path, typer.Option(help="The recipe.")] = Path("recipes/quickstart/run.yaml"),
) -> None:
    """Runs the quick start over several seeds and prints what each model scored, as Markdown."""
    from tiny_world.measure import report, run_seeds

    print(report(run_seeds(recipe, range(seeds), run_dir, overrides or [])))


@app.command()
def ablate(
    grid: Annotated[Path, typer.Argument(help="What is compared.")] = Path("recipes/ablations/grid.yaml"),
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.")] = 5,
    run_dir: Annotated[Path, typer.Option(help="Where the runs go; finished ones are kept.")] = Path("runs/ablations"),
    jobs: Annotated[int, typer.Option(help="Runs at once, each with one thread.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="A combination; repeat for more. Default: all.")] = None,
) -> None:
    """Runs every combination of a grid over several seeds and prints what each gained, as Markdown."""
    from tiny_world import ablations

    every = ablations.cells(grid, range(seeds), run_dir, only or [])
    ablations.perform(every, jobs)
    print(ablations.report(every))


if __name__ == "__main__":
    app()
