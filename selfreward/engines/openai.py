"""Any server that speaks OpenAI's chat completions: OpenAI itself, ``vllm serve``, a proxy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from math import exp
from typing import TYPE_CHECKING, Annotated, Any

from openai import AsyncOpenAI
from pydantic import AfterValidator, BaseModel, Field

from selfreward.engines.base import TOO_LONG, Completion, SamplingParams
from selfreward.engines.concurrency import run_coroutine
from selfreward.engines.server import BadRequest, Server
from selfreward.recipe.engine_settings import OpenAISettings

if TYPE_CHECKING:
    from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
    from selfreward.records import FinishReason, Message

# OpenAI has a code for it, other servers only the sentence.
CONTEXT_LENGTH = re.compile(r"context[ _]?(length|size|window)|prompt is too long", re.IGNORECASE)
# The most that the protocol allows.
TOP_LOGPROBS = 20
LIST_TIMEOUT_S = 30.0  # seconds in which a server tells what it serves


def _whole(reason: str | None) -> str | None:
    """A server that ends gives back what it has as if it were an answer."""
    if reason in ("abort", "error"):
        raise ValueError("the server gave this request up")
    return reason


class _Token(BaseModel):
    token: str
    logprob: float


class _Place(BaseModel):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_Place] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Annotated[str | None, AfterValidator(_whole)] = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    completion_tokens: int | None = None


class _Answer(BaseModel):
    """What is read of a chat completion; servers differ in the rest."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class OpenAIEngine:
    """Generates and tells option probabilities for a judge or teacher behind a server.

    The server applies its own chat template and limits. The weights are the server's, so this can't be the
    policy of a loop, and has none of its methods.
    """

    own_model = True
    is_client = True
    # Chat completions always begin a new answer.
    takes_prefix = False

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        """Raises ValueError if the server needs a key and its environment variable is not set."""
        assert settings.openai is not None, "the recipe refuses this engine without engine.openai"
        self._server = Server(settings.openai)
        self.failures = self._server.failures
        self.model = settings.openai.model

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        return await asyncio.gather(*(self._request(messages, params, seed) for seed in seeds))

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        """As :meth:`Sampler.option_probs`, of the 20 likeliest tokens: a server tells no more, and others count as 0.

        Whether an option is one token of the server's model can't be told either.
        """
        if prefix:
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

    def close(self) -> None:
        """Nothing to do: each client is closed with its event loop."""

    async def _request(self, messages: Sequence[Message], params: SamplingParams, seed: int) -> Completion:
        options: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p, "seed": seed}
        if params.presence_penalty:
            options["presence_penalty"] = params.presence_penalty
        answer = await self._ask(messages, max_tokens=params.max_tokens, **options)
        return TOO_LONG if answer is None else self._completion(answer)

    async def _ask(self, messages: Sequence[Message], **options: Any) -> _Answer | None:
        """An answer with a choice, or None for a prompt that is too long."""

        def request(client: AsyncOpenAI) -> Awaitable[Any]:
            return client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=list(messages),  # type: ignore[arg-type]
                **options,
            )

        try:
            return await self._server.ask(request, _Answer)
        except BadRequest as error:
            if CONTEXT_LENGTH.search(error.said):
                return None
            raise

    def _top_tokens(self, answer: _Answer) -> list[tuple[str, float]]:
        """The likeliest first tokens of an answer, with their log-probabilities in nats."""
        logprobs = answer.choices[0].logprobs
        if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
            raise ValueError(
                f"{self._server.name} tells no log-probabilities of model {self.model!r}. Judge with one that samples "
                "its scores, such as additive, or with another server"
            )
        return [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs]

    def _completion(self, answer: _Answer) -> Completion:
        choice = answer.choices[0]
        reason: FinishReason = "length" if choice.finish_reason == "length" else "stop"
        num_tokens = answer.usage.completion_tokens if answer.usage else None
        return Completion(choice.message.content or "", reason, num_tokens or 0)


def served_models(base_url: str, api_key_env: str = "OPENAI_API_KEY") -> list[str]:
    """The names of the models that a server serves.

    Raises:
        ValueError: it can't be reached, or wants a key.
    """
    server = Server(OpenAISettings(base_url=base_url, model="", api_key_env=api_key_env, timeout=LIST_TIMEOUT_S))
    models = run_coroutine(server.ask(lambda client: client.models.with_raw_response.list(), _Models))
    return [model.id for model in models.data]
