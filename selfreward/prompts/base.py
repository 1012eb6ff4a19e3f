"""The protocol of a prompt source, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from selfreward.engines.base import Sampler
from selfreward.engines.concurrency import map_concurrently
from selfreward.prompts.filters.base import Filters
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Difficulty, Task, TemplateTrial, derive_seed
from selfreward.runs.stored import SEED_OF_PROMPTS

Item = TypeVar("Item")
Result = TypeVar("Result")
Figures = dict[str, Any]


@dataclass(frozen=True)
class SourceContext:
    """What a prompt source works with in one iteration (counted from 1).

    ``num`` is how many tasks are wanted, None for all there are; ``nums`` how many were wanted in each earlier
    iteration, where that was not ``num`` each time. ``earlier`` are the tasks of earlier iterations in their order,
    ``tried`` how their models did on them, ``templates`` the prompts for tasks that they measured; this one's go to
    ``trials``. ``figures`` is for what is worth counting.
    """

    iteration: int
    num: int | None
    seed: int
    filters: Filters
    engine_of: Callable[[SourceSettings], Sampler]
    limit: int
    earlier: Sequence[Task] = ()
    tried: Sequence[Difficulty] = ()
    templates: Sequence[TemplateTrial] = ()
    trials: list[TemplateTrial] = field(default_factory=list)
    figures: Figures = field(default_factory=dict)
    nums: Sequence[int] = ()

    @property
    def wanted(self) -> int:
        """How many tasks a source makes that could go on for ever."""
        assert self.num is not None, "the recipe wants a number for each source that asks a model"
        return self.num

    @property
    def before(self) -> Sequence[int]:
        """How many tasks were wanted in each earlier iteration."""
        return self.nums or [self.wanted] * (self.iteration - 1)

    def derive(self, *parts: Any) -> int:
        """A seed that depends on the run's, the iteration and ``parts`` alone."""
        return derive_seed(self.seed, self.iteration, SEED_OF_PROMPTS, *parts)

    def run_concurrently(
        self, name: str, items: Sequence[Item], work: Callable[[Item], Coroutine[Any, Any, Result]]
    ) -> list[Result]:
        """Runs ``work`` on every item, many at once, and returns the results in the order of the items."""
        return map_concurrently(name, items, work, self.limit)

    def count(self, name: str, number: float = 1) -> None:
        """Adds to a figure of the iteration."""
        self.figures[name] = self.figures.get(name, 0) + number


class PromptSource(Protocol):
    """Gives the tasks of an iteration. What it makes depends on its settings and the desk alone."""

    def __init__(self, settings: SourceSettings) -> None:
        """Reads its part of the recipe."""

    def check(self) -> None:
        """Looks at files and templates before a run begins.

        Raises:
            ValueError: something that the source can't work with.
        """

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration, no two with one id.

        A source that makes tasks shows each to ``context.filters`` and keeps what they admit. It returns fewer than
        ``context.num`` where it can make no more.

        Raises:
            ValueError: bad rows, or none that can be used.
        """
