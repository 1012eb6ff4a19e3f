"""From the recipe to its judge."""

from __future__ import annotations

from selfreward import registry
from selfreward.config import Recipe
from selfreward.judges.base import Judge


def load_judge(recipe: Recipe) -> Judge:
    """The recipe's judge. Raises ValueError for a name or settings that don't work."""
    judge: Judge = registry.load(recipe.judge.name, registry.JUDGES, "judge")(recipe.judge)
    return judge
