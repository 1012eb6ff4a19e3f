"""What a run takes, planned: against published figures, figures worked by hand, and the libraries' own code."""

import json
from pathlib import Path
from typing import Any

import bench
import pytest
import torch
from conftest import leave_disk
from typer.testing import CliRunner

import selfreward
from selfreward.cli import app
from selfreward.estimates import speed, training_memory
from selfreward.estimates.activations import Batch, activations, head_bytes, of_layers, watched
from selfreward.estimates.architecture import adapter_parameters, build, configuration, read
from selfreward.estimates.data_size import count
from selfreward.estimates.fits import first_problem
from selfreward.estimates.machine import GIB, GPUS, Device, Machine, cpu, machine
from selfreward.estimates.requests import Requests, of_a_prompt
from selfreward.estimates.run_estimate import RunEstimate
from selfreward.estimates.serving_memory import serving
from selfreward.estimates.tables import as_dict, lines
from selfreward.launchers.layout import Layout
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Step

ROOT = Path(__file__).parents[1]
QUICKSTART, LLAMA = ROOT / "recipes/quickstart/run.yaml", ROOT / "recipes/llama-3.1-8b-instruct/run.yaml"
# Of the config.json of published models: type, vocabulary, width, inner width, layers, heads, KV heads, tied or not.
PUBLISHED = {
    "Qwen2.5-0.5B": ("qwen2", 151_936, 896, 4864, 24, 14, 2, True),
    "Qwen2.5-7B": ("qwen2", 152_064, 3584, 18_944, 28, 28, 4, False),
    "Llama-3.1-8B": ("llama", 128_256, 4096, 14_336, 32, 32, 8, False),
    "Llama-3.1-70B": ("llama", 128_256, 8192, 28_672, 80, 64, 8, False),
}
SMALL = ("llama", 1000, 64, 128, 4, 4, 2, False)


def write_config(folder: Path, shape: tuple[Any, ...], **more: Any) -> ModelSettings:
    names = "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    names += " num_key_value_heads tie_word_embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(zip(names.split(), shape, strict=True)) | {"max_position_embeddings": 8192} | more
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSettings(path=str(folder))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSettings]:
    folder = tmp_path_factory.mktemp("published")
    return {name: write_config(folder / name, shape) for name, shape in PUBLISHED.items()}


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits must not depend on how full the disk is that the tests run on."""
    leave_disk(monkeypatch, 1 << 50)


def estimate(model: ModelSettings, machine: Machine, *overrides: str, recipe: Path = LLAMA) -> RunEstimate:
    return RunEstimate(selfreward.load_recipe(recipe, [f"model.path={model.path}", *overrides]), machine)


def gpus(num: int, memory: int, nodes: int = 1) -> Machine:
    return Machine(nodes, num, Device("H100", memory * GIB, 3350e9, 989e12))


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [
        # Parameters as the model cards count them; the cache is 2 x layers x KV heads x head size x 2 bytes.
        ("Qwen2.5-0.5B", 494_032_768, 2 * 24 * 2 * 64 * 2),
        ("Qwen2.5-7B", 7_615_616_512, 2 * 28 * 4 * 128 * 2),
        ("Llama-3.1-8B", 8_030_261_248, 2 * 32 * 8 * 128 * 2),
        ("Llama-3.1-70B", 70_553_706_496, 2 * 80 * 8 * 128 * 2),
    ],
)
def test_published_models_have_their_published_sizes(
    published: dict[str, ModelSettings], name: str, parameters: int, kv_bytes: int
) -> None:
    sizes = read(published[name])
    assert sizes.parameters == sizes.active == parameters
    assert sizes.weight_bytes("bfloat16") == 2 * parameters
    assert sizes.kv_bytes("bfloat16") == kv_bytes
    assert sizes.uniform


def test_a_lora_on_all_linear_layers_is_counted(published: dict[str, ModelSettings]) -> None:
    # r x (in + out) for q, k, v, o, gate, up and down in each of 32 layers.
    by_hand = 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336))
    assert adapter_parameters(published["Llama-3.1-8B"], {"r": 16}) == by_hand == 41_943_040
    only = {"r": 16, "target_modules": ["q_proj"]}
    assert adapter_parameters(published["Llama-3.1-8B"], only) == 16 * 32 * (4096 + 4096)


def test_experts_that_a_token_does_not_go_to_are_not_active(tmp_path: Path) -> None:
    model = write_config(tmp_path, ("mixtral", *SMALL[1:]), num_local_experts=8, num_experts_per_tok=2)
    sizes = read(model)
    experts = 4 * 8 * 3 * 64 * 128
    assert sizes.parameters - sizes.active == experts * 6 // 8


def test_what_layers_without_a_cache_and_shared_heads_leave(tmp_path: Path) -> None:
    heads = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
    }
    latent = write_config(tmp_path / "mla", ("deepseek_v3", *SMALL[1:]), **heads, **experts, first_k_dense_replace=1)
    assert read(latent).kv_bytes("bfloat16") == 4 * (16 + 8) * 2
    # Shared by all heads, they are on each device.
    assert read(latent).kv_bytes("bfloat16", tensor=2) == read(latent).kv_bytes("bfloat16")
    assert not read(latent).uniform


def test_serving_as_worked_by_hand(published: dict[str, ModelSettings]) -> None:
    planned = estimate(published["Llama-3.1-8B"], gpus(8, 80), "engine.vllm.max_num_seqs=100")
    served = planned.serving
    assert (served.replicas, served.devices) == (8, 1)
    assert served.budget == int(80 * GIB * 0.9)
    assert served.weights == 16_060_522_496
    # 2,048 tokens in a step with four states of 4,096 and three of 14,336, and 100 sampled rows.
    assert served.computing == 2048 * (4 * 4096 + 3 * 14_336) * 2 + 100 * 128_256 * 24
    left = served.budget - served.weights - served.computing - 2 * GIB
    assert served.cache == left
    assert served.cached_tokens == left // 131_072
    assert served.sequences == pytest.approx(left // 131_072 / 4096)


def test_the_cache_is_the_one_that_vllm_has_reported(published: dict[str, ModelSettings]) -> None:
    """Llama 3 8B on a GPU of 79.22 GiB, of which vLLM may take 0.9, in GiB (vllm-project/vllm#10511)."""
    reported = Machine(1, 1, Device("H100", int(79.22 * GIB), 3350e9, 989e12))
    served = estimate(published["Llama-3.1-8B"], reported, "engine.vllm.gpu_memory_utilization=0.9").serving
    assert served.weights / GIB == pytest.approx(14.96, abs=0.005)
    assert (served.overhead + served.computing) / GIB == pytest.approx(1.79 + 1.26, rel=0.1)
    assert served.cache / GIB == pytest.approx(53.29, rel=0.01)


def test_more_gpus_to_a_replica_divide_weights_and_cache(published: dict[str, ModelSettings]) -> None:
    options = ["engine.vllm.tensor_parallel_size=4", "engine.vllm.kv_cache_dtype=fp8"]
    served = estimate(published["Llama-3.1-8B"], gpus(8, 80, nodes=2), *options).serving
    assert (served.replicas, served.devices) == (4, 4)
    assert served.weights == 16_060_522_496 // 4
    assert served.bytes_per_token == 131_072 // 4 // 2
    # With as many GPUs as 16, two have the same one of 8 heads.
    assert read(published["Llama-3.1-8B"]).kv_bytes("bfloat16", tensor=16) == 131_072 // 8


@pytest.mark.parametrize(
    ("file", "name", "divided"),
    [
        (None, "DDP", (1, 1, 1)),
        ("ddp.yaml", "DDP", (1, 1, 1)),
        ("cpu_2_processes.yaml", "DDP", (1, 1, 1)),
        ("deepspeed_zero2.yaml", "ZeRO-2", (1, 8, 8)),
        ("deepspeed_zero3.yaml", "ZeRO-3", (8, 8, 8)),
        ("fsdp2.yaml", "FSDP", (8, 8, 8)),
    ],
)
def test_every_accelerate_file_says_what_processes_share(
    file: str | None, name: str, divided: tuple[int, int, int]
) -> None:
    config = None if file is None else ROOT / "configs/accelerate" / file
    found = training_memory.sharing(config, ranks=8)
    assert (found.name, (found.weights, found.gradients, found.optimizer)) == (name, divided)
    alone = training_memory.sharing(config, ranks=1)
    assert (alone.weights, alone.gradients, alone.optimizer) == (1, 1, 1)


def test_an_accelerate_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tpu.yaml").write_text("distributed_type: XLA\n")
    with pytest.raises(ValueError, match="distributed_type is XLA, which is not planned"):
        training_memory.sharing(tmp_path / "tpu.yaml", ranks=8)


def accelerate(file: str) -> list[str]:
    return ["launch.train=accelerate", f"launch.accelerate_config={ROOT / 'configs/accelerate' / file}"]


def test_training_memory_as_worked_by_hand(published: dict[str, ModelSettings]) -> None:
    model, adapter, weights = published["Qwen2.5-0.5B"], 8_798_208, 2 * 494_032_768
    alone, many, divided = (
        estimate(model, gpus(num, 80), *settings).dpo
        for num, settings in [(1, []), (8, []), (8, accelerate("fsdp2.yaml"))]
    )
    assert alone
    assert many
    assert divided
    assert (alone.memory.weights, alone.memory.gathered, alone.memory.reference) == (weights, 0, 0)
    # Float32: the adapter, its gradients, and two moments.
    assert (alone.memory.adapter, alone.memory.gradients, alone.memory.optimizer) == (
        4 * adapter, 4 * adapter, 8 * adapter,
    )  # fmt: skip
    # The batch of 16 stays: 2 x 8 on one GPU, 2 x 1 on eight.
    assert (alone.per_device, alone.accumulation, alone.ranks) == (2, 8, 1)
    assert (many.per_device, many.accumulation, many.ranks) == (2, 1, 8)
    assert many.memory.gradients == 2 * alone.memory.gradients  # and the buckets of DDP
    assert many.memory.activations == alone.memory.activations
    assert divided.memory.weights == weights // 8
    assert divided.memory.optimizer == 8 * adapter // 8
    layer = (494_032_768 - 151_936 * 896 - 896) // 24
    # Two layers, the embeddings, and the output layer's own copy of them.
    assert divided.memory.gathered == 2 * (2 * layer + 2 * 151_936 * 896)


@pytest.mark.parametrize(
    ("settings", "reference", "weights"),
    [
        ([], 0, 2),
        (["training.reference=seed"], 2, 2),
        (["training.reference=seed", "iterations=1"], 0, 2),
        (["training.load_in_4bit=true"], 0, None),
    ],
)
def test_a_second_model_and_four_bits_are_counted(
    published: dict[str, ModelSettings], settings: list[str], reference: int, weights: int | None
) -> None:
    trained = estimate(published["Qwen2.5-0.5B"], gpus(1, 80), *settings).dpo
    assert trained
    embeddings = 151_936 * 896
    narrow = int((494_032_768 - embeddings) * 4.127 / 8) + 2 * embeddings
    assert trained.memory.reference == reference * 494_032_768
    assert trained.memory.weights == (narrow if weights is None else weights * 494_032_768)


def test_a_reference_that_comes_first_is_gone_before_the_first_step(published: dict[str, ModelSettings]) -> None:
    both, first = (
        estimate(published["Qwen2.5-0.5B"], gpus(1, 80), "training.reference=seed", *more).dpo
        for more in ([], ["training.dpo.precompute_ref_log_probs=true"])
    )
    assert both
    assert first
    assert first.memory.total < both.memory.total


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_that_are_alike_are_counted_from_two(tmp_path: Path, checkpointing: bool) -> None:
    model, batch, lora = write_config(tmp_path, SMALL), Batch(rows=4, length=64), {"r": 4, "lora_dropout": 0.0}
    assert read(model).uniform
    assert activations(model, lora, batch, checkpointing) == of_layers(model, lora, batch, checkpointing, depth=4)


def test_layers_of_several_kinds_are_all_gone_through(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    model = write_config(tmp_path, ("qwen2", *SMALL[1:]), layer_types=kinds, use_sliding_window=True)
    assert not read(model).uniform
    batch, lora = Batch(rows=4, length=64), {"r": 4, "lora_dropout": 0.0}
    assert activations(model, lora, batch, False) == of_layers(model, lora, batch, False, depth=4)


def test_checkpointing_keeps_what_goes_into_each_layer(tmp_path: Path) -> None:
    model, batch, lora = write_config(tmp_path, SMALL), Batch(rows=4, length=256), {"r": 4, "lora_dropout": 0.0}
    kept, whole = (activations(model, lora, batch, on).kept for on in (True, False))
    states, mask = 4 * 256 * 64 * 2, 4 * 256 * 256
    # States in bfloat16 in front of each of four layers, and behind the last in float32 too, for the norm.
    assert kept == pytest.approx(4 * states + mask + states + 2 * states, rel=0.03)
    assert kept < whole / 5


def test_activations_grow_with_the_batch(tmp_path: Path) -> None:
    model = write_config(tmp_path, SMALL)
    one, two = (activations(model, {"lora_dropout": 0.0}, Batch(rows, 64), True) for rows in (2, 4))
    assert two.kept == pytest.approx(2 * one.kept, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [600, 5000])
def test_the_output_layer_takes_what_the_code_of_trl_takes(dtype: str, tokens: int) -> None:
    """TRL's own function, on tensors without content."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from trl.kernels import ChunkedLogProbFunction

    hidden, vocabulary = 896, 151_936
    with FakeTensorMode():
        states = torch.zeros(tokens, hidden, dtype=getattr(torch, dtype), requires_grad=True)
        weight = torch.zeros(vocabulary, hidden, dtype=getattr(torch, dtype))
        targets = torch.zeros(tokens, dtype=torch.long)
        with watched([states, weight, targets]) as watch:
            figures = ChunkedLogProbFunction.apply(states, weight, None, targets, 1.0, 32_768)
            figures[0].sum().backward()
    planned = head_bytes(Batch(1, tokens), hidden, vocabulary, dtype, on_cpu=True)
    assert planned == pytest.approx(watch.peak, rel=0.05)


def test_a_training_on_this_cpu_takes_what_was_planned(tmp_path: Path) -> None:
    """The short version of ``bench.py memory``: two steps of a small model in a process of its own."""
    sizes = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    model = bench.random_qwen(tmp_path / "model", "float32", {**bench.QWEN, **sizes, "num_attention_heads": 4})
    found = bench.measure_training(tmp_path, model, "float32", checkpointing=False, pairs=2, length=256)
    assert found["training_planned"] == pytest.approx(found["training"], rel=0.2)


# What an 8B model needs, and the settings that were found for it.
@pytest.mark.parametrize(
    ("machine", "settings", "what", "found"),
    [
        (gpus(1, 80), [], None, ()),
        (gpus(2, 20), ["engine.vllm.max_model_len=4096"], "serving", ("engine.vllm.tensor_parallel_size=2",)),
        (
            gpus(1, 80),
            ["engine.vllm.max_model_len=900000"],
            "serving",
            ("engine.vllm.max_model_len=",),
        ),
        (
            gpus(1, 80),
            ["engine.vllm.gpu_memory_utilization=0.2"],
            "serving",
            ("engine.vllm.gpu_memory_utilization=0.92",),
        ),
        (
            gpus(1, 32),
            ["training.dpo.gradient_checkpointing=false"],
            "training",
            ("training.dpo.gradient_checkpointing=true",),
        ),
        (
            gpus(1, 32),
            ["training.dpo.per_device_train_batch_size=8", "training.dpo.gradient_accumulation_steps=2"],
            "training",
            ("training.dpo.per_device_train_batch_size=4", "training.dpo.gradient_accumulation_steps=4"),
        ),
        (
            gpus(8, 17),
            ["engine.vllm.tensor_parallel_size=8", "training.dpo.per_device_train_batch_size=1",
             "training.dpo.gradient_accumulation_steps=16"],
            "training",
            ("launch.accelerate_config=", "launch.processes=8"),
        ),
        (gpus(1, 8), [], "serving", None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_would_make_it_fit(
    published: dict[str, ModelSettings], machine: Machine, settings: list[str], what: str | None, found: Any
) -> None:
    model = published["Llama-3.1-8B"]
    problem = first_problem(estimate(model, machine, *settings))
    if what is None:
        assert problem is None
        return
    assert problem is not None
    assert problem.need.what == what
    assert problem.need.needs > problem.need.has
    if found is None:
        assert (problem.settings, problem.then) == ((), None)
        return
    assert len(problem.settings) == len(found)
    assert all(each.startswith(begin) for each, begin in zip(problem.settings, found, strict=True))
    # What was found holds when it is typed.
    then = first_problem(estimate(model, machine, *settings, *problem.settings))
    assert then is None or then.need.what != what


def test_a_disk_too_small_is_named(published: dict[str, ModelSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    planned = estimate(published["Llama-3.1-8B"], gpus(1, 80))
    leave_disk(monkeypatch, planned.disk - 1)
    problem = first_problem(planned)
    assert problem is not None
    assert (problem.need.what, problem.need.needs) == ("the run folder", planned.disk)
    leave_disk(monkeypatch, planned.disk)
    assert first_problem(planned) is None


def test_on_a_cpu_the_engine_that_is_kept_shares_the_memory(tmp_path: Path) -> None:
    model = write_config(tmp_path, PUBLISHED["Qwen2.5-0.5B"])
    node = Machine(1, 0, Device("CPU", 14 * GIB, 20e9, 160e9))
    settings = ["model.dtype=float32", "training.dpo.per_device_train_batch_size=1", "training.dpo.max_length=512"]
    planned = estimate(model, node, *settings)
    problem = first_problem(planned)
    assert problem is None, problem
    assert planned.keeps_engine
    assert planned.dpo
    short = Machine(1, 0, Device("CPU", planned.dpo.memory.total + GIB, 20e9, 160e9))
    problem = first_problem(estimate(model, short, *settings))
    assert problem is not None
    assert problem.settings == ("launch.keep_engine=false",)


def test_requests_of_a_stage_and_what_they_share() -> None:
    recipe = selfreward.load_recipe(LLAMA)
    assert of_a_prompt(recipe, STAGES["responses"], 1) == [Requests(4, 1024, 1)]
    # Four responses with three votes each, which share the judge prompt.
    assert of_a_prompt(recipe, STAGES["judgements"], 1) == [Requests(12, 512, 4, answers=1, instructions=1)]
    other = selfreward.load_recipe(LLAMA, ["judge.name=expected_score", "judge.expected.think=false"])
    [asked] = of_a_prompt(other, STAGES["judgements"], 1)
    assert not asked.written


def test_decoding_is_as_fast_as_memory_and_reading_as_arithmetic(published: dict[str, ModelSettings]) -> None:
    planned = estimate(published["Llama-3.1-8B"], gpus(1, 80), "engine.vllm.max_num_seqs=1")
    server = speed.Server(planned.recipe, planned.sizes, planned.serving, planned.machine.device)
    # One sequence: all weights, and the cache of half of 1,000 tokens, for each token.
    moved = 2 * 8_030_261_248 + 500 * 131_072
    assert server.decoding(1000) == pytest.approx(3350e9 * 0.6 / moved)
    assert server.reading == pytest.approx(989e12 * 0.5 / (2 * 8_030_261_248))
    four = estimate(published["Llama-3.1-8B"], gpus(4, 80), "engine.vllm.max_num_seqs=1")
    assert four.serving.replicas == 4
    assert speed.Server(four.recipe, four.sizes, four.serving, four.machine.device).decoding(1000) == pytest.approx(
        4 * server.decoding(1000)
    )


def test_training_takes_the_operations_of_its_passes(published: dict[str, ModelSettings]) -> None:
    planned = estimate(published["Llama-3.1-8B"], gpus(1, 80))
    assert planned.dpo
    load = speed.training(planned.dpo, planned.sizes, planned.machine.device, 100, 2.0, 500.0)
    assert load.trained == 100_000
    # Forward, the reference, once more for checkpointing, and back; weights' gradients for the adapter alone.
    operations = 100_000 * 2 * (4 * 8_030_261_248 + 41_943_040)
    assert load.seconds == pytest.approx(operations / (989e12 * 0.4))


def test_the_recipe_s_data_are_counted() -> None:
    data = count(selfreward.load_recipe(QUICKSTART))
    assert (data.prompts, data.held_out, data.canaries) == (300, 400, 8 * 23)
    assert data.seed_examples > 1000
    with pytest.raises(ValueError, match=r"prompts\.num is empty"):
        count(
            selfreward.load_recipe(
                QUICKSTART, ["prompts.path=null", "prompts.hub=a/b", "prompts.revision=0123abc", "prompts.num=null"]
            )
        )


def test_machines() -> None:
    assert machine(8, "80GiB", 2, None) == Machine(2, 8, GPUS["A100"])
    assert machine(None, None, 1, "h100") == Machine(1, 1, GPUS["H100"])
    assert machine(4, "64GiB", 1, "h200").device.memory == 64 * GIB
    assert machine(0, None, 1, None) == Machine(1, 0, cpu())
    with pytest.raises(ValueError, match="no GPU is called 'H10' here"):
        machine(1, None, 1, "H10")
    with pytest.raises(ValueError, match="'much' is no size"):
        machine(1, "much", 1, None)


def test_measurements_of_the_run_take_the_place_of_assumptions(tmp_path: Path) -> None:
    recipe = selfreward.load_recipe(QUICKSTART, [f"run_dir={tmp_path}"])
    run = Run.create(recipe)
    for name, summary in {
        "responses": {"seconds": 7200.0, "mean_tokens": 4.0},
        "pairs": {"seconds": 0.5, "pairs": 123},
    }.items():
        run.begin(Step(name, 1))
        run.commit(Step(name, 1), summary)
    planned = RunEstimate(recipe, Machine(1, 0, cpu()))
    stages = {str(stage.step): stage for stage in planned.stages}
    assert stages["iteration 1: responses"].load.seconds == 7200.0
    assert stages["iteration 3: responses"].measured_in == 1
    assert stages["iteration 1: judgements"].measured_in is None
    # 300 prompts, 8 responses of 4 tokens each.
    assert stages["iteration 2: responses"].load.written == 300 * 8 * 4
    text = "\n".join(lines(planned))
    assert "measured in iteration 1" in text
    assert "an iteration makes 123 pairs (measured)" in text


def test_the_plan_is_printed_for_people_and_for_programs(published: dict[str, ModelSettings]) -> None:
    arguments = ["plan", str(LLAMA), f"model.path={published['Llama-3.1-8B'].path}", "iterations=2"]
    text = CliRunner().invoke(app, [*arguments, "--gpus", "8", "--gpu-memory", "80GiB", "--nodes", "2"])
    assert text.exit_code == 0, text.output
    for expected in (
        "on 2 nodes with 8 x A100, 80.00 GiB each",
        "8.03 B parameters: 14.96 GiB in bfloat16",
        "16 replicas",
        "tokens of 128.0 KiB",
        "16 processes, DDP; a step of 16 (1 x 1 x 16)",
        "iteration 2: train",
        "launch.keep_engine",
        "fits",
    ):
        assert expected in text.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--gpus", "1", "--gpu-memory", "16GiB", "--json"]).output)
    assert found["problem"]["need"]["what"] == "serving"
    assert [stage["stage"] for stage in found["stages"]][:3] == ["evaluate", "prompts", "responses"]
    assert found == json.loads(
        json.dumps(as_dict(estimate(published["Llama-3.1-8B"], machine(1, "16GiB", 1, None), "iterations=2")))
    )


def test_what_a_server_judges_takes_a_time_that_is_not_known(published: dict[str, ModelSettings]) -> None:
    server = ["judge.engine.name=openai", "judge.engine.openai.base_url=http://a/v1", "judge.engine.openai.model=m"]
    planned = estimate(published["Qwen2.5-0.5B"], gpus(1, 80), *server)
    stages = {str(stage.step): stage.load for stage in planned.stages}
    assert stages["iteration 1: judgements"].seconds is None
    assert stages["iteration 1: judgements"].written > 0
    assert stages["iteration 1: responses"].seconds
    assert "and what other models and servers take" in "\n".join(lines(planned))


def test_a_batch_that_the_processes_cannot_share_is_an_error(published: dict[str, ModelSettings]) -> None:
    with pytest.raises(ValueError, match="which 3 processes can't share evenly"):
        assert estimate(published["Qwen2.5-0.5B"], gpus(3, 80)).dpo


def test_the_layers_of_a_plan_are_those_of_the_model(published: dict[str, ModelSettings]) -> None:
    built = build(published["Qwen2.5-0.5B"], configuration(published["Qwen2.5-0.5B"]))
    assert all(weight.is_meta for weight in built.parameters())
    assert Layout.of(selfreward.load_recipe(LLAMA), 1, 8).ranks == 8
    assert serving(selfreward.load_recipe(LLAMA), read(published["Qwen2.5-0.5B"]), 1, GPUS["L4"]).cache > 0
