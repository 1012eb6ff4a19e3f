"""Responses of a draft of M_{t+1}, judged by M_t (Temporal Self-Rewarding, arXiv 2508.06026)."""

from __future__ import annotations

from selfreward.engines.journaled import JournaledEngine
from selfreward.records import Prompt, Response, by_prompt
from selfreward.runs.journal import Journal
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.runs.stored import POLICY
from selfreward.serving.engines import Engines
from selfreward.stages.judgements import Job, Voting, subjects, summarize
from selfreward.stages.responses import Sampling
from selfreward.stages.responses import summarize as summarize_responses


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes responses and judgements, each in the order of the prompts.

    Raises:
        ValueError: the parse rate is below ``judge.min_parse_rate``.
    """
    folder, iteration, [model] = run.folder(step), step.iteration, run.models(step)
    voting = Voting(run, iteration)
    prompts = run.records("prompts", iteration, Prompt)
    with folder.journal() as journal:
        responses, sampled = _sample(run, step, engines, journal, prompts)
        # A judge that compares has to see M_t's own responses among them.
        others = [] if voting.panel.pointwise else subjects(run, iteration)
        beside = by_prompt([*others, *responses])
        jobs = [Job(prompt, beside[prompt.id], voting.seed(prompt)) for prompt in prompts]
        judgements, judged = voting.judge_all(engines, model, journal, jobs, "look-ahead judgements")
    voting.require_parse_rates(judgements)
    folder.write("responses.jsonl", responses)
    folder.write("judgements.jsonl", judgements)
    return {**summarize_responses(responses), **summarize(judgements), **_together(sampled, judged)}


def _sample(
    run: Run, step: Step, engines: Engines, journal: Journal, prompts: list[Prompt]
) -> tuple[list[Response], Summary]:
    sampling = Sampling(run, step)
    draft = engines.policy(str(run.model_folder(Step("draft_train", step.iteration))))
    engine = JournaledEngine(draft, journal, POLICY)
    responses, seconds = sampling.sample_all(engine, prompts, "look-ahead responses", engines.in_flight)
    return responses, engine.summary(seconds)


def _together(sampled: Summary, judged: Summary) -> Summary:
    """Both parts' speed, and the requests that an earlier attempt had finished."""
    resumed = sampled.get("resumed", 0) + judged.get("resumed", 0)
    return {
        "tokens_per_second": sampled["tokens_per_second"],
        "judge_tokens_per_second": judged["tokens_per_second"],
        **({"resumed": resumed} if resumed else {}),
    }
