"""The additive judge of Self-Rewarding Language Models (arXiv 2401.10020, figure 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from selfreward.engines import Sampler, SamplingParams
from selfreward.judges.base import TEMPLATES, Example, Judge, make_judgement
from selfreward.judges.reference import Reference
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Message, Prompt, Response, derive_seed
from selfreward.text.prompt_template import Template
from selfreward.text.scores import read_score


class AdditiveJudge(Judge):
    """Sampled votes, one point for each criterion met; the score of a response is the mean of its votes."""

    uses: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self, settings: JudgeSettings) -> None:
        super().__init__(settings)
        self._params = SamplingParams.of(settings)
        self._reference = Reference(settings)
        places = ("prompt", "response", *self._reference.places)
        self._template = Template.read(settings.template or TEMPLATES / "additive.txt", places)

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        return JudgeFacts(lowest=float(settings.min_score), highest=float(settings.max_score), is_compared=True)

    def messages(self, prompt: str, response: str, reference: str | None = None) -> list[Message]:
        """The judge prompt."""
        return self._template.fill(prompt=prompt, response=response, reference=self._reference.shown(reference))

    def parse(self, text: str, cut: bool = False) -> tuple[float | None, str | None]:
        """(score, None) or (None, name of the error), from the judge's own text alone, which may have been cut off."""
        return read_score(text, self.settings.min_score, self.settings.max_score, cut)

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        reference = await self._reference.of(engine, prompt)
        votes = await asyncio.gather(*(self._votes(engine, prompt, r, seed, reference) for r in responses))
        return [judgement for of_response in votes for judgement in of_response]

    async def _votes(
        self, engine: Sampler, prompt: Prompt, response: Response, seed: int, reference: str | None
    ) -> list[Judgement]:
        seeds = [derive_seed(seed, response.id, vote) for vote in range(self.settings.votes)]
        messages = self.messages(prompt.text, response.text, reference)
        completions = await engine.generate(messages, self._params, seeds)
        judgements = []
        for vote, completion in enumerate(completions):
            score, error = self.parse(completion.text, cut=completion.finish_reason == "length")
            judgements.append(
                make_judgement(
                    self.settings.name,
                    [response],
                    vote,
                    seeds[vote],
                    completion,
                    engine.model,
                    score=score,
                    error=error,
                    reference=reference,
                )
            )
        return judgements

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        return [Example(self.messages(g.prompt, g.response, g.reference), g.judgement) for g in graded]
