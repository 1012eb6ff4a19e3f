"""Rows of a file or of a data set of the hub, each bad one named or counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from selfreward.prompts.row_files import BadRow, Row, has_lines, name_of, raw_rows
from selfreward.recipe.loader import shown
from selfreward.recipe.prompt_settings import RowSettings

Item = TypeVar("Item")
MAX_SHOWN_PROBLEMS = 10
_SKIP = ", or skip and count them: on_bad_line: skip"


class Rows:
    """One reading of all rows. ``skipped`` has the number of bad ones by reason, on top of those that are given."""

    def __init__(self, settings: RowSettings, way_out: str = _SKIP, skipped: dict[str, int] | None = None) -> None:
        self.name = name_of(settings)
        self.skipped: dict[str, int] = {} if skipped is None else skipped
        self._settings, self._way_out = settings, way_out
        self._word = "line" if has_lines(settings) else "row"
        self._messages: list[str] = []

    def made(self, make: Callable[[Row], Iterable[Item]]) -> Iterator[tuple[int, Item]]:
        """What ``make`` makes of each row, with the row's number.

        Raises:
            ValueError: the whole can't be read, or, of what is streamed, a bad row with ``on_bad_line: error``.
        """
        for number, row in raw_rows(self._settings):
            try:
                if isinstance(row, BadRow):
                    raise row
                items = [*make(row)]
            except BadRow as bad:
                self.refuse(number, bad)
                continue
            for item in items:
                yield number, item

    def refuse(self, number: int, bad: BadRow) -> None:
        """Counts a bad row."""
        self.skipped[bad.reason] = self.skipped.get(bad.reason, 0) + 1
        if self._settings.on_bad_line == "error" and len(self._messages) < MAX_SHOWN_PROBLEMS:
            self._messages.append(f"{self._where(number)}: {bad}")
            if self._settings.streaming:
                self._complain()

    def finish(self, num_good: int) -> None:
        """Ends the reading.

        Raises:
            ValueError: bad rows with ``on_bad_line: error``, each named, or no good row at all.
        """
        if self._messages:
            self._complain()
        if not num_good:
            found = f"{self.skipped or 'it is empty'}"
            raise ValueError(f"{self._settings.path or self._settings.hub} has no usable {self._word}: {found}")

    def place(self, number: int) -> str:
        """A row in words."""
        return f"{self._word} {number}"

    def _where(self, number: int) -> str:
        path = self._settings.path
        if path is None:
            return f"{self._settings.hub}, {self._settings.split}, {self.place(number)}"
        return f"{path}:{number}" if self._word == "line" else f"{path}, {self.place(number)}"

    def _complain(self) -> None:
        more = sum(self.skipped.values()) - len(self._messages)
        also = [f"... and {more} more"] if more else []
        way_out = f"Mend these {self._word}s, or remove them{self._way_out}"
        raise ValueError("\n".join([*self._messages, *also, way_out]))


def mapped(row: Row, columns: dict[str, str], lenient: bool = False) -> Row:
    """The row's values that are not null, under the names that ``columns`` gives them.

    Args:
        row: as it stands in the data.
        columns: our names with the data's.
        lenient: whether a row without such a column is read under its own names.

    Raises:
        BadRow: the row lacks a column.
    """
    found = {name: value for name, value in row.items() if value is not None}
    for ours, theirs in columns.items():
        if theirs in row:
            found.pop(ours, None)
            if row[theirs] is not None:
                found[ours] = row[theirs]
        elif not lenient:
            raise BadRow("malformed", f"no column `{theirs}`, where `columns` has `{ours}`: it has {named(row)}")
    return found


def text_of(row: Row, name: str) -> str:
    """A text that a row must have. Raises BadRow."""
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRow("malformed", f"`{name}` is {brief(value)}, and a text is wanted")
    if not value.strip():
        raise BadRow("empty", f"`{name}` is empty")
    return value


def optional_text(row: Row, name: str) -> str | None:
    """A text that a row may have. Raises BadRow."""
    return None if row.get(name) is None else text_of(row, name)


def named(row: Row) -> str:
    """The columns of a row in words."""
    return ", ".join(shown(name, 40).strip("'") for name in list(row)[:12]) or "no column"


def brief(value: Any) -> str:
    """A value as a message shows it."""
    return shown(value[:80] if isinstance(value, str | list) else value, 80)
