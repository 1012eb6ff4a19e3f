"""Verdicts on two subjects, each of which stood in the first place once: reading them, and what they amount to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from selfreward.records import Judgement, Preference
from selfreward.text.scores import announced

# A line that announces a verdict, whatever Markdown surrounds the word.
VERDICT_LINE = re.compile(r"^[ \t*_#-]*(final )?verdict[ \t*_]*:(?P<rest>.*)$", re.ASCII | re.IGNORECASE | re.MULTILINE)
TIE = "tie"
# What the first subject has of a verdict.
POINTS: dict[Preference, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


def read_verdict(text: str, labels: Sequence[str], cut: bool = False) -> tuple[Preference | None, str | None]:
    """The verdict on the last line that announces one, or the name of an error.

    Errors are ``no_verdict``, ``malformed_verdict``, and those of :func:`announced`.

    Args:
        text: the judge's own.
        labels: what the prompt calls the first and the second subject.
        cut: the text ended at ``max_tokens``.
    """
    line, error = announced(VERDICT_LINE, text, cut)
    if line is None:
        return None, error or "no_verdict"
    names: dict[str, Preference] = {labels[0].lower(): "first", labels[1].lower(): "second", TIE: "tie"}
    word = line["rest"].strip(" \t\r*`<>[]()\"'.").lower()
    # A label may begin or end with what is Markdown elsewhere.
    preference = names.get(word) or names.get(word.strip("_"))
    return (preference, None) if preference else (None, "malformed_verdict")


@dataclass(frozen=True)
class Match:
    """Two subjects with the verdicts of one judge, in the order in which it first saw them and in the other one."""

    judge: str
    prompt_id: str
    first: str
    second: str
    forward: list[Judgement] = field(default_factory=list)
    backward: list[Judgement] = field(default_factory=list)

    def shares(self, by_chance: bool = False) -> tuple[float, float] | None:
        """What the first subject has of each order's verdicts, from 0 to 1; None if an order has no verdict.

        Args:
            by_chance: a verdict with the figure ``chance_first`` counts by that, others by what they say.
        """
        orders = [[_points(j, by_chance) for j in order if j.error is None] for order in (self.forward, self.backward)]
        if not all(orders):
            return None
        forward, backward = (sum(order) / len(order) for order in orders)
        return forward, 1 - backward

    @property
    def consistent(self) -> bool | None:
        """Whether both orders name the same subject, or a tie; None if an order has no verdict."""
        shares = self.shares()
        return None if shares is None else _side(shares[0]) == _side(shares[1])

    @property
    def opposed(self) -> bool:
        """Whether the orders name different winners."""
        shares = self.shares()
        return shares is not None and _side(shares[0]) * _side(shares[1]) < 0


def matches(judgements: Iterable[Judgement]) -> list[Match]:
    """The matches that comparisons make up; judgements of a single subject are passed over."""
    found: dict[tuple[str, str, frozenset[str]], Match] = {}
    for judgement in compared(judgements):
        first, second = judgement.subject_ids
        key = judgement.judge, judgement.prompt_id, frozenset((first, second))
        match = found.setdefault(key, Match(judgement.judge, judgement.prompt_id, first, second))
        (match.forward if match.first == first else match.backward).append(judgement)
    return list(found.values())


def compared(judgements: Iterable[Judgement]) -> list[Judgement]:
    """The judgements that compare two subjects."""
    return [judgement for judgement in judgements if len(judgement.subject_ids) == 2]


def position_figures(judgements: Sequence[Judgement]) -> dict[str, float | None]:
    """How far comparisons depend on the order of the two; empty where nothing was compared.

    ``position_consistency`` is the share of matches whose two orders name the same subject, or a tie, among those
    with a verdict in both; ``first_preferred`` the share of verdicts for the first place among those for either,
    which is 0.5 without a bias; ``tie_rate`` the share of ties among all verdicts.
    """
    verdicts = [judgement.preference for judgement in compared(judgements) if judgement.preference is not None]
    decided = [verdict for verdict in verdicts if verdict != "tie"]
    consistent = [match.consistent for match in matches(judgements) if match.consistent is not None]
    if not compared(judgements):
        return {}
    return {
        "position_consistency": sum(consistent) / len(consistent) if consistent else None,
        "first_preferred": decided.count("first") / len(decided) if decided else None,
        "tie_rate": 1 - len(decided) / len(verdicts) if verdicts else None,
    }


def _points(judgement: Judgement, by_chance: bool) -> float:
    assert judgement.preference is not None
    certain = POINTS[judgement.preference]
    return judgement.figures.get("chance_first", certain) if by_chance else certain


def _side(share: float) -> int:
    """1 for the first subject, -1 for the second, 0 for neither."""
    return (share > 0.5) - (share < 0.5)
