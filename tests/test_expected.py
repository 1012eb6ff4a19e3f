"""Judges that read a distribution: the expected score, and the probability of yes."""

import asyncio
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfreward.engines import Completion
from selfreward.engines.base import TOO_LONG
from selfreward.judges.expected_score import ExpectedScoreJudge, up_to_score
from selfreward.judges.yes_no import YesNoJudge
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Message, Prompt, Response
from selfreward.text.chat import NotAToken

PROMPT = Prompt.make([{"role": "user", "content": "Name {response}."}], "test", reference="an oak")
RESPONSES = [Response(f"r{k}", PROMPT.id, k, text, "stop", 3, k, "M1") for k, text in enumerate(["oak", "elm"])]
AT_ONCE = {"name": "expected_score", "expected": {"think": False}}
DATA = [Graded("P", f"R{score}", f"count no\nScore: {score}") for score in (5, 3, 2.5, 0)]


class Reader:
    """An engine whose texts are listed beforehand, and whose next tokens have given chances."""

    def __init__(self, probs: dict[str, float] | None, *texts: str | Completion, vocabulary=None) -> None:
        self.model, self.given, self.texts, self.vocabulary = "M1", probs, list(texts), vocabulary
        self.asked, self.sampled = [], []

    async def generate(self, messages, params, seeds):
        self.sampled += seeds
        texts = [self.texts.pop(0) for _ in seeds]
        return [text if isinstance(text, Completion) else Completion(text, "stop", 5) for text in texts]

    async def option_probs(self, messages, prefix, options):
        self.asked.append((messages[-1]["content"], prefix, tuple(options)))
        missing = [option for option in options if self.vocabulary is not None and option not in self.vocabulary]
        if missing:
            raise NotAToken(f"{missing[0]!r} is no single token of {self.model}")
        return None if self.given is None else [self.given.get(option, 0.0) for option in options]


def judge(kind, engine, responses=RESPONSES[:1], **settings) -> list[Judgement]:
    judge = kind(JudgeSettings(**settings))
    return asyncio.run(judge.judge(engine, PROMPT, responses, seed=1))


def expected(engine: Reader, *responses: Response, **settings) -> list[Judgement]:
    return judge(ExpectedScoreJudge, engine, responses or RESPONSES[:1], **{"name": "expected_score", **settings})


def yes_no(engine: Reader, *responses: Response, **settings) -> list[Judgement]:
    return judge(YesNoJudge, engine, responses or RESPONSES[:1], name="yes_no", **settings)


def test_the_score_is_the_mean_of_the_distribution_over_the_scores_alone():
    """.1 + .3 + .4 = .8 is on scores: (.1 x 2 + .3 x 4 + .4 x 5) / .8 = 4.25, with the variance .9375."""
    engine = Reader({"2": 0.1, "4": 0.3, "5": 0.4, "the": 0.2})
    [judgement] = expected(engine, **AT_ONCE)
    assert judgement.score == pytest.approx(4.25)
    assert judgement.figures == pytest.approx({"mass": 0.8, "spread": math.sqrt(0.9375)})
    assert judgement.raw_text == "0: 0.0000, 1: 0.0000, 2: 0.1000, 3: 0.0000, 4: 0.3000, 5: 0.4000"
    assert judgement.num_tokens == 0


def test_at_once_is_one_question_a_response_and_nothing_is_sampled():
    engine = Reader({"5": 1.0})
    judgements = expected(engine, *RESPONSES, **AT_ONCE)
    assert [(j.subject_ids, j.vote, j.score) for j in judgements] == [(["r0"], 0, 5.0), (["r1"], 0, 5.0)]
    assert [(prefix, options) for _, prefix, options in engine.asked] == [("Score:", tuple("012345"))] * 2
    assert "oak" in engine.asked[0][0]
    assert "elm" in engine.asked[1][0]
    assert engine.sampled == []


def test_the_range_of_scores_is_the_recipes():
    engine = Reader({"1": 0.25, "2": 0.75})
    [judgement] = expected(engine, min_score=1, max_score=3, **AT_ONCE)
    assert engine.asked[0][2] == ("1", "2", "3")
    assert judgement.score == pytest.approx(1.75)


def test_each_vote_is_read_where_its_last_score_stands():
    engine = Reader({"3": 0.5, "4": 0.5}, "Score: 1\nno, wait.\nScore: 5\n", "It is fine.\n**Score:** 2/5", "Good!")
    judgements = expected(engine, votes=3)
    assert [prefix for _, prefix, _ in engine.asked] == [
        "Score: 1\nno, wait.\nScore:",
        "It is fine.\n**Score:**",
    ]
    assert [j.score for j in judgements] == [3.5, 3.5, None]
    assert [j.error for j in judgements] == [None, None, "no_score"]
    assert [j.figures for j in judgements] == [
        {"mass": 1.0, "spread": 0.5, "written": 5.0},
        {"mass": 1.0, "spread": 0.5, "written": 2.0},
        {},
    ]
    assert judgements[1].raw_text == "It is fine.\n**Score:** 2/5"
    assert len({j.seed for j in judgements}) == len({j.id for j in judgements}) == 3


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("Score: 4", "Score:"),
        ("why\n- final score : <4>", "why\n- final score : <"),
        ("**Score: 4**", "**Score:"),
        ("Score: four", "Score:"),
    ],
)
def test_the_text_is_cut_where_a_number_would_stand(text, prefix):
    assert up_to_score(text) == (prefix, None)


@pytest.mark.parametrize(
    ("text", "reason", "error"),
    [
        ("the Score: 4", "stop", "no_score"),
        ("", "stop", "no_score"),
        ('It says "be kind.\nScore: 5\n" and no more.', "stop", "quoted"),
        ("Good.\nScore: 4", "length", "cut_off"),
    ],
)
def test_a_score_that_is_not_the_judges_own_is_not_read(text, reason, error):
    engine = Reader({"5": 1.0}, Completion(text, reason, 5))
    assert [(j.error, j.figures) for j in expected(engine, votes=1)] == [(error, {})]
    assert engine.asked == []


def test_a_written_score_that_cannot_be_read_is_no_figure_and_costs_no_vote():
    [judgement] = expected(Reader({"4": 1.0}, "Score: four"), votes=1)
    assert judgement.score == 4.0
    assert "written" not in judgement.figures


@pytest.mark.parametrize("think", [True, False])
def test_a_distribution_elsewhere_is_an_error_and_no_number(think):
    engine = Reader({"0": 0.0004, "5": 0.0005}, "Score: 3")
    [judgement] = expected(engine, votes=1, expected={"think": think})
    assert (judgement.score, judgement.error) == (None, "no_mass")
    assert judgement.figures == pytest.approx({"mass": 0.0009} | ({"written": 3.0} if think else {}))


def test_what_does_not_fit_is_an_error():
    assert [j.error for j in expected(Reader(None), **AT_ONCE)] == ["prompt_too_long"]
    assert [j.error for j in expected(Reader({"1": 1.0}, TOO_LONG), votes=1)] == ["prompt_too_long"]
    assert [j.error for j in yes_no(Reader(None))] == ["prompt_too_long"]


@pytest.mark.parametrize(("kind", "settings"), [(ExpectedScoreJudge, AT_ONCE), (YesNoJudge, {"name": "yes_no"})])
def test_votes_that_would_all_be_the_same_are_refused(kind, settings):
    with pytest.raises(ValueError, match=r"votes is 5.*always the same\. Take votes out"):
        kind(JudgeSettings(votes=5, **settings))
    for votes in ({}, {"votes": 1}):
        kind(JudgeSettings(**settings, **votes))


@pytest.mark.parametrize(("kind", "settings"), [(ExpectedScoreJudge, AT_ONCE), (YesNoJudge, {"name": "yes_no"})])
def test_the_stored_settings_of_a_run_are_taken_again(kind, settings):
    stored = JudgeSettings(**settings).model_dump(mode="json")
    kind(JudgeSettings.model_validate_json(json.dumps(stored)))


@pytest.mark.parametrize(("kind", "settings"), [(ExpectedScoreJudge, AT_ONCE), (YesNoJudge, {"name": "yes_no"})])
def test_a_reference_is_shown_and_recorded(kind, settings):
    engine = Reader({"yes": 1.0, "5": 1.0})
    [judgement] = judge(kind, engine, reference="prompt", **settings)
    assert judgement.reference == "an oak"
    assert "<reference>\nan oak\n</reference>" in engine.asked[0][0]
    [judgement] = judge(kind, engine, **settings)
    assert judgement.reference is None
    assert "reference" not in engine.asked[1][0]


def test_yes_is_weighed_against_no_in_every_spelling():
    """(.3 + .1) / (.3 + .1 + .2) = 2/3, and .4 of the probability is on other words."""
    engine = Reader({"Yes": 0.3, "yes": 0.1, "No": 0.2, "Maybe": 0.4})
    [judgement] = yes_no(engine)
    assert judgement.score == pytest.approx(2 / 3)
    assert judgement.figures == pytest.approx({"mass": 0.6})
    assert judgement.raw_text == "Yes: 0.3000, yes: 0.1000, No: 0.2000, no: 0.0000"
    assert engine.asked[0][1] == ""


def test_yes_no_without_either_is_an_error():
    [judgement] = yes_no(Reader({"Maybe": 1.0}))
    assert (judgement.score, judgement.error, judgement.figures) == (None, "no_mass", {"mass": 0.0})


@pytest.mark.parametrize("vocabulary", [("yes", "no"), ("Yes", "no"), ("Yes", "yes", "no"), ("Yes", "No")])
def test_a_vocabulary_may_lack_spellings_and_is_asked_once(vocabulary):
    engine = Reader(dict.fromkeys(vocabulary, 1 / len(vocabulary)), vocabulary=vocabulary)
    kind, score = YesNoJudge(JudgeSettings(name="yes_no")), sum(w in ("Yes", "yes") for w in vocabulary)
    for _ in range(2):
        [judgement] = asyncio.run(kind.judge(engine, PROMPT, RESPONSES[:1], seed=1))
        assert judgement.score == pytest.approx(score / len(vocabulary))
        before = len(engine.asked)
    asyncio.run(kind.judge(engine, PROMPT, RESPONSES[:1], seed=1))
    assert len(engine.asked) == before + 1
    engine.model, engine.vocabulary = "M2", ("Yes", "yes", "No", "no")
    asyncio.run(kind.judge(engine, PROMPT, RESPONSES[:1], seed=1))
    assert engine.asked[-1][2] == ("Yes", "yes", "No", "no")


def test_a_vocabulary_without_no_is_refused():
    with pytest.raises(ValueError, match="'no' is no single token of M1"):
        yes_no(Reader({}, vocabulary=("Yes", "yes")))


def test_a_response_that_does_not_fit_says_nothing_of_the_vocabulary():
    """An engine may see that a prompt is too long before it looks at the options."""
    engine, kind = Reader(None), YesNoJudge(JudgeSettings(name="yes_no"))
    asyncio.run(kind.judge(engine, PROMPT, RESPONSES[:1], seed=1))
    engine.given, engine.vocabulary = {"yes": 0.25, "no": 0.75}, ("yes", "no")
    [judgement] = asyncio.run(kind.judge(engine, PROMPT, RESPONSES[:1], seed=1))
    assert judgement.score == 0.25


def test_judging_data_teaches_what_is_read():
    def texts(kind, **settings):
        return [e.judgement for e in kind(JudgeSettings(**settings)).examples(DATA)]

    assert texts(ExpectedScoreJudge, name="expected_score") == [g.judgement for g in DATA]
    assert texts(ExpectedScoreJudge, **AT_ONCE) == ["Score: 5", "Score: 3", "Score: 2.5", "Score: 0"]
    assert texts(YesNoJudge, name="yes_no") == ["yes", "yes", "no"]
    [first, *_] = YesNoJudge(JudgeSettings(name="yes_no")).examples(DATA)
    assert "R5" in first.messages[0]["content"]


@pytest.mark.parametrize(("kind", "settings"), [(ExpectedScoreJudge, AT_ONCE), (YesNoJudge, {"name": "yes_no"})])
def test_judging_data_without_a_label_is_named(kind, settings):
    with pytest.raises(ValueError, match="judging data, example 2: no label, out_of_range in 'Score: 9'"):
        kind(JudgeSettings(**settings)).examples([DATA[0], Graded("P", "R", "Score: 9")])


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "judge.txt"
    path.write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    return path


@pytest.fixture(scope="module")
def vllm(tiny_random_model):
    """A random model, whose vocabulary has yes and no in lower case alone."""
    from selfreward.engines.vllm import VLLMEngine

    path = str(tiny_random_model)
    options = {"max_model_len": 128, "max_num_seqs": 16, "block_size": 32, "kv_cache_memory_bytes": 1 << 26}
    engine = VLLMEngine(path, ModelSettings(path=path, dtype="float32"), EngineSettings(vllm=options))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def next_words(tiny_random_model):
    """The probability of each word as the next one, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_random_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_random_model)

    def read(messages: list[Message], prefix: str) -> dict[str, float]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + prefix
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            probs = model(ids).logits[0, -1].softmax(-1)
        return {word: float(probs[number]) for word, number in tokenizer.get_vocab().items()}

    return read


class Thinking:
    """The real vLLM, but for the judge's thoughts: a random model would never announce a score."""

    def __init__(self, engine, thoughts: str) -> None:
        self.model, self.option_probs, self.thoughts = engine.model, engine.option_probs, thoughts

    async def generate(self, messages, params, seeds):
        return [Completion(self.thoughts, "stop", 9) for _ in seeds]


@pytest.mark.parametrize("thoughts", ["", "count three no, stranger none yes\n"])
def test_real_vllm_gives_the_models_own_distribution(vllm, next_words, template, thoughts):
    settings = JudgeSettings(name="expected_score", expected={"think": bool(thoughts)}, votes=1, template=template)
    judge, engine = ExpectedScoreJudge(settings), Thinking(vllm, f"{thoughts}Score: 4")
    [judgement] = asyncio.run(judge.judge(engine, PROMPT, RESPONSES[:1], seed=1))
    words = next_words(judge.messages(PROMPT.text, RESPONSES[0].text), f"{thoughts}Score:")
    mass = sum(words[str(score)] for score in range(6))
    assert judgement.figures["mass"] == pytest.approx(mass, rel=1e-3)
    assert judgement.score == pytest.approx(sum(words[str(score)] * score for score in range(6)) / mass, rel=1e-3)


def test_real_vllm_weighs_yes_against_no(vllm, next_words, template):
    judge = YesNoJudge(JudgeSettings(name="yes_no", template=template))
    [judgement] = asyncio.run(judge.judge(vllm, PROMPT, RESPONSES[:1], seed=1))
    words = next_words(judge.messages(PROMPT.text, RESPONSES[0].text), "")
    assert judgement.figures["mass"] == pytest.approx(words["yes"] + words["no"], rel=1e-3)
    assert judgement.score == pytest.approx(words["yes"] / (words["yes"] + words["no"]), rel=1e-3)


def test_real_vllm_refuses_scores_that_are_no_single_token(vllm, template):
    judge = ExpectedScoreJudge(JudgeSettings(**AT_ONCE, max_score=10, template=template))
    with pytest.raises(ValueError, match="'6' is no token of this model"):
        asyncio.run(judge.judge(vllm, PROMPT, RESPONSES[:1], seed=1))
