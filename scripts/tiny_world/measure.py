"""The quick start over several seeds: what it promises, and whether each seed kept it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from selfreward.report.status import status
from selfreward.runs.run import Run

FIGURES = {
    "gold, sampled": "gold_sampled",
    "greedy passed": "passed_greedy",
    "judge Spearman": "judge_spearman",
    "judge pairwise accuracy": "judge_pairwise_accuracy",
    "judge scored": "judge_scored",
    "response tokens": "response_tokens",
}
SPEARMAN_MAY_FALL = 0.03


def run_seeds(recipe: Path, seeds: Sequence[int], run_dir: Path, overrides: Sequence[str]) -> list[Run]:
    """Runs the recipe once a seed, each by the command that a person would type. Finished runs are kept."""
    runs = []
    for seed in seeds:
        settings = [f"name=seed_{seed}", f"seed={seed}", f"run_dir={run_dir}", *overrides]
        subprocess.run([sys.executable, "-m", "selfreward", "run", str(recipe), *settings], check=True)
        runs.append(Run.open(run_dir / f"seed_{seed}"))
    return runs


def report(runs: Sequence[Run]) -> str:
    """Two Markdown tables: mean and standard deviation by model, and each seed's promises."""
    evaluations = [_evaluations(run) for run in runs]
    models = [f"M{t + 1}" for t in range(len(evaluations[0]))]
    lines = [f"| | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for heading, name in FIGURES.items():
        cells = [_spread([evaluation[t][name] for evaluation in evaluations]) for t in range(len(models))]
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    lines += ["", "| seed | gold, sampled | gain on M1 (95 %) | greedy passed | judge Spearman | kept | seconds |"]
    lines.append("|---" * 7 + "|")
    lines += [_seed_row(run, evaluation) for run, evaluation in zip(runs, evaluations, strict=True)]
    return "\n".join(lines)


def kept(evaluations: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """The four promises for one run, from the evaluations of M1, M2, ..."""
    first, last = evaluations[0], evaluations[-1]
    golds = [evaluation["gold_sampled"] for evaluation in evaluations]
    return {
        "rises": all(a < b for a, b in pairwise(golds)),
        "interval": last["gain_low"] > 0,
        "greedy": last["passed_greedy"] >= first["passed_greedy"],
        "judge": first["judge_spearman"] - last["judge_spearman"] <= SPEARMAN_MAY_FALL,
    }


def _evaluations(run: Run) -> list[dict[str, Any]]:
    return [entry["stages"]["evaluate"] for entry in status(run)["iterations"]]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def _seed_row(run: Run, evaluations: Sequence[dict[str, Any]]) -> str:
    def path(name: str) -> str:
        return " → ".join(f"{evaluation[name]:.3f}" for evaluation in evaluations)

    last = evaluations[-1]
    broken = [name for name, holds in kept(evaluations).items() if not holds]
    seconds = sum(stage["seconds"] for entry in status(run)["iterations"] for stage in entry["stages"].values())
    cells = (
        str(run.recipe.seed),
        path("gold_sampled"),
        f"{last['gain']:+.3f} [{last['gain_low']:+.3f}, {last['gain_high']:+.3f}]",
        path("passed_greedy"),
        path("judge_spearman"),
        "all" if not broken else f"not: {', '.join(broken)}",
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"
