"""The protocol between the stages and whatever generates text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfreward.config import EngineSettings, ModelSettings, SamplingSettings
from selfreward.records import FinishReason, Message


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; the names are vLLM's. ``temperature`` 0 is greedy."""

    temperature: float
    top_p: float
    max_tokens: int

    @classmethod
    def of(cls, settings: SamplingSettings) -> SamplingParams:
        return cls(settings.temperature, settings.top_p, settings.max_tokens)


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

    async def sample(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion a seed, in the order of the seeds.

        A completion depends on its own seed and the messages, not on what shares the batch (exactly on a
        CPU; on a GPU as far as the kernels allow). A prompt that leaves no room for ``max_tokens`` gives
        completions with the finish reason ``prompt_too_long``.
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

    async def sample(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion a seed, in the order of the seeds.

        A completion depends on its own seed and the messages, not on what shares the batch (exactly on a
        CPU; on a GPU as far as the kernels allow). A prompt that leaves no room for ``max_tokens`` gives
        completions with the finish reason ``prompt_too_long``.
        """

    def reload(self, model_path: str) -> None:
        """Serves the weights of another model of the same architecture from now on."""

    def close(self) -> None:
        """Gives back the memory."""
