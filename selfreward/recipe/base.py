"""What all blocks share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from selfreward.recipe import upstream
from selfreward.recipe.loader import is_stored

PositiveInt = Annotated[int, Field(gt=0)]
SIGN_IN = "sign in with HF_TOKEN in the environment, or with `hf auth login`"
FOREIGN = "the library's own stays, as this names Python code to import. Extend selfreward instead: MODULE:CLASS"


class Settings(BaseModel):
    """A block of the recipe: unknown keys and values of a wrong type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def passed_on(source: upstream.Source, reserved: dict[str, str]) -> AfterValidator:
    """Checks a block that is handed to a library against the library's own class."""

    def check(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if not is_stored(info):
            upstream.check(options, source, reserved)
        return options

    return AfterValidator(check)
