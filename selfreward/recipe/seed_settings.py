"""The recipe's ``seed_data`` block."""

from __future__ import annotations

from pydantic import Field

from selfreward.recipe.base import Settings
from selfreward.recipe.loader import RecipeFile


class SeedDataSettings(Settings):
    """Data of the seed stage, which makes M1 from M0 by SFT (section 2.1 of arXiv 2401.10020)."""

    decides = True

    ift: RecipeFile = Field(
        description="Instruction data, in any format of prompts.path that has an answer: `prompt` and `response`, "
        "`instruction`, `input` and `output`, conversations."
    )
    eft: RecipeFile | None = Field(
        None, description="Judging data: JSONL with `prompt`, `response` and `judgement`. Empty: none."
    )
