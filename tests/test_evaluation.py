"""Judge agreement against hand-worked cases, and the gain's interval."""

import random

import pytest
from scipy.stats import kendalltau, rankdata, spearmanr

from selfreward.evaluation.agreement import agreement
from selfreward.evaluation.held_out import gain, summarize
from selfreward.records import Agreement, Measurement


def graded(prompt: str, *pairs: tuple[float, float | None]) -> list[Agreement]:
    return [Agreement(prompt, f"{prompt}{n}", label, score) for n, (label, score) in enumerate(pairs)]


def test_a_perfect_judge():
    figures = agreement(graded("a", (1, 1.0), (3, 3.0), (5, 5.0)) + graded("b", (0, 0.0), (4, 4.5)), best=5)
    assert figures["judge_spearman"] == pytest.approx(1.0)
    assert figures["judge_kendall"] == pytest.approx(1.0)
    assert figures["judge_pairwise_accuracy"] == 1.0
    assert figures["judge_exact_match"] == 1.0
    assert figures["judge_5_best"] == 1.0
    assert figures["judge_scored"] == 1.0


def test_the_five_measures_by_hand():
    # Prompt a: of its three pairs one is reversed. Prompt b: its only pair is tied by the judge.
    records = graded("a", (1, 2.0), (2, 1.0), (3, 5.0)) + graded("b", (4, 5.0), (5, 5.0))
    figures = agreement(records, best=5)
    assert figures["judge_pairwise_accuracy"] == pytest.approx(2 / 4)
    assert figures["judge_exact_match"] == 0.0
    # Three responses have the highest score; two of them have the highest label of their prompt.
    assert figures["judge_5_best"] == pytest.approx(2 / 3)
    # Ranks 1 2 3 4 5 against 2 1 4 4 4.
    assert figures["judge_spearman"] == pytest.approx(0.7826, abs=1e-4)
    # Of ten pairs six agree, one disagrees, three are tied in the scores: 5 / sqrt(10 x 7).
    assert figures["judge_kendall"] == pytest.approx(5 / 70**0.5)


def test_pairwise_accuracy_is_kendalls_tau_where_nothing_is_tied():
    """Over one prompt, with scipy's tau: accuracy = (tau + 1) / 2."""
    rng = random.Random(0)
    for _ in range(50):
        labels, scores = (rng.sample(range(100), 6) for _ in range(2))
        figures = agreement(graded("a", *zip(map(float, labels), map(float, scores), strict=True)), best=None)
        tau = kendalltau(labels, scores).statistic
        assert figures["judge_pairwise_accuracy"] == pytest.approx((tau + 1) / 2)
        assert figures["judge_exact_match"] == float(rankdata(labels).tolist() == rankdata(scores).tolist())
        assert figures["judge_spearman"] == pytest.approx(spearmanr(labels, scores).statistic)
        assert figures["judge_5_best"] is None


def test_an_unscored_response_agrees_with_nothing():
    figures = agreement(graded("a", (1, None), (3, 3.0)), best=5)
    assert figures["judge_scored"] == 0.5
    assert figures["judge_pairwise_accuracy"] == 0.0
    assert figures["judge_exact_match"] == 0.0
    assert figures["judge_spearman"] is None


def measured(golds: list[list[float]]) -> list[Measurement]:
    return [
        Measurement(f"p{n}", k, "text", "stop", 4, gold)
        for n, group in enumerate(golds)
        for k, gold in [*enumerate(group[:-1]), (None, group[-1])]
    ]


def test_sampled_and_greedy_figures_are_apart():
    figures = summarize(measured([[1.0, 3.0, 5.0], [2.0, 2.0, 4.0]]), pass_score=5)
    assert figures["gold_sampled"] == 2.0
    assert figures["gold_greedy"] == 4.5
    assert figures["passed_greedy"] == 0.5
    assert figures["passed_sampled"] == 0.0
    assert figures["response_tokens"] == 4.0


def test_the_gain_has_an_interval():
    before = measured([[1.0, 1.0, 0.0]] * 40)
    after = measured([[2.0, 1.0, 0.0], [2.0, 2.0, 0.0]] * 20)
    figures = gain(before, after, seed=0)
    assert figures["gain"] == 0.75
    assert 0.6 < figures["gain_low"] < 0.75 < figures["gain_high"] < 0.9


def test_without_a_scorer_there_is_no_gain():
    assert gain(measured([[None, None]]), measured([[None, None]]), seed=0) is None
    assert summarize(measured([[None, None]]), None)["gold_sampled"] is None
