"""A replica behind an actor of Ray."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from selfreward.engines.messages import HEARTBEAT_S, Answer, Request
from selfreward.engines.pending import Pending
from selfreward.engines.remote import SHUTDOWN_TIMEOUT_S, SILENCE_TIMEOUT_S
from selfreward.errors import EngineDied
from selfreward.launchers.ray import cluster
from selfreward.launchers.ray.cluster import CPU_SHARE, actor, result, why
from selfreward.launchers.ray.hosts import ReplicaHost, ours
from selfreward.runtime.shutdown import stop

MAX_REQUESTS = 100_000  # requests of a replica at once


class RayChannel:
    """Implements :class:`selfreward.engines.remote.WorkerChannel`: the way to a worker behind an actor."""

    def __init__(
        self, name: str, command: Sequence[str], gpus: int, stall_timeout: float, log: Callable[[str], None]
    ) -> None:
        """Returns once the worker runs.

        Raises:
            EngineDied: there was no room for it, or its node died.
            ValueError: its node doesn't see the folder of this process.
        """
        self._name, self._log = name, log
        self._patience = max(3 * HEARTBEAT_S, min(stall_timeout, SILENCE_TIMEOUT_S))
        self._pending = Pending()
        self._host = actor(
            ReplicaHost,
            ours(os.environ),
            num_cpus=CPU_SHARE,
            num_gpus=gpus,
            scheduling_strategy="SPREAD",
            max_concurrency=MAX_REQUESTS,
            # Messages don't wait until requests have been answered.
            concurrency_groups={"messages": 1},
        )
        try:
            self._start(command, gpus, stall_timeout)
        except BaseException:
            ray.kill(self._host)
            raise
        self._listener = threading.Thread(target=self._listen, name=f"messages of {name}", daemon=True)
        self._listener.start()

    def ask(self, request: Request) -> Future[Answer]:
        number, future = self._pending.add()
        self._host.ask.remote(request).future().add_done_callback(partial(self._hand_over, number))
        return future

    def close(self) -> None:
        # One that is dead or hangs ends with its actor.
        with suppress(RayError):
            for line in ray.get(self._host.close.remote(), timeout=SHUTDOWN_TIMEOUT_S + HEARTBEAT_S):
                self._log(line)
        ray.kill(self._host)
        self._listener.join(SHUTDOWN_TIMEOUT_S)

    def _start(self, command: Sequence[str], gpus: int, stall_timeout: float) -> None:
        started = self._host.start.remote(self._name, list(command), stall_timeout)
        deadline = time.monotonic() + cluster.ROOM_TIMEOUT_S
        while not ray.wait([started], timeout=1.0)[0]:
            stop.check()
            if time.monotonic() > deadline:
                wanted = f"{gpus} free GPUs on one node" if gpus else f"{CPU_SHARE:g} free CPUs"
                raise EngineDied(
                    f"{self._name} found no room in the cluster of Ray within {cluster.ROOM_TIMEOUT_S:g} s: it needs "
                    f"{wanted}"
                )
        try:
            result(started)
        except RayError as error:
            raise EngineDied(f"{self._name} ended: {why(error)}") from None

    def _hand_over(self, number: int, answered: Future[Answer]) -> None:
        error = answered.exception()
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            error = EngineDied(f"{self._name} ended: {why(error)}")
        self._pending.settle(number, answered.result() if error is None else error)

    def _listen(self) -> None:
        """Passes on what the worker prints, until its actor ends or gives no sign of life."""
        silent = 0
        heard = self._hear()
        # Looks are counted, as a clock would also count the hours between Ctrl-Z and fg.
        while silent < self._patience:
            if not ray.wait([heard], timeout=1.0)[0]:
                silent += 1
                continue
            silent = 0
            try:
                lines = ray.get(heard)
            except RayError as error:
                self._pending.end(f"{self._name} ended: {why(error)}")
                return
            for line in lines:
                self._log(line)
            heard = self._hear()
        ray.kill(self._host)
        self._pending.end(f"{self._name} gave no sign of life for {self._patience:g} s")

    def _hear(self) -> Any:
        return self._host.hear.options(concurrency_group="messages").remote()
