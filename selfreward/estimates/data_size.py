"""How much data a recipe has, and what a run of it has measured so far. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from selfreward.evaluation.canaries import canaries
from selfreward.prompts.dataset import read_held_out, read_tasks
from selfreward.prompts.seed_data import read_demonstrations, read_graded
from selfreward.recipe.recipe import Recipe
from selfreward.records import Prompt
from selfreward.runs.plan import plan
from selfreward.runs.run import Run
from selfreward.runs.stored import RECIPE

# Characters of a token of English text; tokens of a prompt that is not there yet, and of a packaged judge prompt.
CHARACTERS_A_TOKEN, PROMPT_TOKENS, INSTRUCTION_TOKENS = 4, 100, 300


@dataclass(frozen=True)
class Data:
    """Numbers of rows, and mean tokens of a prompt, of what a judge is told, and of an example of the seed data."""

    prompts: int
    prompt_tokens: float
    instruction_tokens: float = INSTRUCTION_TOKENS
    seed_examples: int = 0
    seed_tokens: float = 0.0
    held_out: int = 0
    graded: int = 0
    canaries: int = 0


def count(recipe: Recipe) -> Data:
    """Reads the recipe's files; rows of the hub and those that a model makes are counted as ``prompts.num``.

    Raises:
        ValueError: a bad row, or prompts from the hub without ``prompts.num``.
    """
    seed = _seed(recipe)
    held_out = read_held_out(recipe.evaluation, recipe.prompts) if recipe.evaluation.prompts is not None else []
    graded = read_graded(recipe.evaluation.judging) if recipe.evaluation.judging is not None else []
    num, length = _prompts(recipe) if recipe.iterations else (0, 0.0)
    return Data(
        prompts=num,
        prompt_tokens=length,
        instruction_tokens=_instructions(recipe),
        seed_examples=len(seed),
        seed_tokens=_tokens(seed),
        held_out=len(held_out),
        graded=len(graded),
        canaries=min(recipe.evaluation.canaries, len(held_out)) * (1 + len(canaries())),
    )


def _prompts(recipe: Recipe) -> tuple[int, float]:
    settings = recipe.prompts
    if settings.parts or settings.path is None or any(source.writes for source in settings.sources):
        if settings.num is None:
            raise ValueError(
                "prompts.num is empty, and how many prompts an iteration has is not known before they are made or "
                "fetched. For the plan give a number, such as prompts.num=1000"
            )
        return settings.num, PROMPT_TOKENS
    tasks = read_tasks(settings)[0]
    return settings.num or len(tasks), _tokens([_text(task.prompt) for task in tasks])


def _instructions(recipe: Recipe) -> float:
    own = [judge.template.read_text(encoding="utf-8") for judge in recipe.judge.judges if judge.template is not None]
    return _tokens(own) or INSTRUCTION_TOKENS


def _seed(recipe: Recipe) -> list[str]:
    """The examples of the seed stage as texts."""
    if recipe.seed_data is None:
        return []
    rows = read_demonstrations(recipe.seed_data.ift)
    texts = ["".join(message["content"] for message in row.messages) + row.response for row in rows]
    if recipe.seed_data.eft is not None:
        texts += [row.prompt + row.response + row.judgement for row in read_graded(recipe.seed_data.eft)]
    return texts


def _text(prompt: Prompt) -> str:
    return "".join(message["content"] for message in prompt.messages)


def _tokens(texts: Sequence[str]) -> float:
    return fmean(map(len, texts)) / CHARACTERS_A_TOKEN if texts else 0.0


def measured(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The summary of the last finished stage of each name in the recipe's run, with its ``iteration``.

    The training of the seed is called ``seed``. Empty where there is no run yet.
    """
    folder = recipe.run_dir / recipe.name
    return of_run(Run.open(folder)) if (folder / RECIPE).is_file() else {}


def of_run(run: Run) -> dict[str, dict[str, Any]]:
    """The same of a run."""
    done = [step for step in plan(run.recipe) if run.stage(step.stage, step.iteration).done]
    return {
        "seed" if (step.stage, step.iteration) == ("train", 0) else step.stage: {
            "iteration": step.iteration,
            **run.stage(step.stage, step.iteration).summary,
        }
        for step in done
    }
