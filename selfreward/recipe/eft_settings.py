"""Judging data from ranked human answers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from selfreward.recipe.base import PositiveInt, Settings
from selfreward.recipe.effects import Effect
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.loader import is_stored


class EFTJudgeSettings(JudgeSettings):
    """The judge that writes judging data."""

    # Unlike a run, a data set has it in its marker.
    min_parse_rate: Annotated[float, Field(ge=0.0, le=1.0), Effect.VALUE] = Field(
        0.5, description="Nothing is made where a smaller share of judgements has a readable score."
    )


class EFTSettings(Settings):
    """From ranked answers to judgements that agree with the ranking (arXiv 2401.10020)."""

    decides = True

    judge: EFTJudgeSettings = Field(
        default_factory=EFTJudgeSettings,
        description="How judgements are written, as in a recipe. Its votes are the most rounds a prompt has: each "
        "judges every answer once, and the first round that agrees with the ranking is kept.",
    )
    ties: Literal["drop", "allow"] = Field(
        "drop",
        description="What a round is worth in which answers of different ranks have equal scores: nothing, or as much "
        "as any, unless all its scores are equal.",
    )
    max_answers: Annotated[int, Field(ge=2)] = Field(
        4, description="Most answers of a prompt: the best, the worst, and some evenly between them."
    )
    max_prompts: PositiveInt | None = Field(None, description="Most prompts, drawn at random. Empty: all.")
    max_modal_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.3, description="No score has a greater share of the training part: the most frequent one is thinned out."
    )
    held_out: Annotated[float, Field(ge=0.0)] = Field(
        0.25,
        description="Share (below 1) or number (from 1 on) of the prompts that are kept apart for evaluation.judging.",
    )

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if self.held_out > 1 and not self.held_out.is_integer():
            raise ValueError(f"held_out is {self.held_out}: give a share below 1, or a whole number of prompts")
        name, judge = self.judge.name, self.judge
        if not is_stored(info) and not judge.facts.makes_data:
            raise ValueError(
                f"judge.name is {name}, and judging data are written judgements of one response with its score. Use "
                "additive, or expected_score with think"
            )
        if judge.engine is not None or judge.model is not None:
            raise ValueError("judge.engine or judge.model is set, and the model of the data set judges. Take them out")
        if judge.reference == "prompt":
            raise ValueError("judge.reference is prompt, and ranked answers come without one. Use answer or none")
        return self
