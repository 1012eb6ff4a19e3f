"""The recipe's ``evaluation`` block."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationInfo, model_validator

from selfreward.recipe import registry
from selfreward.recipe.base import PositiveInt, Settings
from selfreward.recipe.loader import RecipeFile, is_stored


class EvaluationSettings(Settings):
    """Measurements on held-out data, of M1 and of the model of each iteration."""

    decides = True

    prompts: RecipeFile | None = Field(
        None,
        description="Held-out prompts, in any format of prompts.path. prompts.columns holds for rows that have such a "
        "column; the others are read under their own names.",
    )
    n: PositiveInt = Field(1, description="Responses sampled for each held-out prompt, besides one greedy.")
    scorer: str | None = Field(
        None,
        description="A verifier's name, or MODULE:FUNCTION from (prompt, response) to a score, or None to abstain: "
        "measures, never trains.",
    )
    pass_score: float | None = Field(None, description="From which gold score on a response passes, for pass rates.")
    judging: RecipeFile | None = Field(
        None, description="Held-out judging data, in the format of seed_data.eft: how well the model judges."
    )
    canaries: Annotated[int, Field(ge=0)] = Field(
        8,
        description="Of how many held-out prompts the judge is also shown empty phrases known to fool judges; the "
        "share that scores no lower than the model's own answer is a figure.",
    )

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if self.scorer is not None and self.prompts is None:
            raise ValueError("a scorer needs evaluation.prompts to score responses to")
        if self.pass_score is not None and self.scorer is None:
            raise ValueError(f"pass_score is {self.pass_score}, and there is no scorer whose scores could pass")
        if self.scorer is not None and not is_stored(info):
            registry.load_function(self.scorer, registry.VERIFIERS, "scorer", ("prompt", "response"))
        return self
