"""What a judge compares a response with: an answer of its own, or the prompt's reference."""

from __future__ import annotations

from selfreward.engines import Sampler, SamplingParams
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Prompt


class Reference:
    """The recipe's ``judge.reference``.

    A judge that answers before it sees any answer passes far fewer wrong ones: false positives fell from .719 to
    .012 (arXiv 2607.05904).
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self._kind = settings.reference
        self._greedy = SamplingParams(0.0, 1.0, settings.max_tokens)

    @property
    def places(self) -> tuple[str, ...]:
        """The places that a template needs for it."""
        return () if self._kind == "none" else ("reference",)

    async def of(self, engine: Sampler, prompt: Prompt) -> str | None:
        """The text to compare with; None where there is none."""
        if self._kind == "prompt":
            return prompt.reference
        if self._kind == "answer":
            [answer] = await engine.generate(prompt.messages, self._greedy, [0])
            return answer.text.strip() or None
        return None

    def shown(self, reference: str | None) -> str | None:
        """What a judge prompt shows of a reference that may be at hand."""
        return None if self._kind == "none" else reference
