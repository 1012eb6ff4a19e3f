"""The verifier judge and the functions that come with it."""

import asyncio
import json
import math
from pathlib import Path

import pytest

from selfreward.judges import mean_scores
from selfreward.judges.verifier import VerifierJudge
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Judgement, Prompt, Response

QUESTION = [{"role": "user", "content": "How many?"}]
THREE = {"type": "object", "properties": {"n": {"const": 3}}, "required": ["n"]}


def make(function: str = "exact_match", options: dict | None = None, **settings) -> VerifierJudge:
    verifier = {"function": function, "options": options or {}}
    return VerifierJudge(JudgeSettings(name="verifier", verifier=verifier, **settings))


def verify(judge: VerifierJudge, *texts: str, reference: str | None = None) -> list[Judgement]:
    prompt = Prompt.make(QUESTION, "test", reference)
    responses = [Response(f"r{k}", prompt.id, k, text, "stop", 3, k, "M1") for k, text in enumerate(texts)]
    # No engine: nothing is asked.
    return asyncio.run(judge.judge(None, prompt, responses, seed=1))


def score(text: str, function: str, options: dict | None = None, reference: str | None = None) -> float | None:
    [judgement] = verify(make(function, options), text, reference=reference)
    return judgement.score


# exact_match


@pytest.mark.parametrize(
    ("reference", "response"),
    [
        ("1000", "1,000"),
        ("1,000", "It is 1000.0."),
        ("1000.0", "$1,000"),
        ("$1,000", "So we have\n**1000** dollars."),
        ("18", "16 - 3 - 4 = 9, and 9 * 2 = 18"),
        ("First 16 - 3.\n#### 13", "The answer is 13 eggs."),
        ("18", "#### 18"),
        ("18", "Answer: 17? No.\nAnswer: 18\nThat was easy."),
        ("18", "**Answer**: 18%"),
        ("50%", "50"),
        ("-5", r"It follows that \boxed{-5}, not 5."),
        ("-5", "-$5.00"),
        (r"\frac{1}{2}", r"The answer is $\boxed{\frac{1}{2}}$."),
        ("Paris", "The final answer is: **paris**."),
        ("Paris", "It lies on the Seine.\n\nParis\n"),
        ("New York", "new   york"),
        ("1/2", "The answer is 1/2"),
    ],
)
def test_right_answers(reference, response):
    assert score(response, "exact_match", reference=reference) == 1.0


@pytest.mark.parametrize(
    ("reference", "response"),
    [
        ("18", ""),
        ("18", "17"),
        ("18", "180"),
        ("18", "18.5"),
        ("18", "1,8"),
        ("18", "-18"),
        ("18", "17 or 18"),
        ("18", "18\nThe answer is 17."),
        ("18", r"18 is tempting: \boxed{17}"),
        ("18", "x18"),
        ("5", "-$5"),
        ("23", "The answer is 2*3"),
        ("1000", "1e3"),
        ("18 apples", "18 pears"),
        ("1/2", "2"),
        ("Paris", "Not Paris"),
        ("Paris", "London. Paris?"),
    ],
)
def test_wrong_answers(reference, response):
    assert score(response, "exact_match", reference=reference) == 0.0


def test_a_pattern_finds_the_answer():
    options = {"extract": r"<answer>\s*(.*?)\s*</answer>"}
    text = "<answer>1</answer> or rather <answer> 2 </answer>\n3"
    assert score(text, "exact_match", options, "2") == 1.0
    assert score("2", "exact_match", options, "2") == 0.0
    assert score("no 3, 4", "exact_match", {"extract": "[0-9]"}, "4") == 1.0


@pytest.mark.timeout(20)
def test_numbers_and_braces_without_end_take_no_time():
    for text in ("9" * 100_000, "1," * 100_000, "\\boxed{" * 20_000, "```\n" * 20_001, "answer is" * 20_000):
        assert score(text, "exact_match", reference="18") == 0.0


def test_without_a_reference_it_abstains():
    [judgement] = verify(make(), "18")
    assert (judgement.score, judgement.error, judgement.raw_text) == (None, "abstained", "exact_match abstains")


# regex, json_schema


def test_regex():
    assert score("It was 1969.", "regex", {"pattern": r"\b[0-9]{4}\b"}) == 1.0
    assert score("It was 19690.", "regex", {"pattern": r"\b[0-9]{4}\b"}) == 0.0
    assert score(" 1969\n", "regex", {"pattern": "[0-9]+", "full": True}) == 1.0
    assert score("1969.", "regex", {"pattern": "[0-9]+", "full": True}) == 0.0
    assert score("YES", "regex", {"pattern": "(?i)yes"}) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n": 3}', 1.0),
        ('```json\n{"n": 3}\n```', 1.0),
        ('First:\n```\n{"n": 4}\n```\nBetter:\n```json\n{"n": 3}\n```\nDone.', 1.0),
        ('{"n": 4}', 0.0),
        ("{}", 0.0),
        ("null", 0.0),
        ('{"n": 3', 0.0),
        ('Here: {"n": 3}', 0.0),
        ('{"n": 3, "m": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_schema(text, expected):
    pytest.importorskip("jsonschema")
    assert score(text, "json_schema", {"schema": THREE}) == expected


def test_a_schema_that_follows_itself_without_end():
    pytest.importorskip("jsonschema")
    lists = {"type": "array", "items": {"$ref": "#"}}
    assert score("[[], [[]]]", "json_schema", {"schema": lists}) == 1.0
    assert score("[" * 900 + "]" * 900, "json_schema", {"schema": lists}) == 0.0


def test_a_schema_fetches_nothing(monkeypatch):
    pytest.importorskip("jsonschema")
    fetched = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *request: fetched.append(request))
    judge = make("json_schema", {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}})
    with pytest.raises(ValueError, match=r"verifier json_schema: prompt .*Unresolvable"):
        verify(judge, "{}")
    assert fetched == []


# instructions


@pytest.mark.parametrize(
    ("checks", "kept", "broken"),
    [
        ({"min_words": 3}, "one two three", "one two"),
        ({"max_words": 2}, "one two", "one two three"),
        ({"min_sentences": 2}, "Pi is 3.14. Yes!", "Pi is 3.14."),
        ({"max_sentences": 1}, "What?!", "What? That."),
        ({"bullets": 2}, "List:\n- a\n* b", "- a"),
        ({"bullets": 0}, "a - b", "- a"),
        ({"starts_with": "Dear"}, " Dear you", "Oh dear"),
        ({"ends_with": "Bye."}, "Good. Bye.\n", "Bye. Good."),
        ({"no_commas": True}, "a; b", "a, b"),
        ({"case": "lower"}, "all small 1", "Not all"),
        ({"case": "upper"}, "ALL BIG 1", "NOT aLL"),
        ({"json_only": True}, "[1]", "[1"),
        ({"must_include": ["Fox"]}, "a FOX", "an owl"),
        ({"must_not_include": ["fox"]}, "an owl", "a FOX"),
    ],
)
def test_each_instruction(checks, kept, broken):
    assert score(kept, "instructions", {"checks": checks}) == 1.0
    assert score(broken, "instructions", {"checks": checks}) == 0.0


def test_the_score_is_the_share_of_the_instructions_kept():
    checks = {"max_words": 3, "must_include": ["fox", "owl"], "no_commas": True}
    assert score("a fox, an elk", "instructions", {"checks": checks}) == 0.25
    assert score(" ", "instructions", {"checks": checks}) == 0.0


# The judge


def test_a_judgement_tells_the_function_and_no_tokens():
    judgements = verify(make(), "18", "17", reference="18")
    assert [(j.score, j.raw_text, j.model, j.num_tokens, j.vote) for j in judgements] == [
        (1.0, "exact_match gives 1", "exact_match", 0, 0),
        (0.0, "exact_match gives 0", "exact_match", 0, 0),
    ]
    assert make().scores(judgements) == mean_scores(judgements) == {"r0": 1.0, "r1": 0.0}
    assert (make().settings.facts.highest, make().pointwise, make().examples([])) == (1.0, True, [])


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("exact_math", {}, r"no verifier is called 'exact_math'\. Did you mean exact_match\?"),
        ("json:loads", {}, "the module is Python's own"),
        ("regex", {"pattern": "a", "mode": 1}, "options: got an unexpected keyword argument 'mode'.*: pattern, full"),
        ("regex", {}, "options: missing a required argument: 'pattern'"),
        ("regex", {"pattern": "(a"}, r"options.pattern: .*valid regular expression. The value is '\(a'"),
        ("regex", {"pattern": "a", "full": "perhaps"}, "options.full: .*The value is 'perhaps'"),
        ("exact_match", {"prompt": "x"}, "multiple values for argument 'prompt'"),
        ("instructions", {"checks": {"min_word": 1}}, "options.checks.min_word: .*not permitted"),
        ("instructions", {"checks": {"min_words": "one"}}, "options.checks.min_words: .*valid integer.* 'one'"),
        ("instructions", {"checks": {}}, "options.checks: nothing is checked. Name at least one of min_words"),
        ("json_schema", {"schema": {"type": "objekt"}}, r"options.schema: no JSON schema: at \$\.type, 'objekt'"),
        ("json_schema", {"schema": "x.json"}, "options.schema: no JSON schema"),
    ],
)
def test_what_a_verifier_cannot_work_with_is_told_before_the_run(function, options, message):
    with pytest.raises(ValueError, match=message):
        make(function, options)


@pytest.mark.parametrize("settings", [{"votes": 5}, {"reference": "prompt"}])
def test_settings_that_a_verifier_does_not_heed_are_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=r"is .*, and the judge verifier, .* does not use it\. Take \w+ out"):
        make(**settings)
    make(votes=1, temperature=0.0)


MODULE = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from selfreward.records import Prompt

def length(prompt: Prompt, response: str, most: int = 10) -> float | None:
    if response == "crash":
        raise KeyError("no such word")
    given = {"skip": None, "nan": float("nan"), "words": "three", "huge": float("inf")}
    return given.get(response, min(most, len(response)))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_checks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_checks:length"


def test_a_function_of_the_users(own):
    judgements = verify(make(own, {"most": 3}), "ab", "abcd", "skip")
    assert [(j.score, j.error) for j in judgements] == [(2.0, None), (3.0, None), (None, "abstained")]
    assert {j.model for j in judgements} == {own}
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'least'\. Its options: most"):
        make(own, {"least": 3})


def test_what_a_function_raises_is_told_with_the_prompt(own):
    with pytest.raises(ValueError, match=r"prompt .*: KeyError: 'no such word'\. Mend the function") as raised:
        verify(make(own), "crash")
    assert isinstance(raised.value.__cause__, KeyError)
    assert Prompt.make(QUESTION, "test").id in str(raised.value)


@pytest.mark.parametrize("text", ["nan", "huge", "words"])
def test_what_is_no_number_is_no_score(own, text):
    with pytest.raises(ValueError, match=r"it returned .* Let it return a number, a bool, or None to abstain"):
        verify(make(own), text)


def test_a_number_of_another_library_is_a_score(tmp_path, monkeypatch):
    (tmp_path / "numpy_checks.py").write_text(
        "import numpy\ndef half(prompt, response, **options): return numpy.float32(options['value'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    [judgement] = verify(make("numpy_checks:half", {"value": 0.5}), "a")
    assert math.isclose(judgement.score, 0.5)
    assert json.loads(judgement.to_json())["score"] == 0.5
