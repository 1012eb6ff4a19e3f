"""N responses to each prompt, sampled from M_t."""

from __future__ import annotations

from selfreward.engines import SamplingParams
from selfreward.records import Prompt, Response, content_id, derive_seed
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary
from selfreward.stages.gather import gather


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the responses in the order of the prompts, then of k."""
    settings = run.recipe.responses
    params = SamplingParams.of(settings)
    engine = engines.policy(run.model_path(iteration))

    async def respond(prompt: Prompt) -> list[Response]:
        seeds = [derive_seed(run.recipe.seed, iteration, prompt.id, k) for k in range(settings.n)]
        completions = await engine.sample(prompt.messages, params, seeds)
        return [
            Response(
                id=content_id("response", prompt.id, k, seeds[k], completion.text),
                prompt_id=prompt.id,
                k=k,
                text=completion.text,
                finish_reason=completion.finish_reason,
                num_tokens=completion.num_tokens,
                seed=seeds[k],
                model=run.model_name(engine.model),
            )
            for k, completion in enumerate(completions)
        ]

    prompts = run.records("prompts", iteration, Prompt)
    responses, speed = gather("responses", prompts, respond, lambda response: response.num_tokens)
    run.stage("responses", iteration).write("records.jsonl", responses)
    return {
        "responses": len(responses),
        "truncated": sum(response.finish_reason == "length" for response in responses),
        "empty": sum(response.finish_reason == "stop" and not response.text.strip() for response in responses),
        "prompt_too_long": sum(response.finish_reason == "prompt_too_long" for response in responses),
        "mean_tokens": sum(response.num_tokens for response in responses) / len(responses),
        "tokens_per_second": speed,
    }
