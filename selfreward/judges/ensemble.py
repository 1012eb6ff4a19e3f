"""Several judges' scores as one, from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from selfreward.judges.label_model import learn, posterior

Scores = Mapping[str, float]

# Digits behind the point. What only the rounding of a sum tells apart, or how far EM went, is a tie.
DIGITS = {"mean": 9, "rank": 9, "label_model": 4}


def combine(
    scores: Mapping[str, Scores],
    weights: Mapping[str, float],
    prompt_of: Mapping[str, str],
    how: str,
) -> dict[str, float]:
    """One score a response, from 0 to 1; a response that no judge scored is left out.

    ``mean``: each judge's scores are scaled so that its lowest of all is 0 and its highest 1; the score is their
    weighted mean over the judges that did not abstain. A judge whose scores are all the same gives .5.

    ``rank``: a judge gives the share of a prompt's other responses that this one beats, a tie as half; the score is
    the weighted mean of that over the judges that did not abstain. A response that a judge can compare with no other
    gets .5.

    ``label_model``: every judge votes on each two responses to a prompt, and abstains where it scored them the same or
    not both. The judges' accuracies are learned from all votes; the score is the mean, over the prompt's other
    responses, of the probability to be the better one. A response without others gets .5.

    Args:
        scores: each judge's scores by response id; a judge abstains from a response that it has no score for.
        weights: how much each judge counts; ``label_model`` learns that itself.
        prompt_of: the prompt of each response.
        how: ``mean``, ``rank`` or ``label_model``.
    """
    groups: dict[str, list[str]] = {}
    for response, prompt in prompt_of.items():
        if any(response in each for each in scores.values()):
            groups.setdefault(prompt, []).append(response)
    responses = list(groups.values())
    if how == "label_model":
        combined = _labelled(scores, responses)
    else:
        scale: Callable[[Scores], Scores] = {"mean": _scaled, "rank": lambda each: _ranked(each, responses)}[how]
        combined = _weighted({judge: scale(each) for judge, each in scores.items()}, weights, responses)
    return {response: round(score, DIGITS[how]) for response, score in combined.items()}


def _weighted(
    scores: Mapping[str, Scores], weights: Mapping[str, float], groups: Sequence[Sequence[str]]
) -> dict[str, float]:
    combined = {}
    for response in (response for group in groups for response in group):
        judges = [judge for judge, each in scores.items() if response in each]
        total = sum(weights[judge] for judge in judges)
        combined[response] = sum(weights[judge] * scores[judge][response] for judge in judges) / total
    return combined


def _scaled(scores: Scores) -> Scores:
    lowest, highest = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if lowest == highest:
        return dict.fromkeys(scores, 0.5)
    return {response: (score - lowest) / (highest - lowest) for response, score in scores.items()}


def _ranked(scores: Scores, groups: Sequence[Sequence[str]]) -> Scores:
    scored = ([response for response in group if response in scores] for group in groups)
    return {
        response: _mean([(1 + _vote(scores, response, other)) / 2 for other in group if other != response])
        for group in scored
        for response in group
    }


def _labelled(scores: Mapping[str, Scores], groups: Sequence[Sequence[str]]) -> dict[str, float]:
    pairs = [(first, second) for group in groups for first, second in combinations(group, 2)]
    votes = [tuple(_vote(each, first, second) for each in scores.values()) for first, second in pairs]
    accuracies = learn(votes) if votes else []
    better: dict[str, list[float]] = {response: [] for group in groups for response in group}
    for (first, second), vote in zip(pairs, votes, strict=True):
        chance = posterior(vote, accuracies)
        better[first].append(chance)
        better[second].append(1 - chance)
    return {response: _mean(probs) for response, probs in better.items()}


def _vote(scores: Scores, first: str, second: str) -> int:
    """1 if the first scores higher, -1 if the second does, 0 on a tie or where a score is missing."""
    if first not in scores or second not in scores:
        return 0
    return (scores[first] > scores[second]) - (scores[first] < scores[second])


def _mean(shares: Sequence[float]) -> float:
    """The mean over the other responses; .5, which favours nothing, where there are none."""
    return sum(shares) / len(shares) if shares else 0.5
