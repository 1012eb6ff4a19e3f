"""How much disk a stage will take, asked before it begins. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from selfreward.config import Recipe
from selfreward.errors import DiskFull
from selfreward.judges.criteria import read_criteria
from selfreward.plan import Step, makes_model, names
from selfreward.rundir import Run
from selfreward.settings.engine import SamplingSettings
from selfreward.settings.judge import JudgeSettings
from selfreward.stages import TRAINING

# Measured on English text: bytes of a token in JSON; and what a record has besides its text.
BYTES_A_TOKEN, BYTES_A_RECORD = 6, 700
# A stage writes each record to its journal and to its records.
COPIES = 2
SAMPLED = ("anchors", "responses", "judgements", "previous_judgements", "lookahead", "meta")
MARGIN = 128 << 20

# Requests behind a prompt that a model makes: what it writes, compares, answers, and what filters take out.
A_PROMPT = 5


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
    if step.stage in TRAINING:
        return _training(run, step.iteration)
    if step.stage == "prompts":
        asked = [source for source in recipe.prompts.sources if source.needs_model]
        return sum(_bytes(source.generation, A_PROMPT * (recipe.prompts.num or 0)) for source in asked)
    if step.stage in SAMPLED:
        return int(run.stage("prompts", step.iteration).summary["prompts"]) * _of_a_prompt(recipe, step)
    return 0


def _of_a_prompt(recipe: Recipe, step: Step) -> int:
    """The most bytes that a stage which samples or judges writes for one prompt."""
    n = recipe.responses.n
    revised = n * (recipe.responses.principles is not None)
    judged = n + revised + n * ("anchors" in names(recipe, step.iteration))
    if step.stage == "meta":
        assert recipe.meta is not None
        return _bytes(recipe.meta, recipe.judge.votes * (recipe.judge.votes - 1))
    if step.stage == "anchors":
        return _bytes(recipe.responses, n)
    if step.stage == "responses":
        return _bytes(recipe.responses, n + 2 * revised * recipe.responses.revisions)
    if step.stage == "lookahead":
        return _bytes(recipe.responses, n) + _judging(recipe, judged + n)
    return _judging(recipe, judged)


def _judging(recipe: Recipe, num: int) -> int:
    """The most bytes of all judgements of ``num`` responses to one prompt."""
    return sum(_bytes(judge, _calls(judge, num)) for judge in recipe.judge.judges)


def _calls(judge: JudgeSettings, num: int) -> int:
    """How often a judge is asked about ``num`` responses; an answer of its own is one call more."""
    own = int(judge.reference == "answer")
    if judge.name == "pairwise":
        meetings = num * (num - 1) // 2
        if judge.pairwise.matches != "all":
            meetings = min(meetings, judge.pairwise.rounds * (num // 2))
        return own + 2 * meetings * judge.votes
    if judge.name == "rubric" and not judge.rubric.together and judge.criteria is not None:
        return own + num * judge.votes * len(read_criteria(judge.criteria))
    return own + num * judge.votes


def _bytes(settings: SamplingSettings, requests: int) -> int:
    """The most bytes that the answers to some requests take."""
    return COPIES * requests * (settings.max_tokens * BYTES_A_TOKEN + BYTES_A_RECORD)


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
