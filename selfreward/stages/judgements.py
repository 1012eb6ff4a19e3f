"""K votes on each response, from the model that gave the responses (or another judge)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from selfreward.judges.load import load_judge
from selfreward.records import Judgement, Prompt, Response, by_prompt, derive_seed
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary
from selfreward.stages.gather import gather


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the judgements in the order of prompts, responses and votes."""
    responses = by_prompt(run.records("responses", iteration, Response))
    judge = load_judge(run.recipe)
    engine = engines.judge(run.model_path(iteration))

    async def vote(prompt: Prompt) -> list[Judgement]:
        seed = derive_seed(run.recipe.seed, iteration, "judge", prompt.id)
        judgements = await judge.judge(engine, prompt, responses[prompt.id], seed)
        return [replace(judgement, model=run.model_name(judgement.model)) for judgement in judgements]

    prompts = run.records("prompts", iteration, Prompt)
    judgements, speed = gather("judgements", prompts, vote, lambda judgement: judgement.num_tokens)
    run.stage("judgements", iteration).write("records.jsonl", judgements)
    errors = Counter(judgement.error for judgement in judgements if judgement.error is not None)
    scores = [judgement.score for judgement in judgements if judgement.score is not None]
    return {
        "judgements": len(judgements),
        "parse_rate": len(scores) / len(judgements),
        "mean_score": sum(scores) / len(scores) if scores else None,
        **{f"error_{name}": count for name, count in sorted(errors.items())},
        "tokens_per_second": speed,
    }
