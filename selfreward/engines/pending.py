"""The requests to a worker that wait for their answers."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from itertools import count

from selfreward.engines.messages import Answer
from selfreward.errors import EngineDied


class Pending:
    """May be used from any thread. Whoever waits may give up: a coroutine that is cancelled cancels its future."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._futures: dict[int, Future[Answer]] = {}
        self._ended: str | None = None

    def add(self) -> tuple[int, Future[Answer]]:
        """The number of a new request, and its answer to come: EngineDied where the worker has ended."""
        future: Future[Answer] = Future()
        with self._lock:
            number = next(self._numbers)
            if self._ended is None:
                self._futures[number] = future
            else:
                future.set_exception(EngineDied(self._ended))
        return number, future

    def settle(self, number: int | None, outcome: Answer | BaseException) -> None:
        """Hands over what became of a request, if that is still waited for."""
        with self._lock:
            future = self._futures.pop(number, None) if number is not None else None
        if future is not None:
            _settle(future, outcome)

    def end(self, why: str) -> None:
        """Lets all requests fail, also those to come: the worker has ended."""
        with self._lock:
            self._ended = why
            left, self._futures = list(self._futures.values()), {}
        for future in left:
            _settle(future, EngineDied(why))


def _settle(future: Future[Answer], outcome: Answer | BaseException) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
