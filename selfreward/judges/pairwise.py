"""The pairwise judge, which sees two responses at a time, in both orders.

Which response stands first sways a judge (arXiv 2306.05685), so no verdict counts before it was asked for again with
the two swapped. With criteria in the prompt it is the A/B form of Prometheus 2 (arXiv 2405.01535).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from selfreward.engines import Completion, Sampler, SamplingParams
from selfreward.engines.model_requests import Requests
from selfreward.judges.base import TEMPLATES, Example, Judge, make_judgement
from selfreward.judges.criteria import describe, read_criteria
from selfreward.judges.expected_score import labels, mean_of, refuse_votes, shown
from selfreward.judges.matches import Meeting, Swiss, each_two, random_rounds
from selfreward.judges.reference import Reference
from selfreward.judges.verdicts import TIE, Match, matches, read_verdict
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Message, Prompt, Response, derive_seed
from selfreward.runs.stored import SEED_OF_MATCHES
from selfreward.text.prompt_template import Template


class PairwiseJudge(Judge):
    """Compares responses two by two; the score of one is its Bradley-Terry strength among those to its prompt.

    With ``pairwise.think`` each order has ``judge.votes`` sampled verdicts, without it one forward pass.
    """

    pointwise = False
    uses = ("criteria", "pairwise")

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        thinks = settings.pairwise.think
        return JudgeFacts(needs=("generate" if thinks else "option_probs",), writes=thinks, makes_data=False)

    @classmethod
    def check(cls, settings: JudgeSettings) -> None:
        labels = settings.pairwise.labels
        if TIE in [label.lower() for label in labels]:
            raise ValueError(f"pairwise.labels are {labels}, and tie is the verdict for neither. Rename that one")
        if not settings.pairwise.think:
            refuse_votes(settings, "Take votes out, or set pairwise.think to true")

    @classmethod
    def requests(cls, settings: JudgeSettings, num: int) -> list[Requests]:
        """Each meeting in both orders."""
        meetings = num * (num - 1) // 2
        if settings.pairwise.matches != "all":
            meetings = min(meetings, settings.pairwise.rounds * (num // 2))
        asked = 2 * meetings
        return [Requests(asked * settings.votes, settings.max_tokens, asked, answers=2, instructions=1)]

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises ValueError for criteria or a template that don't work."""
        super().__init__(settings)
        self._how = settings.pairwise
        self._labels = settings.pairwise.labels
        self._params = SamplingParams.of(settings)
        self._reference = Reference(settings)
        self._criteria = None if settings.criteria is None else describe(read_criteria(settings.criteria))
        places = ("prompt", "first", "second", *self._reference.places, *(["criteria"] if self._criteria else []))
        name = "pairwise" if self._how.think else "pairwise_at_once"
        self._template = Template.read(settings.template or TEMPLATES / f"{name}.txt", places)

    def messages(self, prompt: str, first: str, second: str, reference: str | None = None) -> list[Message]:
        """The judge prompt."""
        return self._template.fill(
            prompt=prompt,
            first=first,
            second=second,
            reference=self._reference.shown(reference),
            criteria=self._criteria,
            label_first=self._labels[0],
            label_second=self._labels[1],
        )

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        """Verdicts in the order of rounds and meetings, those with the earlier response in the first place first."""
        reference = await self._reference.of(engine, prompt)

        async def play(meetings: Iterable[Meeting]) -> list[Judgement]:
            orders = [order for a, b in meetings for order in ((a, b), (b, a))]
            found = await asyncio.gather(
                *(self._verdicts(engine, prompt, responses[a], responses[b], seed, reference) for a, b in orders)
            )
            return [judgement for of_order in found for judgement in of_order]

        if self._how.matches == "all":
            return await play(each_two(len(responses)))
        if self._how.matches == "random":
            return await play(random_rounds(len(responses), self._how.rounds, derive_seed(seed, SEED_OF_MATCHES)))
        swiss, judgements = Swiss(len(responses), derive_seed(seed, SEED_OF_MATCHES)), list[Judgement]()
        for _ in range(self._how.rounds):
            so_far = self.scores(judgements)
            judgements += await play(swiss.next([so_far.get(response.id, 0.0) for response in responses]))
        return judgements

    async def _verdicts(
        self, engine: Sampler, prompt: Prompt, first: Response, second: Response, seed: int, reference: str | None
    ) -> list[Judgement]:
        """The verdicts in one order. Both orders have the same seeds, so that equal texts can't beat each other."""
        messages = self.messages(prompt.text, first.text, second.text, reference)
        seeds = [derive_seed(seed, *sorted((first.id, second.id)), vote) for vote in range(self.settings.votes)]
        if self._how.think:
            completions = await engine.generate(messages, self._params, seeds)
            verdicts = [self._written(completion) for completion in completions]
        else:
            probs = await engine.option_probs(messages, "", self._labels)
            completions = [Completion(shown(self._labels, probs), "stop", 0)]
            verdicts = [by_chance(probs)]
        name, two, model = self.settings.name, [first, second], engine.model
        return [
            make_judgement(name, two, vote, seeds[vote], completion, model, reference=reference, **verdict)
            for vote, (completion, verdict) in enumerate(zip(completions, verdicts, strict=True))
        ]

    def _written(self, completion: Completion) -> dict[str, Any]:
        preference, error = read_verdict(completion.text, self._labels, completion.finish_reason == "length")
        return {"preference": preference, "error": error}

    def scores(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """Bradley-Terry strengths, in nats, with a mean of 0 among the responses to a prompt.

        A match counts as one, where both orders have a verdict; a response without such a match is left out.
        """
        from selfreward.judges.bradley_terry import strengths_by_id

        wins: defaultdict[str, dict[tuple[str, str], float]] = defaultdict(dict)
        for match in matches(judgements):
            share = self._share(match)
            if share is not None:
                wins[match.prompt_id] |= {(match.first, match.second): share, (match.second, match.first): 1 - share}
        return {subject: score for of_prompt in wins.values() for subject, score in strengths_by_id(of_prompt).items()}

    def _share(self, match: Match) -> float | None:
        """What the first one has of a match, by the recipe's rule for orders that disagree; None if it is dropped."""
        if self._how.disagreement != "both" and match.opposed:
            return 0.5 if self._how.disagreement == "tie" else None
        shares = match.shares(by_chance=self._how.disagreement == "both")
        return None if shares is None else sum(shares) / 2

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """Each two graded responses to a prompt that follow each other, with different labels, in both orders.

        Raises:
            ValueError: a judgement without a score, or data without any such two.
        """
        by_prompt: defaultdict[str, list[tuple[Graded, float]]] = defaultdict(list)
        for each, label in zip(graded, labels(graded, self.settings), strict=True):
            by_prompt[each.prompt].append((each, label))
        found = [example for group in by_prompt.values() for two in pairwise(group) for example in self._examples(*two)]
        if graded and not found:
            raise ValueError(
                f"the judging data teaches no comparison: of its {len(graded)} lines no two in a row of the same "
                "prompt have different scores. Give several graded responses a prompt"
            )
        return found

    def _examples(self, one: tuple[Graded, float], other: tuple[Graded, float]) -> list[Example]:
        found = []
        for (first, label), (second, other_label) in ((one, other), (other, one)):
            if label != other_label:
                better = self._labels[0] if label > other_label else self._labels[1]
                messages = self.messages(first.prompt, first.response, second.response, one[0].reference)
                found.append(Example(messages, f"Verdict: {better}" if self._how.think else better))
        return found


def by_chance(probs: Sequence[float] | None) -> dict[str, Any]:
    """The verdict of two probabilities, with the figures ``mass`` (their sum) and ``chance_first`` (a share of it)."""
    verdict = mean_of(probs, (1.0, 0.0))
    chance = verdict.pop("score", None)
    if probs is None or chance is None:
        return verdict
    preference = "tie" if probs[0] == probs[1] else "first" if probs[0] > probs[1] else "second"
    return {"preference": preference, "figures": {**verdict["figures"], "chance_first": chance}}
