"""From scores to pairs: each prompt is a pair or a named rejection."""

import pytest

from selfreward.config import ResponseSettings
from selfreward.records import PreferencePair, Prompt, Rejection, Response
from selfreward.selection import best_worst, usable

PROMPT = Prompt.make([{"role": "user", "content": "Say a number."}], "test")


def responses(*texts: str, reason: str = "stop") -> list[Response]:
    return [Response(f"r{k}", PROMPT.id, k, text, reason, 3, k, "M1") for k, text in enumerate(texts)]


def test_the_best_is_chosen_and_the_worst_rejected():
    [pair] = best_worst(PROMPT, responses("one", "two", "three"), {"r0": 3.0, "r1": 5.0, "r2": 1.5})
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.rejected_id) == ("r1", "r2")
    assert (pair.score_chosen, pair.score_rejected) == (5.0, 1.5)
    assert pair.chosen == [{"role": "assistant", "content": "two"}]
    assert pair.prompt == PROMPT.messages


def test_the_first_of_equals_is_taken():
    [pair] = best_worst(PROMPT, responses("a", "b", "c", "d"), {"r0": 5.0, "r1": 5.0, "r2": 0.0, "r3": 0.0})
    assert (pair.chosen_id, pair.rejected_id) == ("r0", "r2")


@pytest.mark.parametrize(
    ("texts", "scores", "reason"),
    [
        (["a", "b"], {"r0": 3.0, "r1": 3.0}, "tie"),
        (["a", "b"], {}, "unscored"),
        (["a", "b"], {"r0": 3.0}, "unscored"),
        (["same words", "same  words "], {"r0": 3.0, "r1": 1.0}, "identical"),
    ],
)
def test_a_prompt_without_a_pair_has_a_named_reason(texts, scores, reason):
    assert best_worst(PROMPT, responses(*texts), scores) == Rejection(PROMPT.id, reason)


def test_an_unscored_response_is_not_the_worst():
    [pair] = best_worst(PROMPT, responses("a", "b", "c"), {"r0": 3.0, "r2": 4.0})
    assert (pair.chosen_id, pair.rejected_id) == ("r2", "r0")


def test_the_rules_of_the_recipe_drop_responses_by_name():
    sampled = [*responses("a", " ", "a"), *responses("c", reason="length"), *responses("", reason="prompt_too_long")]
    kept, dropped = usable(sampled, ResponseSettings(on_duplicate="drop"))
    assert [r.text for r in kept] == ["a"]
    assert dropped == {"empty": 1, "duplicate": 1, "truncated": 1, "prompt_too_long": 1}
    kept, dropped = usable(sampled, ResponseSettings(on_empty="keep", on_truncated="keep"))
    assert [r.text for r in kept] == ["a", " ", "a", "c"]
    assert dropped == {"prompt_too_long": 1}
