"""A training that was stopped or killed ends with the bytes of one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import leave_disk, make_random_model
from trainings import killed, logged, make_run, result, resumed_from

from selfreward.errors import DiskFull, Stopped
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime import shutdown
from selfreward.runtime.shutdown import Stop
from selfreward.runtime.whole_folder import mark, marked
from selfreward.training.dpo import train_iteration
from selfreward.training.sft import train_seed


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not been asked to stop yet, and hears SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(shutdown, "stop", Stop())
    shutdown.stop.listen(grace=60)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(run: Run, iteration: int) -> dict[str, Any]:
    return train_iteration(run, Step("train", iteration)) if iteration else train_seed(run)


def send(monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    """Sends this process a signal when a step of the trainer has been logged."""
    log = Run.log

    def then_signal(run: Run, metrics: dict[str, Any]) -> None:
        log(run, metrics)
        if metrics.get("step") == step and "loss" in metrics:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "log", then_signal)


def stop_in(monkeypatch: pytest.MonkeyPatch, run: Run, iteration: int, step: int) -> None:
    """Trains until SIGTERM arrives in a step, and is heard at its end."""
    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "stop", Stop())
        shutdown.stop.listen(grace=60)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        send(patch, signal.SIGTERM, step - 1)
        with pytest.raises(Stopped, match=f"stopped as asked in step {step} of 6"):
            train(run, iteration)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_random_model: Path) -> Run:
    run = make_run(tmp_path_factory.mktemp("undisturbed"), tiny_random_model)
    train_iteration(run, Step("train", 1))
    assert list(logged(run, "loss")) == [1, 2, 3, 4, 5, 6]
    return run


def assert_equal(run: Run, undisturbed: Run, iteration: int = 1) -> None:
    assert result(run, iteration) == result(undisturbed, iteration)
    for figure in ("loss", "learning_rate", "grad_norm", "rewards/margins"):
        assert logged(run, figure) == logged(undisturbed, figure)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.usefixtures("listening")
def test_a_stop_in_any_step_changes_no_byte(tmp_path, tiny_random_model, undisturbed, monkeypatch, step) -> None:
    run = make_run(tmp_path, tiny_random_model, dpo={"save_steps": 100})
    stop_in(monkeypatch, run, 1, step)
    assert not run.stage("model", 1).path.exists()
    summary = train_iteration(run, Step("train", 1))
    assert resumed_from(run) == [step]
    assert summary["steps"] == 6
    assert_equal(run, undisturbed)


@pytest.mark.usefixtures("listening")
def test_a_stop_in_the_last_step_comes_after_the_training(tmp_path, tiny_random_model, undisturbed, monkeypatch):
    run = make_run(tmp_path, tiny_random_model)
    send(monkeypatch, signal.SIGTERM, step=5)
    train_iteration(run, Step("train", 1))
    assert shutdown.stop.requested
    assert_equal(run, undisturbed)


OTHER_SETTINGS = {
    "bfloat16": {"dtype": "bfloat16"},
    "reference log-probabilities computed first": {"dpo": {"precompute_ref_log_probs": True}},
    "the trainer's defaults": {"dpo": {"gradient_checkpointing": True}},
    "accumulated gradients": {"dpo": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}},
    "an end inside an epoch": {"dpo": {"max_steps": 5}},
}


@pytest.mark.parametrize("settings", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_a_kill_changes_no_byte(tmp_path, tiny_random_model, monkeypatch, settings) -> None:
    undisturbed = make_run(tmp_path / "undisturbed", tiny_random_model, **settings)
    train_iteration(undisturbed, Step("train", 1))
    run = make_run(tmp_path / "killed", tiny_random_model, **settings)
    with monkeypatch.context() as patch:
        send(patch, signal.SIGKILL, step=5)
        killed(lambda: train_iteration(run, Step("train", 1)))
    train_iteration(run, Step("train", 1))
    assert resumed_from(run) == [4]
    assert_equal(run, undisturbed)


# What a training calls on its way to the disk, and in which of the calls it is killed.
MOMENTS = [
    ("the optimizer of the third checkpoint is written", torch, "save", 10, 2),
    ("a checkpoint is whole and has no marker", "selfreward.runtime.whole_folder", "write_sealed", 2, 1),
    ("the checkpoint before it is removed", shutil, "rmtree", 2, 3),
    ("what was trained is whole and has no marker", "selfreward.runtime.whole_folder", "write_sealed", 6, 5),
    ("the last checkpoint is removed", shutil, "rmtree", 5, "merge"),
    ("the model gets its name", os, "replace", -1, "merge"),
    ("the adapter is copied", shutil, "copyfile", 1, "merge"),
]


@pytest.mark.parametrize(("_", "owner", "name", "call", "goes_on"), MOMENTS, ids=[moment[0] for moment in MOMENTS])
def test_a_kill_while_something_is_written(
    tmp_path, tiny_random_model, undisturbed, monkeypatch, _, owner, name, call, goes_on
) -> None:
    run = make_run(tmp_path, tiny_random_model)
    with monkeypatch.context() as patch:
        kill_in(patch, owner, name, call)
        killed(lambda: train_iteration(run, Step("train", 1)))
    before = len(logged(run, "loss"))
    train_iteration(run, Step("train", 1))
    if goes_on == "merge":
        assert resumed_from(run) == []
        assert before == 6
    else:
        assert resumed_from(run) == [goes_on]
    assert_equal(run, undisturbed)


def kill_in(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Kills this process in a call of a function, counted from 1; -1 is the one onto a model's name."""
    owner = __import__(owner, fromlist=["_"]) if isinstance(owner, str) else owner
    function, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call or (call == -1 and str(args[-1]).endswith("/model")):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    patch.setattr(owner, name, counted)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.usefixtures("listening")
def test_the_seed_stage_resumes_as_well(tmp_path, monkeypatch, tied) -> None:
    model = make_random_model(tmp_path / "model", seed=0, tied=tied)
    undisturbed = make_run(tmp_path / "undisturbed", model, "bfloat16", seeded=True)
    train_seed(undisturbed)
    run = make_run(tmp_path / "stopped", model, "bfloat16", seeded=True)
    stop_in(monkeypatch, run, 0, step=2)
    with monkeypatch.context() as patch:
        send(patch, signal.SIGKILL, step=5)
        killed(lambda: train_seed(run))
    summary = train_seed(run)
    assert resumed_from(run) == [2, 4]
    assert summary["examples"] == 9
    assert_equal(run, undisturbed, iteration=0)


def test_the_mean_loss_is_that_of_all_steps(tmp_path, tiny_random_model, undisturbed, monkeypatch) -> None:
    """Whatever is logged when, and however often the training was interrupted."""
    run = make_run(tmp_path, tiny_random_model, dpo={"logging_steps": 4, "save_steps": 3})
    with monkeypatch.context() as patch:
        send(patch, signal.SIGKILL, step=4)
        killed(lambda: train_iteration(run, Step("train", 1)))
    summary = train_iteration(run, Step("train", 1))
    assert summary["train_loss"] == pytest.approx(sum(logged(undisturbed, "loss").values()) / 6)
    assert list(logged(run, "loss")) == [3, 4, 6]


@pytest.mark.parametrize("shape", [{"ranks": 2, "kind": "DEEPSPEED"}, {"ranks": 1, "kind": "FSDP2 FULL_STATE_DICT"}])
def test_a_checkpoint_that_this_rank_can_not_read_is_not_taken(
    tmp_path, tiny_random_model, undisturbed, monkeypatch, capsys, shape
) -> None:
    run = make_run(tmp_path, tiny_random_model)
    with monkeypatch.context() as patch:
        send(patch, signal.SIGKILL, step=3)
        killed(lambda: train_iteration(run, Step("train", 1)))
    (checkpoint,) = (run.stage("train", 1).path / "checkpoints").glob("checkpoint-*")
    mark(checkpoint, {**marked(checkpoint), **shape})
    train_iteration(run, Step("train", 1))
    assert f"is of {shape['ranks']} x {shape['kind']}, and of no use to 1 x NO" in capsys.readouterr().err
    assert resumed_from(run) == []
    assert_equal(run, undisturbed)


STOPPED_ON_ONE_RANK = """
import os, sys
from pathlib import Path
from selfreward.runtime import shutdown
from selfreward.errors import Stopped
from selfreward.launchers.launch import leave_group
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.training.dpo import train_iteration

class InStep3(shutdown.Stop):
    steps = 0

    @property
    def requested(self):
        self.steps += 1
        return self.steps >= 3

undisturbed, run = map(Run.open, sys.argv[2:])
train_iteration(undisturbed, Step("train", 1))
before = shutdown.stop
if os.environ["RANK"] == "1":
    shutdown.stop = InStep3()
try:
    train_iteration(run, Step("train", 1))
except Stopped as error:
    (Path(sys.argv[1]) / os.environ["RANK"]).write_text(str(error))
shutdown.stop = before
train_iteration(run, Step("train", 1))
leave_group()
"""


@pytest.mark.cluster
def test_two_ranks_stop_in_the_same_step(tmp_path, tiny_random_model) -> None:
    six = {"dpo": {"per_device_train_batch_size": 6}}
    undisturbed, run = (make_run(tmp_path / name, tiny_random_model, **six) for name in ("undisturbed", "stopped"))
    (tmp_path / "script.py").write_text(STOPPED_ON_ONE_RANK)
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", "configs/accelerate/cpu_2_processes.yaml"]
    command = [*launch, *map(str, (tmp_path / "script.py", tmp_path, undisturbed.path, run.path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for rank in ("0", "1"):
        assert (tmp_path / rank).read_text() == "stopped as asked in step 3 of 4, and saved"
    assert resumed_from(run) == [3]
    assert_equal(run, undisturbed)


def test_what_is_left_holds_no_pickle_and_no_checkpoint(tmp_path, tiny_random_model) -> None:
    run = make_run(tmp_path, tiny_random_model, seeded=True, tracking={"report_to": ["tensorboard"]})
    for iteration in (0, 1):
        train(run, iteration)
        run.stage("train", iteration).sweep()
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert not [path for path in files if zipfile.is_zipfile(path) or path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not [path for path in files if "checkpoint" in str(path.relative_to(run.path))]
    assert {"adapter_config.json", "adapter_model.safetensors"} == names(run.stage("train", 1).path / "adapter")
    assert {"adapter", "probes.json"} == names(run.stage("train", 1).path)
    assert list((run.path / "tracking/iter_1/train").glob("events.out.tfevents.*"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_disk_too_small_for_a_checkpoint_stops_before_it_is_written(tmp_path, tiny_random_model, monkeypatch) -> None:
    run = make_run(tmp_path, tiny_random_model)
    leave_disk(monkeypatch, 100_000)
    with pytest.raises(
        DiskFull, match=r"a checkpoint needs about 0\.1 MiB, and .*/train has 0\.1 MiB left\. Make room"
    ):
        train_iteration(run, Step("train", 1))
    assert not list((run.stage("train", 1).path / "checkpoints").glob("checkpoint-*"))


def test_a_disk_too_small_for_the_model_costs_no_training(
    tmp_path, tiny_random_model, undisturbed, monkeypatch
) -> None:
    run = make_run(tmp_path, tiny_random_model)
    with monkeypatch.context() as patch:
        log = Run.log
        patch.setattr(
            Run, "log", lambda run, metrics: (log(run, metrics), "train_loss" in metrics and leave_disk(patch, 300_000))
        )
        with pytest.raises(DiskFull, match=r"the model of iteration 1 needs about 0\.4 MiB, and .* has 0\.3 MiB left"):
            train_iteration(run, Step("train", 1))
    assert not run.stage("model", 1).path.exists()
    before = (run.path / "metrics.jsonl").read_bytes()
    train_iteration(run, Step("train", 1))
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert_equal(run, undisturbed)
