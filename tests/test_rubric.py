"""The rubric judge: its criteria, its prompts in both modes, and what becomes of its votes."""

import asyncio
import json
from pathlib import Path

import pytest

import selfreward
from selfreward import loop
from selfreward.engines import Completion
from selfreward.engines.base import TOO_LONG
from selfreward.judges.criteria import describe, read_criteria
from selfreward.judges.rubric import RubricJudge
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Judgement, Prompt, Response
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines

PROMPT = Prompt.make([{"role": "user", "content": "Why is the sky blue?"}], "test", "Rayleigh scattering.")
CRITERIA = """
- name: accuracy
  description: All that it says is true.
  weight: 3
- name: Plain style
  description: A child can follow it.
"""


@pytest.fixture
def criteria(tmp_path: Path) -> Path:
    path = tmp_path / "criteria.yaml"
    path.write_text(CRITERIA)
    return path


def make(criteria: Path, **settings) -> RubricJudge:
    return RubricJudge(JudgeSettings(name="rubric", criteria=criteria, **{"min_score": 1, "votes": 2, **settings}))


def response(k: int, text: str = "Because of the air.") -> Response:
    return Response(f"r{k}", PROMPT.id, k, text, "stop", 3, k, "M1")


class Voter:
    """Answers by the words that the judge prompt holds; each is used up in its order."""

    model = "judge"

    def __init__(self, answers: dict[str, list[str | Completion]]) -> None:
        self.answers, self.seen, self.seeds = answers, [], []

    async def generate(self, messages, params, seeds):
        content = messages[-1]["content"]
        self.seen.append(content)
        self.seeds += seeds
        [word] = [word for word in self.answers if word in content]
        found = [self.answers[word].pop(0) for _ in seeds]
        return [f if isinstance(f, Completion) else Completion(f, "stop", 5) for f in found]


def judge(judge: RubricJudge, engine: Voter, *responses: Response) -> list[Judgement]:
    return asyncio.run(judge.judge(engine, PROMPT, responses or [response(0)], seed=1))


# Criteria


def test_criteria_are_read_and_numbered(criteria):
    read = read_criteria(criteria)
    assert [(c.name, c.weight) for c in read] == [("accuracy", 3.0), ("Plain style", 1.0)]
    assert describe(read) == "1. accuracy: All that it says is true.\n2. Plain style: A child can follow it."
    assert describe(read[1:]) == "Plain style: A child can follow it."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list of criteria in it, but None"),
        ("accuracy: good", r"no list of criteria in it, but \{'accuracy': 'good'\}\. Write a list"),
        ("- accuracy", r"criteria.yaml:1: a criterion is a mapping, and this is 'accuracy'"),
        ("- {name: a}", "criteria.yaml:1: description: missing"),
        ("- {name: a, description: b, wait: 2}", r"wait: unknown key. Did you mean weight\?"),
        ("- {name: a, description: b}\n- {name: b, description: c, weight: 0}", ":2: weight: .* greater than 0.* is 0"),
        ("- {name: a, description: b, weight: heavy}", "weight: .*the value is 'heavy'"),
        ("- {name: a, description: b}\n\n- {name: A, description: c}", ":3: name: 'A' stands there a second time"),
        ("[{name: a, description: b}, {name: a, description: c}]", "name: 'a' stands there a second time"),
        ("- {name: 'a: b', description: c}", "name: 'a: b' is no name: use words"),
        ("- {name: a, description: ' '}", "description: it is empty. Say what"),
        ("- {name: a, description: &x b}\n- *x", ":2: an alias"),
        ("- {name: a", "criteria.yaml:1: not YAML"),
    ],
)
def test_bad_criteria_are_named_with_their_place(tmp_path, text, message):
    path = tmp_path / "criteria.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_criteria(path)


# A call for each criterion


def test_each_criterion_has_calls_of_its_own(criteria):
    engine = Voter({"accuracy:": ["Score: 4", "Score: 5"], "Plain style:": ["Score: 2", "??"]})
    rubric = make(criteria)
    judgements = judge(rubric, engine)
    assert [(j.aspect, j.vote, j.score, j.error) for j in judgements] == [
        ("accuracy", 0, 4.0, None),
        ("accuracy", 1, 5.0, None),
        ("Plain style", 0, 2.0, None),
        ("Plain style", 1, None, "no_score"),
    ]
    assert len({j.id for j in judgements}) == len({j.seed for j in judgements}) == 4
    assert [j.seed for j in judgements] == engine.seeds
    assert rubric.scores(judgements) == {"r0": (3 * 4.5 + 2) / 4}
    assert rubric.best == 5.0


def test_a_response_without_a_vote_on_some_criterion_is_left_out(criteria):
    rubric = make(criteria, votes=1)
    engine = Voter({"accuracy:": ["Score: 4", "Score: 3"], "Plain style:": ["none", "Score: 1"]})
    judgements = judge(rubric, engine, response(0, "one"), response(1, "two"))
    assert [j.subject_ids for j in judgements] == [["r0"], ["r0"], ["r1"], ["r1"]]
    assert rubric.scores(judgements) == {"r1": 2.5}
    assert rubric.scores(judgements[:1]) == rubric.scores([]) == {}


def test_what_repeats_stands_first_and_the_response_last(criteria):
    engine = Voter({"accuracy:": ["Score: 4"], "Plain style:": ["Score: 4"]})
    judgements = judge(make(criteria, votes=1, reference="prompt"), engine)
    for content in engine.seen:
        places = [content.index(t) for t in ("</criterion>", PROMPT.text, "Rayleigh", "Because of the air.")]
        assert places == sorted(places)
        assert "from 1 to 5" in content
    assert {j.reference for j in judgements} == {"Rayleigh scattering."}
    assert ["child" in content for content in engine.seen] == [False, True]


def test_without_a_reference_the_prompt_speaks_of_none(criteria):
    [message] = make(criteria).messages("P", "R", read_criteria(criteria), "the reference")
    assert "reference" not in message["content"]


def test_an_answer_of_the_judge_is_the_reference(criteria):
    engine = Voter({"Why is the sky blue?": ["It scatters.", *["Score: 3"] * 4]})
    judgements = judge(make(criteria, reference="answer"), engine)
    assert {j.reference for j in judgements} == {"It scatters."}
    assert ["It scatters." in content for content in engine.seen] == [False, True, True]


def test_a_response_too_long_to_judge_is_counted(criteria):
    for together in (False, True):
        rubric = make(criteria, votes=1, rubric={"together": together})
        judgements = judge(rubric, Voter({"sky": [TOO_LONG, TOO_LONG]}))
        assert {j.error for j in judgements} == {"prompt_too_long"}
        assert rubric.scores(judgements) == {}


# One call for all criteria


@pytest.mark.parametrize(
    "text",
    [
        "It is right.\naccuracy: 4\nPlain style: 2",
        "1. **Accuracy:** 4/5\n2. **plain style**: 2",
        "accuracy: unsure\nLet me see.\nPlain style: 2\n- ACCURACY: 4 points.",
    ],
)
def test_one_call_scores_all_criteria(criteria, text):
    rubric = make(criteria, votes=1, rubric={"together": True})
    [judgement] = judge(rubric, Voter({"1. accuracy: All": [text]}))
    assert judgement.score == (3 * 4 + 2) / 4
    assert judgement.figures == {"criterion accuracy": 4.0, "criterion Plain style": 2.0}
    assert judgement.aspect is None
    assert rubric.scores([judgement]) == {"r0": 3.5}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("accuracy: 4", "no_score"),
        ("inaccuracy: 4\nPlain style: 4", "no_score"),
        ("accuracy: 4\nstyle: 4", "no_score"),
        ("accuracy: 4\nPlain style: good", "malformed_score"),
        ("accuracy: 0\nPlain style: 4", "out_of_range"),
        ("Score: 4", "no_score"),
    ],
)
def test_one_criterion_that_cannot_be_read_is_an_error(criteria, text, error):
    rubric = make(criteria, votes=1, rubric={"together": True})
    [judgement] = judge(rubric, Voter({"sky": [text]}))
    assert (judgement.score, judgement.error, judgement.figures) == (None, error, {})


def test_votes_on_all_criteria_are_averaged(criteria):
    rubric = make(criteria, votes=3, rubric={"together": True})
    texts = ["accuracy: 4\nPlain style: 4", "accuracy: 2\nPlain style: 2", "accuracy: 2"]
    assert rubric.scores(judge(rubric, Voter({"sky": texts}))) == {"r0": 3.0}


# Recipe


def test_a_template_without_its_places_is_refused(criteria, tmp_path):
    template = tmp_path / "judge.txt"
    template.write_text("Grade {response} to {prompt}")
    with pytest.raises(ValueError, match=r"judge\.txt has no \{criteria\}"):
        make(criteria, template=template)


def test_a_rubric_is_a_judge_of_the_loop(criteria, tmp_path, tiny_random_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = ("Name two animals.", "Name three animals.")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": task}) + "\n" for task in tasks))
    (tmp_path / "rubric.txt").write_text("Review by {criteria}\nTask: {prompt}\nAnswer: {response}")
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: runs
iterations: 1
model: {{path: {tiny_random_model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
judge: {{name: rubric, criteria: criteria.yaml, template: rubric.txt, votes: 2}}
engine: {{name: "scripts:Numbers"}}
""")
    run = Run.create(selfreward.load_recipe("run.yaml"))
    with Engines(run) as engines:
        for stage in ("prompts", "responses", "judgements"):
            loop.perform_here(run, Step(stage, 1), engines)
    judgements = run.records("judgements", 1, Judgement)
    responses = {r.id: r for r in run.records("responses", 1, Response)}
    assert len(judgements) == 2 * 4 * 2 * 2
    assert all(j.score == len(responses[j.subject_ids[0]].text.split()) for j in judgements)
