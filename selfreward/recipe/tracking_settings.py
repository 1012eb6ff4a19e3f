"""The recipe's ``tracking`` block."""

from __future__ import annotations

import re

from pydantic import Field, ValidationInfo, field_validator

from selfreward.recipe.base import Settings
from selfreward.recipe.loader import is_stored, shown


class TrackingSettings(Settings):
    """Where loop metrics and trainer logs go besides ``metrics.jsonl``."""

    decides = False

    report_to: list[str] = Field(
        default_factory=list, description="accelerate's trackers: tensorboard, wandb, trackio, mlflow, ..."
    )
    project: str = Field("selfreward", description="The project's name in the tracker.")

    @field_validator("project")
    @classmethod
    def _plain_name(cls, value: str, info: ValidationInfo) -> str:
        # Trackers that write files make a folder of it.
        if not is_stored(info) and not re.fullmatch(r"\w[\w .-]{0,99}", value):
            raise ValueError(f"{shown(value)} is not a project's name: use letters, digits, ' ', '.', '_' and '-'")
        return value
