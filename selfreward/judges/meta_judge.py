"""The meta-judge, which compares judgements of one response (Meta-Rewarding, arXiv 2407.19594)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import pvariance

from selfreward.engines import Sampler, SamplingParams
from selfreward.judges.additive import AdditiveJudge
from selfreward.judges.base import TEMPLATES, make_judgement
from selfreward.judges.bradley_terry import strengths_by_id
from selfreward.judges.reference import Reference
from selfreward.judges.verdicts import POINTS, read_verdict
from selfreward.recipe.judge_settings import JudgeSettings, MetaSettings
from selfreward.records import Judgement, Message, PreferencePair, Prompt, Rejection, Response, content_id, derive_seed
from selfreward.selection.pair_selectors import Outcome
from selfreward.text.prompt_template import Template

# What the template calls the two judgements.
LABELS = ("A", "B")


@dataclass(frozen=True)
class Dispute:
    """The response to a prompt that its judge is least of one mind about."""

    prompt: Prompt
    response: Response
    judgements: list[Judgement]
    variance: float

    @classmethod
    def of(cls, prompt: Prompt, responses: Iterable[Response], votes: Mapping[str, Sequence[Judgement]]) -> Dispute:
        """The response whose votes' scores vary most; of equals the first, or the first with unlike judgements.

        Args:
            prompt: the prompt.
            responses: its responses, at least one.
            votes: the judgements of each, by response id. Those without a score count for nothing.
        """
        every = [cls._over(prompt, response, votes.get(response.id, ())) for response in responses]
        return max(every, key=lambda dispute: (dispute.variance, dispute.is_open))

    @classmethod
    def _over(cls, prompt: Prompt, response: Response, votes: Iterable[Judgement]) -> Dispute:
        scores: list[float] = []
        # There is nothing to compare between equal texts: the first stands for all.
        unlike: dict[str, Judgement] = {}
        for vote in votes:
            if vote.score is not None:
                scores.append(vote.score)
                unlike.setdefault(vote.raw_text, vote)
        return cls(prompt, response, list(unlike.values()), pvariance(scores) if scores else 0.0)

    @property
    def is_open(self) -> bool:
        """Whether there are judgements to compare."""
        return len(self.judgements) > 1


class MetaJudge:
    """Compares judgements two by two, in both orders."""

    def __init__(self, settings: MetaSettings, judge: JudgeSettings) -> None:
        """Raises ValueError for a template that lacks a place."""
        self._params = SamplingParams.of(settings)
        self._judge = judge
        self._reference = Reference(judge)
        places = ("prompt", "response", "first", "second")
        self._template = Template.read(settings.template or TEMPLATES / "meta.txt", places)

    def messages(self, dispute: Dispute, first: Judgement, second: Judgement) -> list[Message]:
        """The prompt of the meta-judge."""
        return self._template.fill(
            prompt=dispute.prompt.text,
            response=dispute.response.text,
            first=first.raw_text,
            second=second.raw_text,
            reference=self._reference.shown(dispute.prompt.reference),
            lowest=str(self._judge.min_score),
            highest=str(self._judge.max_score),
        )

    async def compare(self, engine: Sampler, dispute: Dispute, seed: int, model: str) -> list[Judgement]:
        """A verdict on each two judgements in both orders, by the engine's model, which the records call ``model``."""
        orders = [order for a, b in combinations(dispute.judgements, 2) for order in ((a, b), (b, a))]
        return await asyncio.gather(*(self._verdict(engine, dispute, order, seed, model) for order in orders))

    async def _verdict(
        self, engine: Sampler, dispute: Dispute, order: tuple[Judgement, Judgement], seed: int, model: str
    ) -> Judgement:
        own = derive_seed(seed, *sorted(judgement.id for judgement in order))
        [completion] = await engine.generate(self.messages(dispute, *order), self._params, [own])
        preference, error = read_verdict(completion.text, LABELS, completion.finish_reason == "length")
        verdict = {"preference": preference, "error": error}
        return make_judgement("meta", order, 0, own, completion, model, **verdict)


def place_weights(verdicts: Iterable[Judgement]) -> tuple[float, float]:
    """What a win in the first place counts, and one in the second: the share of wins that the *other* place has.

    With them both places win equally much in all (section 2.2); without any win they are 0.5.
    """
    preferences = [verdict.preference for verdict in verdicts]
    first, second = preferences.count("first"), preferences.count("second")
    return (second / (first + second), first / (first + second)) if first + second else (0.5, 0.5)


def judgement_strengths(verdicts: Iterable[Judgement], weights: tuple[float, float]) -> dict[str, float]:
    """The Bradley-Terry strengths, in nats, of the judgements of one response; one without a verdict is left out.

    A tie is half a win for each, of the mean weight.
    """
    wins: defaultdict[tuple[str, str], float] = defaultdict(float)
    for verdict in verdicts:
        if verdict.preference is not None:
            first, second = verdict.subject_ids
            weight = {"first": weights[0], "second": weights[1], "tie": sum(weights) / 2}[verdict.preference]
            points = POINTS[verdict.preference]
            wins[first, second] += weight * points
            wins[second, first] += weight * (1 - points)
    return strengths_by_id(wins)


def judge_pair(
    dispute: Dispute, strengths: Mapping[str, float], judge: AdditiveJudge, settings: MetaSettings
) -> Outcome:
    """The best judgement against the worst, as an answer to the judge prompt.

    Returns:
        One pair, or a rejection: ``same_judgements`` (no two unlike ones with a score), ``no_verdict`` (no comparison
        that can be read), ``tie``, or ``over_long`` (the best has more than ``max_characters``).
    """
    prompt = dispute.prompt
    if not dispute.is_open:
        return Rejection(prompt.id, "same_judgements")
    ranked = [judgement for judgement in dispute.judgements if judgement.id in strengths]
    if len(ranked) < 2:
        return Rejection(prompt.id, "no_verdict")
    best = max(ranked, key=lambda judgement: strengths[judgement.id])
    worst = min(ranked, key=lambda judgement: strengths[judgement.id])
    if strengths[best.id] == strengths[worst.id]:
        return Rejection(prompt.id, "tie")
    if len(best.raw_text) > settings.max_characters:
        return Rejection(prompt.id, "over_long")
    pair = PreferencePair(
        id=content_id("pair", best.id, worst.id),
        prompt_id=prompt.id,
        prompt=judge.messages(prompt.text, dispute.response.text, prompt.reference),
        chosen=[{"role": "assistant", "content": best.raw_text}],
        rejected=[{"role": "assistant", "content": worst.raw_text}],
        chosen_id=best.id,
        rejected_id=worst.id,
        score_chosen=strengths[best.id],
        score_rejected=strengths[worst.id],
    )
    return [pair]


def higher_score_preferred(verdicts: Iterable[Judgement], scores: Mapping[str, float]) -> float | None:
    """The share of verdicts for the judgement with the higher score, among those for either of two with unlike ones.

    In the paper it rose from 0.63 to 0.98: a meta-judge decays into one that looks at the score alone.
    """
    found = []
    for verdict in verdicts:
        first, second = (scores[judgement] for judgement in verdict.subject_ids)
        if verdict.preference in ("first", "second") and first != second:
            found.append((first > second) == (verdict.preference == "first"))
    return sum(found) / len(found) if found else None
