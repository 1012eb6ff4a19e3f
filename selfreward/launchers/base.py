"""What a launcher does: it starts the processes that serve models, and those that train. No torch."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from selfreward.engines.remote import WorkerChannel
from selfreward.launchers.layout import GPUSlot
from selfreward.runs.stages import Step
from selfreward.runtime.ranks import has_agent
from selfreward.runtime.shutdown import end_with_parent, stop

POLL_S = 0.2  # seconds between two looks at the processes of a training


def end_with_agent() -> None:
    """Lets the kernel kill this process with the agent of torchrun that started it, if one did.

    An agent puts each rank in a session of its own: what kills the agent's process group leaves the ranks, which wait
    for each other for ever and keep their memory.
    """
    if has_agent():
        end_with_parent()


def worker_command(slot: GPUSlot) -> list[str]:
    """What serves an engine on a node."""
    return [sys.executable, "-m", "selfreward.engines.worker", *map(str, slot.devices)]


class TrainingJob(Protocol):
    """The processes of one training, on all nodes."""

    def poll(self) -> int | None:
        """The exit status, or None while any of them runs.

        Raises:
            NodeLost: a node of it is gone.
        """

    def kill(self) -> None:
        """Kills all of them, and returns once they have ended."""


class Launcher(Protocol):
    """``nodes`` and ``gpus`` (of each node) are what there is now.

    ``out_of_process``: engines have processes of their own.

    ``lost`` are the exit statuses by which a training without a result tells that a node of it is gone.
    """

    out_of_process: bool

    @property
    def lost(self) -> Sequence[int]: ...

    @property
    def nodes(self) -> int: ...

    @property
    def gpus(self) -> int: ...

    def start_worker(self, name: str, slot: GPUSlot, stall_timeout: float, log: Callable[[str], None]) -> WorkerChannel:
        """Starts a worker.

        Args:
            name: of the worker, for messages.
            slot: its node and GPUs.
            stall_timeout: seconds without a sign of life after which it is dead.
            log: takes each line that it prints.
        """

    def start_training(self, training: Training, environment: Mapping[str, str]) -> TrainingJob:
        """Starts a training on all nodes. Args: ``environment``: variables besides those of this process."""


@dataclass(frozen=True)
class Training:
    """A stage that trains, as the command of each node.

    ``config`` is a file of accelerate, ``processes`` how many train on each of the ``nodes``, ``logs`` the folder for
    a log of each process.
    """

    run: Path
    step: Step
    nodes: int
    processes: int
    config: Path | None
    logs: Path

    @property
    def stage(self) -> list[str]:
        """What each process runs."""
        return ["selfreward", "stage", self.step.stage, str(self.run), "--iteration", str(self.step.iteration)]

    @property
    def several(self) -> bool:
        return self.nodes * self.processes > 1

    def command(self, rank: str = "0", address: str = "127.0.0.1", port: int = 0) -> list[str]:
        """The command of one node.

        Args:
            rank: the node's number, or words that a shell makes the number of.
            address: of the first node, as the others reach it.
            port: a free one of the first node; 0 where there is no other node.
        """
        if not self.several and self.config is None:
            return [sys.executable, "-m", *self.stage]
        total = self.nodes * self.processes
        logs = ["--log_dir", str(self.logs), "--tee", "3"]
        if self.config is None:
            torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={self.nodes}", f"--node_rank={rank}"]
            meeting = [f"--nproc_per_node={self.processes}", f"--master_addr={address}", f"--master_port={port}"]
            if self.nodes == 1:
                meeting = [f"--nproc_per_node={self.processes}", "--standalone"]
            return [*torchrun, *meeting, *logs, "-m", *self.stage]
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(self.config)]
        machines = [f"--num_processes={total}", f"--num_machines={self.nodes}", f"--machine_rank={rank}"]
        meeting = [f"--main_process_ip={address}", f"--main_process_port={port}"]
        if self.nodes > 1:
            # DeepSpeed's own way would start every node from each of them, over SSH.
            meeting.append("--deepspeed_multinode_launcher=standard")
        return [*accelerate, *machines, *meeting, *logs, "-m", *self.stage]


def wait(job: TrainingJob) -> int | None:
    """The exit status once all processes have ended, or None if the grace period was over before; then none is left.

    The processes learn from the run's lock (:func:`selfreward.runtime.lock.watch_holder`) that they are to stop, on
    every node and within a second: torchrun kills its ranks 30 seconds after a signal, and srun at once.
    """
    try:
        while (status := job.poll()) is None and not stop.overdue:
            time.sleep(POLL_S)
        return status
    finally:
        job.kill()


# How each line of a training begins that several processes print.
LOG_PREFIX = {"TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] "}


class ProcessJob:
    """A training behind one child process, in a process group of its own."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], stdin: int | None = None, out: int = 2
    ) -> None:
        """Args:
        command: the child.
        environment: the child's.
        stdin: where it reads; None: where this process does.
        out: where it prints: to the messages (2), as standard output is the caller's.
        """
        variables = {**LOG_PREFIX, **environment}
        self._child = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=out, env=variables, process_group=0)

    def poll(self) -> int | None:
        status = self._child.poll()
        # A launcher that a job's SIGTERM has reached may end before those that it started.
        if status is not None and stop.requested and self._reaches(0):
            return None
        return status

    def kill(self) -> None:
        self._reaches(signal.SIGKILL)
        self._child.wait()

    def _reaches(self, number: int) -> bool:
        """Signals the group, and returns whether there is one."""
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return False
        return True


def free_port() -> int:
    """A port that nothing listens at on this machine."""
    with closing(socket.socket()) as taken:
        taken.bind(("", 0))
        return int(taken.getsockname()[1])


def in_shell(command: list[str], rank: str) -> list[str]:
    """A command whose node number the shell of each node puts in: ``rank`` are the words for it."""
    return ["sh", "-c", "exec " + " ".join(part if rank in part else shlex.quote(part) for part in command)]
