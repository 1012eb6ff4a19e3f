"""Prompts and documents that are read from rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, TypeVar

from selfreward.prompts.base import PromptSource, SourceContext
from selfreward.prompts.filters.base import KINDS, Kind
from selfreward.prompts.formats import tasks_of
from selfreward.prompts.row_files import BadRow, Row, name_of
from selfreward.prompts.rows import Rows, mapped, optional_text, text_of
from selfreward.recipe.evaluation_settings import EvaluationSettings
from selfreward.recipe.prompt_settings import PromptSettings, RowSettings, SourceSettings
from selfreward.records import Prompt, Removal, Task, content_id
from selfreward.runs.stored import ID_OF_DOCUMENT

Read = TypeVar("Read")
# Of rows that are streamed, as many are looked at before a run begins.
CHECKED_ROWS = 100


class DatasetSource(PromptSource):
    """Each iteration takes the next ``num`` rows that pass the filters, and starts over at their end."""

    reads_rows: ClassVar[bool] = True
    reads_past: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    @classmethod
    def asks_model(cls, settings: SourceSettings) -> bool:
        return False

    @classmethod
    def filtered(cls, settings: SourceSettings) -> tuple[Kind, ...]:
        return KINDS

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings

    def check(self) -> None:
        check_rows(self._settings, self._settings.num if isinstance(self._settings, PromptSettings) else None)

    def check_share(self, num: int) -> None:
        check_rows(self._settings, num)

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration.

        Raises:
            ValueError: bad rows (with ``on_bad_line: error``), or fewer rows than ``context.num``.
        """
        if self._settings.streaming:
            return counted(context, _streamed(self._settings, [*context.before, context.wanted]))
        # Where all rows are wanted, filters record those that are there twice.
        repeated = context.num is None and bool(context.filters.names)
        every = counted(context, read_tasks(self._settings, repeated=repeated))
        return (
            _filtered(every, context, self._settings)
            if context.filters.names
            else _next(every, context, self._settings)
        )


def counted(context: SourceContext, read: tuple[list[Read], dict[str, int]]) -> list[Read]:
    """What was read; the context counts the bad rows, by reason."""
    rows, skipped = read
    for reason, count in skipped.items():
        context.count(f"skipped_{reason}", count)
    return rows


def check_rows(settings: RowSettings, num: int | None) -> None:
    """Reads the rows, of what is streamed the first ones, as an iteration will that wants ``num`` of them.

    Raises:
        ValueError: bad rows with ``on_bad_line: error``, each named, or fewer than ``num``.
    """
    if settings.streaming:
        rows = Rows(settings)
        rows.finish(sum(1 for _ in islice(_good(rows, settings), CHECKED_ROWS)))
    else:
        _require(num, len(read_tasks(settings)[0]), settings)


def read_tasks(
    settings: RowSettings, lenient: bool = False, repeated: bool = False
) -> tuple[list[Task], dict[str, int]]:
    """All good rows in their order, and the number of bad ones by reason.

    Args:
        settings: the rows.
        lenient: whether rows without a column that ``columns`` names are read under their own names.
        repeated: whether a task that was there before is no bad row, but one more task.

    Raises:
        ValueError: bad rows with ``on_bad_line: error``, each named, or no good row at all.
    """
    rows = Rows(settings)
    first: dict[str, int] = {}
    tasks: list[Task] = []
    for number, task in _good(rows, settings, lenient):
        if task.id in first and not repeated:
            rows.refuse(number, BadRow("duplicate", f"the same prompt as {rows.place(first[task.id])}"))
        else:
            first.setdefault(task.id, number)
            tasks.append(task)
    rows.finish(len(tasks))
    return tasks, rows.skipped


def read_held_out(evaluation: EvaluationSettings, prompts: RowSettings) -> list[Prompt]:
    """The held-out prompts of the evaluation, in any format.

    ``prompts.columns`` is about other data: a row that lacks such a column is read under its own names.
    """
    settings = RowSettings(
        path=evaluation.prompts,
        columns=prompts.columns,
        max_characters=prompts.max_characters,
        on_bad_line=prompts.on_bad_line,
    )
    return [task.prompt for task in read_tasks(settings, lenient=True)[0]]


@dataclass(frozen=True)
class Document:
    """A text that an instruction can be made for."""

    id: str
    text: str
    license: str | None = None


def read_documents(settings: RowSettings) -> tuple[list[Document], dict[str, int]]:
    """All documents in their order, and the number of bad rows by reason: rows with ``text``, or a text a line.

    Raises:
        ValueError: bad rows with ``on_bad_line: error``, each named, or no good row at all.
    """
    rows = Rows(settings)
    found: dict[str, Document] = {}
    first: dict[str, int] = {}

    def document(row: Row) -> list[Document]:
        row = mapped(row, settings.columns)
        text = text_of(row, "text")
        return [Document(content_id(ID_OF_DOCUMENT, text), text, optional_text(row, "license") or settings.license)]

    for number, each in rows.made(document):
        if each.id in found:
            rows.refuse(number, BadRow("duplicate", f"the same document as {rows.place(first[each.id])}"))
        else:
            found[each.id], first[each.id] = each, number
    rows.finish(len(found))
    return [*found.values()], rows.skipped


def _good(rows: Rows, settings: RowSettings, lenient: bool = False) -> Iterator[tuple[int, Task]]:
    """Each task that is not too long, with the number of its row."""
    source = name_of(settings)
    for number, task in rows.made(lambda row: tasks_of(row, settings, source, lenient)):
        length = len(task.prompt.text)
        if length > settings.max_characters:
            rows.refuse(number, BadRow("over_long", f"{length} characters, more than {settings.max_characters}"))
        else:
            yield number, task


def _require(num: int | None, have: int, settings: RowSettings, passed: str = "") -> None:
    if num is not None and num > have:
        raise ValueError(
            f"prompts.num asks for {num} prompts of {settings.path or settings.hub}, which has {have}{passed}. "
            "Lower num, or its weight in a mixture, or add prompts"
        )


def _next(tasks: Sequence[Task], context: SourceContext, settings: RowSettings) -> list[Task]:
    if context.num is None:
        return [*tasks]
    _require(context.num, len(tasks), settings)
    start = sum(context.before)
    return [tasks[(start + place) % len(tasks)] for place in range(context.num)]


def _filtered(every: Sequence[Task], context: SourceContext, settings: RowSettings) -> list[Task]:
    """The next tasks of those that pass the filters; what was taken out between them is handed on to the context.

    The filters begin anew: to the iteration's own a row that comes again would be a duplicate of itself.
    """
    filters = context.filters.fresh()
    if context.num is None:
        passed = filters.filter(every)
        context.filters.merge(filters.removed, passed)
        return passed
    start = sum(context.before)
    passed = filters.filter(every, most=start + context.num)
    _require(context.num, len(passed), settings, " that pass prompts.filters")
    place = {task.id: number for number, task in enumerate(every)}
    chosen = [passed[(start + number) % len(passed)] for number in range(context.num)]
    before = place[passed[(start - 1) % len(passed)].id] if start else -1
    context.filters.merge(_between(filters.removed, place, before, place[chosen[-1].id]), chosen)
    return chosen


def _between(removed: Sequence[Removal], place: dict[str, int], after: int, to: int) -> list[Removal]:
    """Those of the rows after one and up to another, starting over at the end."""
    if after < to:
        return [each for each in removed if after < place[each.id] < to]
    return [each for each in removed if place[each.id] > after] + [each for each in removed if place[each.id] < to]


def _streamed(settings: RowSettings, sizes: Sequence[int]) -> tuple[list[Task], dict[str, int]]:
    """The last of windows that follow one another in the rows, and the number of bad rows within it by reason.

    Args:
        settings: the rows.
        sizes: how many tasks each window has.
    """
    left = [size for size in sizes if size]
    window: dict[str, Task] = {}
    skipped: dict[str, int] = {}
    while True:
        rows, num_left, num_good = Rows(settings, skipped=skipped), len(left), 0
        for number, task in _good(rows, settings):
            num_good += 1
            if task.id in window:
                rows.refuse(number, BadRow("duplicate", "the same prompt as another one of this iteration"))
                continue
            window[task.id] = task
            if len(window) == left[0]:
                if len(left) == 1:
                    return [*window.values()], skipped
                left.pop(0)
                window.clear()
                skipped.clear()
        rows.finish(num_good)
        if len(left) == num_left:  # no window was filled in all of the data
            _require(left[0], len(window), settings)
