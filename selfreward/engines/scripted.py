"""An engine that answers by a function: for tests, at the boundary where a real engine would stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfreward.config import EngineSettings, ModelSettings
from selfreward.engines.base import Completion, SamplingParams
from selfreward.records import Message

Script = Callable[[str, str, int], str | Completion]


class ScriptedEngine:
    """Calls ``script(model, last message, seed)`` for each completion."""

    script: Script  # set by a subclass, as a staticmethod

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        self.model = model_path

    async def sample(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        answers = [type(self).script(self.model, messages[-1]["content"], seed) for seed in seeds]
        return [a if isinstance(a, Completion) else Completion(a, "stop", len(a.split()) + 1) for a in answers]

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> None:
        return None

    def reload(self, model_path: str) -> None:
        self.model = model_path

    def close(self) -> None:
        pass
