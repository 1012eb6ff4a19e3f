"""What a person sees while a run works: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from selfreward.runtime.redact import redact


class _Console(Console):
    """A console that shows no secret: it breaks long lines, and the parts of a secret would be no one's to find."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redact(item) if isinstance(item, str) else item for item in objects), **options)


console = _Console(stderr=True, highlight=False)
LINE_EVERY_S = 15.0  # seconds between two plain lines


class Counter:
    """Counts finished items and tokens of one stage."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.items = self.tokens = 0
        self.started = self._last_line = time.monotonic()

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)

    def advance(self, tokens: int = 0, items: int = 1) -> None:
        """Call it for each finished item, with the tokens that were generated for it."""
        self.items += items
        self.tokens += tokens
        self.show()

    def show(self) -> None:
        """A plain line now and then; :class:`_Bar` draws instead."""
        if time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            left = self.seconds / self.items * (self.total - self.items)
            console.print(f"  {self.name}: {self.items}/{self.total}, {self.rate}, {left:.0f} s left")

    @property
    def rate(self) -> str:
        if self.tokens:
            return f"{self.tokens / self.seconds:,.0f} tokens/s"
        return f"{self.items / self.seconds:.1f}/s"


class _Bar(Counter):
    def __init__(self, name: str, total: int, bar: Progress) -> None:
        super().__init__(name, total)
        self._bar = bar
        self._task = bar.add_task(name, total=total, rate="")

    def show(self) -> None:
        self._bar.update(self._task, completed=self.items, rate=self.rate)


@contextmanager
def track(name: str, total: int) -> Iterator[Counter]:
    """Shows the progress of ``total`` items while the block runs."""
    if not console.is_terminal:
        yield Counter(name, total)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(name, total, bar)


def in_words(figures: Mapping[str, Any]) -> str:
    """The counts and figures of what was done, on one line; those that are not known are left out."""
    known = {name: value for name, value in figures.items() if value is not None}
    return ", ".join(f"{name} {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in known.items())
