"""What is asked of a model, counted before it is asked: the cost of judges, sources and stages. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Requests:
    """Requests of one kind.

    ``num`` texts of at most ``max_tokens`` are written. They share ``distinct`` inputs, which are read once each: a
    prefix cache has them for the next request. An input is so many ``prompts``, ``answers`` and ``instructions``, such
    as a judge's. ``asked`` is who answers: M_t, another model or a server, or a function. Answers that are a token's
    probability, or a number, are not ``written``.
    """

    num: int
    max_tokens: int
    distinct: int
    prompts: float = 1
    answers: float = 0
    instructions: float = 0
    asked: Literal["policy", "other", "function"] = "policy"
    written: bool = True

    def times(self, count: int) -> Requests:
        """As many again for each of so many prompts."""
        return replace(self, num=self.num * count, distinct=self.distinct * count)
