"""What is done with the pairs of a selector: pure functions.

Responses of other models take a side of them, and pairs are dropped; a prompt that has none left is rejected by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any

from scipy.stats import kendalltau

from selfreward.records import PreferencePair, Prompt, Rejection, Response, content_id
from selfreward.selection.pair_selectors import Outcome, Scores, assistant, make_pair, same, scored, tied


def anchored(
    prompt: Prompt, outcome: Outcome, responses: Sequence[Response], anchors: Sequence[Response], scores: Scores
) -> Outcome:
    """Puts the anchor model's worst response on the rejected side where it scores lower (arXiv 2508.06026).

    The responses of a model that learns come to be alike, and with them the two sides of a pair; a model that stays
    as it is keeps them apart. A tie of M_t's own responses becomes a pair as well, whose chosen one was sampled first.

    Args:
        prompt: the prompt.
        outcome: its pairs, or why it has none.
        responses: M_t's own.
        anchors: the anchor model's.
        scores: by response id, of both models' responses.
    """
    worst_first = sorted(scored(anchors, scores), key=lambda response: scores[response.id])

    def lower(score: float, text: str) -> Response | None:
        return next((r for r in worst_first if scores[r.id] < score and not same(r.text, text)), None)

    if isinstance(outcome, Rejection):
        first = _first_of_tie(outcome, responses, scores)
        worse = lower(scores[first.id], first.text) if first else None
        return [make_pair(prompt, first, worse, scores)] if first and worse else outcome

    def replaced(pair: PreferencePair) -> PreferencePair:
        worse = lower(pair.score_rejected, pair.chosen[-1]["content"])
        if worse is None:
            return pair
        return _renamed(pair, rejected=assistant(worse.text), rejected_id=worse.id, score_rejected=scores[worse.id])

    return _distinct(map(replaced, outcome))


def upgraded(
    prompt: Prompt, outcome: Outcome, responses: Sequence[Response], lookahead: Sequence[Response], scores: Scores
) -> Outcome:
    """Puts the look-ahead model's best response on the chosen side where M_t scores it higher (arXiv 2508.06026).

    A tie of M_t's own responses becomes a pair as well, whose rejected one was sampled first.

    Args:
        prompt: the prompt.
        outcome: its pairs, or why it has none.
        responses: M_t's own.
        lookahead: those of the draft of M_{t+1}.
        scores: M_t's, by response id, of both models' responses.
    """
    best_first = sorted(scored(lookahead, scores), key=lambda response: -scores[response.id])

    def higher(score: float, text: str) -> Response | None:
        return next((r for r in best_first if scores[r.id] > score and not same(r.text, text)), None)

    if isinstance(outcome, Rejection):
        first = _first_of_tie(outcome, responses, scores)
        better = higher(scores[first.id], first.text) if first else None
        return [make_pair(prompt, better, first, scores)] if first and better else outcome

    def replaced(pair: PreferencePair) -> PreferencePair:
        better = higher(pair.score_chosen, pair.rejected[-1]["content"])
        if better is None:
            return pair
        return _renamed(pair, chosen=assistant(better.text), chosen_id=better.id, score_chosen=scores[better.id])

    return _distinct(map(replaced, outcome))


def kept(outcome: Outcome, keep: Callable[[PreferencePair], bool], reason: str) -> Outcome:
    """The pairs that may stay; a prompt that loses all of them is rejected for the reason."""
    if isinstance(outcome, Rejection):
        return outcome
    return [pair for pair in outcome if keep(pair)] or Rejection(outcome[0].prompt_id, reason)


def wide(outcome: Outcome, min_margin: float) -> Outcome:
    """Without the pairs whose scores differ by less, those of 0 asking nothing; reason ``margin``."""
    return kept(outcome, lambda pair: min_margin == 0 or margin(pair) >= min_margin, "margin")


def agreeing(outcome: Outcome, rewards: Mapping[str, float]) -> Outcome:
    """Without the pairs that the implicit reward orders the other way (arXiv 2502.08922); reason ``disagreement``.

    A pair stays where the reward of a side is unknown, as that of each anchor and look-ahead response is: nothing
    contradicts the judge there.

    Args:
        outcome: the pairs of a prompt, or why it has none.
        rewards: the implicit reward by response id, as far as it is known.
    """
    return kept(outcome, lambda pair: compare(pair, rewards) is not False, "disagreement")


def compare(pair: PreferencePair, rewards: Mapping[str, float]) -> bool | None:
    """Whether the implicit reward of the chosen one is not the lower one; None where one of the two is unknown."""
    if not {pair.chosen_id, pair.rejected_id} <= rewards.keys():
        return None
    return rewards[pair.chosen_id] >= rewards[pair.rejected_id]


def capped(
    outcomes: Sequence[Outcome], source_of: Mapping[str, str], per_prompt: int | None, per_source: int | None
) -> list[Outcome]:
    """The pairs of greatest margin, as many as a prompt and a source may have; reason ``over_cap``.

    Among equal margins the ids decide, so that it does not matter where in its file a prompt stands.

    Args:
        outcomes: of all prompts of an iteration.
        source_of: the source by prompt id.
        per_prompt: most pairs of a prompt; None: all.
        per_source: most pairs of a source; None: all.
    """
    pairs = [pair for outcome in outcomes if isinstance(outcome, list) for pair in outcome]
    of_prompt: Counter[str] = Counter()
    of_source: Counter[str] = Counter()
    allowed: set[str] = set()
    for pair in sorted(pairs, key=lambda pair: (-margin(pair), pair.id)):
        source = source_of[pair.prompt_id]
        if of_prompt[pair.prompt_id] != per_prompt and of_source[source] != per_source:
            of_prompt[pair.prompt_id] += 1
            of_source[source] += 1
            allowed.add(pair.id)
    return [kept(outcome, lambda pair: pair.id in allowed, "over_cap") for outcome in outcomes]


def consistency(scores: Scores, previous: Scores) -> float | None:
    """How far two models rank the same responses alike: C = (tau + 1) / 2, from 0 to 1 (arXiv 2410.12735).

    tau is Kendall's tau-b, which allows for ties.

    Args:
        scores: M_t's scores of the responses to one prompt.
        previous: M_{t-1}'s.

    Returns:
        None where fewer than two responses have both scores, or one model scores all of them the same.
    """
    both = [response for response in scores if response in previous]
    if len(both) < 2:
        return None
    tau = float(kendalltau([scores[r] for r in both], [previous[r] for r in both]).statistic)
    return None if isnan(tau) else (tau + 1) / 2


def margin(pair: PreferencePair) -> float:
    """How much higher the chosen one scores."""
    return pair.score_chosen - pair.score_rejected


def _first_of_tie(outcome: Rejection, responses: Sequence[Response], scores: Scores) -> Response | None:
    """The first of responses that were rejected because all of them have the same score."""
    return scored(responses, scores)[0] if outcome.reason == "tie" and tied(responses, scores) else None


def _renamed(pair: PreferencePair, **sides: Any) -> PreferencePair:
    """A pair with another response on one side."""
    changed = replace(pair, **sides)
    return replace(changed, id=content_id("pair", changed.chosen_id, changed.rejected_id))


def _distinct(pairs: Iterable[PreferencePair]) -> list[PreferencePair]:
    """Pairs that had different responses of M_t may have come to be one."""
    return list({pair.id: pair for pair in pairs}.values())
