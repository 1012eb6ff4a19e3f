"""The protocol between the stages and whatever generates text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfreward.recipe import registry
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings, SamplingSettings
from selfreward.records import FinishReason, Message


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; the names are vLLM's. ``temperature`` 0 is greedy."""

    temperature: float
    top_p: float
    max_tokens: int
    presence_penalty: float = 0.0

    @classmethod
    def of(cls, settings: SamplingSettings, presence_penalty: float = 0.0) -> SamplingParams:
        return cls(settings.temperature, settings.top_p, settings.max_tokens, presence_penalty)

    @property
    def key(self) -> list[float]:
        """What tells a request apart in a journal, the same as before there were penalties where there is none."""
        values = [self.temperature, self.top_p, self.max_tokens]
        return [*values, self.presence_penalty] if self.presence_penalty else values


@dataclass(frozen=True)
class Completion:
    """One raw output. ``num_tokens`` counts new tokens, with the EOS where there is one."""

    text: str
    finish_reason: FinishReason
    num_tokens: int


TOO_LONG = Completion("", "prompt_too_long", 0)


class Sampler(Protocol):
    """What stages and judges ask. Work is written as one coroutine a prompt; the engine batches what is in flight."""

    @property
    def model(self) -> str:
        """The folder or hub name of the weights."""

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion a seed, in the order of the seeds.

        A completion depends on its own seed and the messages, not on what shares the batch (exactly on a
        CPU; on a GPU as far as the kernels allow). A prompt that leaves no room for ``max_tokens`` gives
        completions with the finish reason ``prompt_too_long``.

        Raises:
            EngineDied: the engine can only be closed any more.
        """

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        """The probability, at temperature 1, of each option as the next token of an answer.

        Args:
            messages: the conversation.
            begun: the beginning of the answer; may be empty.
            options: short texts. Those tokens count for an option whose text is the option, with or without white
                space in front.

        Returns:
            One probability an option; what they lack to 1 is the mass on other tokens. None for a prompt that does
            not fit.

        Raises:
            ValueError: an option that is no single token of this model, or an engine that can't tell.
            EngineDied: the engine can only be closed any more.
        """

    async def reward(self, messages: Sequence[Message]) -> float | None:
        """The reward of a conversation that ends with an answer, by a reward model; None if it does not fit.

        Raises:
            ValueError: the engine serves no reward model.
        """


class Engine(Sampler, Protocol):
    """A sampler that owns the model it serves."""

    model: str

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        """Loads a model.

        Args:
            model_path: the folder or hub name of the weights.
            model: dtype, chat template and the like.
            settings: the recipe's ``engine`` block.
        """

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> list[float] | None:
        """The log-probabilities, in nats, of tokens given those before them, under the weights that are served.

        Args:
            ids: a text, which leaves room for one token more.
            last: of how many tokens at its end. Each is asked for as a sample is, so that what a prefix cache
                holds takes part. None: of all tokens but the first, computed without a cache.

        Returns:
            ``last`` or ``len(ids) - 1`` figures, in the order of the tokens; None where the engine can't tell.

        Raises:
            EngineDied: the engine can only be closed any more.
        """

    def reload(self, model_path: str) -> None:
        """Serves the weights of another model of the same architecture from now on.

        Raises:
            EngineDied: the engine can only be closed any more.
        """

    def sleep(self) -> None:
        """Gives back the memory of weights and cache until the next :meth:`reload`, as far as the engine can.

        Raises:
            EngineDied: the engine can only be closed any more.
        """

    def close(self) -> None:
        """Gives back the memory, within seconds and whatever state the engine is in."""


def no_reward_model(model: str) -> ValueError:
    """What an engine raises that is asked for a reward and serves a model that writes."""
    return ValueError(f"{model} is not served as a reward model. Use engine classifier with judge reward_model")


def start_here(model: ModelSettings, settings: EngineSettings, model_path: str) -> Engine:
    """An engine in this process, or in one that it starts by itself.

    Raises:
        EngineDied: it could not be started.
        ValueError: it refuses its settings or the model.
    """
    engine: Engine = registry.load(settings.name, registry.ENGINES, "engine")(model_path, model, settings)
    return engine
