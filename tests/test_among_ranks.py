"""A run under ``accelerate launch`` and ``torchrun``: the first rank drives, all of them train."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from small import small_recipe

import selfreward
from selfreward.runs.run import Run

# Each starts several processes that import torch, on however few cores.
pytestmark = pytest.mark.cluster

CONFIG = "configs/accelerate/cpu_2_processes.yaml"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIG, "--main_process_port", "0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_random_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", "tests")
    dpo = {"max_steps": 2, "per_device_train_batch_size": 4}
    engine = {"name": "scripts:Numbers"}
    return small_recipe(tmp_path, 8, dpo, tiny_random_model, iterations=2, engine=engine)


def launched(launcher: list[str], path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "-m", "selfreward", "run", str(path), *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def weights(run: Run, t: int) -> dict[str, object]:
    return load_file(f"{run.model_path(t)}/model.safetensors")


def test_the_ranks_of_accelerate_launch_train_what_the_loop_trains(recipe_file: Path) -> None:
    ended = launched(ACCELERATE, recipe_file, "engine.name=scripts:NoRank")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("run test") == 1
    ranks = Run.open(recipe_file.parent / "runs" / "test")
    options = ["name=loop", "launch.train=accelerate", f"launch.accelerate_config={CONFIG}"]
    loop = selfreward.run(selfreward.load_recipe(recipe_file, options))
    for t in (2, 3):
        ours, theirs = weights(ranks, t), weights(loop, t)
        assert all(ours[name].equal(theirs[name]) for name in ours)
    for stage in ("responses", "judgements", "pairs"):
        ours, theirs = ((run.stage(stage, 2).path / "records.jsonl").read_bytes() for run in (ranks, loop))
        assert ours == theirs


def test_an_error_of_a_rank_ends_all_and_is_told_first(recipe_file: Path) -> None:
    ended = launched(TORCHRUN, recipe_file, "training.dpo.optim=no_such_optimizer")
    assert ended.returncode == 1
    cause = ended.stderr[ended.stderr.index("Root Cause") :]
    assert "no_such_optimizer" in cause


def test_an_error_of_the_first_rank_is_told_as_the_cause(recipe_file: Path) -> None:
    ended = launched(TORCHRUN, recipe_file, "engine.name=scripts:Broken")
    assert ended.returncode == 1
    cause = ended.stderr[ended.stderr.index("Root Cause") :]
    assert "rank      : 0" in cause
    assert "the server is on fire" in cause


def test_settings_that_ranks_contradict_are_refused(recipe_file: Path) -> None:
    for option, words in {
        "launch.train=process": "launch.train is process, and this run was started as 2 ranks",
        "launch.launcher=slurm": "launch.launcher is slurm, and this run was started as 2 ranks",
        "launch.processes=2": "launch.processes is 2, and this run was started as 2 ranks",
        "training.dpo.per_device_train_batch_size=3": "2 processes",
    }.items():
        ended = launched(TORCHRUN, recipe_file, option)
        assert ended.returncode == 1
        assert words in " ".join(ended.stderr.split())


def test_sigterm_ends_every_rank_and_what_it_started(recipe_file: Path) -> None:
    options = ["engine.name=scripts:Slow", "responses.n=60", "engine.max_in_flight=1"]
    command = [*TORCHRUN, "-m", "selfreward", "run", str(recipe_file), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        journal = recipe_file.parent / "runs" / "test" / "iter_1" / "responses" / "journal.jsonl"
        while not journal.is_file() or journal.stat().st_size < 1000:
            time.sleep(0.05)
        found = psutil.Process(launcher.pid).children(recursive=True)
        assert len(found) >= 2
        os.kill(launcher.pid, signal.SIGTERM)
        assert launcher.stderr is not None
        said = launcher.stderr.read()
    assert "Go on with: selfreward resume" in said
    assert psutil.wait_procs(found, timeout=20)[1] == []
