"""How much disk a stage will take, asked before it begins. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from selfreward.errors import DiskFull
from selfreward.plan import Step, makes_model
from selfreward.rundir import Run

# Measured on English text: bytes of a token in JSON; and what a record has besides its text.
BYTES_A_TOKEN, BYTES_A_RECORD = 6, 700
# A stage writes each record to its journal and to its records.
COPIES = 2
MARGIN = 128 << 20


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
    if step.stage == "train":
        return _training(run, step.iteration)
    if step.stage in ("responses", "judgements"):
        prompts = int(run.stage("prompts", step.iteration).summary["prompts"])
        requests, tokens = prompts * recipe.responses.n, recipe.responses.max_tokens
        if step.stage == "judgements":
            requests, tokens = requests * recipe.judge.votes, recipe.judge.max_tokens
        return COPIES * requests * (tokens * BYTES_A_TOKEN + BYTES_A_RECORD)
    return 0


def _training(run: Run, iteration: int) -> int:
    """The merged model; for SFT also float32 weights and a checkpoint of them with two moments."""
    maker = makes_model(run.recipe, iteration)
    folder = Path(run.model_path(iteration))
    if maker is None and not folder.is_dir():
        return 0  # a hub model, whose size is seen when it is trained
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    bytes_a_weight = {"float32": 4, "bfloat16": 2, "float16": 2}[run.recipe.model.dtype]
    masters = 0 if iteration else weights // bytes_a_weight * (4 + 12)
    return 2 * weights + masters


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
