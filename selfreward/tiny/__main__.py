"""``python -m selfreward.tiny build``: the tiny model and its data from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
app = typer.Typer(help="Rebuilds what the quick start ships with.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Where to put model/ and data/.")] = HERE,
    data_only: Annotated[bool, typer.Option("--data-only", help="Leave the model as it is.")] = False,
) -> None:
    """Writes the data files (seconds) and trains M0 (20 minutes on two cores)."""
    from selfreward.tiny.data import write_data
    from selfreward.tiny.pretrain import pretrain

    write_data(out / "data")
    if not data_only:
        pretrain(out / "model")


@app.callback()
def options() -> None:
    """Keeps `build` a command of its own."""


if __name__ == "__main__":
    app()
