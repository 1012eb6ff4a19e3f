"""How much disk a stage will take, asked before it begins. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from selfreward.errors import DiskFull
from selfreward.estimates.requests import Requests, asks_by_prompt, of_a_prompt, of_all_prompts
from selfreward.recipe.recipe import Recipe
from selfreward.runs.plan import makes_model
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Step

# Measured on English text: bytes of a token in JSON; and what a record has besides its text.
BYTES_A_TOKEN, BYTES_A_RECORD = 6, 700
# A stage writes each record to its journal and to its records.
COPIES = 2
MARGIN = 128 << 20
BYTES_A_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}


def require(run: Run, steps: Sequence[Step]) -> None:
    """Raises DiskFull if the disk has less room than the steps may take at most."""
    need = MARGIN + sum(estimate(run, step) for step in steps)
    free = shutil.disk_usage(run.path).free
    if free < need:
        what = " and ".join(map(str, steps))
        raise DiskFull(
            f"{what} may take {_gib(need)} of disk, and {run.path} has {_gib(free)} left. Make room, or move the run "
            "folder to another disk; then selfreward resume"
        )


def estimate(run: Run, step: Step) -> int:
    """The most bytes that a step may write."""
    recipe = run.recipe
    stage = STAGES[step.stage]
    if stage.trains:
        return _training(run, step.iteration)
    num = recipe.prompts.num or 0
    if asks_by_prompt(stage):
        num = int(run.stage("prompts", step.iteration).summary["prompts"])
    return of_records(recipe, step, num)


def of_records(recipe: Recipe, step: Step, num: int) -> int:
    """The most bytes of the records that a stage writes about ``num`` prompts."""
    stage = STAGES[step.stage]
    if "prompts" in stage.asks:
        return _bytes(of_all_prompts(recipe, num))
    return num * _bytes(of_a_prompt(recipe, stage, step.iteration)) if asks_by_prompt(stage) else 0


def _bytes(requests: Iterable[Requests]) -> int:
    """The most bytes that the answers to some requests take."""
    return sum(COPIES * each.num * (each.max_tokens * BYTES_A_TOKEN + BYTES_A_RECORD) for each in requests)


def of_training(weights: int, dtype: str, seed: bool) -> int:
    """The most bytes that a training writes, of a model with so many bytes of weights.

    That is the merged model, and one that is being written; for SFT also float32 weights, and a checkpoint of them
    with two moments.
    """
    masters = weights // BYTES_A_WEIGHT[dtype] * (4 + 12) if seed else 0
    return 2 * weights + masters


def _training(run: Run, iteration: int) -> int:
    maker = makes_model(run.recipe, iteration)
    folder = Path(run.model_path(iteration))
    if maker is None and not folder.is_dir():
        return 0  # a hub model, whose size is seen when it is trained
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return of_training(weights, run.recipe.model.dtype, seed=not iteration)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
