"""SIGTERM and Ctrl-C ask a run to stop: what is in flight finishes, within a grace period. No torch."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from selfreward.errors import Stopped

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Lets the kernel kill this process, even if it hangs, when the thread of its parent that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Stop:
    """Whether this process was asked to stop, and by when. ``in_flight`` counts the requests to an engine."""

    def __init__(self) -> None:
        self.grace = 0.0
        self.in_flight = 0
        self._asked_at: float | None = None

    @property
    def requested(self) -> bool:
        return self._asked_at is not None

    @property
    def overdue(self) -> bool:
        """Whether the grace period is over, so that what is still in flight is given up."""
        return self._asked_at is not None and time.monotonic() >= self._asked_at + self.grace

    def check(self) -> None:
        """Raises Stopped if this process was asked to stop: called before anything new begins."""
        if self.requested:
            raise Stopped("stopped as asked, with everything that was finished in the journal")

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Around a request that is worth to wait for."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def listen(self, grace: float) -> None:
        """From now on SIGTERM and the first Ctrl-C ask to stop; the second Ctrl-C ends at once."""
        self.grace = grace
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def ask(self) -> None:
        """Asks this process to stop."""
        self._ask(signal.SIGTERM, None)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if not self.requested:
            self._asked_at = time.monotonic()
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            # Past Python's own streams, in the middle of whose work a signal may arrive.
            os.write(2, f"stopping: what is in flight has {self.grace:g} s to finish{again}\n".encode())


stop = Stop()
