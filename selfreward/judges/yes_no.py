"""One question, answered by the probability of yes (Implicit Preference Optimization, arXiv 2502.16182)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import product

from selfreward.engines import Completion, Sampler
from selfreward.judges.base import TEMPLATES, Example, Judge, make_judgement
from selfreward.judges.expected_score import labels, mean_of, refuse_votes, shown
from selfreward.judges.reference import Reference
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Message, Prompt, Response, derive_seed
from selfreward.text.chat import NotAToken
from selfreward.text.prompt_template import Template

# The words for yes, and those for no: as many as the vocabulary has as single tokens.
WORDINGS = tuple(product((("Yes", "yes"), ("Yes",), ("yes",)), (("No", "no"), ("No",), ("no",))))
Wording = tuple[tuple[str, ...], tuple[str, ...]]


class YesNoJudge(Judge):
    """Score: P(yes) / (P(yes) + P(no)) as the first word of the answer, in one forward pass a response.

    The figure ``mass`` is P(yes) + P(no). What makes a good response is the template's to say; the paper has one for
    each kind of prompt (chat, code, mathematics, safety).
    """

    uses = ()

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        return JudgeFacts(needs=("option_probs",), writes=False, lowest=0.0, highest=1.0, makes_data=False)

    @classmethod
    def check(cls, settings: JudgeSettings) -> None:
        refuse_votes(settings, "Take votes out")

    def __init__(self, settings: JudgeSettings) -> None:
        super().__init__(settings)
        self._reference = Reference(settings)
        places = ("prompt", "response", *self._reference.places)
        self._template = Template.read(settings.template or TEMPLATES / "yes_no.txt", places)
        self._wordings: dict[str, Wording] = {}

    def messages(self, prompt: str, response: str, reference: str | None = None) -> list[Message]:
        """The judge prompt."""
        return self._template.fill(prompt=prompt, response=response, reference=self._reference.shown(reference))

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        """One judgement a response.

        Raises:
            ValueError: the engine can't tell probabilities, or its model has no single token for yes or for no.
        """
        reference = await self._reference.of(engine, prompt)
        return await asyncio.gather(*(self._judge(engine, prompt, r, seed, reference) for r in responses))

    async def _judge(
        self, engine: Sampler, prompt: Prompt, response: Response, seed: int, reference: str | None
    ) -> Judgement:
        (yes, no), probs = await self._probs(engine, self.messages(prompt.text, response.text, reference))
        completion = Completion(shown([*yes, *no], probs), "stop", 0)
        verdict = mean_of(probs, [1.0] * len(yes) + [0.0] * len(no))
        name, own = self.settings.name, derive_seed(seed, response.id, 0)
        return make_judgement(name, [response], 0, own, completion, engine.model, reference=reference, **verdict)

    async def _probs(self, engine: Sampler, messages: list[Message]) -> tuple[Wording, list[float] | None]:
        """The fullest wording that the model's vocabulary has, and the probability of each of its words."""
        known = self._wordings.get(engine.model)
        left = [known] if known else list(WORDINGS)
        while True:
            wording = left.pop(0)
            try:
                probs = await engine.option_probs(messages, "", [*wording[0], *wording[1]])
            except NotAToken:
                if not left:
                    raise
                continue
            # A prompt that does not fit says nothing about the vocabulary.
            if probs is not None:
                self._wordings[engine.model] = wording
            return wording, probs

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """``yes`` above the middle of ``min_score`` to ``max_score``, ``no`` below it; the middle itself is left out.

        Raises:
            ValueError: a judgement without a score.
        """
        middle = (self.settings.min_score + self.settings.max_score) / 2
        return [
            Example(self.messages(g.prompt, g.response, g.reference), "yes" if label > middle else "no")
            for g, label in zip(graded, labels(graded, self.settings), strict=True)
            if label != middle
        ]
