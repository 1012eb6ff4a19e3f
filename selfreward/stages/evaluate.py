"""Held-out measurements of M_{t+1}, the model that iteration t made (t = 0: M1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from selfreward import registry
from selfreward.engines import Completion, Sampler, SamplingParams
from selfreward.evaluation.agreement import agreement
from selfreward.evaluation.responses import gain, summarize
from selfreward.journal import Journal, JournaledEngine
from selfreward.judges import Judge, mean_scores
from selfreward.judges.load import load_judge
from selfreward.prompts.dataset import Graded, read_graded, read_held_out
from selfreward.records import Agreement, Judgement, Measurement, Prompt, Response, content_id, derive_seed
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary
from selfreward.stages.gather import gather

Scorer = Callable[[str, str], float]


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes measurements of responses and of judging, as far as the recipe names held-out data."""
    with run.stage("evaluate", iteration).journal() as journal:
        return {"model": f"M{iteration + 1}"} | _evaluate(run, iteration, engines, journal)


def _evaluate(run: Run, iteration: int, engines: Engines, journal: Journal) -> Summary:
    settings = run.recipe.evaluation
    model = run.model_path(iteration + 1)
    summary: Summary = {}
    if settings.prompts is not None:
        prompts = read_held_out(run.recipe)
        measurements = _measure(run, JournaledEngine(engines.policy(model), journal, "policy"), prompts)
        run.stage("evaluate", iteration).write("records.jsonl", measurements)
        summary |= summarize(measurements, settings.pass_score)
        if iteration:
            before = run.records("measurements", 0, Measurement)
            summary |= gain(before, measurements, run.recipe.seed) or {}
        if settings.scorer is None:
            judge = JournaledEngine(engines.judge(model), journal, "judge")
            summary |= _own_score(run, judge, prompts, measurements)
    if settings.judging is not None:
        agreements = _agree(run, JournaledEngine(engines.judge(model), journal, "judge"), settings.judging)
        run.stage("evaluate", iteration).write("agreement.jsonl", agreements)
        summary |= agreement(agreements, run.recipe.judge.max_score)
    return summary


def _measure(run: Run, engine: Sampler, prompts: Sequence[Prompt]) -> list[Measurement]:
    """Sampled as for training and once greedily, with the same seeds for every model."""
    settings = run.recipe.evaluation
    score: Scorer | None = registry.load(settings.scorer, {}, "scorer") if settings.scorer else None
    sampled = SamplingParams.of(run.recipe.responses)
    greedy = SamplingParams(0.0, 1.0, sampled.max_tokens)

    async def one(prompt: Prompt) -> list[Measurement]:
        seeds = [derive_seed(run.recipe.seed, "evaluate", prompt.id, k) for k in range(settings.n)]
        many, single = await asyncio.gather(
            engine.sample(prompt.messages, sampled, seeds), engine.sample(prompt.messages, greedy, [0])
        )
        ks: list[int | None] = [*range(settings.n), None]
        return [_measurement(prompt, k, c, score) for k, c in zip(ks, [*many, *single], strict=True)]

    return gather("held-out responses", prompts, one, lambda m: m.num_tokens, _limit(run))[0]


def _measurement(prompt: Prompt, k: int | None, completion: Completion, score: Scorer | None) -> Measurement:
    gold = None if score is None else float(score(prompt.text, completion.text))
    return Measurement(prompt.id, k, completion.text, completion.finish_reason, completion.num_tokens, gold)


def _own_score(
    run: Run, engine: Sampler, prompts: Sequence[Prompt], measurements: Sequence[Measurement]
) -> dict[str, float | None]:
    """The judge's mean score of the greedy responses: without a scorer, all there is, and no outside view."""
    judge = load_judge(run.recipe)
    greedy = {m.prompt_id: m.text for m in measurements if m.k is None}

    async def one(prompt: Prompt) -> list[Judgement]:
        return await _votes(run, judge, engine, prompt, greedy[prompt.id])

    votes, _ = gather("held-out judgements", prompts, one, lambda vote: vote.num_tokens, _limit(run))
    scores = mean_scores(votes)
    return {"own_score": sum(scores.values()) / len(scores) if scores else None}


def _agree(run: Run, engine: Sampler, path: Path) -> list[Agreement]:
    """The judge's mean score of each held-out graded response beside the label in its judgement."""
    judge = load_judge(run.recipe)
    graded = read_graded(path)
    labels = [_label(judge, example, number) for number, example in enumerate(graded, start=1)]

    async def one(item: tuple[Graded, float]) -> list[tuple[Agreement, int]]:
        example, label = item
        prompt = Prompt.make([{"role": "user", "content": example.prompt}], "evaluation")
        votes = await _votes(run, judge, engine, prompt, example.response)
        scores = list(mean_scores(votes).values())
        errors = [vote.error for vote in votes if vote.error is not None]
        record = Agreement(example.prompt, example.response, label, scores[0] if scores else None, errors)
        return [(record, sum(vote.num_tokens for vote in votes))]

    items = list(zip(graded, labels, strict=True))
    pairs, _ = gather("held-out judgements", items, one, lambda pair: pair[1], _limit(run))
    return [record for record, _ in pairs]


def _limit(run: Run) -> int:
    return run.recipe.engine.max_in_flight


async def _votes(run: Run, judge: Judge, engine: Sampler, prompt: Prompt, text: str) -> list[Judgement]:
    """The judgements of one held-out response, with the same seeds for every model."""
    identity = content_id("held-out", prompt.id, text)
    response = Response(identity, prompt.id, 0, text, "stop", 0, 0, "")
    return await judge.judge(engine, prompt, [response], derive_seed(run.recipe.seed, "held-out", identity))


def _label(judge: Judge, example: Graded, number: int) -> float:
    label, error = judge.parse(example.judgement)
    if label is None:
        raise ValueError(f"evaluation.judging, example {number}: no label, {error} in {example.judgement!r}")
    return label
