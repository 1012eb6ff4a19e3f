"""A Python function that scores a response: a verifier, which judges, or a scorer, which only measures.

Both have one signature, ``(prompt, response, **options) -> float | None``: the prompt is a ``Prompt``, or its text
where the parameter is annotated ``str``; the response is a text; None abstains. A scorer gets no options.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from selfreward.recipe import registry
from selfreward.recipe.loader import shown
from selfreward.recipe.signatures import require_arguments
from selfreward.records import Prompt

Kind = Literal["verifier", "scorer"]
SCORED = ("prompt", "response")


class ScoreFunction:
    """Calls a function by its name, with options that are read as its annotations have them.

    It runs in the run's own process, in no sandbox.
    """

    def __init__(self, name: str, kind: Kind, options: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError for a function that can't be found or called, or options that it does not take."""
        self._name = f"{kind} {name}"
        self._function: Callable[..., object] = registry.load(name, registry.VERIFIERS, kind)
        if options is None:
            require_arguments(self._function, SCORED, f"{kind} {name!r}")
        hints = _hints(self._function)
        self._options = {} if options is None else function_options(self._function, options, hints)
        first = next(iter(inspect.signature(self._function).parameters), "")
        self._reads_text = hints.get(first) is str

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        """The score of a response, or None where the function abstains.

        Raises:
            ValueError: the function failed, or gave something else than a number.
        """
        try:
            given: object = self._function(prompt.text if self._reads_text else prompt, response, **self._options)
        except Exception as error:
            raise ValueError(
                f"{self._name}: prompt {prompt.id}: {type(error).__name__}: {error}. Mend the function or its "
                "options; for a response that it can't score it returns None"
            ) from error
        if given is None:
            return None
        if isinstance(given, Real) and math.isfinite(given):
            return float(given)
        raise ValueError(
            f"{self._name}: prompt {prompt.id}: it returned {shown(given)}. Let it return a number, a bool, "
            "or None to abstain"
        )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:  # annotations that only a type checker can follow
        return {}


def function_options(
    function: Callable[..., Any], options: Mapping[str, Any], hints: Mapping[str, Any]
) -> dict[str, Any]:
    """The options as the function's annotations have them: a pattern compiled, a number a number.

    Raises:
        ValueError: an option that the function has not, one that it needs, or a bad value.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(None, "", **options)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[2:]) or "none"
        raise ValueError(f"judge.verifier.options: {error}. Its options: {known}") from None
    return {name: _read_option(name, hints.get(name, Any), value) for name, value in options.items()}


def _read_option(name: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(["judge.verifier.options", name, *map(str, problem["loc"])])
        text = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {text[0].lower()}{text[1:]}. The value is {shown(problem['input'])}") from None
