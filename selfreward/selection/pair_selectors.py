"""From judged responses to preference pairs: pure functions.

A selector sees one prompt with its responses and their scores, and gives pairs or a named rejection. What is done
with its pairs stands in :mod:`selfreward.selection.pair_filters`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from selfreward.recipe.judge_settings import SelectionSettings, SelectorNeeds
from selfreward.recipe.response_settings import ResponseSettings
from selfreward.records import Message, PreferencePair, Prompt, Rejection, Response, content_id

Outcome = list[PreferencePair] | Rejection
Scores = Mapping[str, float]
Function = TypeVar("Function", bound=Callable[..., Outcome])
# A score on the border of a range is within it, however the border was rounded.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Rules:
    """The recipe's ``selection`` in one iteration; ``rho`` is that iteration's ``length_rho``."""

    min_margin: float = 0.0
    top: int = 2
    bottom: int = 2
    pass_score: float | None = None
    rho: float = 0.0

    @classmethod
    def of(cls, settings: SelectionSettings, iteration: int) -> Rules:
        """The rules of an iteration, from 1 on; the last rho stays."""
        rules = (settings.min_margin, settings.top, settings.bottom, settings.pass_score)
        return cls(*rules, settings.rho(iteration))


class Selector(Protocol):
    """Makes pairs of the responses to one prompt."""

    def __call__(self, prompt: Prompt, responses: Sequence[Response], scores: Scores, rules: Rules) -> Outcome:
        """Selects.

        Args:
            prompt: the prompt.
            responses: at least two of its responses, in the order k = 0, 1, ...; revisions are behind what they revise.
            scores: the score by response id; an unscored response is missing, not zero.
            rules: the recipe's. ``min_margin`` is seen to behind the selector.

        Returns:
            One pair or more, or a rejection. The reasons of those below are ``unscored`` (too few are scored), ``tie``
            (all have one score), ``identical`` (the texts differ in white space alone), and those that they name.
        """


def needing(*settings: str, principles: bool = False) -> Callable[[Function], Function]:
    """Marks a selector with what it needs, so that a recipe without it is refused when it is read.

    A function without the mark is called with whatever the recipe says.

    Args:
        settings: keys of ``selection`` that have no default, such as ``pass_score``.
        principles: whether it pairs revisions, which ``responses.principles`` brings.
    """

    def mark(function: Function) -> Function:
        vars(function)["needs"] = SelectorNeeds(settings, principles)
        return function

    return mark


@needing()
def best_worst(prompt: Prompt, responses: Sequence[Response], scores: Scores, rules: Rules) -> Outcome:
    """The highest score against the lowest; equal scores make no pair (arXiv 2401.10020, section 2.4).

    Of equally scored responses the one sampled first is taken.
    """
    if (reason := _no_order(responses, scores)) is not None:
        return Rejection(prompt.id, reason)
    judged = scored(responses, scores)
    best = max(judged, key=lambda response: scores[response.id])
    worst = min(judged, key=lambda response: scores[response.id])
    return _pairs(prompt, [(best, worst)], scores)


@needing()
def top_bottom(prompt: Prompt, responses: Sequence[Response], scores: Scores, rules: Rules) -> Outcome:
    """Each of the ``top`` best against each of the ``bottom`` worst that scores below it.

    Of equally scored responses those sampled first are taken.
    """
    if (reason := _no_order(responses, scores)) is not None:
        return Rejection(prompt.id, reason)
    judged = scored(responses, scores)
    best = sorted(judged, key=lambda response: -scores[response.id])[: rules.top]
    worst = sorted(judged, key=lambda response: scores[response.id])[: rules.bottom]
    return _pairs(prompt, [(b, w) for b in best for w in worst if scores[b.id] > scores[w.id]], scores)


@needing("pass_score")
def correct_incorrect(prompt: Prompt, responses: Sequence[Response], scores: Scores, rules: Rules) -> Outcome:
    """Responses that pass against those that don't (arXiv 2404.19733).

    The first correct one meets the first incorrect one, and so on in the order of sampling, so that no response is
    used twice; the longer list's rest is left over. Reasons of its own: ``no_correct`` and ``no_incorrect``.

    Raises:
        ValueError: the recipe does not say from which score on a response is correct.
    """
    if rules.pass_score is None:
        raise ValueError("correct_incorrect needs selection.pass_score: from which score on a response is correct")
    judged = scored(responses, scores)
    if len(judged) < 2:
        return Rejection(prompt.id, "unscored")
    correct = [response for response in judged if scores[response.id] >= rules.pass_score]
    incorrect = [response for response in judged if scores[response.id] < rules.pass_score]
    if not (correct and incorrect):
        return Rejection(prompt.id, "no_incorrect" if correct else "no_correct")
    return _pairs(prompt, zip(correct, incorrect, strict=False), scores)


@needing()
def length_controlled(prompt: Prompt, responses: Sequence[Response], scores: Scores, rules: Rules) -> Outcome:
    """The shortest of the good ones against the longest of the bad ones (Meta-Rewarding, arXiv 2407.19594).

    Good are scores in [(1 - rho) Smax + rho Smin, Smax], bad those in [Smin, (1 - rho) Smin + rho Smax]. Length is
    counted in characters. Of equally long responses the one sampled first is taken.
    """
    if (reason := _no_order(responses, scores)) is not None:
        return Rejection(prompt.id, reason)
    judged = scored(responses, scores)
    values = [scores[response.id] for response in judged]
    highest, lowest = max(values), min(values)
    reach = (rules.rho + ROUNDING) * (highest - lowest)
    best = min((r for r in judged if highest - scores[r.id] <= reach), key=lambda response: len(response.text))
    worst = max((r for r in judged if scores[r.id] - lowest <= reach), key=lambda response: len(response.text))
    if scores[best.id] <= scores[worst.id]:
        # With rho 0.5 a score in the middle is good and bad.
        return Rejection(prompt.id, "tie")
    return _pairs(prompt, [(best, worst)], scores)


@needing(principles=True)
def revision(prompt: Prompt, responses: Sequence[Response], scores: Scores, rules: Rules) -> Outcome:
    """Each revision against the response that it revises (Constitutional AI, arXiv 2212.08073).

    The principle decides which one is better. The scores of the two stand in the pair, whichever is higher, so both
    must be scored. A reason of its own: ``no_revision``, where there is none, or none whose original may be used.
    """
    known = {response.id: response for response in responses}
    sides = [(response, known[response.revises]) for response in responses if response.revises in known]
    if not sides:
        return Rejection(prompt.id, "no_revision")
    sides = [(revised, original) for revised, original in sides if {revised.id, original.id} <= scores.keys()]
    return _pairs(prompt, sides, scores) if sides else Rejection(prompt.id, "unscored")


def usable(responses: Sequence[Response], rules: ResponseSettings) -> tuple[list[Response], Counter[str]]:
    """The responses that a selector may see, and how many were dropped by which rule of the recipe.

    By default neither truncated nor empty ones: the one would teach to stop mid-sentence, the other to be silent.
    """
    kept: list[Response] = []
    dropped: Counter[str] = Counter()
    texts: set[str] = set()
    for response in responses:
        rule = _broken_rule(response, rules, texts)
        if rule is None:
            kept.append(response)
        else:
            dropped[rule] += 1
        texts.add(response.text)
    return kept, dropped


def make_pair(prompt: Prompt, chosen: Response, rejected: Response, scores: Scores) -> PreferencePair:
    """A pair in TRL's conversational columns."""
    assert chosen.id != rejected.id
    return PreferencePair(
        id=content_id("pair", chosen.id, rejected.id),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=assistant(chosen.text),
        rejected=assistant(rejected.text),
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        score_chosen=scores[chosen.id],
        score_rejected=scores[rejected.id],
    )


def assistant(text: str) -> list[Message]:
    """A response as the last message of a conversation."""
    return [{"role": "assistant", "content": text}]


def same(text: str, other: str) -> bool:
    """Whether two texts differ in white space alone, which nothing can be learned from."""
    return text.split() == other.split()


def scored(responses: Iterable[Response], scores: Scores) -> list[Response]:
    """The responses that have a score, in their order."""
    return [response for response in responses if response.id in scores]


def tied(responses: Iterable[Response], scores: Scores) -> bool | None:
    """Whether all scored responses have the same score; None where there are not two of them."""
    values = [scores[response.id] for response in scored(responses, scores)]
    return None if len(values) < 2 else len(set(values)) == 1


def _no_order(responses: Sequence[Response], scores: Scores) -> str | None:
    """The reason why scores can't tell the responses to one prompt apart."""
    return {None: "unscored", True: "tie", False: None}[tied(responses, scores)]


def _pairs(prompt: Prompt, sides: Iterable[tuple[Response, Response]], scores: Scores) -> Outcome:
    """Pairs of chosen and rejected ones, as far as their texts differ."""
    pairs = [make_pair(prompt, best, worst, scores) for best, worst in sides if not same(best.text, worst.text)]
    return pairs or Rejection(prompt.id, "identical")


def _broken_rule(response: Response, rules: ResponseSettings, texts: set[str]) -> str | None:
    if response.finish_reason == "prompt_too_long":
        return "prompt_too_long"
    if rules.on_truncated == "drop" and response.finish_reason == "length":
        return "truncated"
    if rules.on_empty == "drop" and not response.text.strip():
        return "empty"
    if rules.on_duplicate == "drop" and response.text in texts:
        return "duplicate"
    return None
