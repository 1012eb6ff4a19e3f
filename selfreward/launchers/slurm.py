"""Job steps on all nodes of a SLURM allocation. The driver runs in the batch script, on the first of them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping

from selfreward.engines.remote import PipeChannel, WorkerChannel
from selfreward.launchers.base import ProcessJob, Training, TrainingJob, free_port, in_shell, worker_command
from selfreward.launchers.layout import GPUSlot
from selfreward.runtime.ranks import without_ranks

# The shell of each node puts its number in.
NODE = "${SLURM_NODEID}"


class SlurmLauncher:
    """Implements :class:`selfreward.launchers.base.Launcher` with ``srun``, whose standard streams are the link."""

    out_of_process = True
    lost = (0, 137)  # of srun, where a node failed, and where a task was killed

    def __init__(self) -> None:
        """Raises ValueError outside of an allocation."""
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        if nodes is None:
            raise ValueError(
                "launch.launcher is slurm, and this process has no allocation (SLURM_JOB_NODELIST is not set). "
                "Submit it: sbatch launch/slurm.sbatch RECIPE. Or write launch.launcher: local"
            )
        command = ["scontrol", "show", "hostnames", nodes]
        self.hosts = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        self.nodes = len(self.hosts)
        self.gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)

    def start_worker(self, name: str, slot: GPUSlot, stall_timeout: float, log: Callable[[str], None]) -> WorkerChannel:
        host = self.hosts[slot.node]
        step = _step(f"--nodelist={host}", "--nodes=1", "--ntasks=1")
        return PipeChannel(
            f"{name} on {host}", [*step, *worker_command(slot)], without_ranks(os.environ), stall_timeout, log
        )

    def start_training(self, training: Training, environment: Mapping[str, str]) -> TrainingJob:
        hosts = self.hosts[: training.nodes]
        # One rank that fails ends the step, and with it the others, which wait for it.
        step = _step(
            *(f"--nodelist={','.join(hosts)}", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}"),
            *("--ntasks-per-node=1", "--kill-on-bad-exit=1"),
        )
        command = in_shell(training.command(NODE, hosts[0], free_port()), NODE)
        return _StepJob([*step, *command], {**without_ranks(os.environ), **environment})


class _StepJob(ProcessJob):
    """A job step. ``srun`` hands SIGTERM on as SIGKILL, and its tasks would outlive a ``srun`` that is killed."""

    def kill(self) -> None:
        self._reaches(signal.SIGTERM)
        self._child.wait()


def _step(*options: str) -> list[str]:
    """A job step beside others, with all that the job has of its nodes: what is whose is decided here."""
    cpus = [f"--cpus-per-task={os.environ['SLURM_CPUS_ON_NODE']}"] if "SLURM_CPUS_ON_NODE" in os.environ else []
    return ["srun", "--overlap", "--mem=0", *cpus, *options]
