"""What a judge says of itself under its settings, for all who know a judge by its name. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What an engine can be asked for: texts, the probabilities of options, those behind a text that is begun, rewards.
Need = Literal["generate", "option_probs", "prefix", "reward"]


@dataclass(frozen=True)
class JudgeFacts:
    """What holds for a judge; the defaults are those of a class that says nothing of itself.

    ``needs`` is what it asks its engine for; a judge that needs nothing is a function. ``writes``: a judgement is a
    sampled text, of which there can be several. ``lowest`` and ``highest`` bound its scores, where they are known.
    ``is_taught``: judging data can train it. ``makes_data``: its judgements are judging data, written texts on one
    response that end with its score. ``is_compared``: the meta-judge can compare its judgements, which are answers to
    ``messages(prompt, response, reference)``. ``runs`` names foreign code that it calls in this process.
    """

    needs: tuple[Need, ...] = ("generate",)
    writes: bool = True
    lowest: float | None = None
    highest: float | None = None
    is_taught: bool = True
    makes_data: bool = True
    is_compared: bool = False
    runs: str | None = None
