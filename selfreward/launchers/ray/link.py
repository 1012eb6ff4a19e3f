"""A replica behind an actor of Ray."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from selfreward.engines.remote import END, SILENCE
from selfreward.engines.worker import BEAT, Answer, Request
from selfreward.errors import EngineDied
from selfreward.launchers.ray import cluster
from selfreward.launchers.ray.cluster import CPU, actor, result, why
from selfreward.launchers.ray.hosts import ReplicaHost, ours
from selfreward.stopping import stop

MOST = 100_000  # requests of a replica at once


class RayLink:
    """Implements :class:`selfreward.engines.remote.Link`: the way to a worker behind an actor."""

    def __init__(
        self, name: str, command: Sequence[str], gpus: int, stall_timeout: float, log: Callable[[str], None]
    ) -> None:
        """Returns once the worker runs.

        Raises:
            EngineDied: there was no room for it, or its node died.
            ValueError: its node doesn't see the folder of this process.
        """
        self._name, self._log = name, log
        self._patience = max(3 * BEAT, min(stall_timeout, SILENCE))
        self._waiting: set[Future[Answer]] = set()
        self._lock = threading.Lock()
        self._ended: str | None = None
        self._host = actor(
            ReplicaHost,
            ours(os.environ),
            num_cpus=CPU,
            num_gpus=gpus,
            scheduling_strategy="SPREAD",
            max_concurrency=MOST,
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
        future: Future[Answer] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(EngineDied(self._ended))
                return future
            self._waiting.add(future)
        self._host.ask.remote(request).future().add_done_callback(lambda answered: self._hand_over(future, answered))
        return future

    def close(self) -> None:
        # One that is dead or hangs ends with its actor.
        with suppress(RayError):
            for line in ray.get(self._host.close.remote(), timeout=END + BEAT):
                self._log(line)
        ray.kill(self._host)
        self._listener.join(END)

    def _start(self, command: Sequence[str], gpus: int, stall_timeout: float) -> None:
        started = self._host.start.remote(self._name, list(command), stall_timeout)
        deadline = time.monotonic() + cluster.ROOM
        while not ray.wait([started], timeout=1.0)[0]:
            stop.check()
            if time.monotonic() > deadline:
                wanted = f"{gpus} free GPUs on one node" if gpus else f"{CPU:g} free CPUs"
                raise EngineDied(
                    f"{self._name} found no room in the cluster of Ray within {cluster.ROOM:g} s: it needs {wanted}"
                )
        try:
            result(started)
        except RayError as error:
            raise EngineDied(f"{self._name} ended: {why(error)}") from None

    def _hand_over(self, future: Future[Answer], answered: Future[Answer]) -> None:
        with self._lock:
            if future not in self._waiting:
                return
            self._waiting.remove(future)
        # The coroutine that waits may have been cancelled.
        if not future.set_running_or_notify_cancel():
            return
        error = answered.exception()
        if error is None:
            future.set_result(answered.result())
        elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
            future.set_exception(EngineDied(f"{self._name} ended: {why(error)}"))
        else:
            future.set_exception(error)

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
                self._fail(f"{self._name} ended: {why(error)}")
                return
            for line in lines:
                self._log(line)
            heard = self._hear()
        ray.kill(self._host)
        self._fail(f"{self._name} gave no sign of life for {self._patience:g} s")

    def _hear(self) -> Any:
        return self._host.hear.options(concurrency_group="messages").remote()

    def _fail(self, why: str) -> None:
        with self._lock:
            self._ended = why
            left, self._waiting = list(self._waiting), set()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineDied(why))
