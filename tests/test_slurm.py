"""Runs on a real SLURM of two nodes, through launch/slurm.sbatch, and on two hosts without a scheduler."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small
from clusters import SlurmLauncher, slurm, until
from hosts import Hosts, hosts
from small import digests, num_lines, small_recipe
from test_quickstart import SMALL, UNEVALUATED
from trainings import logged, resumed_from

import selfreward
from selfreward.runs.run import Run
from selfreward.runtime.whole_folder import marked

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLauncher]:
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dpo = {"max_steps": 40, "save_steps": 5, "logging_steps": 1, "learning_rate": 1e-4}
    # 28 pairs are whole batches, so that two ranks see in a step what one sees.
    return small_recipe(tmp_path_factory.mktemp("recipe"), 28, {**dpo, "per_device_train_batch_size": 4})


@pytest.fixture(scope="module")
def inline(recipe: Path) -> Run:
    return small.inline(recipe)


def submit(cluster: SlurmLauncher, log: Path, recipe: str | Path, *overrides: str) -> str:
    options = [
        "--nodes=2",
        "--gpus-per-node=0",
        "--cpus-per-task=2",
        "--mem=1000",
        f"--output={log}",
        f"--chdir={ROOT}",
    ]
    environment = {**ENVIRONMENT, "PATH": ENVIRONMENT["PATH"] + os.environ["PATH"]}
    return cluster.sbatch(*options, f"--chdir={ROOT}", "launch/slurm.sbatch", str(recipe), *overrides, env=environment)


def wait_for(cluster: SlurmLauncher, job: str, done: Callable[[], object]) -> None:
    until(done, 240, lambda: f"{cluster.state(job)}\n{cluster.output(job)}")


def finished(cluster: SlurmLauncher, job: str, folder: Path) -> Run:
    assert cluster.wait(job, "COMPLETED", "FAILED", timeout=400) == "COMPLETED", cluster.output(job)
    return Run.open(folder)


def test_the_quick_start_is_preempted_once_and_ends_with_the_records_of_one_process(
    cluster: SlurmLauncher, tmp_path: Path
) -> None:
    options = [f"run_dir={tmp_path}", "launch.train=process", *SMALL[1:6], "iterations=1", *UNEVALUATED]
    quickstart = ROOT / "recipes" / "quickstart" / "run.yaml"
    inline = selfreward.run(selfreward.load_recipe(quickstart, ["name=inline", "launch.launcher=inline", *options]))
    job = submit(cluster, tmp_path / "job.log", quickstart, "name=slurm", *options)
    journal = tmp_path / "slurm" / "iter_1" / "responses" / "journal.jsonl"
    wait_for(cluster, job, lambda: num_lines(journal) > 9)
    before = num_lines(journal)
    cluster.command("scancel", "--signal=TERM", "--batch", job)
    run = finished(cluster, job, tmp_path / "slurm")
    assert cluster.show(job)["Restarts"] == "1"
    assert "Go on with: selfreward resume" in cluster.output(job)
    assert digests(run) == digests(inline)
    num = run.stage("responses", 1).summary["responses"]
    print(f"\nvLLM on two nodes, pre-empted at {before} of {num} responses: 4 of 4 sha256 equal to inline")


def test_a_training_on_two_nodes_is_preempted_and_goes_on_from_its_checkpoint(
    cluster: SlurmLauncher, recipe: Path, inline: Run, tmp_path: Path
) -> None:
    job = submit(cluster, tmp_path / "job.log", recipe, "name=preempted")
    checkpoints = recipe.parent / "runs" / "preempted" / "iter_1" / "train" / "checkpoints"
    wait_for(cluster, job, lambda: any(marked(path) for path in checkpoints.glob("checkpoint-*")))
    cluster.command("scancel", "--signal=TERM", "--batch", job)
    run = finished(cluster, job, recipe.parent / "runs" / "preempted")
    assert cluster.show(job)["Restarts"] == "1"
    assert digests(run) == digests(inline)
    assert "[rank 0] iteration 1: train" in cluster.output(job)
    [step] = resumed_from(run)
    assert 5 <= step < 40
    ours, theirs = logged(run, "loss"), logged(inline, "loss")
    assert sorted(ours) == sorted(theirs) == list(range(1, 41))
    difference = max(abs(ours[n] - theirs[n]) for n in ours)
    assert difference < 1e-4
    said = [path.read_text() for path in (run.path / "logs" / "iter_1-train").rglob("stderr.log")]
    assert len(said) == 4  # of two ranks, before and after
    assert sum("iteration 1: train" in text for text in said) == 2
    print(f"\ntwo ranks on two nodes, stopped at step {step}: the loss of one rank to {difference:.1g}")


def test_a_node_that_dies_brings_the_job_back(
    cluster: SlurmLauncher, recipe: Path, inline: Run, tmp_path: Path
) -> None:
    job = submit(cluster, tmp_path / "job.log", recipe, "name=lost", "training.dpo.max_steps=1")
    journal = recipe.parent / "runs" / "lost" / "iter_1" / "responses" / "journal.jsonl"
    wait_for(cluster, job, lambda: num_lines(journal) > 9)
    cluster.kill("n2")
    begun = time.monotonic()
    wait_for(cluster, job, lambda: cluster.state(job) == "PENDING")
    cluster.boot("n2")
    run = finished(cluster, job, recipe.parent / "runs" / "lost")
    assert digests(run) == digests(inline)
    print(f"\nnode lost: 4 of 4 sha256 equal to inline, done {time.monotonic() - begun:.0f} s later")


def test_a_cancelled_job_stays_so_and_the_next_goes_on(
    cluster: SlurmLauncher, recipe: Path, inline: Run, tmp_path: Path
) -> None:
    folder = recipe.parent / "runs" / "cancelled"
    arguments = (recipe, "name=cancelled", "training.dpo.max_steps=1")
    job = submit(cluster, tmp_path / "job.log", *arguments)
    journal = folder / "iter_1" / "responses" / "journal.jsonl"
    wait_for(cluster, job, lambda: num_lines(journal) > 9)
    cluster.command("scancel", job)
    wait_for(cluster, job, lambda: "Go on with: selfreward resume" in cluster.output(job))
    wait_for(cluster, job, cluster.idle)
    assert (cluster.state(job), cluster.show(job)["Restarts"]) == ("CANCELLED", "0")
    before = num_lines(journal)
    run = finished(cluster, submit(cluster, tmp_path / "next.log", *arguments), folder)
    assert digests(run) == digests(inline)
    print(f"\ncancelled at {before} responses: not requeued; the next job ended with 4 of 4 sha256 equal to inline")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Hosts]:
    with hosts(tmp_path / "hosts") as made:
        yield made


def test_torchrun_on_two_hosts(pair: Hosts, recipe: Path, inline: Run) -> None:
    environment = {**ENVIRONMENT, "PATH": ENVIRONMENT["PATH"] + os.environ["PATH"], "NNODES": "2", "PROCESSES": "1"}
    command = [str(ROOT / "launch" / "torchrun.sh"), str(recipe), "name=hosts", "engine.name=scripts:NoRank"]
    ranks = []
    for rank, name in enumerate(pair.names):
        env = {**environment, "MASTER_ADDR": pair.address("n1"), "NODE_RANK": str(rank)}
        ranks.append(pair.start(name, command, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT))
    printed = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)
    run = Run.open(recipe.parent / "runs" / "hosts")
    assert digests(run) == digests(inline)
    ours, theirs = logged(run, "loss"), logged(inline, "loss")
    difference = max(abs(ours[n] - theirs[n]) for n in theirs)
    assert difference < 1e-4
    print(f"\ntwo ranks on two hosts: the loss of one rank to {difference:.1g}")
