"""Processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from selfreward.engines.remote import Link, ProcessLink
from selfreward.launchers.base import Gang, ProcessGang, Training, worker_command
from selfreward.launchers.layout import Place
from selfreward.runtime.ranks import without_ranks


class Local:
    """Implements :class:`selfreward.launchers.base.Launcher` with child processes, or with none for the engine."""

    nodes = 1
    lost = ()

    def __init__(self, apart: bool, gpus: int) -> None:
        self.apart, self.gpus = apart, gpus

    def link(self, name: str, place: Place, stall_timeout: float, log: Callable[[str], None]) -> Link:
        return ProcessLink(name, worker_command(place), without_ranks(os.environ), stall_timeout, log)

    def gang(self, training: Training, environment: Mapping[str, str]) -> Gang:
        return ProcessGang(training.command(), {**without_ranks(os.environ), **environment})
