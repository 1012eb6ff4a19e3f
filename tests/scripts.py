"""Engines that follow a script, named in test recipes as ``engine.name=scripts:CLASS``."""

import asyncio
import os
import random
from collections.abc import Sequence

import writers

from selfreward.engines import Completion, SamplingParams
from selfreward.engines.scripted import ScriptedEngine
from selfreward.judges.additive import AdditiveJudge
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
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

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        await asyncio.sleep(random.SystemRandom().uniform(0, 0.1))
        return await super().generate(messages, params, seeds)


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


class Pupil(ScriptedEngine):
    """Answers of 1 to 5 words, by the first word of the prompt; the judge counts them, and 5 words solve it.

    ``Easy`` is always solved, ``Hard`` and ``Even`` never, ``Mixed`` now and then; ``Learned`` is mixed for M1 and
    always solved by later models. Prompts evolve by one word.
    """

    @staticmethod
    def script(model: str, text: str, seed: int) -> str:
        if "<given-prompt>" in text:
            return text.partition("<given-prompt>\n")[2].partition("\n</given-prompt>")[0] + " Harder."
        if text.startswith("Below are two prompts"):
            return "Not equal"
        if text.startswith(REVIEW):
            return numbers(model, text, seed)
        kind, number, *_ = text.split()
        if kind == "Learned":
            kind = "Easy" if "iter_" in model else "Mixed"
        low = int(number)
        words = {"Easy": 5, "Hard": 1, "Even": 3 + seed % 2, "Mixed": 5 if seed % 2 else low}[kind]
        return " ".join(["fox"] * words)


class InstructionWriter(ScriptedEngine):
    """Writes tasks as a real model does; answers and judges as ``Numbers``."""

    @staticmethod
    def script(model: str, text: str, seed: int) -> str | Completion:
        reply = writers.reply(model, text, seed)
        return numbers(model, text, seed) if reply is None else reply


class NoRank(Numbers):
    """Would see a launcher's variables, as vLLM does."""

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        super().__init__(model_path, model, settings)
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} & {*os.environ}
