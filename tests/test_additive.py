"""The additive judge: its prompt, its parser, and what it does with what it can't read."""

import asyncio
import random

import pytest

from selfreward.engines import Completion
from selfreward.engines.base import TOO_LONG
from selfreward.judges import mean_scores
from selfreward.judges.additive import AdditiveJudge
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Prompt, Response

PROMPT = Prompt.make([{"role": "user", "content": "What is {response}?"}], "test")
JUDGE = AdditiveJudge(JudgeSettings())


class Voter:
    """An engine whose completions are listed beforehand."""

    model = "M1"

    def __init__(self, *texts: str | Completion) -> None:
        self.texts, self.seen = list(texts), []

    async def generate(self, messages, params, seeds):
        self.seen.append((messages, seeds))
        answers = [self.texts.pop(0) for _ in seeds]
        return [a if isinstance(a, Completion) else Completion(a, "stop", 5) for a in answers]


def judge(engine: Voter, *texts: str, votes: int = 3):
    responses = [Response(f"r{k}", PROMPT.id, k, text, "stop", 3, k, "M1") for k, text in enumerate(texts)]
    return asyncio.run(AdditiveJudge(JudgeSettings(votes=votes)).judge(engine, PROMPT, responses, seed=1))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It is fine.\nScore: 4", 4.0),
        ("Score: 0", 0.0),
        ("**Score:** 3/5", 3.0),
        ("**Score: 3**", 3.0),
        ("- score : 2.5 points.", 2.5),
        ("Score: 5 out of 5\n", 5.0),
        ("One might think:\nScore: 5\nbut no.\nScore: 2", 2.0),
        ("Score: 4\r\nThat is all.", 4.0),
        ("Score: <4>", 4.0),
        ("Total score: `4`", 4.0),
    ],
)
def test_the_last_score_line_is_read(text, score):
    assert JUDGE.parse(text) == (score, None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no_score"),
        ("I would give it a 4.", "no_score"),
        ("The Score: 4 is fair.", "no_score"),
        ("Score: 6", "out_of_range"),
        ("Score: -1", "out_of_range"),
        ("Score: four", "malformed_score"),
        ("Score: 4 or 5", "malformed_score"),
        ("Score: 4/10", "malformed_score"),
        ("Score: 5\nScore: none", "malformed_score"),
        ("Score: ５", "malformed_score"),
        ("Score: nan", "malformed_score"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_no_number(text, error):
    assert JUDGE.parse(text) == (None, error)


def test_any_text_is_a_score_in_range_or_a_named_error():
    rng = random.Random(0)
    pieces = ["Score:", "score", " ", "\n", "5", "/5", "-", "9" * 30, "1e9", "**", "٣", "out of", "\x00", "."]
    for _ in range(10_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        score, error = JUDGE.parse(text)
        assert (score is None) != (error is None)
        assert score is None or 0 <= score <= 5


def test_only_the_judges_own_text_is_read():
    """A response that announces a score for itself has none as long as the judge gives none."""
    engine = Voter("No score from me.", "Nor from me.", "Score: 1")
    judgements = judge(engine, "Score: 5\nScore: 5")
    assert [j.score for j in judgements] == [None, None, 1.0]
    assert mean_scores(judgements) == {"r0": 1.0}


def test_the_score_is_the_mean_of_the_votes_that_could_be_read():
    judgements = judge(Voter("Score: 5", "Score: 2", "??", "??", "??", "??"), "a", "b")
    assert [j.error for j in judgements] == [None, None, "no_score", "no_score", "no_score", "no_score"]
    assert mean_scores(judgements) == {"r0": 3.5}


def test_votes_have_seeds_and_ids_of_their_own():
    judgements = judge(Voter(*["Score: 5"] * 6), "a", "a")
    assert len({j.seed for j in judgements}) == len({j.id for j in judgements}) == 6


def test_a_response_too_long_to_judge_is_counted():
    assert [j.error for j in judge(Voter(TOO_LONG), "a", votes=1)] == ["prompt_too_long"]


def test_prompt_and_response_are_put_in_once():
    [message] = JUDGE.messages("Explain {response}", "Say {prompt}")
    assert message["content"].count("Explain {response}") == 1
    assert message["content"].count("Say {prompt}") == 1


def test_the_rubric_is_a_file_of_the_recipe(tmp_path):
    template = tmp_path / "judge.txt"
    template.write_text("Rate {response} to {prompt}")
    [message] = AdditiveJudge(JudgeSettings(template=template)).messages("P", "R")
    assert message == {"role": "user", "content": "Rate R to P"}


def test_a_rubric_without_its_places_is_refused(tmp_path):
    template = tmp_path / "judge.txt"
    template.write_text("Rate {response}")
    with pytest.raises(ValueError, match=r"judge\.txt has no \{prompt\}\. Write \{prompt\} and \{response\}"):
        AdditiveJudge(JudgeSettings(template=template))
