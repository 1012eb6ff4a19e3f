"""Sampling and judging by one model at once: a response is judged as soon as it exists."""

from __future__ import annotations

import asyncio

from selfreward.engines.concurrency import run_concurrently
from selfreward.engines.journaled import JournaledEngine
from selfreward.records import Judgement, Prompt, Response, by_prompt
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.runs.stored import JUDGE, POLICY
from selfreward.serving.engines import Engines
from selfreward.stages import judgements, responses
from selfreward.stages.judgements import Job

Judged = tuple[list[Response], list[Judgement]]


def sample_and_judge(run: Run, sampling_step: Step, judging_step: Step, engines: Engines) -> tuple[Summary, Summary]:
    """Writes the records of the stages responses and judgements, the same as the two would one after the other.

    Raises:
        ValueError: the parse rate is below ``judge.min_parse_rate``.
    """
    sampled, judged = run.folder(sampling_step), run.folder(judging_step)
    iteration, [model] = sampling_step.iteration, run.models(sampling_step)
    voting = judgements.Voting(run, iteration)
    sampling = responses.Sampling(run, sampling_step)
    anchors = by_prompt(responses.anchors(run, iteration))
    engine = engines.policy(model)
    with sampled.journal() as first, judged.journal() as second:
        policy, judge = JournaledEngine(engine, first, POLICY), JournaledEngine(engine, second, JUDGE)

        async def votes(prompt: Prompt, subjects: list[Response]) -> list[Judgement]:
            return await voting.votes(judge, Job(prompt, subjects, voting.seed(prompt)))

        async def one(prompt: Prompt, k: int) -> Judged:
            these = await sampling.sample_response(policy, prompt, k)
            return these, await votes(prompt, these)

        async def both(prompt: Prompt) -> list[Judged]:
            beside = anchors.get(prompt.id, [])
            if voting.panel.pointwise and len(voting.panel.judges) == 1:
                judged = await asyncio.gather(*(one(prompt, k) for k in sampling.ks))
                return [*judged, ([], await votes(prompt, beside))] if beside else judged
            every = await sampling.sample_prompt(policy, prompt)
            return [(every, await votes(prompt, every + beside))]

        prompts = run.records("prompts", iteration, Prompt)
        results, seconds = run_concurrently("responses and judgements", prompts, both, _tokens, engines.in_flight)
    texts = [response for these, _ in results for response in these]
    found = [judgement for _, these in results for judgement in these]
    responses.write(sampled, prompts, texts)
    voting.require_parse_rates(found)
    judged.write("records.jsonl", found)
    return (
        responses.summarize(texts) | policy.summary(seconds),
        judgements.summarize(found) | judge.summary(seconds),
    )


def _tokens(judged: Judged) -> int:
    texts, votes = judged
    return sum(response.num_tokens for response in texts) + sum(vote.num_tokens for vote in votes)
