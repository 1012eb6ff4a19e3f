"""A SLURM and a Ray cluster of several hosts, all on this machine, each gone without a trace when its block ends."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hosts import LIMIT, Hosts, hosts, require

CONTROL = "control"  # the host of SLURM's own daemons

SLURM_CONF = """
ClusterName=test
SlurmctldHost=control({control})
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5 # the least; a requeued job waits for so many seconds
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
JobRequeue=1
KillWait=5
MessageTimeout=5
SlurmdTimeout=5
ReturnToService=2
SlurmdParameters=config_overrides
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Of sockets, cores and memory the machine has less than its nodes say: nothing here is bound to any.
NODE = "NodeName={name} NodeAddr={address} CPUs={cpus} CoresPerSocket={cpus} RealMemory=1000000 State=UNKNOWN"

# A dead node is seen within 2 s instead of 15, a cut cable within 5 s instead of 65.
RAY = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}
RAY_PORT = 6379


def until(condition: Callable[[], object], timeout: float, failure: Callable[[], str]) -> None:
    """Waits until something is so.

    Raises:
        TimeoutError: it is not so after ``timeout`` seconds, with what ``failure`` says.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout:g} s: {failure()}")
        time.sleep(0.02)


@dataclass
class SlurmLauncher:
    """A SLURM whose nodes are hosts. This process submits to it."""

    hosts: Hosts
    nodes: tuple[str, ...]
    environment: dict[str, str]

    def command(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        """What one of SLURM's commands prints."""
        environment = {**self.environment, **(env or {})}
        done = subprocess.run(command, check=False, env=environment, text=True, capture_output=True, timeout=LIMIT)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Submits a job, with the options, the script and its arguments as `sbatch` has them; returns its number."""
        return self.command("sbatch", "--parsable", *arguments, env=env).strip()

    def show(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, Restarts, NodeList, StdOut, ExitCode and more."""
        return dict(re.findall(r"(\w+)=(\S*)", self.command("scontrol", "show", "job", job)))

    def state(self, job: str) -> str:
        """Such as PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL."""
        return self.show(job)["JobState"]

    def wait(self, job: str, *states: str, timeout: float = LIMIT) -> str:
        """Waits until a job is in one of the states, and returns which.

        Raises:
            TimeoutError: with the state that it is in, and its output.
        """
        seen = ""

        def arrived() -> bool:
            nonlocal seen
            seen = self.state(job)
            return seen in states

        until(arrived, timeout, lambda: f"job {job} is {seen} and not {' or '.join(states)}:\n{self.output(job)}")
        return seen

    def output(self, job: str) -> str:
        """What a job has printed so far."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text("utf-8", "replace") if path.is_file() else ""

    def boot(self, node: str) -> None:
        """Starts a node's daemon; also that of one that was killed."""
        self._daemon(node, "slurmd", "-D", "-N", node)

    def kill(self, node: str) -> None:
        """Kills a node with all that runs on it; SLURM says so after 10 to 25 s."""
        self.hosts.kill(node)

    def _daemon(self, host: str, *command: str) -> None:
        with (self.hosts.folder / "daemons.log").open("a") as log:
            self.hosts.start(host, command, self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def idle(self) -> bool:
        """Whether all nodes are up and without jobs."""
        command = ["sinfo", "-h", "-o", "%D %t"]  # fails until slurmctld listens
        done = subprocess.run(command, check=False, env=self.environment, text=True, capture_output=True)
        return done.stdout.strip() == f"{len(self.nodes)} idle"

    def _log(self) -> str:
        return (self.hosts.folder / "daemons.log").read_text("utf-8", "replace")[-3000:]


@contextmanager
def slurm(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[SlurmLauncher]:
    """SLURM with nodes n1, n2 and so on, all idle."""
    require("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    with hosts(folder, (*names, CONTROL)) as made:
        short = made.folder
        for name in ("state", *(f"spool-{name}" for name in names)):
            (short / name).mkdir(exist_ok=True)
        key = short / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        lines = "\n".join(NODE.format(name=name, address=made.address(name), cpus=cpus) for name in names)
        conf = short / "slurm.conf"
        conf.write_text(SLURM_CONF.format(control=made.address(CONTROL), folder=short, nodes=lines))
        cluster = SlurmLauncher(made, names, {**os.environ, "SLURM_CONF": str(conf)})
        files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        # Force: it doubts a folder that others may write to, such as /tmp.
        cluster._daemon(CONTROL, "munged", "-F", "-f", *(f"--{key}={short / name}" for key, name in files.items()))
        until((short / "munge.socket").is_socket, LIMIT, cluster._log)
        cluster._daemon(CONTROL, "slurmctld", "-D")
        for name in names:
            cluster.boot(name)
        until(cluster.idle, LIMIT, cluster._log)
        yield cluster


@dataclass
class RayCluster:
    """Ray on hosts, the first of which is the head. A driver has to run on one of them."""

    hosts: Hosts
    nodes: tuple[str, ...]
    cpus: int

    @property
    def address(self) -> str:
        return f"{self.hosts.address(self.nodes[0])}:{RAY_PORT}"

    def start(self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any) -> Any:
        """A driver on the head: ``ray.init()`` finds the cluster by RAY_ADDRESS."""
        return self.hosts.start(self.nodes[0], command, self._environment(env), **options)

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = LIMIT) -> str:
        """What a driver on the head prints."""
        return self.hosts.run(self.nodes[0], command, self._environment(env), timeout)

    def boot(self, node: str) -> subprocess.Popen[str]:
        """Starts a node, the head or one that joins it; also one that was killed."""
        if node == self.nodes[0]:
            where = ["--head", f"--port={RAY_PORT}", f"--temp-dir={self.hosts.folder / 'ray'}"]
            # Neither autoscaler nor dashboard: each would import Ray anew.
            where += ["--no-monitor", "--include-dashboard=false"]
        else:
            where = [f"--address={self.address}"]
        where += [f"--node-ip-address={self.hosts.address(node)}"]
        sizes = [f"--num-cpus={self.cpus}", "--num-gpus=0", f"--object-store-memory={80 << 20}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *sizes]
        with (self.hosts.folder / f"ray-{node}.log").open("w") as log:
            return self.hosts.start(node, command, RAY, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, node: str) -> None:
        """Kills a node with all that runs on it; Ray says so within 2 s."""
        self.hosts.kill(node)

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {**RAY, "RAY_ADDRESS": self.address, **(env or {})}

    def _head_is_up(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((self.hosts.address(self.nodes[0]), RAY_PORT)) == 0

    def _log(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace")[-2000:] for path in self.hosts.folder.glob("ray-*.log"))


@contextmanager
def ray_cluster(folder: Path, nodes: int = 2, cpus: int = 4) -> Iterator[RayCluster]:
    """Ray on hosts n1, n2 and so on, all alive; n1 is the head."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("not installed: ray (make install)")
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    with hosts(folder, names) as made:
        cluster = RayCluster(made, names, cpus)
        starting = [cluster.boot(names[0])]
        # The others import Ray while the head starts the rest of itself.
        until(lambda: cluster._head_is_up() or starting[0].poll(), LIMIT, cluster._log)
        starting += [cluster.boot(name) for name in names[1:]]
        for process in starting:
            assert process.wait(LIMIT) == 0, cluster._log()
        yield cluster
