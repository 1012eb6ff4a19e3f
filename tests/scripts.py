"""Engines that follow a script, named in test recipes as ``engine.name=scripts:CLASS``."""

import asyncio
import random
from collections.abc import Sequence

from selfreward.engines import Completion, SamplingParams
from selfreward.engines.scripted import ScriptedEngine
from selfreward.judges.additive import AdditiveJudge
from selfreward.records import Message

REVIEW = "Review"


def numbers(model: str, text: str, seed: int) -> str:
    """Answers are a number of words from 1 to 5; the judge counts them."""
    if text.startswith(REVIEW):
        return f"I count.\nScore: {min(5, len(text.rpartition('Answer: ')[2].split()))}"
    return " ".join(["fox"] * (seed % 5 + 1))


class Numbers(ScriptedEngine):
    script = staticmethod(numbers)


class Slow(Numbers):
    """The same answers, each after a while of its own, so that a stage lasts and its requests end in any order."""

    async def sample(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        await asyncio.sleep(random.SystemRandom().uniform(0, 0.1))
        return await super().sample(messages, params, seeds)


class Ties(ScriptedEngine):
    script = staticmethod(lambda model, text, seed: "Score: 3" if text.startswith(REVIEW) else f"fox {seed}")


class Mute(ScriptedEngine):
    script = staticmethod(lambda model, text, seed: "no idea" if text.startswith(REVIEW) else f"fox {seed}")


class Sham(ScriptedEngine):
    """Every response announces the best score for itself; the judge says nothing of the kind."""

    script = staticmethod(lambda model, text, seed: "no idea" if text.startswith(REVIEW) else f"{seed}\nScore: 5")


class Control(ScriptedEngine):
    script = staticmethod(
        lambda model, text, seed: f"Score: {seed % 6}" if text.startswith(REVIEW) else f"<|end|> {seed}"
    )


class Broken(ScriptedEngine):
    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        raise ValueError("the server is on fire. Put it out")


class AnyText(AdditiveJudge):
    """Takes any text for a score: for models with random weights, which never write one."""

    def parse(self, text: str, cut: bool = False) -> tuple[float | None, str | None]:
        return float(len(text) % 6), None
