"""Any server that speaks OpenAI's chat completions: OpenAI itself, ``vllm serve``, a proxy."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI, BadRequestError

from selfreward.engines.base import TOO_LONG, Completion, SamplingParams, no_reward_model

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    from selfreward.records import FinishReason, Message
    from selfreward.settings.engine import EngineSettings, ModelSettings, OpenAISettings

# OpenAI has a code for it, other servers only the sentence.
CONTEXT_LENGTH = re.compile(r"context[ _]?(length|size|window)|prompt is too long", re.IGNORECASE)
# The client insists on a key, a local server asks for none.
NO_KEY = "none"
# The most that the protocol allows.
TOP_LOGPROBS = 20


class OpenAIEngine:
    """Implements :class:`selfreward.engines.base.Engine` for a judge or teacher behind a server.

    The server applies its own chat template and limits. The weights are the server's, so this can't be the
    policy of a loop.
    """

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        """Raises ValueError if the server needs a key and its environment variable is not set."""
        assert settings.openai is not None, "the recipe refuses this engine without engine.openai"
        self._settings = settings.openai
        self._key = _api_key(settings.openai)
        self._server = _without_user(settings.openai.base_url)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.model = settings.openai.model

    async def sample(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        return await asyncio.gather(*(self._request(messages, params, seed) for seed in seeds))

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> None:
        """Not to be had: chat completions give no log-probabilities of a given text."""
        return None

    async def chances(self, messages: Sequence[Message], begun: str, options: Sequence[str]) -> list[float] | None:
        """As :meth:`Sampler.chances`, of the 20 likeliest tokens, which is all that a server tells: others count as 0.

        Whether an option is one token of the server's model can't be told either.
        """
        if begun:
            raise ValueError(
                f"the openai engine can't let {self.model} go on after a text that is begun: chat completions always "
                "begin a new answer. Use the judge yes_no, or pairwise with think: false, or judge with vllm or "
                "transformers"
            )
        # At another temperature some servers tell the log-probabilities of that one, and some list what was sampled
        # in place of the twentieth.
        answer = await self._ask(messages, temperature=0.0, max_tokens=1, logprobs=True, top_logprobs=TOP_LOGPROBS)
        if answer is None:
            return None
        tokens = self._top_tokens(answer)
        return [sum(exp(logprob) for text, logprob in tokens if text.lstrip() == option) for option in options]

    async def rate(self, messages: Sequence[Message]) -> float | None:
        raise no_reward_model(self.model)

    def reload(self, model_path: str) -> None:
        raise ValueError(
            f"the openai engine can't serve {model_path}: the weights of {self._server} are not ours to change. "
            "Use it in judge.engine, and vllm or transformers in engine"
        )

    def close(self) -> None:
        """Nothing to do: each client is closed with its event loop."""

    def _connect(self) -> None:
        """Makes a client for the running loop, to which its connections are bound."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._client = AsyncOpenAI(
            api_key=self._key,
            base_url=self._settings.base_url,
            max_retries=self._settings.max_retries,
            timeout=self._settings.timeout,
        )
        self._slots = asyncio.Semaphore(self._settings.max_concurrency)
        self._closer = loop.create_task(_close_with_loop(self._client))
        self._loop = loop

    async def _request(self, messages: Sequence[Message], params: SamplingParams, seed: int) -> Completion:
        answer = await self._ask(
            messages, temperature=params.temperature, top_p=params.top_p, max_tokens=params.max_tokens, seed=seed
        )
        return TOO_LONG if answer is None else self._completion(answer)

    async def _ask(self, messages: Sequence[Message], **options: Any) -> ChatCompletion | None:
        """An answer with a choice, or None for a prompt that is too long."""
        self._connect()
        try:
            async with self._slots:
                answer: ChatCompletion = await self._client.chat.completions.create(
                    model=self._settings.model,
                    messages=list(messages),  # type: ignore[arg-type]
                    **options,
                )
        except APIError as error:
            if _is_too_long(error):
                return None
            # Without its cause: that one's text may hold the key, and it holds the request.
            raise ValueError(self._explain(error)) from None
        if not answer.choices:
            raise ValueError(f"{self._server} answered without a choice. Is model {self.model!r} a chat model?")
        return answer

    def _top_tokens(self, answer: ChatCompletion) -> list[tuple[str, float]]:
        """The likeliest first tokens of an answer, with their log-probabilities in nats."""
        logprobs = answer.choices[0].logprobs
        if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
            raise ValueError(
                f"{self._server} tells no log-probabilities of model {self.model!r}. Judge with one that samples its "
                "scores, such as additive, or with another server"
            )
        return [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs]

    def _completion(self, answer: ChatCompletion) -> Completion:
        choice = answer.choices[0]
        reason: FinishReason = "length" if choice.finish_reason == "length" else "stop"
        return Completion(choice.message.content or "", reason, answer.usage.completion_tokens if answer.usage else 0)

    def _explain(self, error: APIError) -> str:
        """The fact and the way out. The text of a server may repeat the key, so it is taken out."""
        text = error.message if self._key == NO_KEY else error.message.replace(self._key, "***")
        tries = f"after {self._settings.max_retries} retries"
        if isinstance(error, APITimeoutError):
            return f"{self._server} did not answer in {self._settings.timeout:g} s, {tries}. Raise openai.timeout"
        if isinstance(error, APIConnectionError):
            return f"{self._server} can't be reached, {tries}: {text} Is it running, and is openai.base_url right?"
        if not isinstance(error, APIStatusError):
            return f"{self._server} gave an answer that can't be read: {text}"
        ways_out = {
            401: f"Put a valid key into the environment variable {self._settings.api_key_env}",
            403: f"Does the key in {self._settings.api_key_env} have access to model {self.model!r}?",
            404: f"Is model {self.model!r} one of the server's, and does openai.base_url end as it should (/v1)?",
            429: "Lower openai.max_concurrency, or raise openai.max_retries",
        }
        way_out = ways_out.get(error.status_code, "See the server's log")
        text = text.removeprefix(f"Error code: {error.status_code} - ").rstrip(".")
        return f"{self._server} answered {error.status_code}: {text[:500]}. {way_out}"


async def _close_with_loop(client: AsyncOpenAI) -> None:
    """Closes the client once ``asyncio.run`` cancels what is left in its loop."""
    try:
        await asyncio.Event().wait()
    finally:
        await client.close()


def _api_key(settings: OpenAISettings) -> str:
    if key := os.environ.get(settings.api_key_env, "").strip():
        return key
    if urlsplit(settings.base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return NO_KEY
    raise ValueError(
        f"{_without_user(settings.base_url)} needs a key, and the environment variable {settings.api_key_env} "
        "is not set. Export it, or name another one in openai.api_key_env"
    )


def _without_user(url: str) -> str:
    """The URL without the user and password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_too_long(error: APIError) -> bool:
    return isinstance(error, BadRequestError) and bool(CONTEXT_LENGTH.search(f"{error.message} {error.body}"))
