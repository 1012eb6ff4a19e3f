"""From scores to pairs: hand-worked cases of every selector, of what is done with its pairs, and of the rejections."""

import itertools
import random

import pytest

from selfreward.recipe.judge_settings import SelectionSettings
from selfreward.recipe.response_settings import ResponseSettings
from selfreward.records import PreferencePair, Prompt, Rejection, Response
from selfreward.selection.pair_filters import agreeing, anchored, capped, consistency, upgraded, wide
from selfreward.selection.pair_selectors import (
    Rules,
    best_worst,
    correct_incorrect,
    length_controlled,
    revision,
    tied,
    top_bottom,
    usable,
)

PROMPT = Prompt.make([{"role": "user", "content": "Name two animals."}], "test")
RULES = Rules()
SELECTORS = [best_worst, top_bottom, length_controlled]


def responses(*texts: str, reason: str = "stop", name: str = "r") -> list[Response]:
    return [Response(f"{name}{k}", PROMPT.id, k, text, reason, 2, k, "M1") for k, text in enumerate(texts)]


def revised(original: Response, k: int, text: str) -> Response:
    return Response(f"r{k}", PROMPT.id, k, text, "stop", 2, k, "M1", original.id, "Be kind.", "It is rude.")


def sides(outcome: list[PreferencePair] | Rejection) -> list[tuple[str, str]] | str:
    """The ids of chosen and rejected ones, or the reason."""
    return outcome.reason if isinstance(outcome, Rejection) else [(p.chosen_id, p.rejected_id) for p in outcome]


def scored(*values: float | None, name: str = "r") -> dict[str, float]:
    return {f"{name}{k}": value for k, value in enumerate(values) if value is not None}


def test_the_best_is_chosen_and_the_worst_rejected():
    [pair] = best_worst(PROMPT, responses("one", "two", "three"), scored(3.0, 5.0, 1.5), RULES)
    assert (pair.chosen_id, pair.rejected_id) == ("r1", "r2")
    assert (pair.score_chosen, pair.score_rejected) == (5.0, 1.5)
    assert pair.chosen == [{"role": "assistant", "content": "two"}]
    assert pair.prompt == PROMPT.messages


def test_the_first_of_equals_is_taken():
    outcome = best_worst(PROMPT, responses("a", "b", "c", "d"), scored(5.0, 5.0, 0.0, 0.0), RULES)
    assert sides(outcome) == [("r0", "r2")]


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize(
    ("texts", "scores", "reason"),
    [
        (["a", "b"], {"r0": 3.0, "r1": 3.0}, "tie"),
        (["a", "b"], {}, "unscored"),
        (["a", "b"], {"r0": 3.0}, "unscored"),
        (["same words", "same  words "], {"r0": 3.0, "r1": 1.0}, "identical"),
    ],
)
def test_a_prompt_without_a_pair_has_a_named_reason(select, texts, scores, reason):
    assert select(PROMPT, responses(*texts), scores, RULES) == Rejection(PROMPT.id, reason)


def test_an_unscored_response_is_not_the_worst():
    assert sides(best_worst(PROMPT, responses("a", "b", "c"), scored(3.0, None, 4.0), RULES)) == [("r2", "r0")]


@pytest.mark.parametrize(
    ("top", "bottom", "pairs"),
    [
        (1, 1, [("r1", "r3")]),
        (2, 2, [("r1", "r3"), ("r1", "r2"), ("r0", "r3"), ("r0", "r2")]),
        # r2 is among the three best and the three worst, and never meets its equal.
        (3, 3, [("r1", "r3"), ("r1", "r2"), ("r1", "r4"), ("r0", "r3"), ("r0", "r2"), ("r0", "r4"), ("r2", "r3")]),
    ],
)
def test_each_of_the_best_meets_each_of_the_worst(top, bottom, pairs):
    scores = scored(4.0, 5.0, 2.0, 1.0, 2.0)
    outcome = top_bottom(PROMPT, responses(*"abcde"), scores, Rules(top=top, bottom=bottom))
    assert sides(outcome) == pairs
    assert all(pair.score_chosen > pair.score_rejected for pair in outcome)


def test_correct_ones_meet_incorrect_ones_in_their_order_and_none_twice():
    rules = Rules(pass_score=0.5)
    scores = scored(0.0, 1.0, 0.5, 0.0, None, 1.0, 0.4)
    # Correct: 1, 2, 5. Incorrect: 0, 3, 6.
    assert sides(correct_incorrect(PROMPT, responses(*"abcdefg"), scores, rules)) == [
        ("r1", "r0"),
        ("r2", "r3"),
        ("r5", "r6"),
    ]
    assert sides(correct_incorrect(PROMPT, responses(*"abcd"), scored(1, 0, 1, 1), rules)) == [("r0", "r1")]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (scored(1.0, 1.0), "no_incorrect"),
        (scored(0.0, 0.3), "no_correct"),
        (scored(1.0, None), "unscored"),
    ],
)
def test_without_correct_or_incorrect_ones_there_is_no_pair(scores, reason):
    assert sides(correct_incorrect(PROMPT, responses("a", "b"), scores, Rules(pass_score=0.5))) == reason


def test_what_is_correct_must_be_said():
    with pytest.raises(ValueError, match=r"needs selection\.pass_score"):
        correct_incorrect(PROMPT, responses("a", "b"), scored(1.0, 0.0), RULES)


def test_the_shortest_good_one_meets_the_longest_bad_one():
    texts = responses("eleven char", "nine char", "ten chars.", "long and bad", "bad", "the longest of them all")
    scores = scored(5.0, 3.4, 3.3, 1.6, 0.0, 1.7)
    # rho 0.32 of the range 0 to 5: good from 3.4 on, bad up to 1.6, both with their borders.
    assert sides(length_controlled(PROMPT, texts, scores, Rules(rho=0.32))) == [("r1", "r3")]
    assert sides(length_controlled(PROMPT, texts, scores, Rules(rho=0.0))) == [("r0", "r4")]
    assert sides(length_controlled(PROMPT, texts, scores, Rules(rho=0.34))) == [("r1", "r5")]


def test_a_score_on_the_border_is_within_however_floats_round_it():
    texts = responses("a long best one", "short", "bad")
    # From 10/3 to 5/3, 0.4 of the range leads to 8/3 exactly, and in floats to a little above it.
    scores = scored(10 / 3, 8 / 3, 5 / 3)
    assert sides(length_controlled(PROMPT, texts, scores, Rules(rho=0.4))) == [("r1", "r2")]


def test_a_score_in_the_middle_is_no_pair_of_its_own():
    texts = responses("a good one", "bad", "mid", "in the very middle")
    assert sides(length_controlled(PROMPT, texts, scored(4.0, 0.0, 2.0, 2.0), Rules(rho=0.5))) == "tie"


def test_with_rho_0_it_is_best_worst_but_for_ties_which_go_by_length():
    draw = random.Random(0)
    for _ in range(300):
        num = draw.randrange(2, 7)
        texts = responses(*("x" * draw.randrange(1, 9) + str(k) for k in range(num)))
        values = scored(*(draw.choice([None, 0.0, 1 / 3, 1.0, 10 / 3, 5.0]) for _ in range(num)))
        plain, other = (select(PROMPT, texts, values, RULES) for select in (best_worst, length_controlled))
        assert isinstance(plain, Rejection) == isinstance(other, Rejection)
        if isinstance(plain, Rejection):
            assert plain == other
            continue
        [pair], [by_length] = plain, other
        assert (pair.score_chosen, pair.score_rejected) == (by_length.score_chosen, by_length.score_rejected)
        best = [len(r.text) for r in texts if values.get(r.id) == pair.score_chosen]
        worst = [len(r.text) for r in texts if values.get(r.id) == pair.score_rejected]
        lengths = (len(by_length.chosen[0]["content"]), len(by_length.rejected[0]["content"]))
        assert lengths == (min(best), max(worst))


def test_a_revision_is_chosen_over_its_original_whatever_the_judge_says():
    first, second, third = responses("rude", "very rude", "fine")
    every = [first, second, third, revised(first, 3, "kind"), revised(second, 4, "very kind"), revised(third, 5, "ok")]
    outcome = revision(PROMPT, every, scored(2.0, 1.0, 3.0, 1.0, 4.0, None), RULES)
    assert sides(outcome) == [("r3", "r0"), ("r4", "r1")]
    assert [(p.score_chosen, p.score_rejected) for p in outcome] == [(1.0, 2.0), (4.0, 1.0)]
    assert sides(wide(outcome, 0.0)) == [("r3", "r0"), ("r4", "r1")]
    assert sides(wide(outcome, 1.0)) == [("r4", "r1")]


def test_a_prompt_without_a_revision_that_counts_has_a_named_reason():
    first, second = responses("rude", "very rude")
    better = revised(first, 2, "kind")
    assert sides(revision(PROMPT, [first, second], scored(1.0, 2.0), RULES)) == "no_revision"
    assert sides(revision(PROMPT, [second, better], scored(1.0, 2.0, 3.0), RULES)) == "no_revision"
    assert sides(revision(PROMPT, [first, second, better], scored(1.0, 2.0), RULES)) == "unscored"
    unchanged = revised(first, 2, " rude\n")
    assert sides(revision(PROMPT, [first, second, unchanged], scored(1.0, 2.0, 1.0), RULES)) == "identical"


def test_rho_goes_by_iteration_and_the_last_one_stays():
    settings = SelectionSettings(name="length_controlled", length_rho=[0.0, 0.3], min_margin=0.5, top=3, bottom=4)
    assert [Rules.of(settings, t).rho for t in (1, 2, 3, 9)] == [0.0, 0.3, 0.3, 0.3]
    assert Rules.of(settings, 1) == Rules(min_margin=0.5, top=3, bottom=4, pass_score=None, rho=0.0)


def test_an_anchor_that_scores_lower_takes_the_rejected_side():
    own, anchors = responses("a", "b", "c"), responses("x", "y", "z", name="a")
    scores = scored(5.0, 3.0, 2.0) | scored(2.5, 1.0, 0.5, name="a")
    outcome = anchored(PROMPT, best_worst(PROMPT, own, scores, RULES), own, anchors, scores)
    [pair] = outcome
    assert sides(outcome) == [("r0", "a2")]
    assert (pair.score_rejected, pair.rejected) == (0.5, [{"role": "assistant", "content": "z"}])
    again = best_worst(PROMPT, [own[0], anchors[2]], scores, RULES)
    assert outcome == again, "it is the pair that the two would make, with its id"


def test_an_anchor_that_is_no_worse_or_says_the_same_changes_nothing():
    own = responses("a", "b")
    scores = scored(5.0, 2.0) | scored(2.0, 0.0, name="a")
    before = best_worst(PROMPT, own, scores, RULES)
    assert anchored(PROMPT, before, own, responses("x", name="a"), scores) == before
    assert anchored(PROMPT, before, own, responses("x", " a ", name="a"), scores) == before
    assert anchored(PROMPT, before, own, responses("x", "y", "z", name="u"), scores) == before


def test_a_tie_becomes_a_pair_with_an_anchor_or_a_lookahead():
    own, others = responses("a", "b"), responses("x", "y", name="o")
    tie, scores = Rejection(PROMPT.id, "tie"), scored(3.0, 3.0)
    lower, higher, equal = (scores | scored(3.0, other, name="o") for other in (2.0, 4.0, 3.0))
    assert sides(anchored(PROMPT, tie, own, others, lower)) == [("r0", "o1")]
    assert sides(upgraded(PROMPT, tie, own, others, higher)) == [("o1", "r0")]
    for table in (equal, higher):
        assert anchored(PROMPT, tie, own, others, table) == tie
    for table in (equal, lower):
        assert upgraded(PROMPT, tie, own, others, table) == tie
    other = Rejection(PROMPT.id, "unscored")
    assert anchored(PROMPT, other, own, others, lower) == upgraded(PROMPT, other, own, others, higher) == other


def test_a_lookahead_that_scores_higher_takes_the_chosen_side():
    own, lookahead = responses("a", "b", "c"), responses("x", "y", "c", name="l")
    scores = scored(4.0, 3.0, 2.0) | scored(4.5, 4.0, 5.0, name="l")
    before = best_worst(PROMPT, own, scores, RULES)
    # The best of them is the rejected text itself.
    [pair] = upgraded(PROMPT, before, own, lookahead, scores)
    assert (pair.chosen_id, pair.rejected_id, pair.score_chosen) == ("l0", "r2", 4.5)
    assert pair.chosen == [{"role": "assistant", "content": "x"}]
    assert upgraded(PROMPT, before, own, lookahead[1:2], scores) == before


def test_pairs_that_come_to_be_one_count_once():
    own, anchors = responses(*"abcd"), responses("x", name="a")
    scores = scored(5.0, 4.0, 2.0, 1.0) | scored(0.0, name="a")
    four = top_bottom(PROMPT, own, scores, RULES)
    assert len(four) == 4
    assert sides(anchored(PROMPT, four, own, anchors, scores)) == [("r0", "a0"), ("r1", "a0")]


def test_pairs_of_a_small_margin_are_dropped():
    outcome = top_bottom(PROMPT, responses(*"abc"), scored(5.0, 4.0, 3.5), Rules(top=2, bottom=1))
    assert sides(wide(outcome, 1.5)) == [("r0", "r2")]
    assert sides(wide(outcome, 1.6)) == "margin"
    assert sides(wide(Rejection(PROMPT.id, "tie"), 1.0)) == "tie"


def test_pairs_that_the_implicit_reward_orders_otherwise_are_dropped():
    outcome = top_bottom(PROMPT, responses(*"abc"), scored(5.0, 4.0, 3.0), Rules(top=2, bottom=1))
    assert sides(outcome) == [("r0", "r2"), ("r1", "r2")]
    assert sides(agreeing(outcome, {"r0": -1.0, "r1": 0.5, "r2": 0.0})) == [("r1", "r2")]
    assert sides(agreeing(outcome, {"r0": -1.0, "r1": -0.5, "r2": 0.0})) == "disagreement"
    # An equal reward is no other order, and an unknown one is none.
    assert agreeing(outcome, {"r0": 0.0, "r2": 0.0}) == outcome
    assert agreeing(outcome, {}) == outcome


def pair(name: str, prompt: str, margin: float) -> PreferencePair:
    return PreferencePair(name, prompt, [], [], [], f"{name}c", f"{name}r", margin, 0.0)


def test_the_greatest_margins_are_kept_and_the_others_are_over_the_cap():
    outcomes = [
        [pair("a1", "a", 1.0), pair("a2", "a", 3.0), pair("a3", "a", 2.0)],
        [pair("b1", "b", 2.0)],
        Rejection("c", "tie"),
        [pair("d1", "d", 0.5)],
    ]
    sources = {"a": "one", "b": "one", "c": "one", "d": "two"}

    def names(*caps: int | None) -> list[list[str] | str]:
        made = capped(outcomes, sources, *caps)
        return [o.reason if isinstance(o, Rejection) else [p.id for p in o] for o in made]

    assert names(None, None) == [["a1", "a2", "a3"], ["b1"], "tie", ["d1"]]
    assert names(2, None) == [["a2", "a3"], ["b1"], "tie", ["d1"]]
    # Of source one: a2 with 3, then a3 before b1, both with 2, by their ids.
    assert names(None, 2) == [["a2", "a3"], "over_cap", "tie", ["d1"]]
    # What the prompt's own cap drops does not use up the source's.
    assert names(1, 2) == [["a2"], ["b1"], "tie", ["d1"]]


def test_which_pairs_a_cap_keeps_does_not_depend_on_the_order_of_the_file():
    draw = random.Random(1)
    outcomes = [[pair(f"{p}{n}", p, draw.randrange(3)) for n in range(3)] for p in "abcde"]
    sources = dict.fromkeys("abcde", "file")
    left = set()
    for order in itertools.permutations(outcomes):
        made = capped(order, sources, 2, 4)
        left.add(frozenset(p.id for outcome in made if isinstance(outcome, list) for p in outcome))
    assert len(left) == 1
    assert len(left.pop()) == 4


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], 0.0),
        # Of six pairs five are ordered alike: tau = (5 - 1) / 6.
        ([1, 2, 3, 4], [1, 2, 4, 3], (4 / 6 + 1) / 2),
        # tau-b with a tie: (2 - 0) / sqrt(3 * 2).
        ([1, 2, 3], [1, 2, 2], (2 / 6**0.5 + 1) / 2),
        ([3, 3, 3], [1, 2, 3], None),
        ([1, 2, 3], [2, 2, 2], None),
        ([1], [1], None),
        ([1, None, 3], [None, 2, 3], None),
        # Only the responses that both scored count.
        ([1, 2, 3, 9], [1, 2, None, 3], 1.0),
    ],
)
def test_consistency_is_kendalls_tau_from_0_to_1(now, before, expected):
    assert consistency(scored(*now), scored(*before)) == pytest.approx(expected)


def test_a_tie_takes_two_scores():
    assert tied(responses("a", "b"), scored(1.0, 1.0)) is True
    assert tied(responses("a", "b", "c"), scored(1.0, None, 2.0)) is False
    assert tied(responses("a", "b"), scored(1.0)) is None


def test_the_rules_of_the_recipe_drop_responses_by_name():
    sampled = [*responses("a", " ", "a"), *responses("c", reason="length"), *responses("", reason="prompt_too_long")]
    kept, dropped = usable(sampled, ResponseSettings(on_duplicate="drop"))
    assert [r.text for r in kept] == ["a"]
    assert dropped == {"empty": 1, "duplicate": 1, "truncated": 1, "prompt_too_long": 1}
    kept, dropped = usable(sampled, ResponseSettings(on_empty="keep", on_truncated="keep"))
    assert [r.text for r in kept] == ["a", " ", "a", "c"]
    assert dropped == {"prompt_too_long": 1}
