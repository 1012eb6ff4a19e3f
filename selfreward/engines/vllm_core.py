"""The core of vLLM, in this process or in one of its own: seen when it dies, and never left behind.

vLLM itself waits for ever for a core that was killed or hangs, and leaves the core running when this process is killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

from vllm import EngineArgs, envs
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

from selfreward.engines.vllm_internals import START_FAILURE, CoreClient, bind_processes
from selfreward.errors import EngineDied

T = TypeVar("T")

# Seconds between two looks at the outputs: a step takes longer, and a look costs some microseconds.
POLL_S = 0.001
# Seconds until a killed process is gone, unless its GPU's driver hangs.
KILL_TIMEOUT_S = 5.0


def start(args: EngineArgs) -> LLMEngine:
    """Starts an engine.

    Raises:
        EngineDied: the core's process ended before it was ready, or was not ready in VLLM_ENGINE_READY_TIMEOUT_S.
        ValueError: vLLM's internals are not those of the version that this package was written for.
    """
    bind_processes()
    if not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return LLMEngine.from_engine_args(args)
    limit = envs.VLLM_ENGINE_READY_TIMEOUT_S
    try:
        with _killed_after(limit) as late:
            return LLMEngine.from_engine_args(args)
    except RuntimeError as error:
        if START_FAILURE not in str(error):
            raise
        if late.is_set():
            raise EngineDied(
                f"vLLM's core was not ready after {limit} s. If it only loads slowly, set the environment variable "
                "VLLM_ENGINE_READY_TIMEOUT_S to more seconds"
            ) from error
        raise EngineDied("vLLM's core died while it started. The messages above say why") from error


@contextmanager
def _killed_after(seconds: float) -> Iterator[threading.Event]:
    """Kills the processes that were started inside, unless the end is reached in time; the event says that it did."""
    before, late = set(multiprocessing.active_children()), threading.Event()

    def kill() -> None:
        late.set()
        for process in set(multiprocessing.active_children()) - before:
            process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


class Core:
    """The core of an engine, as the event loop sees it."""

    def __init__(self, engine: LLMEngine, stall_timeout: float) -> None:
        """Args: ``stall_timeout``: seconds without a sign of life after which a core in its own process is dead."""
        self._client = CoreClient(engine)
        self._processes = self._client.processes
        self._stall_timeout = stall_timeout

    async def output(self) -> None:
        """Lets the coroutines speak, and returns once a step of the engine will not block.

        Raises:
            EngineDied: there will be no output any more.
        """
        await asyncio.sleep(0)
        if not self._processes:
            return
        # Looks are counted, as a clock would also count the hours between Ctrl-Z and fg.
        for _ in range(round(self._stall_timeout / POLL_S)):
            if self._client.has_output():
                return
            self._check()
            await asyncio.sleep(POLL_S)
        raise self._stalled()

    def call(self, function: Callable[[], T]) -> T:
        """Returns what a function returns that waits for the core.

        Raises:
            EngineDied: the core died meanwhile, or needed longer than the stall timeout.
        """
        if not self._processes:
            return function()
        self._check()
        answer: Future[T] = Future()
        # A daemon, since it waits for ever if the core dies.
        threading.Thread(target=_fulfil, args=(answer, function), daemon=True).start()
        for _ in range(round(self._stall_timeout) + 1):
            if wait([answer], timeout=1.0).done:
                return answer.result()
            self._check()
        raise self._stalled()

    def close(self) -> None:
        """Ends the core within seconds, whatever state it is in."""
        self._client.shutdown()
        for process in self._processes:
            process.kill()
            process.join(KILL_TIMEOUT_S)

    def _check(self) -> None:
        ended = [f"{process.name} {process.exitcode}" for process in self._processes if not process.is_alive()]
        if ended:
            raise EngineDied(f"vLLM's core died (exit status: {', '.join(ended)})")

    def _stalled(self) -> EngineDied:
        return EngineDied(
            f"vLLM's core gave no sign of life for {self._stall_timeout:g} s. If it only works slowly, raise "
            "engine.stall_timeout"
        )


@contextmanager
def deaths() -> Iterator[None]:
    """Turns vLLM's error for a dead core into EngineDied."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineDied("vLLM's core died; see the messages above") from error


def _fulfil(answer: Future[T], function: Callable[[], T]) -> None:
    try:
        with deaths():
            answer.set_result(function())
    except BaseException as error:
        answer.set_exception(error)
