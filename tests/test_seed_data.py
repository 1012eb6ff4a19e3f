"""Seed data from ranked human answers: reading, and what of a model's judgements agrees with people."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from selfreward.data.eft import EFT, Judged, held_out_keys, look, make_eft, spread, thin
from selfreward.data.ift import make_ift
from selfreward.data.prompt_jobs import rows as rows_of
from selfreward.data.ranked import RankedPrompt, prompt_key, read_ranked
from selfreward.engines import Completion
from selfreward.engines.concurrency import map_concurrently
from selfreward.engines.journaled import JournaledEngine
from selfreward.engines.scripted import ScriptedEngine
from selfreward.evaluation.agreement import agreement
from selfreward.judges.expected_score import labels
from selfreward.prompts.seed_data import read_demonstrations, read_graded
from selfreward.recipe.eft_settings import EFTSettings
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.prompt_settings import RowSettings
from selfreward.records import Agreement
from selfreward.runs.journal import Journal
from selfreward.tiny import world

ROOT = Path(__file__).parents[1]
WORTH = {"superb": 4.7, "good": 4.1, "fair": 3.4, "poor": 2.0}  # to the scripted judge: scores pile up at 4
ANSWERS = tuple(WORTH)


# --- reading


def message(text, role="assistant", rank=None, lang="en", replies=(), **other):
    return {"text": text, "role": role, "rank": rank, "lang": lang, "replies": list(replies), **other}


def tree(text, *replies, **other):
    root = message(text, "prompter", replies=replies, **other)
    return {"message_tree_id": text, "prompt": {"message_id": f"id of {text}", **root}}


def write(path: Path, *rows) -> RowSettings:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return RowSettings(path=path)


def lenient(rows: RowSettings) -> RowSettings:
    return rows.model_copy(update={"on_bad_line": "skip"})


def flat(trees):
    """The message table of trees, deepest messages first: a parent may stand below its replies."""
    rows = []

    def walk(each, parent, name):
        for place, reply in enumerate(each["replies"]):
            walk(reply, name, f"{name}.{place}")
        rows.append({**{k: v for k, v in each.items() if k != "replies"}, "message_id": name, "parent_id": parent})

    for number, each in enumerate(trees):
        walk(each["prompt"], None, str(number))
    return rows


TREES = [
    tree("Why?", message("Why not.", rank=1), message("Because.", rank=0, replies=[message("Why so?", "prompter")])),
    tree("Wozu?", message("Darum.", rank=0, lang="de"), lang="de"),
    tree("Gone?", message("No.", rank=0), deleted=True),
    tree("Spam?", message("No.", rank=0), review_result=False),
    tree("Ranked?", message("Nobody ranked me.")),
    tree(
        "Mixed?",
        message("A machine.", rank=0, synthetic=True),
        message("Removed.", rank=1, deleted=True),
        message("Ja.", rank=2, lang="de"),
        message("Yes.", rank=3),
        message("Yes.", rank=4),
        message(" ", rank=5),
    ),
]
ENGLISH = [
    RankedPrompt("Why?", (("Because.", 0), ("Why not.", 1))),
    RankedPrompt("Mixed?", (("Yes.", 3),)),
]
LEFT_OUT = {
    **{"language": 1, "deleted": 1, "failed_review": 1, "unranked": 1},
    **{f"answers_{name}": 1 for name in ("synthetic", "deleted", "language", "duplicate", "empty", "unranked")},
}


def test_the_first_turn_of_trees_is_read(tmp_path):
    assert read_ranked(write(tmp_path / "trees.jsonl", *TREES), "en") == (ENGLISH, LEFT_OUT)


def test_the_message_table_of_trees_gives_the_same(tmp_path):
    rows = flat(TREES)
    assert any(row["parent_id"] == "0.1" for row in rows), "a second turn is among them"
    ranked, left_out = read_ranked(write(tmp_path / "messages.jsonl", *rows), "en")
    assert sorted(ranked, key=str) == sorted(ENGLISH, key=str)
    assert left_out == LEFT_OUT


def test_the_message_table_is_read_from_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    # Where some have no rank, others have 0.0 and not 0.
    rows = [{**row, "rank": None if row["rank"] is None else float(row["rank"])} for row in flat(TREES)]
    columns = {name: [row.get(name) for row in rows] for row in rows for name in row}
    parquet.write_table(pyarrow.table(columns), tmp_path / "messages.parquet")
    ranked, _ = read_ranked(RowSettings(path=tmp_path / "messages.parquet"), "en")
    assert sorted(ranked, key=str) == sorted(ENGLISH, key=str)


def test_a_reply_to_nothing_is_counted(tmp_path):
    rows = write(
        tmp_path / "messages.jsonl", *flat(TREES), {**message("?", rank=0), "message_id": "x", "parent_id": "y"}
    )
    assert read_ranked(rows, "en")[1] == {**LEFT_OUT, "answers_orphaned": 1}


def test_all_languages(tmp_path):
    ranked, left_out = read_ranked(write(tmp_path / "trees.jsonl", *TREES), None)
    assert [each.prompt for each in ranked] == ["Why?", "Wozu?", "Mixed?"]
    assert "language" not in left_out


def test_a_table_has_ranks_or_scores(tmp_path):
    rows = [
        {"prompt": "a", "response": "worse", "rank": 1},
        {"prompt": "b", "response": "low", "score": -0.5},
        {"prompt": "a", "response": "better", "rank": 0},
        {"prompt": "b", "response": "high", "score": 7},
        {"prompt": "b", "response": "as high", "score": 7.0},
        {"prompt": "b", "response": "middle", "score": 1},
    ]
    ranked, left_out = read_ranked(write(tmp_path / "table.jsonl", *rows), None)
    assert ranked == [
        RankedPrompt("a", (("better", 0), ("worse", 1))),
        RankedPrompt("b", (("high", 0), ("as high", 0), ("middle", 1), ("low", 2))),
    ]
    assert left_out == {}


GOOD = {"prompt": "a", "response": "b", "rank": 0, "lang": "en"}
BAD = [
    ("{", "malformed", "not JSON"),
    ("", "empty", "an empty line"),
    ({**GOOD, "response": "c", "prompt": 3}, "malformed", "`prompt` is 3"),
    ({**GOOD, "response": " "}, "empty", "`response` is empty"),
    ({"prompt": "a", "response": "c", "lang": "en"}, "malformed", "`rank` and `score`"),
    ({**GOOD, "response": "c", "score": 1}, "malformed", "`rank` and `score`"),
    ({**GOOD, "response": "c", "rank": -1}, "malformed", "`rank` is -1"),
    ({**GOOD, "response": "c", "rank": True}, "malformed", "`rank` is True"),
    ({**GOOD, "response": "c", "rank": 10**400}, "malformed", "and a number is wanted"),
    ('{"prompt": "a", "response": "c", "rank": NaN, "lang": "en"}', "malformed", "`rank` is no number"),
    ('{"prompt": "a", "response": "c", "score": Infinity, "lang": "en"}', "malformed", "`score` is inf"),
    ({"prompt": "a", "response": "c", "score": 1, "lang": "en"}, "malformed", "the other measure"),
    ({"prompt": "a", "response": "c", "rank": 1}, "malformed", "no `lang`"),
    (GOOD, "duplicate", "the same answer"),
    ({**GOOD, "prompt": "a" * 8001}, "over_long", "8001 characters"),
    ({"prompt": message("x", "assistant")}, "malformed", "begins with the prompter"),
    ({"prompt": {"text": "x", "role": "prompter", "replies": 7}}, "malformed", "`replies` is 7"),
    (tree("x", message("y", role="system")), "malformed", "prompter or assistant"),
    (tree("x", message("y", rank=0.5)), "malformed", "`rank` is 0.5"),
]


@pytest.mark.parametrize(("row", "reason", "words"), BAD)
def test_a_bad_row_is_named_or_counted(tmp_path, row, reason, words):
    rows = write(tmp_path / "rows.jsonl", GOOD, row)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: ") as error:
        read_ranked(rows, "en")
    assert words in str(error.value)
    assert read_ranked(lenient(rows), "en") == ([RankedPrompt("a", (("b", 0),))], {reason: 1})


def test_a_message_or_tree_that_stands_there_twice_is_read_once(tmp_path):
    for name, rows in (("trees", TREES), ("messages", flat(TREES))):
        settings = write(tmp_path / f"{name}.jsonl", *rows, rows[0], rows[-1])
        with pytest.raises(ValueError, match="was there before"):
            read_ranked(settings, "en")
        ranked, left_out = read_ranked(lenient(settings), "en")
        assert (len(ranked), left_out) == (2, {**LEFT_OUT, "duplicate": 2})


def test_a_file_without_what_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no prompt with a ranked answer in fr\. Left out: .*'language': 4"):
        read_ranked(write(tmp_path / "trees.jsonl", *TREES), "fr")
    with pytest.raises(ValueError, match="has no usable line: it is empty"):
        read_ranked(write(tmp_path / "empty.jsonl"), None)


def test_prompts_that_are_nearly_the_same_have_one_key():
    assert prompt_key("What is  RUST?\n") == prompt_key("what is rust") != prompt_key("What is trust?")
    assert prompt_key("Ｗｈａｔ is rust") == prompt_key("What is rust")
    assert prompt_key("???") != prompt_key("!")


# --- instruction data


def test_the_best_answers_are_instruction_data(tmp_path):
    ranked = [
        RankedPrompt("a", (("first", 0), ("second", 1))),
        RankedPrompt("b", (("the best one was deleted", 1),)),
        RankedPrompt("c", (("one", 0), ("as good", 0))),
        RankedPrompt("Held out!", (("yes", 0),)),
    ]
    tasks, removed = make_ift(ranked, "people", without=["held out"])
    assert [(task.instruction, task.output, task.source) for task in tasks] == [
        *(("a", "first", "people"), ("c", "one", "people"))
    ]
    assert [(removal.instruction, removal.filter) for removal in removed] == [
        *(("b", "without_best"), ("Held out!", "held_out"))
    ]
    path = tmp_path / "ift.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(tasks)))
    read = read_demonstrations(path)
    assert [(row.messages, row.response) for row in read] == [(task.messages, task.output) for task in tasks]


# --- judging data


def judged(rank, score, prompt="p", response="r", round=0):
    error = "no_score" if score is None else None
    return Judged(prompt, response, rank, round, f"Score: {score}", score, error)


@pytest.mark.parametrize(
    ("ranks", "scores", "drop", "allow"),
    [
        ((0, 1, 2), (5, 3, 1), None, None),
        ((2, 0, 1), (1, 5, 3), None, None),
        ((0, 1, 2), (5, 3, 4), "disagrees", "disagrees"),
        ((0, 1, 2), (5, 3, 3), "tie", None),
        ((0, 1, 2), (3, 3, 4), "disagrees", "disagrees"),
        ((0, 1, 2), (4, 4, 4), "tie", "tie"),
        ((0, 0, 1), (3, 5, 1), None, None),
        ((0, 0, 1), (3, 5, 4), "disagrees", "disagrees"),
        ((0, 1, 2), (5, None, 1), None, None),
        ((0, 1, 2), (1, None, 5), "disagrees", "disagrees"),
        ((0, 1, 2), (5, None, None), "too_few", "too_few"),
        ((0, 1, 1), (None, 5, 1), "too_few", "too_few"),
        ((0, 1), (None, None), None, None),
    ],
)
def test_a_round_that_orders_no_pair_against_people_agrees(ranks, scores, drop, allow):
    round_ = [judged(rank, score) for rank, score in zip(ranks, scores, strict=True)]
    for ties, reason in (("drop", drop), ("allow", allow)):
        wanted = ["no_score" if score is None else reason for score in scores]
        assert [each.reason for each in look(round_, ties)] == wanted


def test_of_many_answers_some_are_judged_from_the_best_to_the_worst():
    answers = [(f"a{rank}", rank) for rank in range(9)]
    assert [rank for _, rank in spread(answers, 4)] == [0, 3, 5, 8]
    assert [rank for _, rank in spread(answers, 2)] == [0, 8]
    assert spread(answers, 9) == answers


@pytest.mark.parametrize("share", [0.2, 0.25, 0.3, 0.5, 1.0])
def test_no_score_has_more_than_its_share_and_no_more_is_taken_than_that_needs(share):
    rng = random.Random(0)
    for _ in range(100):
        counts = [rng.randrange(1, 40) for _ in range(6)]
        kept = [judged(0, score, f"{n}") for score, count in enumerate(counts) for n in range(count)]
        rng.shuffle(kept)
        after = Counter(each.score for each in thin(kept, share, 1) if each.reason is None)
        assert max(after.values()) / after.total() <= share
        # By trying: with one more of each score that was thinned, the bound would not hold.
        more = [min(count, max(after.values()) + 1) for count in counts]
        assert after == Counter(dict(enumerate(counts))) or max(more) / sum(more) > share


def test_too_few_scores_for_the_share_are_thinned_to_the_next():
    kept = [judged(0, score, f"{n}") for score, count in ((4, 50), (3, 20), (1, 2)) for n in range(count)]
    left = [each.score for each in thin(kept, 0.3, 1) if each.reason is None]
    assert Counter(left) == {4: 20, 3: 20, 1: 2}
    assert [each.reason for each in thin(kept[:50], 0.3, 1)] == [None] * 50
    assert thin([], 0.3, 1) == []


def test_held_out_is_a_share_or_a_number_of_prompts():
    prompts = [f"prompt {n}" for n in range(100)]
    half, ten = held_out_keys(prompts, 0.5, 1), held_out_keys(prompts, 10, 1)
    assert (len(half), len(ten)) == (50, 10)
    assert held_out_keys([*prompts, *(p.upper() + "!" for p in prompts)], 0.5, 1) == half
    assert held_out_keys(prompts, 0.5, 2) != half
    assert held_out_keys(prompts, 0, 1) == held_out_keys([], 5, 1) == set()
    with pytest.raises(ValueError, match="held_out is 100, and the judgements of 100 prompts agree"):
        held_out_keys(prompts, 100, 1)


def opinion(text: str, seed: int) -> str | Completion:
    """A judge that is off by half a point or so, and sometimes does not answer."""
    prompt, _, answer = text.partition("<response>")
    rng = random.Random(f"{prompt[-200:]} {answer} {seed}")
    if rng.random() < 0.05:
        return rng.choice(["", "I can't say.", "Score: 9", Completion("It is", "length", 512)])
    worth = next(worth for word, worth in WORTH.items() if word in answer)
    return f"It is as good as it looks.\nScore: {max(0, min(5, round(rng.gauss(worth, 0.7))))}"


class Opinions(ScriptedEngine):
    script = staticmethod(lambda model, text, seed: opinion(text, seed))


class Counting(Opinions):
    """Answers late and in any order; breaks down after so many requests."""

    def __init__(self, most: float = float("inf")) -> None:
        super().__init__("M1", None, None)
        self.most, self.asked = most, 0

    async def generate(self, messages, params, seeds):
        await asyncio.sleep(random.SystemRandom().uniform(0, 0.002))
        if self.asked >= self.most:
            raise ValueError("the power is gone")
        self.asked += len(seeds)
        return await super().generate(messages, params, seeds)


def realistic(num: int) -> list[RankedPrompt]:
    """Prompts with two to four answers, such as they come from people who ranked them."""
    rng = random.Random(1)
    ranked = []
    for number in range(num):
        words = sorted(rng.sample(range(4), rng.choice((2, 3, 3, 4))))
        ranked.append(RankedPrompt(f"Question {number}", tuple((ANSWERS[w], rank) for rank, w in enumerate(words))))
    return ranked


def run_concurrently(name, items, work):
    return map_concurrently(name, items, work, 16)


def eft(ranked, engine=None, seed=3, **settings) -> EFT:
    return make_eft(ranked, EFTSettings(**settings), engine or Counting(), run_concurrently, seed)


def check_books(made: EFT) -> None:
    figures = made.figures
    reasons = Counter(each.reason for each in made.dropped)
    assert figures["judgements"] == len(made.train) + len(made.held_out) + len(made.dropped)
    assert {f"dropped_{name}": count for name, count in reasons.items()} == {
        name: count for name, count in figures.items() if name.startswith("dropped_")
    }
    assert (figures["train"], figures["held_out"]) == (len(made.train), len(made.held_out))


@pytest.mark.parametrize("ties", ["drop", "allow"])
def test_what_is_kept_agrees_with_people(ties):
    ranked = realistic(300)
    made = eft(ranked, ties=ties)
    check_books(made)
    kept = [*made.train, *made.held_out]
    scores = labels(kept, JudgeSettings())
    of_prompt: dict[str, list[tuple[int, float]]] = {}
    for row, score in zip(kept, scores, strict=True):
        of_prompt.setdefault(row.prompt, []).append((ANSWERS.index(row.response), score))
    found = [(a, b) for rows in of_prompt.values() for a in rows for b in rows if a[0] < b[0]]
    assert len(found) > 200
    assert all(a[1] > b[1] or (ties == "allow" and a[1] == b[1]) for a, b in found)
    assert {"dropped_disagrees", "dropped_no_score", "dropped_empty", "dropped_out_of_range", "dropped_cut_off"} <= set(
        made.figures
    )


def test_the_training_part_is_thinned_and_the_held_out_part_is_whole():
    made = eft(realistic(300), max_modal_share=0.25)
    modal = Counter(labels(made.train, JudgeSettings())).most_common(1)[0][1] / len(made.train)
    assert modal == made.figures["train_modal_share"] <= 0.25 < made.figures["held_out_modal_share"]
    assert made.figures["dropped_thinned"] > 0
    thinned = {each.prompt for each in made.dropped if each.reason == "thinned"}
    assert not thinned & {each.prompt for each in made.held_out}
    scored = zip(made.held_out, labels(made.held_out, JudgeSettings()), strict=True)
    records = [Agreement(row.prompt, row.response, -ANSWERS.index(row.response), score) for row, score in scored]
    assert agreement(records, 5.0)["judge_pairwise_accuracy"] == 1.0


def test_nearly_the_same_prompts_are_on_one_side():
    twins = [RankedPrompt(each.prompt.upper() + " ?", each.answers) for each in realistic(150)]
    made = eft([*realistic(150), *twins], held_out=0.5, ties="allow")
    sides = [{prompt_key(row.prompt) for row in side} for side in (made.train, made.held_out)]
    assert not sides[0] & sides[1]
    both = [side & {prompt_key(t.prompt) for t in twins} for side in sides]
    assert all(len(side) > 20 for side in both)
    held_out = [row.prompt for row in made.held_out]
    assert any(p.upper() + " ?" in held_out for p in held_out), "twins are held out together"


def test_a_second_round_is_asked_where_the_first_does_not_agree():
    one, three = Counting(), Counting()
    single, several = (eft(realistic(200), e, judge={"votes": v}) for e, v in ((one, 1), (three, 3)))
    assert single.figures["prompts_agreeing"] < several.figures["prompts_agreeing"]
    assert one.asked < three.asked < 3 * one.asked
    assert three.asked == several.figures["judgements"]
    first = {(row.prompt, row.response): row.judgement for row in [*single.train, *single.held_out]}
    again = {(row.prompt, row.response): row.judgement for row in [*several.train, *several.held_out]}
    both = first.keys() & again.keys()
    assert len(both) > 100
    assert all(first[key] == again[key] for key in both), "what agrees at once is what it was"
    check_books(several)


def test_the_same_settings_and_seed_give_the_same_in_whatever_order_requests_end():
    assert eft(realistic(60)) == eft(realistic(60)) != eft(realistic(60), seed=4)


def test_a_few_prompts_are_drawn_and_those_without_order_are_counted():
    unordered = [RankedPrompt("One", (("good", 0),)), RankedPrompt("Two", (("good", 0), ("poor", 0)))]
    made = eft([*unordered, *realistic(50)], max_prompts=20, held_out=3)
    figures = made.figures
    assert (figures["prompts"], figures["prompts_without_order"], figures["prompts_not_drawn"]) == (20, 2, 30)
    assert len({row.prompt for row in made.held_out}) == 3
    asked = {row.prompt for row in [*made.train, *made.held_out, *made.dropped]}
    assert len(asked) == 20
    assert asked < {each.prompt for each in realistic(50)}


def test_a_run_that_broke_off_asks_only_what_is_missing(tmp_path):
    whole = eft(realistic(80))
    before = Counting(most=70)
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(ValueError, match="the power is gone"),
    ):
        eft(realistic(80), JournaledEngine(before, journal, "writer"))
    after = Counting()
    with Journal(tmp_path / "journal") as journal:
        engine = JournaledEngine(after, journal, "writer")
        assert eft(realistic(80), engine) == whole
    assert engine.found == before.asked == 70
    assert before.asked + after.asked == whole.figures["judgements"]


def test_a_judge_that_cannot_be_read_stops_it_early():
    class Mute(Counting):
        script = staticmethod(lambda model, text, seed: "no idea")

    engine = Mute()
    with pytest.raises(ValueError, match=r"0\.0% of \d+ judgements can be read") as error:
        eft(realistic(200), engine)
    assert "no_score: 'no idea'" in str(error.value)
    assert "lower judge.min_parse_rate" in str(error.value)
    assert engine.asked < 50 * 4 * 3 + 1
    made = eft(realistic(20), Mute(), judge={"min_parse_rate": 0.0})
    assert (made.train, made.held_out, made.figures["train_modal_share"]) == ([], [], None)
    assert made.figures["dropped_no_score"] == made.figures["judgements"]


def test_the_judge_sees_the_answer_that_it_gave_itself():
    """Where the judge compares with its own answer, judging data carry it, as the trained prompt will."""

    class Scholar(Counting):
        script = staticmethod(lambda model, text, seed: opinion(text, seed) if "<response>" in text else "My own.")

    made = eft(realistic(30), Scholar(), judge={"reference": "answer"})
    assert {row.reference for row in [*made.train, *made.held_out]} == {"My own."}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"held_out": 1.5}, "held_out is 1.5: give a share below 1, or a whole number"),
        ({"judge": {"name": "pairwise"}}, "judge.name is pairwise"),
        ({"judge": {"name": "yes_no", "votes": 1}}, "judge.name is yes_no"),
        ({"judge": {"name": "expected_score", "votes": 1, "expected": {"think": False}}}, "with think"),
        ({"judge": {"reference": "prompt"}}, "ranked answers come without one"),
        (
            {"judge": {"engine": {"name": "transformers"}, "model": {"path": str(ROOT)}}},
            "the model of the data set judges",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        EFTSettings(**settings)


def test_the_expected_score_judges_text_is_labelled_by_what_it_says():
    made = eft(realistic(40), judge={"name": "expected_score"}, ties="allow")
    kept = [*made.train, *made.held_out]
    assert kept
    assert all(label.is_integer() for label in labels(kept, JudgeSettings()))


def test_the_tiny_model_judges_answers_that_the_world_ranked(tmp_path):
    """A real model through the transformers engine: the base model knows reviews from the pages it has read."""
    from selfreward.engines.transformers import TransformersEngine
    from selfreward.recipe.engine_settings import EngineSettings, ModelSettings

    template, page = tmp_path / "judge.txt", tmp_path / "page.jinja"
    template.write_text("{prompt}\n{response}")
    page.write_text(
        "{{ bos_token }}{{ messages[0]['content'] }}{{ '\\n' }}{% if not add_generation_prompt %}{% endif %}"
    )
    rng = random.Random(0)
    ranked = []
    for task in world.split()[1][:12]:
        answers = {world.demonstrate(task, rng, flaw) for flaw in (0.0, 0.3, 0.6, 0.9)}
        best_first = sorted(sorted(answers), key=task.score, reverse=True)
        scores = sorted({task.score(answer) for answer in best_first}, reverse=True)
        ranked.append(RankedPrompt(task.text, tuple((a, scores.index(task.score(a))) for a in best_first)))
    path = ROOT / "selfreward" / "tiny" / "model"
    model = ModelSettings(path=str(path), dtype="float32", chat_template=page)
    engine = TransformersEngine(str(path), model, EngineSettings(name="transformers"))
    judge = {"template": template, "votes": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 40}
    made = make_eft(
        ranked, EFTSettings(judge=judge, ties="allow", max_modal_share=0.5), engine, run_concurrently, seed=0
    )
    check_books(made)
    assert len(made.train) > 5
    assert made.held_out
    right = [world.gold(row.prompt, row.response) for row in made.train]
    assert sum(abs(a - b) for a, b in zip(right, labels(made.train, JudgeSettings()), strict=True)) / len(right) < 1
    out = tmp_path / "eft.jsonl"
    out.write_text("".join(json.dumps(vars(row)) + "\n" for row in made.train))
    assert read_graded(out) == made.train
