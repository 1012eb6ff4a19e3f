"""Figures of diversity against hand-worked cases, sacrebleu and brute force."""

import random
import time
from math import exp, log

import numpy as np
import pytest
import sacrebleu

from selfreward.evaluation.diversity import diversity, frequent_roots, self_bleu
from selfreward.evaluation.root_verb_noun import root_verb_noun
from selfreward.recipe.filter_settings import EmbeddingSettings
from selfreward.text.words import words
from selfreward.tiny import world

NO_MODEL = EmbeddingSettings()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    train, _ = world.split()
    return [each.text for each in random.Random(0).sample(train, 1200)]


def figures(texts: list[str], seed: int = 0, reference: tuple[str, ...] = ()) -> dict[str, float]:
    return diversity(texts, seed, NO_MODEL, reference)


def test_shares_of_what_is_distinct_by_hand() -> None:
    found = figures(["Write a poem.", "Write a song!", "What is love?"])
    assert found["distinct_1"] == 7 / 9
    # write a, a poem, write a, a song, what is, is love
    assert found["distinct_2"] == 5 / 6
    assert found["distinct_roots"] == 1.0
    assert found["rooted"] == 2 / 3


def test_shares_do_not_fall_with_the_number_of_texts(texts: list[str]) -> None:
    few, many = figures(texts[:150]), figures(texts)
    assert many["distinct_1"] == pytest.approx(few["distinct_1"], rel=0.05)
    assert many["distinct_2"] == pytest.approx(few["distinct_2"], rel=0.1)
    assert many["distinct_roots"] == pytest.approx(few["distinct_roots"], rel=0.2)


def test_self_bleu_is_that_of_sacrebleu(texts: list[str]) -> None:
    sample = [*texts[:12], "tools", "tools tools tools tools tools", "no word of it elsewhere"]
    tokens = [words(text) for text in sample]
    joined = [" ".join(text) for text in tokens]
    expected = [
        sacrebleu.sentence_bleu(text, joined[:n] + joined[n + 1 :], tokenize="none").score
        for n, text in enumerate(joined)
    ]
    assert self_bleu(tokens) == pytest.approx(np.mean(expected))


def test_the_spread_is_the_mean_distance_of_all_pairs() -> None:
    # Word counts of three texts: the cosines are 1/2, 0 and 1/2.
    assert figures(["red fox", "fox owl", "owl elk"])["spread"] == pytest.approx(1 - (0.5 + 0.0 + 0.5) / 3)


def test_cluster_coverage_falls_where_texts_leave_clusters_of_the_reference() -> None:
    kinds = [f"{word} {n}" for word in ("fox", "owl", "elk", "ant") for n in range(4)]
    assert figures(kinds[:4], reference=tuple(kinds))["cluster_coverage"] < 0.5
    every = figures(kinds, reference=tuple(kinds))["cluster_coverage"]
    assert every > 2 * figures(kinds[:4], reference=tuple(kinds))["cluster_coverage"]


def test_cluster_coverage_by_hand() -> None:
    # Two distinct texts of four: two clusters of three and one of a possible four.
    sizes = [3 / 4, 1 / 4]
    expected = exp(-sum(size * log(size) for size in sizes)) / 4
    assert figures(["fox", "fox", "fox", "owl"])["cluster_coverage"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "texts",
    [[], ["Write a poem."], [""], ["!!!", "???"], ["写一首诗", "翻译这句话"], ["कविता लिखो", "Schreibe ein Gedicht"]],
)
def test_few_or_foreign_texts_or_none_have_figures_that_are_numbers(texts: list[str]) -> None:
    found = figures(texts)
    assert all(np.isfinite(value) for value in found.values())
    assert ("spread" in found) == (len(texts) > 1)


def test_a_collapse_shows_in_every_figure(texts: list[str]) -> None:
    healthy, sick = figures(texts[:200]), figures([*texts[:3]] * 66)
    for name in ("distinct_1", "distinct_2", "distinct_roots", "spread", "cluster_coverage"):
        assert sick[name] < healthy[name], name
    assert sick["self_bleu"] == pytest.approx(100)
    assert healthy["self_bleu"] < 90


def test_the_seed_alone_decides(texts: list[str]) -> None:
    assert figures(texts, 1) == figures(texts, 1) != figures(texts, 2)


def test_ten_thousand_texts_take_less_than_a_second(texts: list[str]) -> None:
    figures(texts[:2])
    every = [f"{text} {n}" for n in range(10) for text in texts]
    started = time.process_time()
    figures(every)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write a poem about spring.", ("write", "poem")),
        ("Could you please briefly describe the most famous city?", ("describe", "city")),
        ("Given two lists of numbers, find the largest one's position.", ("find", "position")),
        ("You are a lawyer. Draft a short, polite letter to the court.", ("draft", "letter")),
        ("I want you to suggest five new recipes that use leftovers", ("suggest", "recipe")),
        ("Give me a list of all countries.", ("give", "list")),
        ("Tell students a joke.", ("tell", "joke")),
        ("Read the story carefully and answer.", ("read", "story")),
        ("Come up with some stories describing a journey.", ("come", "story")),
        ("Correct and rewrite the sentences below.", ("correct", "sentence")),
        ("Translate “hello” into French.", ("translate", "hello")),
        ("What is the capital of France?", None),
        ("Tom has three apples.", None),
        ("Explain how a plane flies.", None),
        ("write", None),
        ("Write", None),
        ("please", None),
        ("写一首诗", None),
        ("", None),
        ("!!! 12 ...", None),
    ],
)
def test_root_verb_and_noun(text: str, expected: tuple[str, str] | None) -> None:
    assert root_verb_noun(text) == expected


def test_the_most_frequent_roots_come_first_and_equals_in_order() -> None:
    texts = ["Write a song.", "Name two birds.", "Please write a poem.", "Write poems.", "Who are you?", "Draw a bird."]
    assert frequent_roots(texts, 3) == [(("write", "poem"), 2), (("draw", "bird"), 1), (("name", "bird"), 1)]
