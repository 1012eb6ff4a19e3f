"""The recipe's ``health`` block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from selfreward.recipe.base import Settings


class HealthSettings(Settings):
    """Signs of collapse, looked for at the end of each stage. Each limit can be empty: not looked for."""

    decides = False

    action: Literal["warn", "halt"] = Field("warn", description="Say so and go on, or stop the run.")
    max_length_ratio: Annotated[float, Field(gt=1.0)] | None = Field(
        2.0, description="Mean tokens of the responses beside those of the first iteration."
    )
    min_distinct: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        0.05,
        description="How different the responses to one prompt are, from 0 (one text) to 1 (no text twice).",
    )
    max_tied: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        0.9, description="Share of prompts whose responses all have the same score."
    )
    max_canary_rate: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        0.5, description="Share of the canaries that the judge accepts."
    )
    min_accepted: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        0.1, description="Share of what was made as prompts that passes the filters."
    )
    max_diversity_drop: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        0.5,
        description="By what share distinct_2 or distinct_roots of the prompts fall below those of the first "
        "iteration. Not looked for where that has fewer than 20 prompts.",
    )
