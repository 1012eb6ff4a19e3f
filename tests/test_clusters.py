"""The hosts and the clusters that other tests stand on are what they say."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import RayCluster, SlurmLauncher, ray_cluster, slurm, until
from hosts import Hosts, hosts

pytestmark = pytest.mark.cluster

REDUCE = """
import socket, torch, torch.distributed as d
d.init_process_group("gloo")
x = torch.full((1_000_000,), float(d.get_rank() + 1))
d.all_reduce(x)
print(socket.gethostname(), x.unique().tolist())
d.destroy_process_group()
"""
# A program whose cluster of hosts outlives it unless somebody cleans up.
ABANDON = """
import sys, time
from pathlib import Path
from hosts import hosts
with hosts(Path(sys.argv[1])) as made:
    process = made.start("n1", ["sleep", "600"], start_new_session=True)
    print(made.label, process.pid, flush=True)
    time.sleep(600)
"""
ACTOR = """
import asyncio, os, sys, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=1)
class Host:
    async def name(self):
        return os.uname().nodename
    async def hang(self):
        await asyncio.sleep(600)

ray.init(logging_level="error", log_to_driver=False)
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
where = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
actors = [Host.options(scheduling_strategy=strategy).remote() for strategy in where]
print(*sorted(ray.get([actor.name.remote() for actor in actors])), flush=True)
if "lose" in sys.argv:
    ended, _ = ray.wait([actor.hang.remote() for actor in actors], timeout=60)
    try:
        ray.get(ended)
    except ray.exceptions.RayActorError:
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            time.sleep(0.1)
        print("one is left", flush=True)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLauncher]:
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster


def test_two_hosts_sum_over_the_network(pair: Hosts) -> None:
    cable = Path("/sys/class/net") / f"{pair.label}-0" / "statistics" / "rx_bytes"
    before = int(cable.read_text())
    ranks = []
    for rank, name in enumerate(pair.names):
        env = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
        command = [sys.executable, "-c", REDUCE]
        ranks.append(pair.start(name, command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    printed = [rank.communicate(timeout=120) for rank in ranks]
    assert [output.strip() for output, _ in printed] == ["n1 [3.0]", "n2 [3.0]"], printed
    assert int(cable.read_text()) - before > 4_000_000  # 1,000,000 numbers of 4 bytes


def test_a_host_is_killed_with_all_that_runs_on_it(pair: Hosts) -> None:
    shell = ["sh", "-c", "setsid sleep 600 & sleep 600"]
    first, second = (pair.start(name, shell) for name in pair.names)
    until(lambda: len(pair.pids("n1")) == len(pair.pids("n2")) == 3, 10, lambda: str(pair.pids("n1")))
    pair.kill("n1")
    assert first.wait(10) == -signal.SIGKILL
    assert not pair.pids("n1")
    assert len(pair.pids("n2")) == 3
    assert second.poll() is None


def test_an_unplugged_host_is_reached_by_nobody(pair: Hosts) -> None:
    reach = ["bash", "-c", f"exec 3<>/dev/tcp/{pair.address('n2')}/9"]  # refused where there is a way
    ask = ["timeout", "1", *reach]
    assert pair.start("n1", ask, stderr=subprocess.DEVNULL).wait(10) == 1
    pair.unplug("n2")
    assert pair.start("n1", ask, stderr=subprocess.DEVNULL).wait(10) == 124
    pair.plug_in("n2")
    until(lambda: pair.start("n1", ask, stderr=subprocess.DEVNULL).wait(10) == 1, 30, lambda: "still no way")


def test_nothing_is_left_of_a_test_that_was_killed(pair: Hosts, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", ABANDON, str(tmp_path / "hosts")]
    test = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert test.stdout
    label, pid = test.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()
    test.kill()
    test.communicate()

    def left() -> list[Path]:
        network = [Path("/run/netns") / f"{label}-{number}" for number in range(2)]
        network += [Path("/sys/class/net") / name for name in (label, f"{label}-0", f"{label}-1")]
        return [path for path in [Path("/proc") / pid, Path("/tmp") / label, *network] if os.path.lexists(path)]

    until(lambda: not left(), 10, lambda: str(left()))


def test_a_slurm_job_runs_on_both_nodes(two_nodes: SlurmLauncher, tmp_path: Path) -> None:
    step = "srun --overlap --nodes=2 --ntasks-per-node=1 sh -c 'echo \"$SLURM_NODEID $(hostname) $SEEN\"'"
    output = f"--output={tmp_path / 'job.txt'}"
    job = two_nodes.sbatch("--nodes=2", output, "--wrap", step, env={"SEEN": "here"})
    two_nodes.wait(job, "COMPLETED")
    assert sorted(two_nodes.output(job).splitlines()) == ["0 n1 here", "1 n2 here"]


def test_a_slurm_job_is_signalled_and_requeues_itself(two_nodes: SlurmLauncher, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        """#!/usr/bin/env bash
        echo "start ${SLURM_RESTART_COUNT:-0}"
        [[ -n ${SLURM_RESTART_COUNT:-} ]] && exit 0
        trap 'trap "" TERM; echo asked; scontrol requeue "$SLURM_JOB_ID"' TERM
        sleep 600 & wait
        """
    )
    job = two_nodes.sbatch("--nodes=2", f"--output={tmp_path / 'job.txt'}", "--open-mode=append", str(script))
    until(lambda: "start 0" in two_nodes.output(job), 30, lambda: two_nodes.state(job))
    # After the trap is set: the next command is the shell's child.
    time.sleep(0.5)
    two_nodes.command("scancel", "--signal=TERM", "--batch", job)
    two_nodes.wait(job, "PENDING")
    two_nodes.wait(job, "COMPLETED")
    kept = [line for line in two_nodes.output(job).splitlines() if line.split()[0] in ("start", "asked")]
    assert kept == ["start 0", "asked", "start 1"]
    assert two_nodes.show(job)["Restarts"] == "1"


def test_ray_has_two_nodes_and_sees_one_die(ray_nodes: RayCluster) -> None:
    driver = ray_nodes.start([sys.executable, "-c", ACTOR, "lose"], stdout=subprocess.PIPE)
    assert driver.stdout.readline().split() == ["n1", "n2"]
    ray_nodes.kill("n2")
    killed = time.monotonic()
    output, _ = driver.communicate(timeout=60)
    # Ray itself reports the death in between.
    assert "one is left\n" in output
    assert time.monotonic() - killed < 10
    assert ray_nodes.boot("n2").wait(60) == 0
    assert ray_nodes.run([sys.executable, "-c", ACTOR]).split() == ["n1", "n2"]
