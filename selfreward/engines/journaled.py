"""An engine that asks each request once. No torch."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import astuple
from typing import Any

from selfreward.engines.base import Completion, Sampler, SamplingParams
from selfreward.records import Message
from selfreward.runs.journal import Journal
from selfreward.runs.stored import OPTION_PROBS, REWARD
from selfreward.runtime.shutdown import stop


class JournaledEngine:
    """An engine that asks each request once: what the journal holds is not asked again."""

    def __init__(self, engine: Sampler, journal: Journal, role: str) -> None:
        """``role`` tells apart engines that share a journal, such as policy and judge."""
        self._engine, self._journal, self._role = engine, journal, role
        self._asking: dict[str, asyncio.Future[list[Any]]] = {}
        self._generated = 0
        self._failed_before = self._failed()
        self.found = 0  # requests that an earlier attempt had finished

    @property
    def model(self) -> str:
        return self._engine.model

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        """As :meth:`Engine.generate`; each completion is in the journal as soon as its own request is finished.

        Raises:
            DiskFull: the journal can't be written.
        """
        asked = self._hash(list(messages), params.key)

        async def one(seed: int) -> Completion:
            async def ask() -> list[Any]:
                [completion] = await self._engine.generate(messages, params, [seed])
                self._generated += completion.num_tokens
                return list(astuple(completion))

            return Completion(*await self._once(_key(asked, seed), ask))

        return await asyncio.gather(*map(one, seeds))

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        """As :meth:`Sampler.option_probs`, asked once."""
        key = self._hash(OPTION_PROBS, list(messages), prefix, list(options)).hexdigest()
        [probs] = await self._once(key, lambda: _boxed(self._engine.option_probs(messages, prefix, options)))
        return probs  # type: ignore[no-any-return]

    async def reward(self, messages: Sequence[Message]) -> float | None:
        """As :meth:`Sampler.reward`, asked once."""
        key = self._hash(REWARD, list(messages)).hexdigest()
        [reward] = await self._once(key, lambda: _boxed(self._engine.reward(messages)))
        return reward  # type: ignore[no-any-return]

    async def once(self, asked: Sequence[Any], ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer to a request of another kind, which is asked once; ``asked`` tells it apart from all others."""
        [answer] = await self._once(self._hash(*asked).hexdigest(), lambda: _boxed(ask()))
        return answer

    def _hash(self, *asked: Any) -> hashlib.blake2b:
        return hashlib.blake2b(_canonical([self._role, *asked]), digest_size=16)

    async def _once(self, key: str, ask: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        """The answer in the journal, or that of another coroutine that asks the same now, or a new one."""
        known: list[Any] | None = self._journal.get(key)
        if known is not None:
            self.found += self._journal.had(key)
            return known
        if key not in self._asking:
            self._asking[key] = asyncio.ensure_future(self._ask(key, ask))
            # Who waits for it gets its error, if anyone still waits.
            self._asking[key].add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        # One of those that wait may be cancelled, and the others still want the answer.
        return await asyncio.shield(self._asking[key])

    async def _ask(self, key: str, ask: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        try:
            if stop.requested:
                # Nothing new begins. The stage ends once what is in flight has finished, and this coroutine with it.
                await asyncio.Event().wait()
            with stop.flight():
                answer = await ask()
            self._journal.add(key, answer)
            return answer
        finally:
            del self._asking[key]

    def summary(self, seconds: float) -> dict[str, Any]:
        """The speed of what was generated now, and :meth:`figures`."""
        return {"tokens_per_second": self._generated / seconds, **self.figures()}

    def figures(self) -> dict[str, int]:
        """How many requests an earlier attempt had finished, and how many tries of requests to a server failed.

        An engine of requests to a server has them in ``failures``, by kind.
        """
        failed = {f"server_failures_{kind}": count for kind, count in (self._failed() - self._failed_before).items()}
        return {**({"resumed": self.found} if self.found else {}), **dict(sorted(failed.items()))}

    def _failed(self) -> Counter[str]:
        return Counter(getattr(self._engine, "failures", {}))


def total(engines: Iterable[JournaledEngine]) -> dict[str, int]:
    """The figures of several engines in one."""
    return dict(sum((Counter(engine.figures()) for engine in engines), Counter[str]()))


async def _boxed(answer: Awaitable[Any]) -> list[Any]:
    """In a list, as None in the journal would be no answer."""
    return [await answer]


def _key(asked: hashlib.blake2b, seed: int) -> str:
    key = asked.copy()
    key.update(b"%d" % seed)
    return key.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
