"""What a stage asks of a model: how many requests, how long they are, and what they read. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from selfreward.judges.criteria import read_criteria
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.recipe import Recipe
from selfreward.runs.plan import names
from selfreward.runs.stages import Stage

# Requests behind a prompt that a model makes: what it writes, compares, answers, and what filters take out.
REQUESTS_A_PROMPT = 5
# Judges that read a next token's chances, or compute, and write nothing.
WITHOUT_TEXT = ("yes_no", "verifier", "reward_model")


@dataclass(frozen=True)
class Requests:
    """Requests of one kind.

    ``num`` texts of at most ``max_tokens`` are written. They share ``distinct`` inputs, which are read once each: a
    prefix cache has them for the next request. An input is so many ``prompts``, ``answers`` and ``instructions``, such
    as a judge's. ``asked`` is who answers: M_t, another model or a server, or a function. Answers that are a token's
    chances, or a number, are not ``written``.
    """

    num: int
    max_tokens: int
    distinct: int
    prompts: float = 1
    answers: float = 0
    instructions: float = 0
    asked: Literal["policy", "other", "function"] = "policy"
    written: bool = True

    def times(self, count: int) -> Requests:
        """As many again for each of so many prompts."""
        return replace(self, num=self.num * count, distinct=self.distinct * count)


def asks_by_prompt(stage: Stage) -> bool:
    """Whether a stage asks the same of engines for each prompt of its iteration."""
    return bool({*stage.asks} & {"responses", "judgements", "meta"})


def of_a_prompt(recipe: Recipe, stage: Stage, iteration: int) -> list[Requests]:
    """The requests of a stage that samples or judges, for one prompt of an iteration, at most."""
    asks, n = stage.asks, recipe.responses.n
    found = [Requests(n, recipe.responses.max_tokens, 1)] if "responses" in asks else []
    if "revisions" in asks and recipe.responses.principles is not None:
        turns = 2 * n * recipe.responses.revisions
        found.append(Requests(turns, recipe.responses.max_tokens, turns, answers=1.5, instructions=1))
    if "judgements" in asks:
        revised, anchored = recipe.responses.principles is not None, "anchors" in names(recipe, iteration)
        # A stage that also samples judges what it has sampled besides.
        found += judging(recipe, n * (1 + revised + anchored + ("responses" in asks)))
    if "meta" in asks:
        assert recipe.meta is not None
        meetings = recipe.judge.votes * (recipe.judge.votes - 1)
        found.append(Requests(meetings, recipe.meta.max_tokens, meetings, answers=3, instructions=1))
    return found


def judging(recipe: Recipe, num: int) -> list[Requests]:
    """The requests behind all judgements of ``num`` responses to one prompt."""
    return [requests for judge in recipe.judge.judges for requests in _judging(judge, num)]


def _judging(judge: JudgeSettings, num: int) -> Iterator[Requests]:
    asked: Literal["policy", "other", "function"] = "other"
    if judge.name == "verifier":
        asked = "function"
    elif judge.engine is None and judge.model is None:
        asked = "policy"
    each = Requests(1, judge.max_tokens, 1, instructions=1, asked=asked)
    if judge.reference == "answer":
        yield each
    thinks = {"expected_score": judge.expected.think, "pairwise": judge.pairwise.think}
    each = replace(each, written=thinks.get(judge.name, judge.name not in WITHOUT_TEXT))
    if judge.name == "pairwise":
        meetings = num * (num - 1) // 2
        if judge.pairwise.matches != "all":
            meetings = min(meetings, judge.pairwise.rounds * (num // 2))
        # Each meeting in both orders.
        yield replace(each, num=2 * meetings * judge.votes, distinct=2 * meetings, answers=2)
        return
    if judge.name == "rubric" and not judge.rubric.together and judge.criteria is not None:
        num *= len(read_criteria(judge.criteria))
    yield replace(each, num=num * judge.votes, distinct=num, answers=1)


def of_all_prompts(recipe: Recipe, num: int) -> list[Requests]:
    """The requests of the stage ``prompts`` for ``num`` prompts, at most."""
    asked = [source for source in recipe.prompts.sources if source.needs_model]
    return [
        Requests(
            REQUESTS_A_PROMPT * num,
            source.generation.max_tokens,
            REQUESTS_A_PROMPT * num,
            prompts=4,
            instructions=1,
            asked="other" if source.by == "teacher" else "policy",
        )
        for source in asked
    ]
