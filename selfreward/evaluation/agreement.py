"""How well a judge's scores agree with labels: the five measures of arXiv 2401.10020, table 4."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from scipy.stats import kendalltau, spearmanr

from selfreward.records import Agreement


def agreement(records: Sequence[Agreement], best: float | None) -> dict[str, float | None]:
    """The five measures, and the share of responses that the judge could score.

    Args:
        records: scores and labels.
        best: the highest score that the judge can give; None where there is none, nor a 5-best.

    Pairwise accuracy, exact match and 5-best compare the responses to one prompt with each other, so they
    need held-out data with several graded responses a prompt, and are None without. An unscored response
    agrees with nothing: its pairs and its prompt count as wrong. Spearman and Kendall (tau-b) are taken over
    all scored responses, whose labels share one scale.
    """
    groups: dict[str, list[Agreement]] = {}
    for record in records:
        groups.setdefault(record.prompt, []).append(record)
    several = [group for group in groups.values() if len(group) > 1]
    scored = [(record.label, record.score) for record in records if record.score is not None]
    labels, scores = [label for label, _ in scored], [score for _, score in scored]
    varied = len(set(labels)) > 1 and len(set(scores)) > 1
    return {
        "judge_scored": len(scored) / max(1, len(records)),
        "judge_spearman": float(spearmanr(labels, scores).statistic) if varied else None,
        "judge_kendall": float(kendalltau(labels, scores).statistic) if varied else None,
        "judge_pairwise_accuracy": _mean(_pairs_agree(group) for group in several),
        "judge_exact_match": _share(_same_order(group) for group in several),
        "judge_5_best": None if best is None else _mean(_best_are_best(group, best) for group in several),
    }


def _pairs_agree(group: Sequence[Agreement]) -> list[bool]:
    """For each two responses with different labels: whether the scores put them in the same order."""
    return [
        a.score is not None
        and b.score is not None
        and (a.score > b.score) == (a.label > b.label)
        and a.score != b.score
        for a, b in combinations(group, 2)
        if a.label != b.label
    ]


def _same_order(group: Sequence[Agreement]) -> bool:
    """Whether the scores order the whole group as the labels do, ties included."""
    if any(record.score is None for record in group):
        return False
    return all(
        _sign((a.score or 0.0) - (b.score or 0.0)) == _sign(a.label - b.label) for a, b in combinations(group, 2)
    )


def _best_are_best(group: Sequence[Agreement], best: float | None) -> list[bool]:
    """For each response with the highest possible score: whether no other has a higher label."""
    top = max(record.label for record in group)
    return [record.label == top for record in group if record.score == best]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _mean(groups: Iterable[list[bool]]) -> float | None:
    return _share(agrees for group in groups for agrees in group)


def _share(values: Iterable[bool]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
