"""How far to believe each judge, learned from how they agree: weak supervision without labels.

The one-coin model of Dawid and Skene with abstentions, the simplest label model of Snorkel (arXiv 1711.10160), fitted
by EM. Each item is one of two classes, equally likely beforehand. A judge that votes is right with its own accuracy,
whatever the class and the other judges; whether it votes says nothing. Judges that make the same mistakes are hence
believed too much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

# Of each judge: 1 for the first class, -1 for the second, 0 where it abstains.
Votes = tuple[int, ...]

# Where each accuracy starts: agreement alone can't tell judges who are mostly right from ones who are mostly wrong.
START_ACCURACY = 0.7
# So many votes of that accuracy are added to each judge's own: with few, or with nobody to compare, it stays near.
SMOOTHING = 10.0
TOLERANCE, MAX_STEPS = 1e-10, 100_000


def posterior(votes: Votes, accuracies: Sequence[float]) -> float:
    """The probability of the first class. Accuracies lie between 0 and 1, both excluded."""
    odds = sum(vote * math.log(a / (1 - a)) for vote, a in zip(votes, accuracies, strict=True))
    return 1 / (1 + math.exp(-odds))


def learn(items: Iterable[Votes]) -> list[float]:
    """The accuracy of each judge: the posterior mode under a Beta prior of ``SMOOTHING`` and ``START_ACCURACY``.

    The maximum that EM reaches from ``START_ACCURACY``, to within ``TOLERANCE`` a step. A judge that is wrong more
    often than right ends below .5, and its votes then count for the other class.

    Args:
        items: the judges' votes on each item; at least one item.
    """
    # The classes mirror each other, and so do votes on them.
    counts = Counter(max(votes, tuple(-vote for vote in votes)) for votes in items)
    num = len(next(iter(counts)))
    voted = [sum(count for votes, count in counts.items() if votes[judge]) for judge in range(num)]
    accuracies = [START_ACCURACY] * num
    for _ in range(MAX_STEPS):
        right = _right(counts, accuracies)
        before, accuracies = (
            accuracies,
            [(right[judge] + SMOOTHING * START_ACCURACY) / (voted[judge] + SMOOTHING) for judge in range(num)],
        )
        if max(abs(a - b) for a, b in zip(before, accuracies, strict=True)) < TOLERANCE:
            break
    return accuracies


def _right(counts: Counter[Votes], accuracies: Sequence[float]) -> list[float]:
    """How many right votes each judge is expected to have cast."""
    right = [0.0] * len(accuracies)
    for votes, count in counts.items():
        first = posterior(votes, accuracies)
        for judge, vote in enumerate(votes):
            if vote:
                right[judge] += count * (first if vote > 0 else 1 - first)
    return right
