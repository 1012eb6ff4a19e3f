"""A run under ``accelerate launch`` or ``torchrun``: the first rank drives, the others join when it is time to train.

The ranks find each other at the launcher's own store. For each training the first one names a port, and every rank
starts the stage in a child process with the variables that its launcher gave it: exactly what ``accelerate launch -m
selfreward stage train`` would start. The ranks themselves load no model, so that between two trainings all memory is
the engine's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from selfreward.engines.remote import PipeChannel, WorkerChannel
from selfreward.launchers.base import ProcessJob, Training, TrainingJob, free_port, wait, worker_command
from selfreward.launchers.layout import GPUSlot
from selfreward.launchers.local import LocalLauncher
from selfreward.launchers.logs import ERROR_FILE_VARIABLE as ERROR_FILE
from selfreward.runtime.gpus import num_gpus
from selfreward.runtime.ranks import rank, rank_variables, without_ranks, world_size
from selfreward.runtime.shutdown import stop

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL_S = 0.5  # seconds between two looks at what the first rank has to say
LEAVE_TIMEOUT_S = 10.0  # seconds that the first rank waits for the others at its end


class TorchrunLauncher(LocalLauncher):
    """Implements :class:`selfreward.launchers.base.Launcher` for the first rank; the others :meth:`follow`.

    Takes the launcher's variables out of the environment of this process: what it starts besides trainings, such as
    vLLM, would take itself for one of the ranks.
    """

    def __init__(self, out_of_process: bool | None) -> None:
        """Args: ``out_of_process``: whether engines have processes of their own; None: where there are several GPUs."""
        self._variables = rank_variables(os.environ)
        self._store = _meet()
        for name in self._variables:
            if name != ERROR_FILE:
                del os.environ[name]
        gpus = num_gpus()
        super().__init__(gpus > 1 if out_of_process is None else out_of_process, gpus)
        self.first = rank(self._variables) == 0
        self.size = world_size(self._variables)
        self._num = 0

    def start_worker(self, name: str, slot: GPUSlot, stall_timeout: float, log: Callable[[str], None]) -> WorkerChannel:
        environment = without_ranks(os.environ)
        if environment.get("OMP_NUM_THREADS") == "1":
            # torchrun's default for several ranks, of which an engine is none.
            del environment["OMP_NUM_THREADS"]
        return PipeChannel(name, worker_command(slot), environment, stall_timeout, log)

    def start_training(self, training: Training, environment: Mapping[str, str]) -> TrainingJob:
        message = {"stage": training.stage, "port": free_port(), "environment": dict(environment)}
        self._say(message)
        return self._start(message)

    def close(self, run: str) -> None:
        """Lets the other ranks end, after a run in this folder. If it fails, their launcher ends them."""
        self._say({"end": run})
        os.environ.update(self._variables)
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        # The store may be this rank's own.
        while self._store.add("left", 0) < self.size - 1 and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def follow(self) -> str:
        """Joins each training of the first rank until it ends, and returns the folder of the run.

        Raises:
            ChildProcessError: this rank's part of a training failed.
            Stopped: this rank was asked to stop, as the launcher does where the first one failed.
        """
        while "end" not in (message := self._hear()):
            status = wait(self._start(message))
            stop.check()
            if status:
                raise ChildProcessError(f"rank {rank(self._variables)} ended with exit code {status}")
        self._store.add("left", 1)
        os.environ.update(self._variables)
        return str(message["end"])

    def _say(self, message: Mapping[str, Any]) -> None:
        self._num += 1
        self._store.set(f"message {self._num}", json.dumps(message))

    def _hear(self) -> dict[str, Any]:
        self._num += 1
        key = f"message {self._num}"
        while not self._store.check([key]):
            stop.check()
            time.sleep(POLL_S)
        message: dict[str, Any] = json.loads(self._store.get(key))
        return message

    def _start(self, message: Mapping[str, Any]) -> TrainingJob:
        # The store of the launcher still holds the addresses of the training before: each has a store of its own.
        variables = {**self._variables, "MASTER_PORT": str(message["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        command = [sys.executable, "-m", *message["stage"]]
        return ProcessJob(command, {**os.environ, **variables, **message["environment"]})


def _meet() -> Store:
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("selfreward", store)
