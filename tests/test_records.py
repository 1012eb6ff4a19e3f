"""Records: content-derived ids, exact round trips, and errors that are no numbers."""

import json

import pytest

from selfreward.records import (
    Judgement,
    PreferencePair,
    Prompt,
    Response,
    by_prompt,
    content_id,
    derive_seed,
    read_records,
)
from selfreward.runs.folders import StageFolder

CHAT = [{"role": "user", "content": "Grüße, 世界 \u2028 and a tab\t"}]


def response(k: int, text: str = "yes", prompt_id: str = "p") -> Response:
    return Response(content_id(k, text), prompt_id, k, text, "stop", 2, 7, "M1")


def test_a_record_survives_a_round_trip(tmp_path):
    records = [Prompt.make(CHAT, "file.jsonl"), Prompt.make([{"role": "user", "content": "b"}], "f", "answer")]
    StageFolder(tmp_path, ".").write("records.jsonl", records)
    path = tmp_path / "records.jsonl"
    assert list(read_records(path, Prompt)) == records
    assert path.read_bytes().count(b"\n") == 2


def test_ids_come_from_content_alone():
    assert Prompt.make(CHAT, "one").id == Prompt.make(CHAT, "two").id
    assert Prompt.make(CHAT, "one").id != Prompt.make([{"role": "user", "content": "other"}], "one").id


def test_seeds_differ_for_each_request_and_stay_the_same():
    seeds = {derive_seed(0, iteration, prompt, k) for iteration in range(3) for prompt in "abc" for k in range(50)}
    assert len(seeds) == 450
    assert derive_seed(0, 1, "a", 2) == derive_seed(0, 1, "a", 2) < 2**32


def test_a_line_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="not a Response"):
        Response.from_json(json.dumps({"id": "x"}))


@pytest.mark.parametrize(("score", "error"), [(None, None), (3.0, "no_score")])
def test_a_judgement_is_a_score_or_an_error(score, error):
    with pytest.raises(AssertionError):
        Judgement("i", "p", ["r"], "additive", 0, "text", score, error, 3, 1, "M1")


def test_pairs_have_trl_columns():
    pair = PreferencePair("i", "p", CHAT, CHAT, CHAT, "c", "r", 4.0, 1.0)
    assert {"prompt", "chosen", "rejected"} <= set(json.loads(pair.to_json()))


def test_grouping_keeps_prompts_that_are_interleaved():
    groups = by_prompt([response(0, prompt_id="a"), response(0, prompt_id="b"), response(1, prompt_id="a")])
    assert {key: [r.k for r in group] for key, group in groups.items()} == {"a": [0, 1], "b": [0]}
