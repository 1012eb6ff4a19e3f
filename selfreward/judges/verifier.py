"""A judge that is a Python function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from selfreward.engines import Sampler
from selfreward.judges.base import Example, mean_scores
from selfreward.judges.single import one_judgement, refuse_settings
from selfreward.recipe import registry
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.loader import shown
from selfreward.records import Graded, Judgement, Prompt, Response

Verifier = Callable[..., float | bool | None]


class VerifierJudge:
    """Calls ``function(prompt, response, **options)``, which gives a score, or None to abstain; asks no engine.

    The function runs in the run's own process, in no sandbox, and each call holds up all others: name only code that
    you trust, and let it run nothing that a model wrote.
    """

    pointwise = True
    # What the functions that come with selfreward give at most; another function may use another scale.
    best: float | None
    scores = staticmethod(mean_scores)

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises ValueError for a function that can't be found, or options that it does not take."""
        refuse_settings(settings, ("template", "reference", "engine", "model"))
        self._settings = settings
        # A function of the user's own may have any scale.
        self.best = 1.0 if settings.verifier.function in registry.VERIFIERS else None
        self._name = settings.verifier.function
        self._function: Verifier = registry.load(self._name, registry.VERIFIERS, "verifier")
        self._options = read_options(self._function, settings.verifier.options)

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        return [self._judge(prompt, response, seed) for response in responses]

    def _judge(self, prompt: Prompt, response: Response, seed: int) -> Judgement:
        score = self._score(prompt, response.text)
        if score is None:
            text, error = f"{self._name} abstains", "abstained"
        else:
            text, error = f"{self._name} gives {score:g}", None
        return one_judgement(self._settings, response, seed, text, self._name, score=score, error=error)

    def _score(self, prompt: Prompt, response: str) -> float | None:
        try:
            given: object = self._function(prompt, response, **self._options)
        except Exception as error:
            raise ValueError(
                f"verifier {self._name}: prompt {prompt.id}: {type(error).__name__}: {error}. Mend the function or its "
                "options; for a response that it can't score it returns None"
            ) from error
        if given is None:
            return None
        if isinstance(given, Real) and math.isfinite(given):
            return float(given)
        raise ValueError(
            f"verifier {self._name}: prompt {prompt.id}: it returned {shown(given)}. Let it return a number, a bool, "
            "or None to abstain"
        )

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """None: no model learns what a function does."""
        return []


def read_options(function: Verifier, options: dict[str, Any]) -> dict[str, Any]:
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
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # annotations that only a type checker can follow
        return options
    return {name: _read_option(name, hints.get(name, Any), value) for name, value in options.items()}


def _read_option(name: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(["judge.verifier.options", name, *map(str, problem["loc"])])
        text = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {text[0].lower()}{text[1:]}. The value is {shown(problem['input'])}") from None
