"""Tokens and hours of each stage, from assumptions that are stated, until the run has measurements of its own.

Decoding reads all weights and the cache of each sequence for every token of a batch, and is as fast as memory. Reading
prompts and training are as fast as arithmetic. Neither is reached; the shares below are what well-kept engines do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from selfreward.engines.model_requests import Requests
from selfreward.estimates.architecture import Architecture
from selfreward.estimates.disk import BYTES_A_WEIGHT
from selfreward.estimates.machine import Device
from selfreward.estimates.serving_memory import Serving
from selfreward.estimates.training_memory import Training
from selfreward.recipe.recipe import Recipe

# Shares of the device's figures that are taken to be reached.
OF_BANDWIDTH, OF_FLOPS_READING, OF_FLOPS_TRAINING = 0.6, 0.5, 0.4
# A text has on average this share of the tokens that it may have.
OF_MAX_TOKENS = 0.5
# Bytes a second from a disk; and seconds besides for an engine to start, on a GPU and on a CPU, and to wake up.
DISK_BYTES_A_S, START_S, CPU_START_S, WAKE_S = 2e9, 60.0, 5.0, 5.0


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of what a judge is told, and of an answer as a share of the most that it may have."""

    prompt: float
    instructions: float
    share: float = OF_MAX_TOKENS


@dataclass(frozen=True)
class Load:
    """What a stage does: tokens that are read and written, or trained; ``seconds`` is None where nothing says."""

    read: int = 0
    written: int = 0
    trained: int = 0
    seconds: float | None = 0.0


@dataclass(frozen=True)
class Server:
    """The replicas of a model on their devices."""

    recipe: Recipe
    sizes: Architecture
    served: Serving
    device: Device

    def load(self, requests: Iterable[Requests], lengths: Lengths) -> Load:
        """What a stage that samples or judges reads and writes, and how long all replicas together take for it."""
        read = written = seconds = 0.0
        known = True
        for each in requests:
            if each.asked == "function":
                continue
            answers = each.answers * self.recipe.responses.max_tokens * lengths.share
            source = each.prompts * lengths.prompt + answers + each.instructions * lengths.instructions
            length = each.max_tokens * lengths.share if each.written else 1.0
            read, written = read + each.distinct * source, written + each.num * length
            seconds += each.distinct * source / self.reading + each.num * length / self.decoding(source + length)
            known = known and each.asked == "policy"
        return Load(round(read), round(written), 0, seconds if known else None)

    @property
    def reading(self) -> float:
        """Tokens of prompts a second."""
        devices = self.served.replicas * self.served.devices
        return devices * self.device.flops * OF_FLOPS_READING / (2 * self.sizes.active)

    def decoding(self, length: float) -> float:
        """Tokens written a second, with as many sequences of so many tokens at once as have room."""
        served, active = self.served, self.sizes.active / self.served.devices
        room = max(1.0, served.cached_tokens / length)
        at_once = min(served.max_num_seqs, room, self.recipe.engine.max_in_flight * self.recipe.responses.n)
        moved = active * BYTES_A_WEIGHT[self.recipe.model.dtype] + at_once * length / 2 * served.bytes_per_token
        step = max(
            moved / (self.device.bandwidth * OF_BANDWIDTH),
            at_once * 2 * active / (self.device.flops * OF_FLOPS_READING),
        )
        return served.replicas * at_once / step


def training(plan: Training, sizes: Architecture, device: Device, examples: int, epochs: float, tokens: float) -> Load:
    """A training of so many examples of ``tokens`` each, for a pair those of both sides.

    A forward pass takes two operations a parameter and token, and so does the gradient of its activations; the
    gradient of the weights is for trained ones alone. DPO's reference is one more forward pass, and checkpointing
    another one.
    """
    adapter = plan.trained < sizes.parameters
    passes = 2 + int(plan.checkpointing) + int(adapter)
    total = examples * epochs * tokens
    operations = total * 2 * (passes * sizes.active + plan.trained)
    return Load(0, 0, round(total), operations / (plan.ranks * device.flops * OF_FLOPS_TRAINING))
