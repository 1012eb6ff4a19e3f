"""Absolute grading by criteria that the user writes (Prometheus 2, arXiv 2405.01535)."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward.engines import Sampler, SamplingParams
from selfreward.engines.model_requests import Requests
from selfreward.judges.base import TEMPLATES, Example, Judge, make_judgement, mean_scores
from selfreward.judges.criteria import Criterion, describe, read_criteria
from selfreward.judges.reference import Reference
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Message, Prompt, Response, derive_seed
from selfreward.text.prompt_template import Template
from selfreward.text.scores import announced, read_score


class RubricJudge(Judge):
    """A score for each criterion, from calls of its own or one call for all; their weighted mean is the response's."""

    uses = ("criteria", "rubric")

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        lowest, highest = float(settings.min_score), float(settings.max_score)
        return JudgeFacts(lowest=lowest, highest=highest, is_taught=False, makes_data=False)

    @classmethod
    def check(cls, settings: JudgeSettings) -> None:
        if settings.criteria is None:
            raise ValueError(f"name is {settings.name}, and criteria is missing. Name the file that lists them")

    @classmethod
    def requests(cls, settings: JudgeSettings, num: int) -> list[Requests]:
        """A call for each criterion, or for all of them."""
        if not settings.rubric.together and settings.criteria is not None:
            num *= len(read_criteria(settings.criteria))
        return super().requests(settings, num)

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises ValueError for criteria or a template that can't be used."""
        assert settings.criteria is not None, "the recipe refuses this judge without criteria"
        super().__init__(settings)
        self._params = SamplingParams.of(settings)
        self._criteria = read_criteria(settings.criteria)
        self._together = settings.rubric.together
        self._reference = Reference(settings)
        packaged = TEMPLATES / ("rubric_together.txt" if self._together else "rubric.txt")
        places = ("prompt", "response", "criteria", *self._reference.places)
        self._template = Template.read(settings.template or packaged, places)

    def messages(
        self, prompt: str, response: str, criteria: Sequence[Criterion], reference: str | None = None
    ) -> list[Message]:
        """The judge prompt by some of the criteria."""
        return self._template.fill(
            prompt=prompt,
            response=response,
            criteria=describe(criteria),
            reference=self._reference.shown(reference),
            min_score=str(self.settings.min_score),
            max_score=str(self.settings.max_score),
        )

    def parse(self, text: str, cut: bool = False) -> tuple[float | None, str | None]:
        """(score, None) or (None, name of the error), from the judge's text on one criterion."""
        return read_score(text, self.settings.min_score, self.settings.max_score, cut)

    def parse_together(self, text: str, cut: bool = False) -> dict[str, Any]:
        """The verdict from the judge's text on all criteria: a score with figures, or the first criterion's error."""
        scores: dict[str, float] = {}
        for criterion in self._criteria:
            line, error = announced(_line_of(criterion.name), text, cut)
            score, unread = self.parse("" if line is None else f"Score:{line['rest']}")
            if score is None:
                return {"error": error or unread}
            scores[criterion.name] = score
        figures = {f"criterion {name}": score for name, score in scores.items()}
        return {"score": self._weighted(scores), "figures": figures}

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        reference = await self._reference.of(engine, prompt)
        aspects = [None] if self._together else self._criteria
        votes = await asyncio.gather(
            *(self._votes(engine, prompt, r, seed, reference, aspect) for r in responses for aspect in aspects)
        )
        return [judgement for of_aspect in votes for judgement in of_aspect]

    async def _votes(
        self,
        engine: Sampler,
        prompt: Prompt,
        response: Response,
        seed: int,
        reference: str | None,
        aspect: Criterion | None,
    ) -> list[Judgement]:
        """All votes on one response by one criterion, or by all of them where ``aspect`` is None."""
        name = aspect and aspect.name
        seeds = [derive_seed(seed, response.id, name, vote) for vote in range(self.settings.votes)]
        criteria = self._criteria if aspect is None else [aspect]
        messages = self.messages(prompt.text, response.text, criteria, reference)
        completions = await engine.generate(messages, self._params, seeds)
        judgements = []
        for vote, completion in enumerate(completions):
            cut = completion.finish_reason == "length"
            score, error = self.parse(completion.text, cut)
            verdict = self.parse_together(completion.text, cut) if aspect is None else {"score": score, "error": error}
            verdict |= {"aspect": name, "reference": reference}
            judgements.append(
                make_judgement(self.settings.name, [response], vote, seeds[vote], completion, engine.model, **verdict)
            )
        return judgements

    def scores(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """The weighted mean over the criteria of the mean of their votes.

        A response without a readable vote on some criterion is left out: a mean over the others would be of another
        scale than its neighbours'.
        """
        if self._together:
            return mean_scores(judgements)
        by_aspect: defaultdict[str | None, list[Judgement]] = defaultdict(list)
        for judgement in judgements:
            by_aspect[judgement.aspect].append(judgement)
        means = {criterion.name: mean_scores(by_aspect[criterion.name]) for criterion in self._criteria}
        every = set.intersection(*(set(of_aspect) for of_aspect in means.values()))
        return {
            subject: self._weighted({name: of_aspect[subject] for name, of_aspect in means.items()})
            for subject in dict.fromkeys(judgement.subject_ids[0] for judgement in judgements)
            if subject in every
        }

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """None: a judgement in judging data has one total, which tells no criterion's score."""
        return []

    def _weighted(self, scores: Mapping[str, float]) -> float:
        total = sum(criterion.weight for criterion in self._criteria)
        return sum(criterion.weight * scores[criterion.name] for criterion in self._criteria) / total


def _line_of(name: str) -> re.Pattern[str]:
    """Lines that give a criterion's score."""
    return re.compile(rf"^[ \t*_#.()0-9-]*{re.escape(name)}[ \t*_]*:(?P<rest>.*)$", re.IGNORECASE | re.MULTILINE)
