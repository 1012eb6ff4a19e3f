"""Contexts for prompt sources, whose model is a function."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

from selfreward.engines import Completion, SamplingParams
from selfreward.engines.journaled import JournaledEngine
from selfreward.errors import EngineDied
from selfreward.prompts.base import SourceContext
from selfreward.prompts.filters.base import Filters
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.recipe.prompt_settings import PromptSettings
from selfreward.records import Message
from selfreward.runs.journal import Journal

Reply = str | Completion


class Model:
    """Replies by a function of the last message; ``asked`` are all requests, ``seeds`` theirs.

    It dies once it has answered ``answers`` requests, if that is given; ``late`` lets requests end in any order.
    """

    model = "M"

    def __init__(self, reply: Callable[[str], Reply], answers: int | None = None, late: bool = False) -> None:
        self._reply, self._answers, self._late = reply, answers, late
        self.asked: list[Sequence[Message]] = []
        self.seeds: list[int] = []

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        if len(self.asked) == self._answers:
            raise EngineDied("the model died")
        self.asked.append(messages)
        self.seeds += seeds
        if self._late:
            await asyncio.sleep(random.SystemRandom().uniform(0, 0.02))
        replies = [self._reply(messages[-1]["content"]) for _ in seeds]
        return [reply if isinstance(reply, Completion) else Completion(reply, "stop", 1) for reply in replies]

    @property
    def texts(self) -> list[str]:
        """The last message of each request."""
        return [messages[-1]["content"] for messages in self.asked]


@contextmanager
def source_context(folder: Path, model: Model, num: int, iteration: int = 1, filters: Sequence[str] = (), **other):
    """A context whose requests are kept in a journal in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / f"journal_{iteration}.jsonl") as journal:
        engine = JournaledEngine(model, journal, "current")
        checks = Filters(FilterSettings(), filters)
        checks.add_known(other.get("earlier", ()))
        yield SourceContext(
            **{"iteration": iteration, "num": num, "seed": 0, "filters": checks, "limit": 4, **other},
            engine_of=lambda settings: engine,
        )


def settings(folder: Path, rows: Sequence[dict], **other) -> PromptSettings:
    """Settings of a source over rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSettings.model_validate({"path": path, "num": 1, **other})
