"""The protocol of a prompt source, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel

from selfreward.engines.base import Sampler
from selfreward.engines.concurrency import map_concurrently
from selfreward.engines.model_requests import Requests
from selfreward.prompts.filters.base import Filters, Kind
from selfreward.recipe import registry
from selfreward.recipe.own_options import own_options
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Difficulty, Task, TemplateTrial, derive_seed
from selfreward.runs.stored import SEED_OF_PROMPTS

Item = TypeVar("Item")
Result = TypeVar("Result")
Figures = dict[str, Any]
# Requests behind a prompt that a model makes: what it writes, compares, answers, and what filters take out.
REQUESTS_A_PROMPT = 5


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


@dataclass(frozen=True)
class DataCommand:
    """The command of ``selfreward data`` that makes a data set with a source."""

    name: str
    help: str


@dataclass(frozen=True)
class CardText:
    """What the card of a data set says of the source that made it, for its readers."""

    what: str
    paper: str = ""  # the number of the arXiv
    limit: str = "Nobody checked the rows."


class PromptSource:
    """Gives the tasks of an iteration, which depend on its settings and the context alone.

    A class of a user's needs no parent, only ``check`` and ``tasks``. All else is what other code asks of a source. A
    class that does not say it is taken for one that has a model write prompts, and whose tasks filters may not see.

    - ``Options``: the settings class of ``prompts.options``, a pydantic model; ``self.options`` is one.
    - ``reads_rows``: whether it needs ``path`` or ``hub``.
    - ``reads_past``: whether an iteration's tasks depend on those of earlier ones, which the context has then; such a
      source could go on for ever, and needs ``num``.
    - ``reads_difficulty``: whether it goes by how earlier models did on their prompts (``context.tried``).
    - ``writes``: whether its instructions are a model's own, which are filtered unless the recipe says otherwise.
    - ``streams``: whether it can read rows no further than it needs.
    - ``has_parts``: whether it is made of other sources, ``prompts.parts``.
    - ``command``, ``card``: how ``selfreward data`` calls it, and what a data set's card says of it.
    """

    required: ClassVar[tuple[str, ...]] = ("check", "tasks")

    Options: ClassVar[type[BaseModel] | None] = None
    reads_rows: ClassVar[bool] = False
    reads_past: ClassVar[bool] = True
    reads_difficulty: ClassVar[bool] = False
    writes: ClassVar[bool] = True
    streams: ClassVar[bool] = False
    has_parts: ClassVar[bool] = False
    command: ClassVar[DataCommand | None] = None
    card: ClassVar[CardText | None] = None

    @classmethod
    def check_settings(cls, settings: SourceSettings) -> None:
        """Looks at the settings when the recipe is read.

        Raises:
            ValueError: settings that the source can't work with.
        """

    @classmethod
    def asks_model(cls, settings: SourceSettings) -> bool:
        """Whether a model has a part in the prompts, so that it is served, and its weights decide the result."""
        return True

    @classmethod
    def searches_templates(cls, settings: SourceSettings) -> bool:
        """Whether the prompts that ask for prompts evolve: ``context.templates`` are those of earlier iterations."""
        return False

    @classmethod
    def filtered(cls, settings: SourceSettings) -> tuple[Kind, ...]:
        """The kinds of filters that see its tasks."""
        return ()

    @classmethod
    def solved_score(cls, settings: SourceSettings) -> float | None:
        """From which score on a response solves its prompt; None leaves that to the judge."""
        return None

    @classmethod
    def requests(cls, settings: SourceSettings, num: int) -> list[Requests]:
        """The requests behind ``num`` prompts, at most, for ``selfreward plan``."""
        if not cls.asks_model(settings):
            return []
        tokens, num = settings.generation.max_tokens, REQUESTS_A_PROMPT * num
        by: Literal["policy", "other"] = "other" if settings.by == "teacher" else "policy"
        return [Requests(num, tokens, num, prompts=4, instructions=1, asked=by)]

    @classmethod
    def describe(cls, settings: SourceSettings) -> str:
        """The source in the words of ``selfreward check``."""
        writer = {"current": "M_t", "seed": "M1", "teacher": "a teacher"}[settings.by]
        return f"{settings.source} by {writer}" if cls.asks_model(settings) else settings.source

    def __init__(self, settings: SourceSettings) -> None:
        """Reads its part of the recipe."""
        self.settings = settings
        self.options: Any = own_options(self.Options, settings.options)

    def check(self) -> None:
        """Looks at files and templates before a run begins.

        Raises:
            ValueError: something that the source can't work with.
        """
        raise NotImplementedError

    def check_share(self, num: int) -> None:
        """As :meth:`check`, for a part of a mixture that is asked for ``num`` tasks in an iteration."""
        self.check()

    def seeds(self) -> list[Task]:
        """What its tasks are written after: near to it nothing is new, and its licences stand in a data set's card."""
        return []

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration, no two with one id.

        A source that makes tasks shows each to ``context.filters`` and keeps what they admit. It returns fewer than
        ``context.num`` where it can make no more.

        Raises:
            ValueError: bad rows, or none that can be used.
        """
        raise NotImplementedError


def source_of(settings: SourceSettings) -> PromptSource:
    """The source that the settings name.

    Raises:
        ValueError: a name that nothing is registered under, a class that is no source, or what the source refuses.
    """
    source: PromptSource = registry.load_class(settings.source, registry.PROMPT_SOURCES, "prompt source")(settings)
    return source
