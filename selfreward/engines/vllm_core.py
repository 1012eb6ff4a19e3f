"""The core of vLLM, in this process or in one of its own: seen when it dies, and never left behind.

vLLM itself waits for ever for a core that was killed or hangs, and leaves the core running when this process is killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from vllm import EngineArgs, envs
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.multiproc_executor import WorkerProc

from selfreward.errors import EngineDied
from selfreward.runtime.shutdown import end_with_parent

T = TypeVar("T")

# Seconds between two looks at the outputs: a step takes longer, and a look costs some microseconds.
POLL_S = 0.001
# Seconds until a killed process is gone, unless its GPU's driver hangs.
KILL_TIMEOUT_S = 5.0

_run_engine_core, _worker_main = EngineCoreProc.run_engine_core, WorkerProc.worker_main


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """What the core's process runs: vLLM's own function, bound to this process."""
    _bind_to_parent()
    _run_engine_core(*args, **kwargs)


def worker_main(*args: Any, **kwargs: Any) -> None:
    """What each worker's process runs, a child of the core's: vLLM's own function, bound to the core."""
    _bind_to_parent()
    _worker_main(*args, **kwargs)


# vLLM has no hook in these processes but plug-ins, which would reach every vLLM of this environment.
EngineCoreProc.run_engine_core = staticmethod(run_engine_core)
WorkerProc.worker_main = staticmethod(worker_main)


def _bind_to_parent() -> None:
    """Binds this process to its parent, also where that ended before the kernel knew."""
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != os.getppid():
        os._exit(1)
    # Ctrl-C reaches all processes of a terminal. The main one decides what it means; vLLM would drop its requests.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def start(args: EngineArgs) -> LLMEngine:
    """Starts an engine.

    Raises:
        EngineDied: the core's process ended before it was ready, or was not ready in VLLM_ENGINE_READY_TIMEOUT_S.
    """
    if not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return LLMEngine.from_engine_args(args)
    limit = envs.VLLM_ENGINE_READY_TIMEOUT_S
    try:
        with _killed_after(limit) as late:
            return LLMEngine.from_engine_args(args)
    except RuntimeError as error:
        if "Engine core initialization failed" not in str(error):
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
        self._client: Any = engine.engine_core
        self._stall_timeout = stall_timeout
        resources = getattr(self._client, "resources", None)
        self._processes: list[BaseProcess] = list(resources.engine_manager.processes) if resources else []

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
            if not self._client.outputs_queue.empty():
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
        if self._client is not None:
            self._client.shutdown()
            # It holds the model of a core in this process.
            self._client = None
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
