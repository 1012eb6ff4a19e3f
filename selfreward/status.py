"""What a run folder holds: stages, counts and figures by iteration. Reads records only."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from selfreward.plan import plan
from selfreward.rundir import Run

# Figures of the table: heading, stage and name. `evaluate` of iteration t measures M_{t+1}.
COLUMNS = (
    ("gold, sampled", "evaluate", "gold_sampled", "{:.3f}"),
    ("gain on M1 (95 %)", "evaluate", "gain", "{:+.3f}"),
    ("greedy passed", "evaluate", "passed_greedy", "{:.1%}"),
    ("own score", "evaluate", "own_score", "{:.3f}"),
    ("judge Spearman", "evaluate", "judge_spearman", "{:.3f}"),
    ("judge scored", "evaluate", "judge_scored", "{:.1%}"),
    ("tokens", "evaluate", "response_tokens", "{:.1f}"),
    ("pairs", "pairs", "pairs", "{}"),
    ("rejected", "pairs", "prompts_rejected", "{}"),
)


def status(run: Run) -> dict[str, Any]:
    """The state of a run.

    Returns:
        ``name``, ``path``, ``done`` and ``iterations``: a list with, for each iteration from 0 (the seed),
        its ``stages``, each with ``done`` and, once done, its summary.
    """
    iterations: dict[int, dict[str, Any]] = {}
    for step in plan(run.recipe):
        folder = run.stage(step.stage, step.iteration)
        entry = iterations.setdefault(step.iteration, {"iteration": step.iteration, "stages": {}})
        entry["stages"][step.stage] = {"done": folder.done, **(folder.summary if folder.done else {})}
    done = all(stage["done"] for entry in iterations.values() for stage in entry["stages"].values())
    return {"name": run.recipe.name, "path": str(run.path), "done": done, "iterations": list(iterations.values())}


def table(state: dict[str, Any]) -> Table:
    """One row a model, M1 first: what it scored, and the pairs that trained it."""
    columns = [c for c in COLUMNS if any(_value(entry, c[1], c[2]) is not None for entry in state["iterations"])]
    view = Table(title=f"run {state['name']}", title_justify="left")
    view.add_column("model")
    for heading, *_ in columns:
        view.add_column(heading, justify="right")
    view.add_column("seconds", justify="right")
    for entry in state["iterations"]:
        cells = [_cell(entry, *column[1:]) for column in columns]
        seconds = sum(stage.get("seconds", 0.0) for stage in entry["stages"].values())
        view.add_row(f"M{entry['iteration'] + 1}", *cells, f"{seconds:.0f}")
    return view


def _value(entry: dict[str, Any], stage: str, name: str) -> Any:
    return entry["stages"].get(stage, {}).get(name)


def _cell(entry: dict[str, Any], stage: str, name: str, form: str) -> str:
    value = _value(entry, stage, name)
    if value is None:
        return ""
    text = form.format(value)
    if name == "gain":
        text += f" [{_value(entry, stage, 'gain_low'):+.2f}, {_value(entry, stage, 'gain_high'):+.2f}]"
    return text
