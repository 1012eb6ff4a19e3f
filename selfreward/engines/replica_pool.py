"""Replicas: engines that serve the same model side by side, and share one list of work.

A prompt goes to the replica that has least to do, and stays there with all its requests, as they share a prefix. So
a slow replica takes fewer prompts, and what one that died had in flight goes to the others; it is started again
meanwhile, as often as the recipe allows.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from selfreward.engines import Completion, Engine, SamplingParams
from selfreward.engines.base import start_here
from selfreward.engines.concurrency import current_item
from selfreward.errors import EngineDied
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.records import Message
from selfreward.runtime.progress import console
from selfreward.runtime.shutdown import stop

T = TypeVar("T")
# Loads a model and returns an engine that serves it.
Start = Callable[[str], Engine]
Prove = Callable[[Engine], None]
RESTART_PAUSE_S = 2.0  # seconds before an engine is started again
POLL_S = 0.1  # seconds between two looks at whether a replica is up


class Replica:
    """One engine, or the place of one that is being started again; ``engine`` is None meanwhile, and at its end."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.engine: Engine | None = None
        self.in_flight = 0
        self.restarts = 0
        self.error: Exception | None = None  # why it is not started again any more

    @property
    def gone(self) -> bool:
        return self.error is not None


class ReplicaPool:
    """Implements :class:`selfreward.engines.base.Sampler`."""

    def __init__(
        self,
        model_path: str,
        starts: Sequence[Start],
        max_restarts: int,
        out_of_process: bool = True,
        prove: Prove = lambda engine: None,
    ) -> None:
        """Starts all replicas, and returns once each serves or is given up.

        Args:
            model_path: the weights.
            starts: for each replica, what starts it.
            max_restarts: how often each is started again.
            out_of_process: whether the engines are in other processes, so that they start and end side by side.
            prove: looks at each engine that has a model, before it serves.

        Raises:
            EngineDied: none could be started.
            ValueError: the engine refuses its settings or the model.
        """
        self._wanted = model_path
        self.replicas = [Replica(start) for start in starts]
        self._max_restarts, self._out_of_process, self._prove = max_restarts, out_of_process, prove
        self._lock = threading.Lock()
        self._closing = False
        self._restarting: list[threading.Thread] = []
        self.asleep = False
        try:
            self._each(self._first_start, self.replicas)
            self._require_one()
        except BaseException:
            self.close()
            raise

    @classmethod
    def single(cls, model_path: str, model: ModelSettings, settings: EngineSettings) -> ReplicaPool:
        """One engine in this process."""
        return cls(model_path, [partial(start_here, model, settings)], settings.max_restarts, out_of_process=False)

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        """As :meth:`Engine.generate`. Raises EngineDied once there are no restarts left."""
        return await self._ask(lambda engine: engine.generate(messages, params, seeds))

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        """As :meth:`Sampler.option_probs`."""
        return await self._ask(lambda engine: engine.option_probs(messages, prefix, options))

    async def reward(self, messages: Sequence[Message]) -> float | None:
        """As :meth:`Sampler.reward`."""
        return await self._ask(lambda engine: engine.reward(messages))

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> list[float] | None:
        """As :meth:`Engine.logprobs`."""
        return await self._ask(lambda engine: engine.logprobs(ids, last))

    @property
    def failures(self) -> Mapping[str, int]:
        """How many requests to a server failed so far, by kind; engines without a server count none."""
        return dict(getattr(self.replicas[0].engine, "failures", {}))

    @property
    def model(self) -> str:
        """As :attr:`Engine.model`; a server has its own name for what it serves."""
        return next((engine.model for engine in self.engines), self._wanted)

    @property
    def engines(self) -> list[Engine]:
        """The engines that are up."""
        return [replica.engine for replica in self.replicas if replica.engine is not None]

    def reload(self, model_path: str, before: Prove = lambda engine: None) -> None:
        """As :meth:`Engine.reload`, by all replicas; one that dies of it starts with the new model.

        ``before`` is asked of each engine while it still serves the old one.
        """
        self._settle()
        self._wanted, self.asleep = model_path, False
        self._each(partial(self._reload, before=before), self.replicas)
        self._require_one()

    def sleep(self) -> None:
        """As :meth:`Engine.sleep`, by all replicas; one that is being started would fill the memory again."""
        self._settle()
        if self.asleep:
            return
        self.asleep = True
        self._each(self._sleep, self.replicas)

    def close(self) -> None:
        """Ends all replicas, those that are being started among them."""
        with self._lock:
            self._closing = True
            engines = self.engines
            for replica in self.replicas:
                replica.engine = None
        self._each(lambda engine: engine.close(), engines)
        self._settle()

    def _settle(self) -> None:
        """Waits for replicas that are being started, unless this process is about to end, and they with it."""
        while self._restarting and not stop.requested:
            self._restarting.pop().join()

    def _each(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Does some work with each item, side by side where the engines have processes of their own."""
        if not self._out_of_process:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(max(1, len(items))) as threads:
            list(threads.map(work, items))

    def _first_start(self, replica: Replica) -> None:
        try:
            self._start(replica)
        except EngineDied as error:
            if len(self.replicas) == 1:
                raise
            self._restart(replica, error)

    def _start(self, replica: Replica) -> None:
        engine = replica.start(self._wanted)
        try:
            self._prove(engine)
        except BaseException:
            engine.close()
            raise
        with self._lock:
            if not self._closing:
                replica.engine = engine
                return
        engine.close()

    def _reload(self, replica: Replica, before: Prove) -> None:
        engine = replica.engine
        if engine is None and not replica.gone:
            self._restart(replica, EngineDied("an engine died as it fell asleep"))
        if engine is None:
            return
        try:
            before(engine)
            engine.reload(self._wanted)
            self._prove(engine)
        except EngineDied as error:
            self._lost(replica, engine, error)

    def _sleep(self, replica: Replica) -> None:
        engine = replica.engine
        if engine is None:
            return
        try:
            engine.sleep()
        except EngineDied:
            # It is started when there is memory for it again.
            replica.engine = None
            engine.close()

    async def _ask(self, request: Callable[[Engine], Awaitable[T]]) -> T:
        while True:
            replica, engine = await self._choose()
            replica.in_flight += 1
            try:
                return await request(engine)
            except EngineDied as error:
                # SLURM ends an engine's process together with the run's.
                stop.check()
                self._lost(replica, engine, error)
            finally:
                replica.in_flight -= 1

    async def _choose(self) -> tuple[Replica, Engine]:
        """The replica of the prompt that asks, or the one with least to do."""
        item = current_item.get({})
        while True:
            kept = item.get(id(self))
            if kept is not None and kept.engine is not None:
                return kept, kept.engine
            up = [(replica.in_flight, replica.engine, replica) for replica in self.replicas if replica.engine]
            if up:
                _, engine, replica = min(up, key=lambda each: each[0])
                item[id(self)] = replica
                return replica, engine
            self._require_one()
            stop.check()
            if self._closing:
                raise EngineDied("the engines were closed")
            await asyncio.sleep(POLL_S)

    def _lost(self, replica: Replica, engine: Engine, error: EngineDied) -> None:
        """Takes an engine that died out, and starts another; only once, however many requests tell of the death."""
        with self._lock:
            if replica.engine is not engine:
                return
            replica.engine = None
        if not self._out_of_process:
            engine.close()
            self._restart(replica, error)
            self._require_one()
            return

        def again() -> None:
            engine.close()
            self._restart(replica, error)

        thread = threading.Thread(target=again, name="restart", daemon=True)
        self._restarting.append(thread)
        thread.start()

    def _restart(self, replica: Replica, error: EngineDied) -> None:
        why: Exception = error
        while replica.restarts < self._max_restarts and not self._closing and not stop.requested:
            replica.restarts += 1
            console.print(f"  {why}; starting it again ({replica.restarts} of {self._max_restarts})", markup=False)
            # The memory of a process that was killed may take a moment to come back.
            time.sleep(RESTART_PAUSE_S)
            try:
                self._start(replica)
                return
            except EngineDied as again:
                why = again
            except Exception as again:
                # In a thread of its own nobody would see it.
                why = again
                break
        replica.error = why
        if len(self.replicas) > 1 and not self._closing:
            left = sum(not other.gone for other in self.replicas)
            console.print(f"  {why}; going on with {left} of {len(self.replicas)} replicas", markup=False)

    def _require_one(self) -> None:
        """Raises what ended the last replica once all have ended."""
        if not all(replica.gone for replica in self.replicas):
            return
        error = self.replicas[-1].error
        if not isinstance(error, EngineDied):
            assert error is not None
            raise error
        restarts = sum(replica.restarts for replica in self.replicas)
        raise EngineDied(
            f"{error}. It was started again {restarts} times (engine.max_restarts). What was finished is "
            "kept: find out why in the messages above, then selfreward resume"
        ) from error
