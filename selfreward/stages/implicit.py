"""Log-probabilities of M_t's responses under M_t and M_{t-1}, whose difference is the implicit reward of DPO.

SCIR (arXiv 2502.08922) trains on the pairs that this reward and the judge order alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfreward.engines.concurrency import run_concurrently
from selfreward.engines.journaled import JournaledEngine
from selfreward.records import ImplicitReward, Prompt, Response
from selfreward.runs.journal import Journal
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.runs.stored import LOGPROB
from selfreward.serving.engines import Engines
from selfreward.text.chat import ChatEncoder, load_tokenizer


@dataclass(frozen=True)
class Text:
    """The token ids of a conversation, the last ``num`` of which are the answer and the end of its turn."""

    ids: list[int]
    num: int


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes a record for each response of M_t, in their order."""
    iteration, (before, now) = step.iteration, run.models(step)
    prompts = {prompt.id: prompt for prompt in run.records("prompts", iteration, Prompt)}
    responses = run.records("responses", iteration, Response)
    chat = ChatEncoder(load_tokenizer(now, run.recipe.model))
    most = run.recipe.responses.max_tokens
    texts = [encode(chat, prompts[response.prompt_id], response, most) for response in responses]
    folder = run.folder(step)
    with folder.journal() as journal:
        found, resumed = _logprobs(run, engines, journal, now, texts)
        previous, resumed_too = _logprobs(run, engines, journal, before, texts)
    pairs = zip(found, previous, strict=True)
    known = [both if None not in both else (None, None) for both in pairs]
    rewards = [ImplicitReward(response.id, *both) for response, both in zip(responses, known, strict=True)]
    folder.write("records.jsonl", rewards)
    return _summarize(rewards) | ({"resumed": resumed + resumed_too} if resumed + resumed_too else {})


def encode(chat: ChatEncoder, prompt: Prompt, response: Response, max_tokens: int) -> Text | None:
    """A prompt with a response as DPO trains it, in the model's own template, with the end of the turn.

    Args:
        chat: the tokenizer and template.
        prompt: the prompt.
        response: one of its responses.
        max_tokens: for how many tokens there was room behind the prompt when the response was sampled.

    Returns:
        None for a response that may not fit into the model's context, or that DPO would train as something else, as
        it holds the text of a control token.
    """
    messages = [*prompt.messages, {"role": "assistant", "content": response.text}]
    if response.finish_reason == "prompt_too_long" or any(chat.has_control_text(m["content"]) for m in messages):
        return None
    before = chat.encode(prompt.messages)
    whole: list[int] = list(chat.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))  # type: ignore[arg-type]
    # A template may write what only stands before an answer that is still to come.
    begins = next((n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    # An engine needs room for one token more.
    return Text(whole, len(whole) - begins) if len(whole) < len(before) + max_tokens else None


def _logprobs(
    run: Run, engines: Engines, journal: Journal, model: str, texts: Sequence[Text | None]
) -> tuple[list[float | None], int]:
    """The summed log-probabilities of the answers under a model, and how many an earlier attempt had found."""
    policy, name = engines.policy(model), run.model_name(model)
    engine = JournaledEngine(policy, journal, name)

    async def total(text: Text | None) -> list[float | None]:
        if text is None:
            return [None]

        async def ask() -> float | None:
            figures = await policy.logprobs(text.ids)
            return None if figures is None else sum(figures[-text.num :])

        return [await engine.once([LOGPROB, text.ids, text.num], ask)]

    found, seconds = run_concurrently(f"log-probabilities by {name}", texts, total, lambda _: 0, engines.in_flight)
    return found, engine.summary(seconds).get("resumed", 0)


def rewards_of(records: Sequence[ImplicitReward]) -> dict[str, float]:
    """The implicit reward, without its factor beta, by response id, as far as it is known."""
    return {
        record.response_id: record.logprob - record.previous_logprob
        for record in records
        if record.logprob is not None and record.previous_logprob is not None
    }


def _summarize(records: Sequence[ImplicitReward]) -> Summary:
    rewards = rewards_of(records).values()
    return {
        "responses": len(records),
        "unknown": len(records) - len(rewards),
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
    }
