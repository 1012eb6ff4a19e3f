"""What a run folder holds: stages, counts and figures by iteration. Reads records only."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from selfreward.runs.history import stale
from selfreward.runs.plan import plan
from selfreward.runs.run import Run
from selfreward.runs.stored import SET_ASIDE
from selfreward.runtime.lock import holder

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
        ``name``, ``path``, ``done``; ``writer``: who is writing now; ``set_aside``: its folders; ``forked_from``;
        ``iterations``: a list with, for each iteration from 0 (the seed), its ``stages``, each with ``done``, its
        ``state`` (done, stale, begun or left), and its summary once it is done.
    """
    iterations: dict[int, dict[str, Any]] = {}
    outdated = stale(run)
    for step in plan(run.recipe):
        folder = run.stage(step.stage, step.iteration)
        entry = iterations.setdefault(step.iteration, {"iteration": step.iteration, "stages": {}})
        state = "stale" if step in outdated else "done" if folder.done else "begun" if folder.started else "left"
        changed = {"changes": [str(change) for change in outdated[step]]} if step in outdated else {}
        summary = folder.summary if folder.done else {}
        entry["stages"][step.stage] = {"done": folder.done, "state": state, **changed, **summary}
    done = all(stage["state"] == "done" for entry in iterations.values() for stage in entry["stages"].values())
    writer = holder(run.path)
    return {
        "name": run.recipe.name,
        "path": str(run.path),
        "done": done,
        "writer": None if writer is None else asdict(writer),
        "set_aside": sorted(f"{SET_ASIDE}/{path.name}" for path in (run.path / SET_ASIDE).glob("[0-9]*")),
        "forked_from": run.origin["forked_from"],
        "iterations": list(iterations.values()),
    }


def lines(state: dict[str, Any]) -> list[str]:
    """What a run is doing and has left, in words."""
    found = []
    if state["forked_from"]:
        found.append("fork of {run}, from iteration {iteration} on".format(**state["forked_from"]))
    if writer := state["writer"]:
        state_of_it = "running" if writer["certain"] else "running, or ended without a word"
        found.append("{}: process {pid} on {host}, since {started}".format(state_of_it, **writer))
    stages = [(f"{e['iteration']}/{name}", stage) for e in state["iterations"] for name, stage in e["stages"].items()]
    found += [f"stale: {name} {'; '.join(s['changes'])}".rstrip() for name, s in stages if s["state"] == "stale"]
    if begun := [name for name, stage in stages if stage["state"] == "begun"]:
        found.append(f"begun: {', '.join(begun)}")
    if state["set_aside"]:
        found.append(f"set aside: {', '.join(state['set_aside'])}")
    left = [name for name, stage in stages if not stage["done"]]
    found.append(f"left to do: {', '.join(left)}" if left else "finished")
    return found


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
