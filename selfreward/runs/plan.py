"""The steps of a run in their order, and what each reads: the table of stages, asked for one recipe. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfreward.recipe.recipe import Recipe
from selfreward.runs.stages import STAGES, Step


def plan(recipe: Recipe) -> list[Step]:
    """Every step of a run in its order."""
    return [Step(name, t) for t in range(recipe.iterations + 1) for name in names(recipe, t)]


def names(recipe: Recipe, iteration: int) -> list[str]:
    """The stages of an iteration in their order."""
    return [stage.name for stage in STAGES.values() if stage.planned(recipe, iteration)]


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


def models_of(recipe: Recipe, step: Step, decisions: Sequence[Any] = ()) -> Sequence[int]:
    """The t of each M_t that a step loads.

    Args:
        recipe: the run's.
        step: of its plan.
        decisions: which models were not promoted, as records. No recipe decides so: there are none.
    """
    assert not decisions, "every model that is trained becomes the next one"
    return STAGES[step.stage].models(recipe, step.iteration)


def inputs(recipe: Recipe, step: Step) -> list[Step]:
    """The steps whose results a step reads itself, the training of its models among them."""
    stage, t = STAGES[step.stage], step.iteration
    found = [Step(name, t) for name in names(recipe, t) if name in stage.reads] if t else []
    found += [maker for m in models_of(recipe, step) if (maker := makes_model(recipe, m)) is not None]
    return [*found, *stage.earlier(recipe, t)]
