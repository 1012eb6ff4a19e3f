"""An engine that answers by a function: for tests, at the boundary where a real engine would stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfreward.engines.base import Completion, SamplingParams
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.records import Message

Script = Callable[[str, str, int], str | Completion]


class ScriptedEngine:
    """Calls ``script(model, last message, seed)`` for each completion."""

    script: Script  # set by a subclass, as a staticmethod

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        self.model = model_path

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        return [self._answer(messages, seed) for seed in seeds]

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> None:
        return None

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        """Certainty of what the script says with the seed 0, which may be none of the options."""
        answer = self._answer(messages, 0)
        if answer.finish_reason == "prompt_too_long":
            return None
        rest = answer.text.removeprefix(prefix).strip()
        said = max((option for option in options if rest.startswith(option)), key=len, default=None)
        return [float(option == said) for option in options]

    def reload(self, model_path: str) -> None:
        self.model = model_path

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _answer(self, messages: Sequence[Message], seed: int) -> Completion:
        answer = type(self).script(self.model, messages[-1]["content"], seed)
        return answer if isinstance(answer, Completion) else Completion(answer, "stop", len(answer.split()) + 1)
