"""What this package replaces in vLLM, and reads of its client that no documentation promises. No other module does.

Each is looked up when it is used, so that another vLLM ends in an error that names the version to install.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from selfreward.runtime.library import Library
from selfreward.runtime.shutdown import end_with_parent

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

VLLM = Library("vllm", "0.32.0")
# How the RuntimeError begins that vLLM raises if the core's process ends before it is ready.
START_FAILURE = "Engine core initialization failed"

# vLLM's own functions, by name, once this process has replaced them.
_replaced: dict[str, Callable[..., None]] = {}


def bind_processes() -> None:
    """Lets each process that vLLM starts from now on end with the one that has started it.

    vLLM has no hook in these processes but plug-ins, which would reach every vLLM of this environment.

    Raises:
        ValueError: vLLM starts its processes with other functions.
    """
    with VLLM.importing():
        from vllm.v1.engine.core import EngineCoreProc
        from vllm.v1.executor.multiproc_executor import WorkerProc
    _replace(EngineCoreProc, run_engine_core)
    _replace(WorkerProc, worker_main)


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """What the core's process runs: vLLM's own function, bound to this process."""
    _run_bound("run_engine_core", args, kwargs)


def worker_main(*args: Any, **kwargs: Any) -> None:
    """What each worker's process runs, a child of the core's: vLLM's own function, bound to the core."""
    _run_bound("worker_main", args, kwargs)


def _replace(owner: type, ours: Callable[..., None]) -> None:
    name = ours.__name__
    if name not in _replaced:
        _replaced[name] = VLLM.get_static(owner, name)
        setattr(owner, name, staticmethod(ours))


def _run_bound(name: str, args: Any, kwargs: Any) -> None:
    _bind_to_parent()
    # A process that was spawned has replaced nothing yet, and a core starts workers.
    bind_processes()
    _replaced[name](*args, **kwargs)


def _bind_to_parent() -> None:
    """Binds this process to its parent, also where that ended before the kernel knew."""
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != os.getppid():
        os._exit(1)
    # Ctrl-C reaches all processes of a terminal. The main one decides what it means; vLLM would drop its requests.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


class CoreClient:
    """An engine's connection to its core.

    ``processes`` are those of the core; there are none if the core is in this process.
    """

    def __init__(self, engine: LLMEngine) -> None:
        """Raises ValueError if vLLM's own client is of an unknown kind."""
        with VLLM.importing():
            from vllm.v1.engine.core_client import InprocClient
        self._client: Any = VLLM.get(engine, "engine_core")
        VLLM.get(self._client, "shutdown")
        self.processes: list[BaseProcess] = []
        if not isinstance(self._client, InprocClient):
            manager = VLLM.get(VLLM.get(self._client, "resources"), "engine_manager")
            self.processes = list(VLLM.get(manager, "processes"))
            VLLM.get(VLLM.get(self._client, "outputs_queue"), "empty")

    def has_output(self) -> bool:
        """Whether the processes have sent something that the engine has not read."""
        return not self._client.outputs_queue.empty()

    def shutdown(self) -> None:
        """Ends the core by vLLM's own means, and lets go of the model of one in this process."""
        if self._client is not None:
            self._client.shutdown()
            self._client = None
