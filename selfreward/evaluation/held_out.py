"""Figures about responses to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfreward.records import Measurement

RESAMPLES = 2000


def summarize(measurements: Sequence[Measurement], pass_score: float | None) -> dict[str, float | None]:
    """Gold scores (where a scorer is set), length and truncation, sampled and greedy apart."""
    sampled = [m for m in measurements if m.k is not None]
    greedy = [m for m in measurements if m.k is None]
    return {
        "gold_sampled": _mean([m.gold for m in sampled]),
        "gold_greedy": _mean([m.gold for m in greedy]),
        "passed_sampled": _passed(sampled, pass_score),
        "passed_greedy": _passed(greedy, pass_score),
        "response_tokens": _mean([float(m.num_tokens) for m in sampled]),
        "truncated": _mean([float(m.finish_reason == "length") for m in sampled]),
    }


def gain(before: Sequence[Measurement], after: Sequence[Measurement], seed: int) -> dict[str, float] | None:
    """Mean difference in gold score at the sampling temperature, with its 95 % bootstrap interval.

    Prompts are the unit that is resampled, as the responses to one prompt are not independent.
    None where there is no gold score.
    """
    old, new = _by_prompt(before), _by_prompt(after)
    shared = [prompt for prompt in old if prompt in new]
    if not shared:
        return None
    differences = np.array([np.mean(new[prompt]) - np.mean(old[prompt]) for prompt in shared])
    picks = np.random.default_rng(seed).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[picks].mean(axis=1), (0.025, 0.975))
    return {"gain": float(differences.mean()), "gain_low": float(low), "gain_high": float(high)}


def _by_prompt(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for m in measurements:
        if m.k is not None and m.gold is not None:
            groups.setdefault(m.prompt_id, []).append(m.gold)
    return groups


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _passed(measurements: Sequence[Measurement], pass_score: float | None) -> float | None:
    if pass_score is None:
        return None
    return _mean([None if m.gold is None else float(m.gold >= pass_score) for m in measurements])
