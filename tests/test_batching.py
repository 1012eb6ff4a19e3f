"""Requests that wait together are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from selfreward.engines.batching import Batcher


class Model:
    """Answers a text in capitals, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[str]:
        self.batches.append(texts)
        if "bad" in texts:
            raise MemoryError("no memory")
        return [text.upper() for text in texts]


@pytest.fixture
def model() -> Model:
    return Model()


def all_of(batcher: Batcher[str, str], texts: Sequence[str]) -> list[Any]:
    async def everything() -> list[Any]:
        return await asyncio.gather(*map(batcher.submit, texts), return_exceptions=True)

    return asyncio.run(everything())


def test_a_batch_is_full_and_has_the_longest_first(model: Model) -> None:
    batcher = Batcher(model, 2, len)
    assert all_of(batcher, ["a", "ccc", "bb", "ddd", "e"]) == ["A", "CCC", "BB", "DDD", "E"]
    assert model.batches == [["ccc", "ddd"], ["bb", "a"], ["e"]]
    assert batcher.idle


def test_a_batch_is_of_the_largest_group(model: Model) -> None:
    batcher = Batcher(model, 2, len, group=lambda text: text[0])
    all_of(batcher, ["a1", "b1", "b22", "b333", "a22"])
    assert model.batches == [["b333", "b22"], ["a22", "a1"], ["b1"]]


def test_what_an_answer_leads_to_joins_the_next_batch(model: Model) -> None:
    batcher = Batcher(model, 2, len)

    async def twice(text: str) -> str:
        return await batcher.submit(await batcher.submit(text))

    async def everything() -> list[str]:
        return await asyncio.gather(*map(twice, ["a", "bb", "ccc"]))

    assert asyncio.run(everything()) == ["A", "BB", "CCC"]
    assert model.batches == [["ccc", "bb"], ["CCC", "BB"], ["a"], ["A"]]


def test_an_error_reaches_all_that_wait_and_none_that_come_later(model: Model) -> None:
    batcher = Batcher(model, 2, len)
    assert [str(error) for error in all_of(batcher, ["bad", "a", "b"])] == ["no memory"] * 3
    assert model.batches == [["bad", "a"]]
    assert batcher.idle
    assert all_of(batcher, ["a"]) == ["A"]


def test_a_model_that_leaves_out_an_answer_is_an_error() -> None:
    *_, last = all_of(Batcher(lambda texts: texts[1:], 2, len), ["a", "b"])
    assert isinstance(last, ValueError)


def test_what_was_cancelled_is_in_no_batch(model: Model) -> None:
    batcher = Batcher(model, 2, len)

    async def everything() -> str:
        kept, dropped = batcher.submit("a"), batcher.submit("b")
        dropped.cancel()
        return await kept

    assert asyncio.run(everything()) == "A"

    async def none() -> None:
        batcher.submit("c").cancel()
        await asyncio.sleep(0.01)

    asyncio.run(none())
    assert model.batches == [["a"]]
    assert batcher.idle


def test_the_end_of_an_event_loop_leaves_nothing_behind(model: Model) -> None:
    batcher = Batcher(model, 2, len)

    async def leave() -> None:
        batcher.submit("a")
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert batcher.idle
    assert all_of(batcher, ["b"]) == ["B"]
    assert model.batches == [["b"]]
