"""Prompts that the models of a run find informative, asked again or evolved, beside fresh rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

from selfreward.prompts.base import PromptSource, SourceContext
from selfreward.prompts.dataset import check_rows, counted, read_tasks
from selfreward.prompts.evol_instruct import Evolver
from selfreward.prompts.filters.base import KINDS, Kind
from selfreward.recipe.prompt_settings import CurriculumSettings, PromptSettings, SourceSettings
from selfreward.records import Difficulty, Task


class CurriculumSource(PromptSource):
    """A share of what earlier iterations asked and a model could learn from, and fresh rows for the rest.

    The most informative come first: those whose responses' scores differ most, as they did when the prompt was asked
    last. Rows are taken in their order, and once all were taken, those that were asked least often. Where too few
    prompts are informative, more rows are taken.
    """

    reads_rows: ClassVar[bool] = True
    reads_difficulty: ClassVar[bool] = True
    writes: ClassVar[bool] = False

    @classmethod
    def asks_model(cls, settings: SourceSettings) -> bool:
        return settings.curriculum.evolve

    @classmethod
    def solved_score(cls, settings: SourceSettings) -> float | None:
        return settings.curriculum.solved

    @classmethod
    def filtered(cls, settings: SourceSettings) -> tuple[Kind, ...]:
        return KINDS

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._evolver = Evolver(settings) if settings.curriculum.evolve else None

    def check(self) -> None:
        check_rows(self._settings, self._settings.num if isinstance(self._settings, PromptSettings) else None)

    def check_share(self, num: int) -> None:
        check_rows(self._settings, num)

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration: first what comes from earlier ones, then the fresh rows.

        Raises:
            ValueError: bad rows, or fewer than prompts are wanted.
        """
        rows = counted(context, read_tasks(self._settings))
        if context.wanted > len(rows):
            raise ValueError(
                f"curriculum wants {context.wanted} prompts, and there are {len(rows)} rows. Lower num or add rows"
            )
        wanted = round(context.wanted * self._settings.curriculum.again)
        found = informative(context.earlier, context.tried, self._settings.curriculum)
        context.count("informative", len(found))
        if self._evolver is None:
            again = found[:wanted]
        else:
            # What has evolved is left to what became of it; a row may name a parent of its own.
            own = {row.id for row in rows}
            parents = {task.parent_id for task in context.earlier if task.id not in own}
            again = self._evolved(self._evolver, context, [task for task in found if task.id not in parents], wanted)
        context.count("again", len(again))
        fresh = self._fresh(context, rows, again)
        context.count("fresh", len(fresh))
        return [*again, *fresh]

    def _evolved(self, evolver: Evolver, context: SourceContext, found: Sequence[Task], wanted: int) -> list[Task]:
        """New tasks of as many as it takes."""
        made: list[Task] = []
        while found and len(made) < wanted:
            num = wanted - len(made)
            made += [child for child in evolver.evolve(context, found[:num], 1) if child is not None]
            found = found[num:]
        return made

    def _fresh(self, context: SourceContext, rows: Sequence[Task], again: Sequence[Task]) -> list[Task]:
        """The next rows; those that were asked before have passed the filters then."""
        num, asked = context.wanted - len(again), Counter(task.id for task in context.earlier)
        # Rows in front of the last one that was asked and never asked themselves had been taken out by filters.
        last = max((place for place, row in enumerate(rows, start=1) if row.id in asked), default=0)
        made = context.filters.filter(rows[last:], most=num)
        taken = {task.id for task in again}
        known = sorted((row for row in rows if row.id in asked and row.id not in taken), key=lambda row: asked[row.id])
        return made + known[: num - len(made)]


def informative(earlier: Iterable[Task], tried: Iterable[Difficulty], settings: CurriculumSettings) -> list[Task]:
    """The tasks that a model could learn from when they were asked last, those of greatest spread first.

    Args:
        earlier: what was asked; a task may be there several times.
        tried: how it went, in the order of the iterations.
        settings: what counts as informative.
    """
    tasks = {task.id: task for task in earlier}
    latest = {record.prompt_id: record for record in tried if record.prompt_id in tasks}
    found = [record for record in latest.values() if _is_informative(record, settings)]
    return [tasks[record.prompt_id] for record in sorted(found, key=_by_spread)]


def _is_informative(record: Difficulty, settings: CurriculumSettings) -> bool:
    if record.spread is None or record.spread < settings.min_spread:
        return False
    if record.solved is None:
        return True
    # Where no score was named from which on a prompt is solved, few models ever reach the best one there is.
    return record.solved < 1 and (settings.solved is None or record.solved > 0)


def _by_spread(record: Difficulty) -> tuple[float, str]:
    assert record.spread is not None
    return -record.spread, record.prompt_id
