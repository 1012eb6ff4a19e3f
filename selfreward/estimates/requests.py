"""What a stage asks of a model: how many requests, how long they are, and what they read. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from selfreward.engines.model_requests import Requests
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.recipe import Recipe
from selfreward.runs.plan import names
from selfreward.runs.stages import Stage


def asks_by_prompt(stage: Stage) -> bool:
    """Whether a stage asks so much for each prompt, as :func:`of_a_prompt` counts it."""
    return not {"responses", "revisions", "judgements", "meta"}.isdisjoint(stage.asks)


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
    facts, asked = judge.facts, _asked(judge)
    if judge.reference == "answer":
        yield Requests(1, judge.max_tokens, 1, instructions=1, asked=asked)
    for each in judge.judge_class.requests(judge, num):
        yield replace(each, asked=asked, written=each.written and facts.writes)


def _asked(judge: JudgeSettings) -> Literal["policy", "other", "function"]:
    if not judge.needs:
        return "function"
    return "policy" if judge.engine is None and judge.model is None else "other"


def of_all_prompts(recipe: Recipe, num: int) -> list[Requests]:
    """The requests of the stage ``prompts`` for ``num`` prompts, at most."""
    return [each for source in recipe.prompts.sources for each in source.source_class.requests(source, num)]
