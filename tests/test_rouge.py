"""ROUGE-L against the whole pool: the decisions of rouge_score, with a fraction of its comparisons."""

import random
import sys
from functools import partial

import pytest
from rouge_score.rouge_scorer import RougeScorer

from selfreward.prompts.filters.base import Filters
from selfreward.prompts.filters.rouge import Neighbour, RougeIndex, RougeL
from selfreward.recipe.filter_settings import FilterSettings, RougeSettings
from selfreward.records import Task
from selfreward.text.words import words

SCORER = RougeScorer(["rougeL"], use_stemmer=False)
unicode_tokens = partial(words, letters_only=True)


def score(one: str, other: str, scorer: RougeScorer = SCORER) -> float:
    return scorer.score(one, other)["rougeL"].fmeasure


def brute_force(text: str, pool: dict[str, str], threshold: float, scorer: RougeScorer = SCORER) -> Neighbour | None:
    """Every text of the pool (by id) compared; the greatest score, of equal ones the smallest id."""
    scores = [Neighbour(id, score(text, other, scorer)) for id, other in pool.items()]
    return min((n for n in scores if n.f_measure > threshold), key=lambda n: (-n.f_measure, n.id), default=None)


def texts(seed: int, num: int, words: list[str], shortest: int, longest: int) -> list[str]:
    """Random texts of few different words; half of them are earlier ones with words replaced, moved or left out."""
    rng = random.Random(seed)
    made: list[list[str]] = []
    for _ in range(num):
        text = rng.choices(words, k=rng.randint(shortest, longest))
        earlier = rng.choice(made) if made else []
        if earlier and rng.random() < 0.5:
            text = [*earlier]
            for _ in range(rng.randint(0, 1 + len(text) // 2)):
                place, change = rng.randrange(len(text)), rng.randrange(3)
                if change == 0:
                    text[place] = rng.choice(words)
                elif change == 1:
                    text.insert(rng.randrange(len(text)), text.pop(place))
                elif len(text) > max(shortest, 1):
                    text.pop(place)
        made.append(text)
    return [" ".join(text) for text in made]


def decide(index: RougeIndex, candidates: list[str], scorer: RougeScorer = SCORER) -> int:
    """Looks up each candidate and adds the ones without a neighbour, as rouge_score must decide too; gives the hits."""
    pool: dict[str, str] = {}
    ids = random.Random(1).sample(range(len(candidates)), len(candidates))
    for text, number in zip(candidates, ids, strict=True):
        found = index.nearest(text)
        assert found == brute_force(text, pool, index.threshold, scorer), text
        if found is None:
            pool[f"{number:05}"] = text
            index.add(f"{number:05}", text)
    return len(candidates) - len(pool)


FEW, SOME, MANY = (["a", "b", "c"], [f"w{n}" for n in range(12)], [f"w{n}" for n in range(300)])


@pytest.mark.parametrize(
    ("threshold", "words", "shortest", "longest", "num"),
    [
        (0.7, FEW, 0, 8, 300),
        (0.7, SOME, 10, 10, 150),  # F is 0.7 for 7 words of 10
        (0.7, SOME, 0, 20, 150),
        (0.7, MANY, 4, 40, 80),
        (0.7, MANY, 25, 70, 40),  # texts on both sides of 32 and of 64 words, which are kept apart
        (0.5, SOME, 1, 12, 200),
        (0.5, MANY, 1, 40, 60),
        (0.9, SOME, 1, 12, 150),
        (0.9, FEW, 5, 40, 60),
        (0.2, MANY, 1, 30, 100),
        (1 / 3, SOME, 1, 9, 300),
        (0.05, MANY, 1, 60, 60),
    ],
)
def test_decisions_are_those_of_rouge_score(threshold, words, shortest, longest, num):
    hits = sum(decide(RougeIndex(threshold), texts(seed, num, words, shortest, longest)) for seed in range(2))
    assert num / 20 < hits < 2 * num


def test_a_score_that_equals_the_threshold_is_decided_as_rouge_score_rounds_it():
    decisions = set()
    for m in range(1, 41):
        for n in range(m, 41):
            for common in range(1, m + 1):
                if 20 * common != 7 * (m + n):
                    continue
                one = " ".join([*(f"w{k}" for k in range(common)), *(f"x{k}" for k in range(m - common))])
                other = " ".join([*(f"w{k}" for k in range(common)), *(f"y{k}" for k in range(n - common))])
                index = RougeIndex(0.7)
                index.add("other", other)
                assert (index.nearest(one) is not None) == (score(one, other) > 0.7), (m, n, common)
                decisions.add(index.nearest(one) is not None)
    # In real numbers none of them is above 0.7.
    assert decisions == {True, False}


def test_texts_of_hundreds_of_words_are_compared_exactly():
    rng = random.Random(0)
    index, pool = RougeIndex(0.7), {}
    for number, length in enumerate([60, 70, 125, 130, 270, 520]):
        pool[str(number)] = " ".join(rng.choices(MANY, k=length))
        index.add(str(number), pool[str(number)])
    hits = 0
    for text in [*pool.values()]:
        for share in (0.2, 0.33, 0.4):
            words = text.split()
            for place in rng.sample(range(len(words)), int(share * len(words))):
                words[place] = rng.choice(MANY)
            found = index.nearest(" ".join(words))
            assert found == brute_force(" ".join(words), pool, 0.7)
            hits += found is not None
    assert 6 <= hits < 15


def test_the_order_in_which_the_pool_grew_makes_no_difference():
    every = texts(3, 200, SOME, 5, 10)
    ids = {text: f"{number:03}" for number, text in enumerate(every)}
    queries, orders = texts(4, 200, SOME, 5, 10), [every, every[::-1], random.Random(0).sample(every, 200)]
    found = []
    for order in orders:
        index = RougeIndex(0.5)
        for text in order:
            index.add(ids[text], text)
        found.append([index.nearest(query) for query in queries])
    assert found[0] == found[1] == found[2]
    assert sum(each is not None for each in found[0]) > 100


def test_of_neighbours_as_near_the_smallest_id_is_given():
    index = RougeIndex(0.7)
    for id in ("c", "a", "b"):
        index.add(id, "Name the three largest lakes.")
    index.add("0", "Name the three largest lakes now")
    assert index.nearest("name THE three largest: lakes?") == Neighbour("a", 1.0)
    assert index.nearest("Name the three largest towns") == Neighbour("a", score("a b c d e", "a b c d f"))


ODD = [
    *("", " ", "...", "日本の首都はどこですか", "Кто это написал?", "naïve café", "naive cafe"),
    *("snake_case_name", "snake case name", "\u212a and \u0130stanbul", "k and i stanbul", "don't", "don t"),
    *(
        "x" * 300,
        "x " * 300,
        "a\nb\tc",
        "a b c",
        "\ud800 a b",
        "\0",
        "a\0b",
        "½ x²",
        "１２３ abc",
        "ﬁne",
        "0 1 2 3",
        "٣ ٤",
    ),
]


def test_odd_texts_are_split_as_rouge_score_splits_them():
    index, pool = RougeIndex(0.3), {}
    for number, text in enumerate(ODD):
        index.add(f"{number:02}", text)
        pool[f"{number:02}"] = text
    found = {text: index.nearest(text) for text in ODD}
    assert found == {text: brute_force(text, pool, 0.3) for text in ODD}
    assert found[""] is found["Кто это написал?"] is found["日本の首都はどこですか"] is None
    assert found["don t"] == Neighbour(str(ODD.index("don't")), 1.0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't write_this, Ünal: 3½!", "don t write this ünal 31 2"),
        ("用Python写一个函数。", "用 python 写 一 个 函 数"),
        ("カタカナとﾊﾝｶｸ", "カ タ カ ナ と ハ ン カ ク"),
        ("हिन्दी में लिखो", "हिन्दी में लिखो"),
        ("ไทย is", "ไ ท ย is"),
        ("日々AI・ꩠa", "日 々ai ꩠ a"),
        ("한국어 문장", "한국어 문장"),
        ("Σίσυφος ΣΊΣΥΦΟΣ", "σίσυφος σίσυφος"),
        ("e\u0301t\u00e9 \ud800", "été"),
        (" \0.", ""),
    ],
)
def test_unicode_tokens(text, tokens):
    assert unicode_tokens(text) == tokens.split()


def test_unicode_tokens_are_compared_by_the_same_measure():
    class Tokens:
        def tokenize(self, text: str) -> list[str]:
            return unicode_tokens(text)

    words = ["日", "本語", "слово", "Слова", "Ärger", "arger", "ab", "AB", "हिन्दी"]
    scorer = RougeScorer(["rougeL"], tokenizer=Tokens())
    assert decide(RougeIndex(0.7, "unicode"), texts(0, 300, words, 0, 10), scorer) > 30


def test_more_words_than_can_be_told_apart_are_refused():
    index = RougeIndex(0.7)
    index.add("most", " ".join(map(str, range(sys.maxunicode))))
    with pytest.raises(ValueError, match=r"more than 1,114,111 different words.* Use the filter minhash"):
        index.add("one more", "word")


def tasks(*instructions: str) -> list[Task]:
    return [Task.make(text, "test") for text in instructions]


def test_the_filter_names_the_instruction_that_is_too_near():
    filters = Filters(FilterSettings(), ["rouge_l"])
    seeds = tasks("Name three birds that can not fly.")
    filters.add_known(seeds)
    made = tasks("Name three birds that can fly.", "Write a poem about the sea.", "Write me a poem about the sea.")
    assert filters.filter(made) == made[1:2]
    first, second = filters.removed
    assert (first.filter, first.neighbour_id, first.neighbour) == (
        "rouge_l",
        seeds[0].instruction_id,
        seeds[0].instruction,
    )
    assert first.similarity == score(seeds[0].instruction, made[0].instruction)
    assert "0.923 with an instruction of the pool, above 0.7" in first.detail
    assert (second.neighbour_id, second.neighbour) == (made[1].instruction_id, made[1].instruction)


@pytest.mark.parametrize(("tokens", "stays"), [("rouge", True), ("unicode", False)])
def test_the_filter_compares_other_scripts_where_it_is_told_to(tokens, stays):
    rouge = RougeL(FilterSettings(rouge_l=RougeSettings(tokens=tokens)), None)
    first, second = tasks("Назови три большие реки", "Назови три большие реки!")
    rouge.add(first)
    assert (rouge.look(second) is None) == stays


def test_the_filter_has_its_threshold_from_the_settings():
    near, far = tasks("one two three four five", "one two three four six")
    for threshold, taken in ((0.79, True), (0.81, False)):
        rouge = RougeL(FilterSettings(rouge_l=RougeSettings(threshold=threshold)), None)
        rouge.add(near)
        assert (rouge.look(far) is not None) == taken
