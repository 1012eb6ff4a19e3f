"""Processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from selfreward.engines.remote import PipeChannel, WorkerChannel
from selfreward.launchers.base import ProcessJob, Training, TrainingJob, worker_command
from selfreward.launchers.layout import GPUSlot
from selfreward.runtime.ranks import without_ranks


class LocalLauncher:
    """Implements :class:`selfreward.launchers.base.Launcher` with child processes, or with none for the engine."""

    nodes = 1
    lost = ()

    def __init__(self, out_of_process: bool, gpus: int) -> None:
        self.out_of_process, self.gpus = out_of_process, gpus

    def start_worker(self, name: str, slot: GPUSlot, stall_timeout: float, log: Callable[[str], None]) -> WorkerChannel:
        return PipeChannel(name, worker_command(slot), without_ranks(os.environ), stall_timeout, log)

    def start_training(self, training: Training, environment: Mapping[str, str]) -> TrainingJob:
        return ProcessJob(training.command(), {**without_ranks(os.environ), **environment})
