"""What all blocks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from selfreward.recipe import upstream
from selfreward.recipe.loader import is_stored

PositiveInt = Annotated[int, Field(gt=0)]
SIGN_IN = "sign in with HF_TOKEN in the environment, or with `hf auth login`"
FOREIGN = "the library's own stays, as this names Python code to import. Extend selfreward instead: MODULE:CLASS"


class Settings(BaseModel):
    """A block of the recipe: unknown keys and values of a wrong type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class PassedOn:
    """Marks a block that is handed to a library's class, and checked against the one that is installed.

    ``reserved`` has the options that the loop sets itself, each with what to do instead.
    """

    source: upstream.Source
    reserved: Mapping[str, str]

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(kind))

    def _check(self, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if not is_stored(info):
            upstream.check(options, self.source, self.reserved)
        return options
