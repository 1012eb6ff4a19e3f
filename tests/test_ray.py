"""A run on a real Ray cluster of two nodes: the records of one process, whatever dies on the way; and no orphan."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import small
from clusters import RayCluster, ray_cluster
from small import STAGES, digests, num_lines, small_recipe
from test_quickstart import SMALL, UNEVALUATED
from trainings import logged, resumed_from

import scripts
import selfreward
from selfreward.engines.remote import RemoteEngine
from selfreward.errors import EngineDied, NodeLost
from selfreward.launchers.base import Training, wait
from selfreward.launchers.layout import GPUSlot
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime.whole_folder import marked

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM = 23  # prompts: two replicas can't share them evenly
MARK = "SELFREWARD_TEST"  # a variable by which the processes of a test are known, on all nodes
LIMIT = 60.0  # seconds in which everything of a run must have ended


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("cluster"), cpus=1) as made:
        yield made


@pytest.fixture
def second_node(cluster: RayCluster) -> Iterator[RayCluster]:
    """The cluster, whose second node is there again afterwards."""
    yield cluster
    cluster.kill("n2")
    cluster.hosts.plug_in("n2")
    assert cluster.boot("n2").wait(LIMIT) == 0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = {"name": "test_ray:Slow", "max_in_flight": 2}
    dpo = {"max_steps": 2, "per_device_train_batch_size": 2}
    folder = tmp_path_factory.mktemp("recipe")
    return small_recipe(folder, NUM, dpo, engine=engine, launch={"launcher": "ray"})


@pytest.fixture(scope="module")
def inline(recipe: Path) -> dict[str, str]:
    return digests(small.inline(recipe))


def left(mark: str) -> list[psutil.Process]:
    """The processes of a test, on all nodes."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def seconds_until(done: Callable[[], object], process: subprocess.Popen[str] | None = None) -> float:
    begun = time.monotonic()
    while not done():
        assert process is None or process.poll() is None, "the run ended before"
        assert time.monotonic() - begun < 240
        time.sleep(0.05)
    return time.monotonic() - begun


def folder(recipe: Path, name: str) -> Path:
    return recipe.parent / "runs" / name / "iter_1"


def checkpoints(recipe: Path, name: str) -> list[Path]:
    """Those that are whole."""
    return [path for path in (folder(recipe, name) / "train" / "checkpoints").glob("checkpoint-*") if marked(path)]


def start(cluster: RayCluster, name: str, *arguments: str) -> subprocess.Popen[str]:
    """A run of this name, driven from the head node."""
    command = [sys.executable, "-m", "selfreward", "run", *arguments, f"name={name}"]
    with messages(cluster, name).open("w") as file:
        options = {"stdout": subprocess.DEVNULL, "stderr": file}
        process: subprocess.Popen[str] = cluster.start(command, {"PYTHONPATH": "tests", MARK: name}, **options)
    return process


def messages(cluster: RayCluster, name: str) -> Path:
    return cluster.hosts.folder / f"{name}.err"


def said(cluster: RayCluster, name: str) -> str:
    """The messages of a run, without its line breaks."""
    return " ".join(messages(cluster, name).read_text().split())


def finished(cluster: RayCluster, process: subprocess.Popen[str], folder: Path, name: str) -> Run:
    assert process.wait() == 0, messages(cluster, name).read_text()
    assert left(name) == []
    return Run.open(folder / "runs" / name)


def test_the_records_of_one_process(cluster: RayCluster, recipe: Path, inline: dict[str, str]) -> None:
    run = finished(cluster, start(cluster, "ray", str(recipe)), recipe.parent, "ray")
    assert digests(run) == inline
    print(f"\nsha256 of {', '.join(STAGES)}: 4 of 4 equal to inline")
    assert run.stage("train", 1).summary["steps"] == 2
    # Only the first rank speaks, on whichever node it is.
    assert re.search(r"\[10[.\d]+\] \[rank 0\]", said(cluster, "ray"))
    logs = "".join(path.read_text() for path in (run.path / "logs").glob("replica-*"))
    assert set(re.findall(r"FROM (\w+)", logs)) == {"n1", "n2"}


def test_the_quick_start_with_two_replicas_of_the_real_engine(cluster: RayCluster, tmp_path: Path) -> None:
    options = [f"run_dir={tmp_path}/runs", "launch.train=process", *SMALL[1:6], "iterations=1", *UNEVALUATED]
    found = []
    for name, launcher in (("inline", "inline"), ("replicas", "ray")):
        arguments = ["recipes/quickstart/run.yaml", f"launch.launcher={launcher}", *options]
        found.append(finished(cluster, start(cluster, name, *arguments), tmp_path, name))
    ours, theirs = map(digests, found)
    assert ours == theirs
    num = found[1].stage("responses", 1).summary["responses"]
    print(f"\nvLLM on two nodes, {num} responses: 4 of 4 sha256 equal to inline")


@pytest.mark.parametrize("how", ["kill", "unplug"])
def test_a_lost_node_costs_no_record(second_node: RayCluster, recipe: Path, inline: dict[str, str], how: str) -> None:
    process = start(second_node, how, str(recipe), "training.dpo.max_steps=1")
    journal = folder(recipe, how) / "responses" / "journal.jsonl"
    seconds_until(lambda: num_lines(journal) > 9, process)
    before, begun = num_lines(journal), time.monotonic()
    lose(second_node, how)
    assert process.wait() == 0, messages(second_node, how).read_text()
    run = Run.open(recipe.parent / "runs" / how)
    assert digests(run) == inline
    assert re.search("(its node has died|it can't be reached); starting it again", said(second_node, how))
    took = time.monotonic() - begun
    print(f"\n{how} at {before} of {NUM * 3} responses: 4 of 4 sha256 equal to inline, done {took:.0f} s later")


@pytest.mark.parametrize("how", ["kill", "unplug"])
def test_a_training_goes_on_without_a_lost_node(
    second_node: RayCluster, recipe: Path, inline: dict[str, str], how: str
) -> None:
    name, settings = f"train-{how}", ("max_steps=60", "save_steps=5", "logging_steps=1")
    process = start(second_node, name, str(recipe), *(f"training.dpo.{each}" for each in settings))
    seconds_until(lambda: checkpoints(recipe, name), process)
    first = [each for each in left(name) if each.pid in second_node.hosts.pids("n1") and "stage" in each.cmdline()]
    begun = time.monotonic()
    lose(second_node, how)
    seconds_until(lambda: "going on from" in said(second_node, name), process)
    # torchrun and its rank, which would wait for the lost one.
    assert len(first) == 2
    assert psutil.wait_procs(first, timeout=5)[1] == []
    assert process.wait() == 0, messages(second_node, name).read_text()
    run = Run.open(recipe.parent / "runs" / name)
    assert digests(run) == inline
    assert sorted(logged(run, "loss")) == list(range(1, 61))
    [step] = resumed_from(run)
    assert 5 <= step < 60
    assert "its node has died; going on from the last checkpoint" in said(second_node, name)
    print(f"\n{how}: went on from step {step} on one node, done {time.monotonic() - begun:.0f} s later")


@pytest.mark.parametrize("stage", ["responses", "train"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_nothing_outlives_the_driver(cluster: RayCluster, recipe: Path, stage: str, number: int, status: int) -> None:
    name = f"{stage}-{number}"
    process = start(cluster, name, str(recipe), "training.dpo.max_steps=400", "training.dpo.save_steps=5")
    journal = folder(recipe, name) / "responses" / "journal.jsonl"
    seconds_until(lambda: checkpoints(recipe, name) if stage == "train" else num_lines(journal) > 9, process)
    assert len(left(name)) > 2
    process.send_signal(number)
    begun = time.monotonic()
    assert process.wait() == status, messages(cluster, name).read_text()
    ended = time.monotonic() - begun
    seconds_until(lambda: not left(name))
    took = time.monotonic() - begun
    assert took < LIMIT
    print(
        f"\n{signal.Signals(number).name} in {stage}: exit {status} after {ended:.1f} s, no process after {took:.1f} s"
    )


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """One node of which Ray believes that it has two GPUs, and this process as its driver."""
    ray = pytest.importorskip("ray")
    options = {"include_dashboard": False, "object_store_memory": 80 << 20, "log_to_driver": False}
    with pytest.MonkeyPatch.context() as patch:
        # It would leave a token in the home folder.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=1, num_gpus=2, **options)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("two_gpus")
def test_whose_gpu_is_whose(recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from selfreward.launchers.ray import cluster as rays
    from selfreward.launchers.ray.launcher import RayLauncher

    monkeypatch.setenv("PYTHONPATH", "tests")
    monkeypatch.setattr(rays, "ROOM_TIMEOUT_S", 3.0)
    settings = selfreward.load_recipe(recipe)
    cluster = RayLauncher(settings)
    assert (cluster.nodes, cluster.gpus) == (1, 2)
    printed: list[str] = []

    def replica(number: int) -> RemoteEngine:
        channel = cluster.start_worker(f"replica {number}", GPUSlot(0, (number,)), 60.0, printed.append)
        return RemoteEngine(channel, "model", settings.model, settings.engine)

    engines = [replica(0), replica(1)]
    with pytest.raises(EngineDied, match=r"replica 2 found no room .* within 3 s: it needs 1 free GPUs on one node"):
        replica(2)
    seconds_until(lambda: len(printed) == 2)
    assert {line.split("GPUs ")[1] for line in printed} == {"0", "1"}
    show = Shown("import os; print('GPUs', os.environ['CUDA_VISIBLE_DEVICES'])")
    # Engines that sleep while it trains keep theirs, as Ray sees it.
    sharing = RayLauncher(selfreward.load_recipe(recipe, ["launch.keep_engine=true"]))
    assert wait(sharing.start_training(show, {})) == 0
    assert "GPUs 0,1" in capfd.readouterr().err
    for engine in engines:
        engine.close()
    assert wait(cluster.start_training(show, {})) == 0
    assert "GPUs 0,1" in capfd.readouterr().err


@pytest.mark.usefixtures("two_gpus")
def test_how_a_training_ends(recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from selfreward.launchers.ray import training_job
    from selfreward.launchers.ray.launcher import RayLauncher

    monkeypatch.setattr(training_job, "NODE_DEATH_TIMEOUT_S", 1.0)
    cluster = RayLauncher(selfreward.load_recipe(recipe))
    assert wait(cluster.start_training(Shown("print('last words'); raise SystemExit(7)"), {})) == 7
    assert "last words" in capfd.readouterr().err
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('begun', flush=True); time.sleep(600)"
    job = cluster.start_training(Shown(deaf), {MARK: "deaf"})
    seconds_until(lambda: job.poll() is not None or "begun" in capfd.readouterr().err)
    job.kill()
    seconds_until(lambda: not left("deaf"))
    job = cluster.start_training(Shown("import time; time.sleep(600)"), {MARK: "host"})
    children = left("host")
    [host] = [each for each in psutil.process_iter() if each.name().startswith("ray::Training")]
    host.kill()
    with pytest.raises(NodeLost, match=r"the training lost node [\d.]+: its worker process has died"):
        seconds_until(lambda: job.poll() is not None)
    job.kill()
    assert children
    seconds_until(lambda: not left("host"))


class Shown(Training):
    """A program in the place of a training."""

    def __init__(self, program: str) -> None:
        super().__init__(Path(), Step("train", 1), 1, 1, None, Path())
        object.__setattr__(self, "program", program)

    def command(self, rank: str = "0", address: str = "", port: int = 0) -> list[str]:
        return [sys.executable, "-c", self.program]


def lose(cluster: RayCluster, how: str) -> None:
    """Kills the second node whole, or cuts its cable."""
    (cluster.kill if how == "kill" else cluster.hosts.unplug)("n2")


class Slow(scripts.Slow):
    """As ``scripts.Slow``, and tells where it is."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        print(f"FROM {os.uname().nodename}, GPUs {os.environ.get('CUDA_VISIBLE_DEVICES')}", file=sys.stderr, flush=True)
