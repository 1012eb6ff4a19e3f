"""The steps of a run in their order. Names are those of arXiv 2401.10020.

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


def before(recipe: Recipe, step: Step) -> list[Step]:
    """The steps whose results a step may read: nothing but an evaluation reads the evaluation of M1."""
    steps = plan(recipe)
    earlier = steps[: steps.index(step)]
    return [s for s in earlier if s.stage != "evaluate" or (step.stage == "evaluate" and s.iteration == 0)]
