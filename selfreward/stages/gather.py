"""One coroutine an item, all in flight at once: the engine does the batching."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from selfreward.progress import Counter, track

Item = TypeVar("Item")
Result = TypeVar("Result")


def gather(
    name: str,
    items: Sequence[Item],
    work: Callable[[Item], Coroutine[Any, Any, list[Result]]],
    tokens: Callable[[Result], int],
) -> tuple[list[Result], float]:
    """Runs ``work`` on every item, showing progress.

    Args:
        name: what is counted, for the person who watches.
        items: what to work on.
        work: gives the results of one item.
        tokens: how many tokens were generated for a result.

    Returns:
        All results in the order of the items, and the generated tokens per second.
    """

    async def tracked(item: Item, counter: Counter) -> list[Result]:
        results = await work(item)
        counter.advance(sum(map(tokens, results)))
        return results

    async def everything(counter: Counter) -> list[list[Result]]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(tracked(item, counter)) for item in items]
        except ExceptionGroup as errors:
            # One error stops all the others; it is the one to tell.
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    with track(name, len(items)) as counter:
        results = _run(everything(counter))
        return [result for of_item in results for result in of_item], counter.tokens / counter.seconds


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, also from a notebook, whose own loop runs in this thread already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
