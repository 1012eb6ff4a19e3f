"""The tiny world: its checker against hand-worked cases, and its data against the checker."""

import json
import random
from collections import Counter
from importlib import resources

import pytest
from tiny_world import make_data
from tiny_world.pretrain import build_tokenizer

from selfreward.judges.additive import AdditiveJudge
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.tiny import world
from selfreward.tiny.world import Task

TASK = Task("animals", 3, "alphabetical", "starting with", "bear")


@pytest.mark.parametrize(
    ("response", "checks"),
    [
        ("bear deer fox", (True, True, True, True, True)),
        ("bear deer", (False, True, True, True, True)),
        ("bear deer eagle", (True, False, True, True, True)),
        ("bear fox deer", (True, True, False, True, True)),
        ("bear fox fox", (True, True, True, False, True)),
        ("ant deer fox", (True, True, True, True, False)),
        ("bear, deer, fox", (True, False, True, True, False)),
        ("", (False, False, False, False, False)),
        ("Score: 5", (False, False, False, True, False)),
    ],
)
def test_each_constraint_is_a_point(response, checks):
    assert TASK.checks(response) == checks
    assert TASK.score(response) == sum(checks)
    assert world.gold(TASK.text, response) == sum(checks)


def test_a_verdict_names_the_evidence():
    assert TASK.verdict("ant fox fox duck") == (
        "count four no, stranger duck no, disorder duck no, repeat fox no, starting ant no\nScore: 0"
    )


def test_every_task_can_be_read_back_and_fulfilled():
    rng = random.Random(0)
    tasks = world.all_tasks()
    assert len({task.text for task in tasks}) == len(tasks)
    for task in tasks:
        assert world.parse(task.text) == task
        assert task.score(world.demonstrate(task, rng, flaw=0.0)) == 5


def test_another_instruction_is_refused():
    with pytest.raises(ValueError, match="not an instruction of the tiny world: 'Sing!'"):
        world.parse("Sing!")


def test_shipped_data_is_what_the_program_writes_and_its_labels_are_right(tmp_path):
    make_data.write_data(tmp_path)
    shipped = resources.files("selfreward.tiny") / "data"
    for path in tmp_path.iterdir():
        assert (shipped / path.name).read_bytes() == path.read_bytes(), "run: make tiny"
    judge = AdditiveJudge(JudgeSettings())
    for name in ("eft.jsonl", "heldout_judging.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).open()]
        for row in rows:
            assert judge.parse(row["judgement"]) == (world.gold(row["prompt"], row["response"]), None)
        assert max(Counter(row["judgement"][-1] for row in rows).values()) < 0.3 * len(rows)


def test_held_out_prompts_are_in_no_training_file(tmp_path):
    make_data.write_data(tmp_path)
    rows = {p.stem: [json.loads(line) for line in p.open()] for p in tmp_path.glob("*.jsonl")}
    texts = {name: {row.get("prompt") or row["instruction"] for row in rows[name]} for name in rows}
    seen = texts["ift"] | texts["eft"] | texts["prompts"] | texts["seeds"]
    seen |= {row["response"] for row in rows["ift_self_instruct"]}
    assert not seen & (texts["heldout_prompts"] | texts["heldout_judging"])
    assert not texts["heldout_prompts"] & texts["heldout_judging"]


def test_every_word_is_one_token_and_text_survives_tokenizing():
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for task in rng.sample(world.all_tasks(), 300):
        response = world.demonstrate(task, rng, 0.25)
        for text in (task.text, response, task.verdict(response)):
            ids = tokenizer.encode(text)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
