"""How many processes a recipe starts on which nodes, and the commands of those that train."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.run import get_args_parser

import selfreward
from selfreward.launchers import launch
from selfreward.launchers.base import Training, in_shell
from selfreward.launchers.layout import GPUSlot, Layout, gpu_slot, replicas
from selfreward.recipe.recipe import Recipe
from selfreward.runs.stages import Step
from selfreward.runtime.gpus import see
from selfreward.runtime.ranks import rank_variables, without_ranks

CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"


@pytest.fixture
def recipe(tmp_path: Path, tiny_random_model: Path) -> Any:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Name owls."}) + "\n")
    (tmp_path / "run.yaml").write_text(
        f"name: test\nmodel: {{path: {tiny_random_model}}}\nprompts: {{path: prompts.jsonl}}\n"
    )
    return lambda *overrides: selfreward.load_recipe(tmp_path / "run.yaml", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "nodes", "gpus", "replicas", "processes"),
    [
        ([], 1, 0, 1, 1),
        ([], 1, 8, 8, 8),
        ([], 4, 8, 32, 8),
        ([], 2, 0, 2, 1),
        (["engine.vllm.tensor_parallel_size=2"], 1, 8, 4, 8),
        (["engine.vllm.tensor_parallel_size=2", "engine.vllm.pipeline_parallel_size=2"], 2, 8, 4, 8),
        # The GPUs that are left over serve nothing.
        (["engine.vllm.tensor_parallel_size=3"], 1, 8, 2, 8),
        (["launch.replicas=3"], 1, 8, 3, 8),
        (["launch.replicas=3"], 1, 0, 3, 1),
        (["launch.launcher=inline"], 1, 8, 1, 8),
        (["launch.processes=4"], 2, 8, 16, 4),
        (["launch.train=process"], 2, 8, 16, 1),
        ([f"launch.accelerate_config={CONFIGS}/cpu_2_processes.yaml"], 1, 0, 1, 2),
        ([f"launch.accelerate_config={CONFIGS}/fsdp2.yaml"], 2, 4, 8, 8),
    ],
)
def test_what_a_recipe_makes_of_nodes(
    recipe: Any, overrides: list[str], nodes: int, gpus: int, replicas: int, processes: int
) -> None:
    layout = Layout.of(recipe(*overrides), nodes, gpus)
    ranks = 1 if "launch.train=process" in overrides else nodes * processes
    assert layout == Layout(nodes, gpus, replicas, processes, ranks)


def test_what_has_no_room_is_refused(recipe: Any) -> None:
    with pytest.raises(ValueError, match=r"tensor_parallel_size x .* is 16, and a node has 8 GPUs.* at most 8"):
        Layout.of(recipe("engine.vllm.tensor_parallel_size=16"), 4, 8)
    with pytest.raises(ValueError, match=r"replicas is 9, and 2 nodes with 8 GPUs hold 8 of 2 GPUs. Write replicas: 8"):
        Layout.of(recipe("engine.vllm.tensor_parallel_size=2", "launch.replicas=9"), 2, 8)


def test_no_two_replicas_share_a_gpu(recipe: Any) -> None:
    engine = recipe("engine.vllm.tensor_parallel_size=2").engine
    places = [gpu_slot(number, engine, nodes=2, gpus=8) for number in range(8)]
    assert places[:3] == [GPUSlot(0, (0, 1)), GPUSlot(1, (0, 1)), GPUSlot(0, (2, 3))]
    assert len({(where.node, device) for where in places for device in where.devices}) == 16
    assert gpu_slot(5, engine, nodes=2, gpus=0) == GPUSlot(1, ())


@pytest.mark.parametrize(
    ("shown", "seen"), [("", "2,3"), ("4,5,6,7", "6,7"), ("GPU-a,GPU-b,GPU-c,GPU-d", "GPU-c,GPU-d")]
)
def test_a_replica_sees_its_own_gpus_among_those_of_the_job(shown: str, seen: str) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": shown}
    see([2, 3], environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == seen


def test_how_a_recipe_trains(recipe: Any) -> None:
    class Machine:
        def __init__(self, nodes: int, gpus: int) -> None:
            self.nodes, self.gpus = nodes, gpus

    def how(nodes: int, gpus: int, *overrides: str) -> str:
        return launch.how_to_train(recipe(*overrides), Machine(nodes, gpus))

    assert [how(1, 0), how(1, 1), how(1, 8), how(2, 1), how(2, 0)] == ["inline", "process", *["accelerate"] * 3]
    assert how(1, 1, "launch.launcher=ray") == "process"
    assert how(1, 0, "launch.launcher=slurm") == "process"
    assert how(1, 8, "launch.train=process") == "process"
    assert how(1, 0, f"launch.accelerate_config={CONFIGS}/cpu_2_processes.yaml") == "accelerate"


@pytest.mark.parametrize("config", [None, *sorted(CONFIGS.glob("*.yaml"))], ids=lambda path: path and path.stem)
@pytest.mark.parametrize("nodes", [1, 2])
def test_upstream_takes_the_commands_of_a_training(tmp_path: Path, config: Path | None, nodes: int) -> None:
    training = Training(tmp_path / "my run", Step("train", 2), nodes, 4, config, tmp_path / "logs")
    command = training.command("1", "10.0.0.1", 29501)
    parser = get_args_parser() if config is None else launch_command_parser()
    given = parser.parse_args(command[3:])
    assert given.training_script == "selfreward"
    assert given.training_script_args == ["stage", "train", str(tmp_path / "my run"), "--iteration", "2"]
    assert given.module
    assert given.tee == "3"
    if config is not None:
        _assert_each_node_starts_its_own(given, nodes)
        assert (given.num_processes, given.num_machines, given.machine_rank) == (4 * nodes, nodes, 1)
        assert (given.main_process_ip, given.main_process_port) == ("10.0.0.1", 29501)
    elif nodes > 1:
        assert (given.nnodes, given.node_rank, given.master_addr, given.master_port) == ("2", 1, "10.0.0.1", 29501)


def _assert_each_node_starts_its_own(given: Any, nodes: int) -> None:
    """What accelerate would hand to torchrun on the second node."""
    given.main_process_port = given.main_process_port or 29501
    given, _, _ = _validate_launch_command(given)
    given.deepspeed_fields_from_accelerate_config = ""
    if given.use_deepspeed:
        command, _ = prepare_deepspeed_cmd_env(given)
        assert command is None  # torchrun is
    else:
        prepare_multi_gpu_env(given)
    if nodes > 1:
        assert (str(given.nnodes), str(given.nproc_per_node), int(given.node_rank)) == ("2", "4", 1)
    else:
        assert str(given.nproc_per_node) == "4"


def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    [_, *command] = Training(tmp_path, Step("train", 0), 1, 1, None, tmp_path).command()
    assert command == ["-m", "selfreward", "stage", "train", str(tmp_path), "--iteration", "0"]
    # It may say more than how processes share a model, such as what waits in main memory.
    command = Training(tmp_path, Step("train", 0), 1, 1, CONFIGS / "fsdp2.yaml", tmp_path).command()
    assert command[2] == "accelerate.commands.launch"


def test_the_shell_of_a_node_puts_its_number_in() -> None:
    assert in_shell(["run", "--rank=${N}", "a b;"], "${N}") == ["sh", "-c", "exec run --rank=${N} 'a b;'"]


def test_the_variables_of_ranks() -> None:
    ranks = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "TORCHELASTIC_RUN_ID",
        "ACCELERATE_USE_FSDP",
        "FSDP_VERSION",
    )
    others = ("PATH", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "MASTER", "HF_HOME")
    environment = dict.fromkeys((*ranks, *others), "1")
    assert {*rank_variables(environment)} == {*ranks}
    assert {*without_ranks(environment)} == {*others}


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ({"launcher": "inline", "replicas": 2}, "one process has one engine"),
        ({"launcher": "ray", "train": "inline"}, "launcher is ray, which trains in processes that it starts"),
        ({"train": "process", "accelerate_config": str(CONFIGS / "ddp.yaml")}, "which only `accelerate launch` reads"),
    ],
)
def test_settings_that_do_not_go_together(launch: dict[str, Any], words: str, tmp_path: Path) -> None:
    from selfreward.recipe.launch_settings import LaunchSettings

    with pytest.raises(ValueError, match=words):
        LaunchSettings.model_validate(launch, strict=False)


def test_no_engine_is_refused_for_the_number_of_another(recipe: Any) -> None:
    settings = recipe(
        "launch.replicas=8",
        "judge.model.path=owner/judge",
        "judge.engine.name=vllm",
        "judge.engine.vllm.tensor_parallel_size=4",
    )
    assert replicas(settings.launch, settings.judge.engine, nodes=1, gpus=8) == 2
    assert Layout.of(settings, nodes=1, gpus=8).replicas == 8


def test_slurm_needs_an_allocation(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ValueError, match=r"no allocation .*Submit it: sbatch launch/slurm\.sbatch RECIPE"):
        launch.find_launcher(recipe("launch.launcher=slurm"))


def test_a_batch_that_the_processes_cannot_share_is_refused_before_anything_runs(recipe: Any) -> None:
    settings: Recipe = recipe("launch.processes=3", "launch.launcher=local")
    with pytest.raises(ValueError, match="3 processes"):
        selfreward.run(settings)
    assert not (settings.run_dir / settings.name).exists()
