"""Sampling and judging by one model at once: a response is judged as soon as it exists."""

from __future__ import annotations

import asyncio

from selfreward.journal import JournaledEngine
from selfreward.records import Judgement, Prompt, Response
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary, judgements, responses
from selfreward.stages.gather import gather

Judged = tuple[list[Response], list[Judgement]]


def sample_and_judge(run: Run, iteration: int, engines: Engines) -> tuple[Summary, Summary]:
    """Writes the records of the stages responses and judgements, the same as the two would one after the other.

    Raises:
        ValueError: the parse rate is below ``judge.min_parse_rate``.
    """
    sampled, judged = run.stage("responses", iteration), run.stage("judgements", iteration)
    voting = judgements.Voting(run, iteration)
    engine = engines.policy(run.model_path(iteration))
    with sampled.journal() as first, judged.journal() as second:
        policy, judge = JournaledEngine(engine, first, "policy"), JournaledEngine(engine, second, "judge")

        async def one(prompt: Prompt, k: int) -> Judged:
            response = await responses.sample(run, iteration, policy, prompt, k)
            return [response], await voting.vote(judge, prompt, [response])

        async def both(prompt: Prompt) -> list[Judged]:
            if voting.judge.pointwise:
                return await asyncio.gather(*(one(prompt, k) for k in responses.ks(run)))
            every = await asyncio.gather(
                *(responses.sample(run, iteration, policy, prompt, k) for k in responses.ks(run))
            )
            return [(every, await voting.vote(judge, prompt, every))]

        prompts = run.records("prompts", iteration, Prompt)
        limit = run.recipe.engine.max_in_flight
        results, seconds = gather("responses and judgements", prompts, both, _tokens, limit)
    texts = [response for these, _ in results for response in these]
    votes = [judgement for _, these in results for judgement in these]
    sampled.write("records.jsonl", texts)
    voting.require_parse_rate(votes)
    judged.write("records.jsonl", votes)
    return (
        responses.summarize(texts) | policy.summary(seconds),
        judgements.summarize(votes) | judge.summary(seconds),
    )


def _tokens(judged: Judged) -> int:
    texts, votes = judged
    return sum(response.num_tokens for response in texts) + sum(vote.num_tokens for vote in votes)
