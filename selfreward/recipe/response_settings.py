"""The recipe's ``responses`` block."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfreward.recipe.base import PositiveInt
from selfreward.recipe.engine_settings import SamplingSettings
from selfreward.recipe.loader import RecipeFile

Rule = Literal["drop", "keep"]


class ResponseSettings(SamplingSettings):
    """N responses to each prompt, sampled from M_t."""

    n: Annotated[int, Field(ge=2)] = Field(4, description="Responses to each prompt; at least 2.")
    on_empty: Rule = Field("drop", description="Responses without text: drop them from selection, or keep them.")
    on_truncated: Rule = Field("drop", description="Responses cut at max_tokens: drop or keep.")
    on_duplicate: Rule = Field("keep", description="Responses with the text of an earlier one: drop or keep.")
    principles: RecipeFile | None = Field(
        None,
        description="A text file with one principle a line: each response is criticised and revised by M_t under "
        "principles of it (arXiv 2212.08073), and the last revision is a response too.",
    )
    revisions: PositiveInt = Field(1, description="Turns of critique and revision; needs principles.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.temperature == 0:
            raise ValueError(f"temperature is 0, and all {self.n} responses to a prompt would be the same. Raise it")
        if self.revisions > 1 and self.principles is None:
            raise ValueError(
                f"revisions is {self.revisions}, and there are no principles to revise by. Name their file"
            )
        return self
