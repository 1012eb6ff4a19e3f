"""What all blocks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from selfreward.recipe import upstream
from selfreward.recipe.effects import Effect
from selfreward.recipe.loader import is_stored, marks_of, submodel

PositiveInt = Annotated[int, Field(gt=0)]
SIGN_IN = "sign in with HF_TOKEN in the environment, or with `hf auth login`"
FOREIGN = "the library's own stays, as this names Python code to import. Extend selfreward instead: MODULE:CLASS"


class Settings(BaseModel):
    """A block of the recipe: unknown keys and values of a wrong type are errors.

    ``decides`` is whether its settings decide results. True: all do but those that are marked otherwise. False: none
    does. None: each says so itself, by its mark, its type or its block.
    """

    decides: ClassVar[bool | None] = None
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class PassedOn:
    """Marks a block that is handed to a library's class, and checked against the one that is installed.

    ``reserved`` has the options that the loop sets itself, each with what to do instead; ``operational`` has those
    that touch no result.
    """

    source: upstream.Source
    reserved: Mapping[str, str]
    operational: frozenset[str] = frozenset()

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(kind))

    def _check(self, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if not is_stored(info):
            upstream.check(options, self.source, self.reserved)
        return options

    def deciding(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that decide a result."""
        return {name: option for name, option in options.items() if name not in self.operational}


def effect_of(block: type[BaseModel], name: str) -> Effect:
    """What of a block's setting decides results.

    A block in it that may be missing decides by being there, if anything in it decides.

    Raises:
        TypeError: neither the setting nor its class says.
    """
    decides, field = getattr(block, "decides", None), block.model_fields[name]
    inner, marks = submodel(field), marks_of(field)
    if decides is False or getattr(inner, "decides", None) is False:
        return Effect.OPERATIONAL
    effects = [mark for mark in marks if isinstance(mark, Effect)]
    if effects:
        return effects[-1]
    if decides or inner is not None or any(isinstance(mark, PassedOn) for mark in marks):
        return Effect.VALUE
    raise TypeError(
        f"nothing says whether {block.__name__}.{name} decides results. Write Annotated[..., Effect.VALUE] or "
        "another mark of selfreward.recipe.effects, or say `decides` for the whole class"
    )


def deciding_part(field: FieldInfo, value: Any) -> Any:
    """The part of a setting's value that decides results: of options for a library, those that are not operational."""
    handed = next((mark for mark in marks_of(field) if isinstance(mark, PassedOn)), None)
    return value if handed is None else handed.deciding(value)
