"""Requests of many coroutines, answered batch by batch by a model that takes several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

# Turns of the event loop before a batch is taken: a coroutine that has its answer needs a few to send the next request.
TURNS_BEFORE_BATCH = 4


@dataclass(frozen=True, eq=False)
class _Entry(Generic[Request, Answer]):
    request: Request
    future: asyncio.Future[Answer]


class Batcher(Generic[Request, Answer]):
    """A queue of requests, and a task that answers them while there are any. It may outlive an event loop."""

    def __init__(
        self,
        answer: Callable[[list[Request]], Sequence[Answer]],
        batch_size: int,
        length: Callable[[Request], int],
        group: Callable[[Request], Hashable] = lambda _: None,
    ) -> None:
        """Keeps the functions of the engine.

        Args:
            answer: gives one answer for each request of a batch, which has the longest first.
            batch_size: the most requests of a batch.
            length: the tokens of a request. A batch holds requests of similar length, so that it needs little padding.
            group: a batch holds only requests for which it gives the same.
        """
        self._answer, self._batch_size, self._length, self._group = answer, batch_size, length, group
        self._waiting: list[_Entry[Request, Answer]] = []
        self._pump: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether no request waits."""
        return not self._waiting

    def submit(self, request: Request) -> asyncio.Future[Answer]:
        """Puts a request into the queue. An error of the model is raised to all requests that wait for it."""
        loop = asyncio.get_running_loop()
        entry: _Entry[Request, Answer] = _Entry(request, loop.create_future())
        self._waiting.append(entry)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        return entry.future

    async def _run(self) -> None:
        batch: list[_Entry[Request, Answer]] = []
        try:
            while self._waiting:
                for _ in range(TURNS_BEFORE_BATCH):
                    await asyncio.sleep(0)
                batch = self._next_batch()
                self._settle(batch)
        except Exception as error:
            for entry in [*batch, *self._waiting]:
                if not entry.future.done():
                    entry.future.set_exception(error)
        finally:
            # The end of the event loop may leave requests that nobody waits for any more.
            self._waiting.clear()

    def _next_batch(self) -> list[_Entry[Request, Answer]]:
        """Takes the longest requests of the largest group. It may be empty, as the futures may all be cancelled."""
        self._waiting = [entry for entry in self._waiting if not entry.future.done()]
        groups: dict[Hashable, list[_Entry[Request, Answer]]] = {}
        for entry in self._waiting:
            groups.setdefault(self._group(entry.request), []).append(entry)
        largest = max(groups.values(), key=len, default=[])
        batch = sorted(largest, key=lambda entry: self._length(entry.request), reverse=True)[: self._batch_size]
        taken = set(batch)
        self._waiting = [entry for entry in self._waiting if entry not in taken]
        return batch

    def _settle(self, batch: list[_Entry[Request, Answer]]) -> None:
        if not batch:
            return
        answers = self._answer([entry.request for entry in batch])
        for entry, answer in zip(batch, answers, strict=True):
            if not entry.future.done():
                entry.future.set_result(answer)
