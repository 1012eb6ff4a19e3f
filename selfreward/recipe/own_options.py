"""The block ``options`` of a recipe: settings that a judge or a prompt source brings itself, as its ``Options``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from selfreward.recipe.loader import OptionError


def own_options(model: type[BaseModel] | None, options: Mapping[str, Any] | None) -> BaseModel | None:
    """The options as the class has them, or None where it has no ``Options``.

    Raises:
        ValidationError: options that do not fit.
    """
    return None if model is None else model.model_validate(options or {})


def check_own_options(
    model: type[BaseModel] | None,
    options: Mapping[str, Any] | None,
    owner: str,
    explain: Callable[[type[BaseModel], Mapping[str, Any]], str],
) -> None:
    """Refuses options that do not fit, or where the owner has none.

    Args:
        model: the owner's ``Options``.
        options: what the recipe has.
        owner: its name in the recipe.
        explain: the message for one of pydantic's problems with them.

    Raises:
        OptionError: with the first problem.
    """
    if options is not None and model is None:
        raise OptionError("options", f"{owner} has no settings of its own. Take options out")
    try:
        own_options(model, options)
    except ValidationError as error:
        assert model is not None
        problem: dict[str, Any] = dict(error.errors(include_url=False)[0])
        raise OptionError(".".join(["options", *map(str, problem["loc"])]), explain(model, problem)) from None
