"""The protocols between stages and judges and whatever serves a model: one for each thing that is asked."""

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


class Serving(Protocol):
    """What serves a model, whatever it is asked for."""

    @property
    def model(self) -> str:
        """The folder or hub name of the weights."""


class Generator(Serving, Protocol):
    """Writes text. Work is written as one coroutine a prompt; the engine batches what is in flight."""

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


class OptionProbs(Serving, Protocol):
    """Tells how likely short answers are. A class whose answers can't be begun says ``takes_prefix = False``."""

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        """The probability, at temperature 1, of each option as the next token of an answer.

        Args:
            messages: the conversation.
            prefix: the beginning of the answer; may be empty.
            options: short texts. Those tokens count for an option whose text is the option, with or without white
                space in front.

        Returns:
            One probability an option; what they lack to 1 is the mass on other tokens. None for a prompt that does
            not fit.

        Raises:
            ValueError: an option that is no single token of this model.
            EngineDied: the engine can only be closed any more.
        """


class RewardModel(Serving, Protocol):
    """Serves a reward model."""

    async def reward(self, messages: Sequence[Message]) -> float | None:
        """The reward of a conversation that ends with an answer, None if it does not fit."""


class Sampler(Generator, OptionProbs, RewardModel, Protocol):
    """All that stages and judges may ask; what the engine behind it can't do, no recipe lets them ask for."""


class Closable(Protocol):
    """An engine that owns its model."""

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        """Loads a model.

        Args:
            model_path: the folder or hub name of the weights.
            model: dtype, chat template and the like.
            settings: the recipe's ``engine`` block.
        """

    def close(self) -> None:
        """Gives back the memory, within seconds and whatever state the engine is in."""


class Lifecycle(Closable, Protocol):
    """What the policy's engine has besides, as its weights change."""

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


class Engine(Sampler, Lifecycle, Protocol):
    """All methods of the policy's engine, of judges' and of sources'. A class has those of them that it is used for.

    The recipe asks a class for them before it is used (:mod:`selfreward.recipe.engine_facts`). ``own_model`` of a class
    says whether its own settings name what it serves (True), or ``judge.model`` has to (False).
    """


def start_here(model: ModelSettings, settings: EngineSettings, model_path: str) -> Engine:
    """An engine in this process, or in one that it starts by itself, with the methods that it is used for.

    Raises:
        EngineDied: it could not be started.
        ValueError: it refuses its settings or the model.
    """
    engine: Engine = registry.load(settings.name, registry.ENGINES, "engine")(model_path, model, settings)
    return engine
