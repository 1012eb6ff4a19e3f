"""Who meets whom: each two, random ones, or Swiss rounds."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from itertools import combinations

import networkx

# Places of the two, the smaller one first.
Meeting = tuple[int, int]


def each_two(num: int) -> list[Meeting]:
    """All meetings of ``num`` players."""
    return list(combinations(range(num), 2))


def random_rounds(num: int, rounds: int, seed: int) -> list[Meeting]:
    """Rounds of random meetings, none of them twice; of an odd number another one sits out in each round.

    They are rounds of a tournament of all against all, by the circle method, with the players in random order. So
    there are at most as many as it takes until each two have met.
    """
    circle = [*range(num), *([None] if num % 2 else [])]
    random.Random(seed).shuffle(circle)
    fixed, others = circle[:1], circle[1:]
    meetings: list[Meeting] = []
    for turn in range(min(rounds, len(others))):
        row = fixed + others[turn:] + others[:turn]
        half = zip(row[: len(row) // 2], reversed(row[len(row) // 2 :]), strict=True)
        meetings += sorted(_meeting(a, b) for a, b in half if a is not None and b is not None)
    return meetings


class Swiss:
    """Swiss rounds: those with like strengths meet, and nobody meets the same one twice."""

    def __init__(self, num: int, seed: int) -> None:
        """The first round, and whatever strengths leave open, is decided by the seed."""
        self._order = list(range(num))
        random.Random(seed).shuffle(self._order)
        self._met: set[Meeting] = set()
        self._sat_out: set[int] = set()

    def next(self, strengths: Sequence[float]) -> list[Meeting]:
        """The next round; empty once each two have met.

        As many meet as can. Among such rounds it is the one whose meetings have the least sum of differences in
        strength. Of an odd number a weak one sits out, and nobody twice before all others have, as far as the
        meetings that are left allow it.

        Args:
            strengths: how strong each one is, by the rounds so far; not looked at in the first round.
        """
        round_ = self._nearest(strengths) if self._met else self._random()
        self._met.update(round_)
        playing = {player for meeting in round_ for player in meeting}
        self._sat_out.update(player for player in self._order if player not in playing)
        return round_

    def _random(self) -> list[Meeting]:
        return sorted(_meeting(a, b) for a, b in zip(self._order[::2], self._order[1::2], strict=False))

    def _nearest(self, strengths: Sequence[float]) -> list[Meeting]:
        """A matching of greatest cardinality and least cost, by Edmonds' algorithm."""
        graph, least = networkx.Graph(), min(strengths)
        for a, b in combinations(self._order, 2):
            if _meeting(a, b) not in self._met:
                graph.add_edge(a, b, weight=-_whole(abs(strengths[a] - strengths[b])))
        if len(self._order) % 2:
            bye = len(self._order)
            for player in self._may_sit_out():
                graph.add_edge(player, bye, weight=-_whole(strengths[player] - least))
        found: Collection[Meeting] = networkx.max_weight_matching(graph, maxcardinality=True)
        return sorted(_meeting(a, b) for a, b in found if max(a, b) < len(self._order))

    def _may_sit_out(self) -> list[int]:
        return [player for player in self._order if player not in self._sat_out] or self._order


def _meeting(a: int, b: int) -> Meeting:
    return (a, b) if a < b else (b, a)


def _whole(difference: float) -> int:
    """Whole numbers, with which Edmonds' algorithm is exact."""
    return round(difference * 1e6)
