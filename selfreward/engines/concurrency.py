"""One coroutine an item, a bounded number of them in flight: the engine does the batching."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

from selfreward.runtime.progress import Counter, track
from selfreward.runtime.shutdown import stop

Item = TypeVar("Item")
Result = TypeVar("Result")
# A dictionary of its own for each item that is worked on, to which an engine can tie what it knows of it.
current_item: ContextVar[dict[int, Any]] = ContextVar("current_item")
# Seconds between two looks at whether the run was asked to stop.
POLL_S = 0.2


def run_concurrently(
    name: str,
    items: Sequence[Item],
    work: Callable[[Item], Coroutine[Any, Any, list[Result]]],
    tokens: Callable[[Result], int],
    limit: int,
) -> tuple[list[Result], float]:
    """Runs ``work`` on every item, showing progress.

    Args:
        name: what is counted, for the person who watches.
        items: what to work on.
        work: gives the results of one item.
        tokens: how many tokens were generated for a result.
        limit: items that are worked on at once.

    Returns:
        All results in the order of the items, and the seconds that it took.

    Raises:
        Stopped: the run was asked to stop; the requests in flight have finished, or their grace period is over.
    """
    with track(name, len(items)) as counter:
        results = run_coroutine(_everything(items, work, tokens, limit, counter))
        return [result for of_item in results for result in of_item], counter.seconds


def map_concurrently(
    name: str, items: Sequence[Item], work: Callable[[Item], Coroutine[Any, Any, Result]], limit: int
) -> list[Result]:
    """As :func:`run_concurrently`, for work that gives one result an item and counts no tokens."""

    async def boxed(item: Item) -> list[Result]:
        return [await work(item)]

    return run_concurrently(name, items, boxed, lambda _: 0, limit)[0]


async def _everything(
    items: Sequence[Item],
    work: Callable[[Item], Coroutine[Any, Any, list[Result]]],
    tokens: Callable[[Result], int],
    limit: int,
    counter: Counter,
) -> list[list[Result]]:
    results: list[list[Result]] = [[] for _ in items]
    queue = iter(range(len(items)))

    async def worker() -> None:
        for place in queue:
            current_item.set({})
            results[place] = await work(items[place])
            counter.advance(sum(map(tokens, results[place])))

    pending = {asyncio.create_task(worker()) for _ in range(min(limit, len(items)))}
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=POLL_S, return_when=asyncio.FIRST_EXCEPTION)
            # One error stops all the others; those of the same moment are read, or asyncio would print them.
            errors = [error for task in done if (error := task.exception()) is not None]
            if errors:
                raise errors[0]
            if stop.requested and (stop.overdue or not stop.in_flight) and pending:
                stop.check()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return results


def run_coroutine(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, also from a notebook, whose own loop runs in this thread already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
