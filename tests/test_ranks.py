"""Several ranks train what one trains, and go on where others stopped."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import BatchSamplerShard
from conftest import make_random_model
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from trainings import logged, make_run, resumed_from
from trl import DPOConfig

import selfreward
from selfreward.errors import Stopped
from selfreward.launchers.batch import shared_batch
from selfreward.recipe.loader import RecipeError
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime.whole_folder import marked
from selfreward.training import dpo
from selfreward.training.common import arguments
from selfreward.training.dpo import train_iteration
from selfreward.training.sft import train_seed

CONFIGS = Path("configs/accelerate")
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))
# Nothing at random, and no incomplete batch: nine pairs make two steps of four an epoch.
OPTIONS = {"num_train_epochs": 3, "dataloader_drop_last": True}
# Two ranks share a batch of four pairs, and accumulate no more the examples, whose targets differ in length.
FOUR = {
    "lora": {"r": 4},
    "dpo": {"disable_dropout": True, "per_device_train_batch_size": 4, **OPTIONS},
    "sft": {"neftune_noise_alpha": None, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **OPTIONS},
}
BOUND = 1e-4
# Where requirements/cluster.sh puts it.
DEEPSPEED = Path(sys.prefix) / "deepspeed"
HAS_DEEPSPEED = DEEPSPEED.is_dir() or find_spec("deepspeed") is not None
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("per_device", "accumulation", "ranks", "shared"),
    [
        (16, 1, 1, (16, 1)),
        (4, 4, 1, (4, 4)),
        (4, 4, 2, (4, 2)),
        (4, 4, 4, (4, 1)),
        (4, 4, 8, (2, 1)),
        (1, 8, 2, (1, 4)),
        (6, 4, 8, (3, 1)),
        (6, 3, 2, (3, 3)),
        (5, 7, 7, (5, 1)),
    ],
)
def test_a_batch_is_shared(per_device: int, accumulation: int, ranks: int, shared: tuple[int, int]) -> None:
    options = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation, "beta": 0.1}
    assert tuple(shared_batch(options, ranks).values()) == shared


def test_the_papers_batch_is_shared_where_the_recipe_has_none() -> None:
    assert shared_batch({}, 8) == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize(
    ("options", "ranks", "words"),
    [
        ({}, 6, r"16 examples \(per_device_train_batch_size 16 x .* 1\), which 6 processes .* 1, 2, 4, 8 or 16 in all"),
        ({}, 6, "a batch of 12 or 18"),
        ({"per_device_train_batch_size": 1}, 2, "Start 1 in all, or write a batch of 2$"),
        ({"per_device_train_batch_size": 0}, 1, "per_device_train_batch_size is 0: write a whole number"),
        ({"gradient_accumulation_steps": 1.5}, 1, "gradient_accumulation_steps is 1.5"),
    ],
)
def test_a_batch_that_can_not_be_shared_is_refused(options: dict[str, Any], ranks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shared_batch(options, ranks)


def test_the_last_examples_are_shared_evenly_with_the_first_ones() -> None:
    """What :func:`shared_batch` says of accelerate: nine examples, two ranks with two each."""
    every = BatchSampler(range(9), batch_size=2, drop_last=False)
    shares = [list(BatchSamplerShard(every, num_processes=2, process_index=rank)) for rank in (0, 1)]
    assert shares == [[[0, 1], [4, 5], [8, 0]], [[2, 3], [6, 7], [1, 2]]]


def test_processes_that_train_the_same_examples_are_refused(tmp_path, tiny_random_model, monkeypatch) -> None:
    """What ``accelerate launch`` sets for a file with a parallelism_config."""
    run = make_run(tmp_path, tiny_random_model, **FOUR)
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    with pytest.raises(ValueError, match="a parallelism_config with cp_size 2"):
        train_iteration(run, Step("train", 1))


@pytest.mark.parametrize("option", ["auto_find_batch_size=true", "accelerator_config={split_batches: true}"])
def test_no_option_changes_the_batch(tmp_path: Path, tiny_random_model: Path, option: str) -> None:
    make_run(tmp_path, tiny_random_model)
    with pytest.raises(RecipeError, match=option.partition("=")[0]):
        selfreward.load_recipe(tmp_path / "run.yaml", [f"training.dpo.{option}"])


def test_a_reference_without_weights_is_refused(tmp_path: Path, tiny_random_model: Path, monkeypatch) -> None:
    """Where accelerate gives the weights that the first rank has read to the policy alone."""
    run = make_run(tmp_path, tiny_random_model, iterations=2, reference="seed", **FOUR)
    args = arguments(DPOConfig, run, Step("train", 2), dpo.with_defaults(dpo.DEFAULTS, run.recipe.training.dpo))
    monkeypatch.setattr(dpo, "is_fsdp_enabled", lambda: True)
    assert dpo.reference_model(run, Step("train", 1), args) is None
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading is true, and the reference is a second model"):
        dpo.reference_model(run, Step("train", 2), args)


def launch(config: Path, *arguments: str | Path, num: int = 2) -> None:
    """Trains in several ranks as the users do."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", str(num), "tests/ranked.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-8000:]


def stop_after(monkeypatch: pytest.MonkeyPatch, run: Run, iteration: int, step: int) -> None:
    """Trains on one rank until it is asked to stop in a step."""
    from ranked import InStep

    with monkeypatch.context() as patch:
        patch.setattr("selfreward.runtime.shutdown.stop", InStep(step))
        with pytest.raises(Stopped):
            train_iteration(run, Step("train", iteration)) if iteration else train_seed(run)


def weights(run: Run, iteration: int) -> dict[str, torch.Tensor]:
    """The adapter, or the model that the seed stage made."""
    path = "iter_1/train/adapter/adapter_model.safetensors" if iteration else "seed/model/model.safetensors"
    return load_file(run.path / path)


def difference(run: Run, other: Run, figure: str = "loss") -> float:
    """The greatest one of a figure in any step, of which both must have made the same."""
    ours, theirs = logged(run, figure), logged(other, figure)
    assert ours.keys() == theirs.keys()
    return max(abs(ours[step] - theirs[step]) for step in ours)


def assert_same_training(run: Run, one: Run, iteration: int) -> None:
    found = {figure: difference(run, one, figure) for figure in ("loss", "learning_rate", "grad_norm")}
    ours, theirs = weights(run, iteration), weights(one, iteration)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in theirs.items()}
    found["weights"] = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)
    print(f"{run.path}: {found}")
    assert found["loss"] < BOUND
    assert found["learning_rate"] == 0
    assert found["grad_norm"] < BOUND * max(logged(one, "grad_norm").values())
    assert found["weights"] < BOUND


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_random_model: Path) -> dict[int, Run]:
    """The runs of one rank: seed and first iteration."""
    folder = tmp_path_factory.mktemp("one")
    runs = {0: make_run(folder / "seed", tiny_random_model, seeded=True, **FOUR)}
    runs[1] = make_run(folder / "iteration", tiny_random_model, **FOUR)
    train_seed(runs[0])
    train_iteration(runs[1], Step("train", 1))
    assert [list(logged(run, "loss")) for run in runs.values()] == [[1, 2, 3, 4, 5, 6]] * 2
    return runs


def computed_first() -> dict[str, Any]:
    return {**FOUR, "dpo": {**FOUR["dpo"], "precompute_ref_log_probs": True}}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_random_model: Path) -> dict[str, Run]:
    """Those of two ranks; ``wider`` was begun by one, and ``narrower`` is to be ended by one."""
    folder = tmp_path_factory.mktemp("two")
    names = ("seed", "iteration", "wider", "narrower")
    runs = {name: make_run(folder / name, tiny_random_model, seeded=name == "seed", **FOUR) for name in names}
    runs["computed first"] = make_run(folder / "first", tiny_random_model, **computed_first())
    uneven = {"num_train_epochs": 1, "dataloader_drop_last": False}
    runs["uneven"] = make_run(folder / "uneven", tiny_random_model, **{**FOUR, "dpo": {**FOUR["dpo"], **uneven}})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, runs["wider"], 1, step=3)
    path = {name: run.path for name, run in runs.items()}
    jobs = [f"{path[name]}:1" for name in ("iteration", "computed first", "wider", "uneven")]
    launch(CONFIGS / "cpu_2_processes.yaml", *jobs, f"{path['narrower']}:1:3", f"{path['seed']}:0")
    return runs


def test_two_ranks_train_what_one_trains(one: dict[int, Run], two: dict[str, Run]) -> None:
    """DPO with a LoRA, and SFT, whose loss is a mean over all tokens of a step."""
    assert_same_training(two["iteration"], one[1], 1)
    assert_same_training(two["computed first"], one[1], 1)
    assert_same_training(two["seed"], one[0], 0)


def test_a_training_goes_on_with_more_ranks(one: dict[int, Run], two: dict[str, Run]) -> None:
    assert resumed_from(two["wider"]) == [3]
    assert_same_training(two["wider"], one[1], 1)


def test_a_training_goes_on_with_fewer_ranks(one: dict[int, Run], two: dict[str, Run]) -> None:
    assert not (two["narrower"].path / "iter_1/model").exists()
    train_iteration(two["narrower"], Step("train", 1))
    assert resumed_from(two["narrower"]) == [3]
    assert_same_training(two["narrower"], one[1], 1)


def test_an_incomplete_batch_is_another_one_on_two_ranks(one: dict[int, Run], two: dict[str, Run]) -> None:
    """As many steps; the last one of the epoch has examples of its beginning besides."""
    ours, theirs = logged(two["uneven"], "loss"), logged(one[1], "loss")
    assert list(ours) == [1, 2, 3]
    assert [ours[step] for step in (1, 2)] == pytest.approx([theirs[step] for step in (1, 2)], abs=BOUND)


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_takes_each_file(name: str) -> None:
    """Its loader refuses what it doesn't know; none asks for more than this machine, or for a precision."""
    config = load_config_from_file(str(CONFIGS / name))
    assert (config.num_machines, config.machine_rank, config.mixed_precision) == (1, 0, "no")
    assert config.num_processes in (2, 8)


def for_cpus(name: str, folder: Path) -> Path:
    """A shipped file, for two ranks without a GPU, and with a precision that is not the recipe's."""
    content = yaml.safe_load((CONFIGS / name).read_text()) | {"num_processes": 2, "mixed_precision": "bf16"}
    if content["distributed_type"] == "FSDP":
        content["use_cpu"] = True
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


def assert_half_precision(run: Run) -> None:
    """A seed stage in bfloat16 was trained in float32: most weights are not those that computed."""
    before, after = load_file(f"{run.recipe.model.path}/model.safetensors"), weights(run, 0)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert any(not after[name].equal(before[name].bfloat16()) for name in after)
    trained = load_file(run.path / "seed/train/checkpoints/trained/model.safetensors")
    assert trained.keys() == before.keys()
    assert all(float((tensor != tensor.bfloat16()).float().mean()) > 0.5 for tensor in trained.values())


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, tiny_random_model: Path) -> dict[str, Run]:
    """Those of two ranks that share the weights by FSDP2."""
    folder = tmp_path_factory.mktemp("sharded")
    config = for_cpus("fsdp2.yaml", folder)
    names = ("seed", "iteration", "wider", "narrower")
    runs = {name: make_run(folder / name, tiny_random_model, seeded=name == "seed", **FOUR) for name in names}
    runs["computed first"] = make_run(folder / "first", tiny_random_model, **computed_first())
    tied = make_random_model(folder / "model", seed=1, tied=True)
    for name in ("half seed", "half"):
        runs[name] = make_run(folder / name, tied, "bfloat16", seeded=name == "half seed", **FOUR)
    path = {name: run.path for name, run in runs.items()}
    launch(config, "--shard", f"{path['wider']}:1:3", num=1)
    jobs = [f"{path[name]}:1" for name in ("iteration", "computed first", "wider", "half")]
    launch(config, "--shard", *jobs, f"{path['narrower']}:1:3", f"{path['seed']}:0", f"{path['half seed']}:0")
    (checkpoint,) = (path["narrower"] / "iter_1/train/checkpoints").glob("checkpoint-*")
    assert marked(checkpoint) == {"step": 3, "ranks": 2, "kind": "FSDP2 FULL_STATE_DICT"}
    launch(config, "--shard", f"{path['narrower']}:1", num=1)
    return runs


@pytest.mark.cluster
def test_ranks_that_share_the_weights_train_what_one_trains(one: dict[int, Run], sharded: dict[str, Run]) -> None:
    assert_same_training(sharded["iteration"], one[1], 1)
    assert_same_training(sharded["computed first"], one[1], 1)
    assert_same_training(sharded["seed"], one[0], 0)


@pytest.mark.cluster
def test_ranks_that_share_the_weights_round_no_figures(sharded: dict[str, Run], tmp_path: Path) -> None:
    """In bfloat16 the weights compute alike; log-probabilities rounded to it would differ by 0.01."""
    assert_half_precision(sharded["half seed"])
    alone = make_run(tmp_path, Path(sharded["half"].recipe.model.path), "bfloat16", **FOUR)
    train_iteration(alone, Step("train", 1))
    assert logged(sharded["half"], "loss")[1] == pytest.approx(logged(alone, "loss")[1], abs=1e-6)
    assert difference(sharded["half"], alone) < 5e-3


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["wider", "narrower"])
def test_other_ranks_go_on_with_shared_weights(one: dict[int, Run], sharded: dict[str, Run], name: str) -> None:
    assert resumed_from(sharded[name]) == [3]
    assert_same_training(sharded[name], one[1], 1)


@pytest.mark.cluster
@pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed (make install-cluster)")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_what_one_rank_trains(
    tmp_path: Path, tiny_random_model: Path, one: dict[int, Run], monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """And goes on from its own checkpoints."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(DEEPSPEED))
    gloo = {"use_cpu": False, "ddp_backend": "gloo"}
    settings = {**FOUR, "dpo": {**FOUR["dpo"], **gloo}, "sft": {**FOUR["sft"], **gloo}}
    tied = make_random_model(tmp_path / "model", seed=1, tied=True)
    iteration = make_run(tmp_path / "iteration", tiny_random_model, **settings)
    seed = make_run(tmp_path / "seed", tiny_random_model, seeded=True, **settings)
    half = make_run(tmp_path / "half", tied, "bfloat16", seeded=True, **settings)
    jobs = [f"{iteration.path}:1:3", f"{iteration.path}:1", f"{seed.path}:0", f"{half.path}:0"]
    launch(for_cpus(f"deepspeed_zero{stage}.yaml", tmp_path), *jobs)
    assert resumed_from(iteration) == [3]
    assert_same_training(iteration, one[1], 1)
    assert_same_training(seed, one[0], 0)
    assert_half_precision(half)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith("cpu")])
def test_a_shipped_file_on_gpus(
    tmp_path: Path, tiny_random_model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On as many GPUs as there are and share the batch: what one process trains, in bfloat16, and whole."""
    if name.startswith("deepspeed") and not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    monkeypatch.setenv("PYTHONPATH", str(DEEPSPEED))
    num = max(number for number in (1, 2, 4) if number <= torch.cuda.device_count())
    runs = {
        (kind, t): make_run(tmp_path / f"{kind}{t}", tiny_random_model, "bfloat16", seeded=t == 0, **FOUR)
        for kind in ("alone", "several")
        for t in (0, 1)
    }
    launch(CONFIGS / "ddp.yaml", *(f"{runs['alone', t].path}:{t}" for t in (0, 1)), num=1)
    launch(CONFIGS / name, *(f"{runs['several', t].path}:{t}" for t in (0, 1)), num=num)
    for t in (0, 1):
        run, alone = runs["several", t], runs["alone", t]
        found, expected = weights(run, t), weights(alone, t)
        assert {n: tensor.shape for n, tensor in found.items()} == {n: tensor.shape for n, tensor in expected.items()}
        assert all(bool(tensor.any()) for tensor in found.values())
        figures = {figure: difference(run, alone, figure) for figure in ("loss", "learning_rate")}
        print(f"{name} on {num} x {torch.cuda.get_device_name()}, iteration {t}: {figures}")
        assert figures["learning_rate"] == 0
        assert figures["loss"] < 5e-2
    before, after = (load_file(f"{runs['several', 1].model_path(t)}/model.safetensors") for t in (1, 2))
    assert any(not after[name].equal(before[name].bfloat16()) for name in after)
