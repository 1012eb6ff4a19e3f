"""The protocol of a judge, and what its judgements amount to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from selfreward.config import JudgeSettings
from selfreward.engines import Sampler
from selfreward.records import Judgement, Message, Prompt, Response


class Judge(Protocol):
    """Scores the responses to one prompt; a plain coroutine over an engine.

    ``pointwise``: each response is judged by itself, so that judging can begin while others are still sampled.
    """

    pointwise: bool

    def __init__(self, settings: JudgeSettings) -> None:
        """Reads its part of the recipe.

        Raises:
            ValueError: settings or files that this judge can't work with.
        """

    def messages(self, prompt: str, response: str) -> list[Message]:
        """The judge prompt, which judging data is also trained with."""

    def parse(self, text: str) -> tuple[float | None, str | None]:
        """(score, None) or (None, name of the error), from the judge's own text alone."""

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        """All judgements of the responses to one prompt.

        Args:
            engine: serves the judging model.
            prompt: the prompt.
            responses: its responses.
            seed: every choice derives from it.
        """


def mean_scores(judgements: Iterable[Judgement]) -> dict[str, float]:
    """The mean of the parsed votes by response id; a response without any is left out."""
    votes: defaultdict[str, list[float]] = defaultdict(list)
    for judgement in judgements:
        if judgement.score is not None:
            votes[judgement.subject_ids[0]].append(judgement.score)
    return {subject: sum(scores) / len(scores) for subject, scores in votes.items()}
