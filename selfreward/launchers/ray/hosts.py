"""What runs on the nodes of a Ray cluster: actors that start one child process each, and end with it.

The children are those that the other launchers start. So an engine that crashes or hangs takes no actor with it, the
environment of the child is known to the last variable, and its memory is free once it has ended.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import ray
from ray.util import get_node_ip_address

from selfreward.engines.messages import HEARTBEAT_S, Answer, Request
from selfreward.engines.remote import SHUTDOWN_TIMEOUT_S, PipeChannel
from selfreward.errors import EngineDied
from selfreward.launchers.base import ProcessJob, free_port
from selfreward.runtime.ranks import without_ranks

# What a shell of the driver says to the libraries of a run; Ray's own processes have the environment of `ray start`.
_OURS = re.compile(
    r"(PYTHON|OMP_|MKL_|HF_|HUGGING_FACE_|TRANSFORMERS_|TOKENIZERS_|DATASETS_|VLLM_|TORCH|NCCL_|GLOO_|TRITON_|SELFREWARD_)\w+"
    r"|TQDM_DISABLE"
)
# Ray sets it to the CPUs that an actor asks for.
_RAYS = "OMP_NUM_THREADS"
# Starts a command together with a guard: a process in a session of its own that waits for the end of standard input,
# which is the actor's, and then kills the command's process group. An actor that is killed can't do that any more.
GUARDED = """
exec 3<&0
setsid sh -c 'read -r _; kill -KILL "-$0"' $$ <&3 >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
"""


def ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the driver's environment that its processes on other nodes need."""
    return {name: value for name, value in without_ranks(environment).items() if _OURS.fullmatch(name)}


class _Host:
    """An actor. The folder and the variables are the driver's."""

    def __init__(self, folder: str, environment: Mapping[str, str]) -> None:
        self._folder = folder
        kept = {name: value for name, value in without_ranks(os.environ).items() if name != _RAYS}
        self.environment = {**kept, **environment}
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ip = str(get_node_ip_address())  # type: ignore[no-untyped-call]

    async def place(self) -> tuple[str, int, str]:
        """The address of the node, a free port of it, and Ray's name for it."""
        return self.ip, free_port(), ray.get_runtime_context().get_node_id()

    def _command(self, command: Sequence[str]) -> list[str]:
        """A command of Python, with this node's own, in the folder of the driver."""
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise ValueError(
                f"node {self.ip} can't use the driver's folder {self._folder}: {error.strerror}. Start the run from a "
                "folder that all nodes share, and give run_dir and the models there"
            ) from None
        return [sys.executable, *command[1:]]

    def _printed(self) -> list[str]:
        found = []
        while not self.lines.empty():
            found.append(self.lines.get())
        return found


class ReplicaHost(_Host):
    """Passes requests on to a worker."""

    async def start(self, name: str, command: Sequence[str], stall_timeout: float) -> None:
        """Raises ValueError where the driver's folder isn't there."""
        name = f"{name} on {self.ip}"
        self._channel = PipeChannel(name, self._command(command), self.environment, stall_timeout, self.lines.put)

    async def ask(self, request: Request) -> Answer:
        try:
            return await asyncio.wrap_future(self._channel.ask(request))
        except EngineDied as error:
            return {"died": str(error)}

    async def hear(self) -> list[str]:
        """What the worker has printed, at the latest after HEARTBEAT_S seconds: the sign of life of this actor."""
        for _ in range(round(HEARTBEAT_S / 0.1)):
            if not self.lines.empty():
                break
            await asyncio.sleep(0.1)
        return self._printed()

    async def close(self) -> list[str]:
        """Ends the worker, and returns what it has printed since the last :meth:`hear`."""
        await asyncio.to_thread(self._channel.close)
        return self._printed()


class TrainingHost(_Host):
    """The part of a training on one node."""

    async def start(self, command: Sequence[str]) -> None:
        """Raises ValueError where the driver's folder isn't there."""
        stdin, self._guard = os.pipe()
        printed, stdout = os.pipe()
        guarded = ["sh", "-c", GUARDED, "sh", *self._command(command)]
        self._gang = ProcessJob(guarded, self.environment, stdin, stdout)
        os.close(stdin)
        os.close(stdout)
        self._reader = threading.Thread(target=self._read, args=(os.fdopen(printed, "rb"),), daemon=True)
        self._reader.start()

    async def poll(self) -> tuple[int | None, list[str]]:
        """The exit status, or None while a process runs; and what they have printed since the last time."""
        status = self._gang.poll()
        return status, self._printed()

    async def end(self) -> list[str]:
        """Kills what is left, and returns what it has printed."""
        self._gang.kill()
        await asyncio.to_thread(self._reader.join, SHUTDOWN_TIMEOUT_S)
        return self._printed()

    def _read(self, printed: BinaryIO) -> None:
        with printed:
            for line in printed:
                self.lines.put(line.decode(errors="replace").rstrip("\n"))
