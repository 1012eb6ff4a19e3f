"""Critique and revision: the turns, what is recorded of them, and when there is no revision."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

import selfreward
from selfreward import loop
from selfreward.engines import Completion
from selfreward.engines.base import TOO_LONG
from selfreward.engines.scripted import ScriptedEngine
from selfreward.prompts.seed_data import read_demonstrations
from selfreward.recipe.response_settings import ResponseSettings
from selfreward.records import Prompt, Response, by_prompt, content_id, derive_seed
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines
from selfreward.stages.revision import Constitution, demonstrations, read_principles

PROMPT = Prompt.make([{"role": "user", "content": "Is {critique} safe?"}], "test")
RESPONSE = Response("r0", PROMPT.id, 0, "It is.", "stop", 3, 7, "iter_1/model")
PRINCIPLES = "# What an answer is to be.\nBe honest.\n\n  Be kind.\nBe brief.\n"


@pytest.fixture
def principles(tmp_path: Path) -> Path:
    path = tmp_path / "principles.txt"
    path.write_text(PRINCIPLES)
    return path


class Reviser:
    """Gives the texts in their order, and notes what it was asked."""

    model = "M1"

    def __init__(self, *texts: str | Completion) -> None:
        self.texts, self.asked, self.seeds = list(texts), [], []

    async def generate(self, messages, params, seeds):
        self.asked.append(messages[0]["content"])
        self.seeds += seeds
        text = self.texts.pop(0)
        return [text if isinstance(text, Completion) else Completion(text, "stop", 5)]


def revise(principles: Path, engine: Reviser, response: Response = RESPONSE, turns: int = 1, seed: int = 11):
    constitution = Constitution(ResponseSettings(principles=principles, revisions=turns))
    return asyncio.run(constitution.revise(engine, PROMPT, response, 4, seed))


def test_comments_and_empty_lines_are_no_principles(principles):
    assert read_principles(principles) == ["Be honest.", "Be kind.", "Be brief."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"# nothing yet\n\n", r"principles\.txt has no principle\. Write one a line"),
        (b"Be kind.\nBe brief.\nBe kind.\n", r"principles\.txt: the principle 'Be kind\.' stands there twice"),
        (b"\xff", r"principles\.txt: not UTF-8"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "principles.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        Constitution(ResponseSettings(principles=path))


def test_a_turn_is_a_critique_and_a_revision(principles):
    engine = Reviser(" Who says so? ", "I think so.")
    [revision] = revise(principles, engine)
    critique, rewrite = engine.asked
    principle = revision.principle
    assert principle in ("Be honest.", "Be kind.", "Be brief.")
    for asked in (critique, rewrite):
        # In this order, and what looks like a place in the question is none.
        places = [asked.index(text) for text in (f"\n{principle}\n", "\nIs {critique} safe?\n", "\nIt is.\n")]
        assert places == sorted(places)
    assert "Who says so?" not in critique
    assert "\nWho says so?\n" in rewrite
    assert len(set(engine.seeds)) == 2


def test_what_is_recorded_of_a_revision(principles):
    [revision] = revise(principles, Reviser("Who says so?", "I think so."))
    assert revision == Response(
        id=content_id("response", PROMPT.id, 4, 11, "I think so."),
        prompt_id=PROMPT.id,
        k=4,
        text="I think so.",
        finish_reason="stop",
        num_tokens=5,
        seed=11,
        model="iter_1/model",
        revises="r0",
        principle=revision.principle,
        critique="Who says so?",
    )


def test_each_turn_revises_the_last_revision(principles):
    engine = Reviser("c1", "v1", "c2", "v2", "c3", "v3", "c4", "v4")
    [revision] = revise(principles, engine, turns=4)
    assert (revision.text, revision.critique) == ("v4", "c1\n\nc2\n\nc3\n\nc4")
    drawn = revision.principle.split("\n")
    assert sorted(drawn[:3]) == ["Be brief.", "Be honest.", "Be kind."]
    assert drawn[3] == drawn[0]
    for turn, before in enumerate(("It is.", "v1", "v2", "v3")):
        for asked in engine.asked[2 * turn : 2 * turn + 2]:
            assert f"\n{before}\n" in asked
            assert f"\n{drawn[turn]}\n" in asked
    assert len(set(engine.seeds)) == 8


def test_the_seed_draws_the_principle(principles):
    drawn = Counter(revise(principles, Reviser("c", "v"), seed=seed)[0].principle for seed in range(300))
    assert set(drawn) == {"Be honest.", "Be kind.", "Be brief."}
    assert min(drawn.values()) > 70
    again = [revise(principles, Reviser("c", "v"), seed=seed)[0].principle for seed in range(20)]
    assert again == [revise(principles, Reviser("c", "v"), seed=seed)[0].principle for seed in range(20)]


@pytest.mark.parametrize(
    ("text", "reason"), [("cut", "length"), ("", "prompt_too_long"), ("", "stop"), (" \n", "stop")]
)
def test_what_has_no_whole_text_is_not_revised(principles, text, reason):
    engine = Reviser()
    assert revise(principles, engine, Response("r0", PROMPT.id, 0, text, reason, 3, 7, "M1")) == []
    assert engine.asked == []


CUT = Completion("And so", "length", 9)


@pytest.mark.parametrize(
    "texts",
    [(CUT,), (TOO_LONG,), ("",), ("c", CUT), ("c", TOO_LONG), ("c", " "), ("c", "v", CUT), ("c", "v", "c", CUT)],
)
def test_a_turn_that_fails_leaves_no_revision(principles, texts):
    engine = Reviser(*texts)
    assert revise(principles, engine, turns=2) == []
    assert len(engine.asked) == len(texts)


def test_revisions_are_instruction_data(principles, tmp_path):
    [revision] = revise(principles, Reviser("c", "I think so."))
    rows = list(demonstrations([PROMPT], [RESPONSE, revision]))
    path = tmp_path / "ift.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(d.messages, d.response) for d in read_demonstrations(path)] == [
        ([{"role": "user", "content": "Is {critique} safe?"}], "I think so.")
    ]


class Penitent(ScriptedEngine):
    """Answers, criticises itself, and says more in each revision."""

    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        if text.startswith("Below are a question"):
            return f"Sorry. fox {seed}"
        return "Too short." if text.startswith("Read the question") else f"fox {seed}"


def test_the_stage_puts_each_revision_behind_its_response(principles, tmp_path, tiny_random_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = ("Name two animals.", "Name three animals.")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": task}) + "\n" for task in tasks))
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: runs
iterations: 1
seed: 3
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 2, principles: principles.txt, revisions: 2}}
engine: {{name: "test_constitutional:Penitent"}}
""")
    run = Run.create(selfreward.load_recipe("run.yaml"))
    with Engines(run) as engines:
        for stage in ("prompts", "responses"):
            loop.perform_here(run, Step(stage, 1), engines)
    for prompt, group in by_prompt(run.records("responses", 1, Response)).items():
        assert [response.k for response in group] == [0, 2, 1, 3]
        assert [response.revises for response in group] == [None, group[0].id, None, group[2].id]
        assert [response.seed for response in group] == [derive_seed(3, 1, prompt, k) for k in (0, 2, 1, 3)]
        assert {response.critique for response in group} == {None, "Too short.\n\nToo short."}
        assert {response.model for response in group} == {"M0"}
