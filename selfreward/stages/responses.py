"""N responses to each prompt, sampled from M_t."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial

from selfreward.engines import Sampler, SamplingParams
from selfreward.engines.concurrency import run_concurrently
from selfreward.engines.journaled import JournaledEngine
from selfreward.records import Prompt, Response, by_prompt, content_id, derive_seed
from selfreward.runs.folders import StageFolder
from selfreward.runs.plan import names
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.runs.stored import POLICY
from selfreward.runtime.atomic import write_bytes
from selfreward.serving.engines import Engines
from selfreward.stages.revision import Constitution, demonstrations


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes the responses in the order of the prompts, then of k, each with its revision behind it."""
    folder, sampling = run.folder(step), Sampling(run, step)
    prompts = run.records("prompts", step.iteration, Prompt)
    [model] = run.models(step)
    policy = engines.policy(model)
    with folder.journal() as journal:
        engine = JournaledEngine(policy, journal, POLICY)
        responses, seconds = sampling.sample_all(engine, prompts, step.stage, engines.in_flight)
    write(folder, prompts, responses)
    return summarize(responses) | engine.summary(seconds)


def write(folder: StageFolder, prompts: Sequence[Prompt], responses: Sequence[Response]) -> None:
    """Writes the records, and what was revised as instruction data: it trains as ``seed_data.ift`` as it is."""
    folder.write("records.jsonl", responses)
    rows = [json.dumps(row, ensure_ascii=False) for row in demonstrations(prompts, responses)]
    if rows:
        write_bytes(folder.path / "revisions.jsonl", (f"{row}\n".encode() for row in rows))


class Sampling:
    """How one iteration's responses are sampled."""

    def __init__(self, run: Run, step: Step) -> None:
        self._run, self._iteration, self._stage = run, step.iteration, step.stage
        settings = run.recipe.responses
        self._params = SamplingParams.of(settings)
        # The numbers of the responses to one prompt; revisions are numbered from n on.
        self.ks = range(settings.n)
        # Those of other models are there to be compared with, as they are.
        revised = settings.principles is not None and self._stage == "responses"
        self._constitution = Constitution(settings) if revised else None

    def sample_all(
        self, engine: Sampler, prompts: Sequence[Prompt], name: str, limit: int
    ) -> tuple[list[Response], float]:
        """The responses to all prompts in their order, and the seconds that they took; ``name`` is what is shown."""
        return run_concurrently(
            name, prompts, partial(self.sample_prompt, engine), lambda response: response.num_tokens, limit
        )

    async def sample_prompt(self, engine: Sampler, prompt: Prompt) -> list[Response]:
        """All responses to a prompt in the order of k, each with its revision behind it."""
        found = await asyncio.gather(*(self.sample_response(engine, prompt, k) for k in self.ks))
        return [response for these in found for response in these]

    async def sample_response(self, engine: Sampler, prompt: Prompt, k: int) -> list[Response]:
        """The k-th response to a prompt, and its last revision where the recipe has principles."""
        seed = self._seed(prompt, k)
        [completion] = await engine.generate(prompt.messages, self._params, [seed])
        response = Response(
            id=content_id("response", prompt.id, k, seed, completion.text),
            prompt_id=prompt.id,
            k=k,
            text=completion.text,
            finish_reason=completion.finish_reason,
            num_tokens=completion.num_tokens,
            seed=seed,
            model=self._run.model_name(engine.model),
        )
        if self._constitution is None:
            return [response]
        number = k + len(self.ks)
        return [
            response,
            *await self._constitution.revise(engine, prompt, response, number, self._seed(prompt, number)),
        ]

    def _seed(self, prompt: Prompt, k: int) -> int:
        # A stage of its own samples other noise than the iteration's own responses.
        other = () if self._stage == "responses" else (self._stage,)
        return derive_seed(self._run.recipe.seed, self._iteration, prompt.id, k, *other)


def anchors(run: Run, iteration: int) -> list[Response]:
    """The responses of the anchor model, where the recipe has one."""
    return run.records("anchors", iteration, Response) if "anchors" in names(run.recipe, iteration) else []


def _distinct(responses: Sequence[Response]) -> float | None:
    """How different the responses to one prompt are from each other: 0 if all are one text, 1 if none is another's."""
    shares = [
        (len({response.text for response in group}) - 1) / (len(group) - 1)
        for group in by_prompt(responses).values()
        if len(group) > 1
    ]
    return sum(shares) / len(shares) if shares else None


def summarize(responses: Sequence[Response]) -> Summary:
    """Counts of an iteration's responses."""
    return {
        "responses": len(responses),
        "truncated": sum(response.finish_reason == "length" for response in responses),
        "empty": sum(response.finish_reason == "stop" and not response.text.strip() for response in responses),
        "prompt_too_long": sum(response.finish_reason == "prompt_too_long" for response in responses),
        "distinct": _distinct(responses),
        "mean_tokens": sum(response.num_tokens for response in responses) / len(responses),
    }
