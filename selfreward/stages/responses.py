"""N responses to each prompt, sampled from M_t."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from selfreward.engines import SamplingParams
from selfreward.journal import JournaledEngine
from selfreward.records import Prompt, Response, content_id, derive_seed
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary
from selfreward.stages.gather import gather


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the responses in the order of the prompts, then of k."""
    folder = run.stage("responses", iteration)
    prompts = run.records("prompts", iteration, Prompt)
    policy = engines.policy(run.model_path(iteration))
    with folder.journal() as journal:
        engine = JournaledEngine(policy, journal, "policy")

        async def respond(prompt: Prompt) -> list[Response]:
            return await asyncio.gather(*(sample(run, iteration, engine, prompt, k) for k in ks(run)))

        limit = run.recipe.engine.max_in_flight
        responses, seconds = gather("responses", prompts, respond, lambda response: response.num_tokens, limit)
    folder.write("records.jsonl", responses)
    return summarize(responses) | engine.summary(seconds)


def ks(run: Run) -> range:
    """The numbers of the responses to one prompt."""
    return range(run.recipe.responses.n)


async def sample(run: Run, iteration: int, engine: JournaledEngine, prompt: Prompt, k: int) -> Response:
    """The k-th response to a prompt."""
    seed = derive_seed(run.recipe.seed, iteration, prompt.id, k)
    [completion] = await engine.sample(prompt.messages, SamplingParams.of(run.recipe.responses), [seed])
    return Response(
        id=content_id("response", prompt.id, k, seed, completion.text),
        prompt_id=prompt.id,
        k=k,
        text=completion.text,
        finish_reason=completion.finish_reason,
        num_tokens=completion.num_tokens,
        seed=seed,
        model=run.model_name(engine.model),
    )


def summarize(responses: Sequence[Response]) -> Summary:
    """Counts of an iteration's responses."""
    return {
        "responses": len(responses),
        "truncated": sum(response.finish_reason == "length" for response in responses),
        "empty": sum(response.finish_reason == "stop" and not response.text.strip() for response in responses),
        "prompt_too_long": sum(response.finish_reason == "prompt_too_long" for response in responses),
        "mean_tokens": sum(response.num_tokens for response in responses) / len(responses),
    }
