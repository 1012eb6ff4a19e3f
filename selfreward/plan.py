"""The steps of a run in their order, and what each reads. Names are those of arXiv 2401.10020.

M0 is the base model and M1 the seed model. Iteration t samples and judges with M_t and trains M_{t+1};
its evaluation measures M_{t+1}, so the one of iteration 0 measures M1.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfreward import stages
from selfreward.config import Recipe


@dataclass(frozen=True)
class Step:
    """One stage of one iteration; iteration 0 is the seed."""

    stage: str
    iteration: int

    def __str__(self) -> str:
        return f"{f'iteration {self.iteration}' if self.iteration else 'seed'}: {self.stage}"


def plan(recipe: Recipe) -> list[Step]:
    """Every step of a run in its order."""
    steps = [Step("train", 0)] if recipe.seed_data is not None else []
    evaluated = recipe.evaluation.prompts is not None or recipe.evaluation.judging is not None
    steps += [Step("evaluate", 0)] if evaluated else []
    for iteration in range(1, recipe.iterations + 1):
        names = [name for name in stages.NAMES if name != "evaluate" or evaluated]
        steps += [Step(name, iteration) for name in names]
    return steps


def find_step(recipe: Recipe, stage: str, iteration: int) -> Step:
    """The step of the plan with that name. Raises ValueError if the plan has none."""
    steps = plan(recipe)
    step = Step(stage, iteration)
    if step not in steps:
        known = ", ".join(f"{s.stage} --iteration {s.iteration}" for s in steps)
        raise ValueError(f"the plan has no stage {stage} in iteration {iteration}. It has: {known}")
    return step


def makes_model(recipe: Recipe, t: int) -> Step | None:
    """The step that makes M_t, or None where M_t is the recipe's own model."""
    return None if t == 0 or (t == 1 and recipe.seed_data is None) else Step("train", t - 1)


# The stages of the same iteration whose records a stage reads.
_READS = {
    "prompts": (),
    "responses": ("prompts",),
    "judgements": ("prompts", "responses"),
    "pairs": ("prompts", "responses", "judgements"),
    "train": ("pairs",),
    "evaluate": (),
}


def reads_model(step: Step) -> int | None:
    """The t of the M_t that a step loads, or None."""
    if step.stage == "prompts":
        return None
    return step.iteration + 1 if step.stage == "evaluate" else step.iteration


def inputs(recipe: Recipe, step: Step) -> list[Step]:
    """The steps whose results a step reads itself, its model's training among them."""
    found = [Step(name, step.iteration) for name in _READS[step.stage]] if step.iteration else []
    if (t := reads_model(step)) is not None and (maker := makes_model(recipe, t)) is not None:
        found.append(maker)
    if step.stage == "evaluate" and step.iteration:
        found.append(Step("evaluate", 0))
    return found
