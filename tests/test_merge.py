"""The merge layer by layer from safetensors: the bytes of PEFT's own merge, without the model in memory."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_random_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from trainings import make_run
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from selfreward.runs.history import recipe_of
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.training import common, merge, weights
from selfreward.training.probes import log_probs

IDS = [[5, 9, 30, 41, 7, 12], [8, 60, 3], [22, 23, 24, 25, 26, 27, 28, 29]]


def make_base(folder: Path, architecture: str = "llama", tied: bool = False, **options: Any) -> Path:
    """A random model in shards of 64 KB, in float32."""
    plain = make_random_model(folder / "plain", 0)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512}
    if architecture == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        tie_word_embeddings=tied,
        **{**sizes, **ids, **options},
    )
    base = folder / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base, max_shard_size="64KB")
    tokenizer.save_pretrained(base)
    assert len(list(base.glob("model-*.safetensors"))) > 2
    return base


def make_adapter(folder: Path, base: Path, **options: Any) -> Path:
    """A LoRA of random numbers, as a training leaves it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    policy = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**settings, **options}))
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
            assert "base_layer" not in name or options.get("bias")
    policy.save_pretrained(folder / "adapter")
    return folder / "adapter"


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def model_of(run: Run, iteration: int = 1) -> Path:
    return run.stage("model", iteration).path


def settings_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("model")}


@pytest.fixture
def whole_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded whole."""
    loaded: list[str] = []

    def load_alone(path: str | Path, *args: Any) -> Any:
        loaded.append(str(path))
        return common.load_alone(path, *args)

    monkeypatch.setattr(merge, "load_alone", load_alone)
    return loaded


def whole_way(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> Any:
    """Does some work as if no model could be read tensor by tensor."""
    with monkeypatch.context() as patch:
        patch.setattr(merge, "open_lazily", lambda *args: None)
        return work()


BY_LAYER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "untied": ({}, {}),
    "tied": ({"tied": True}, {}),
    "rank and alpha by layer": (
        {},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"k_proj": 3}},
    ),
    "rank-stabilized": ({}, {"use_rslora": True}),
    "an output layer that is trained itself": ({}, {"modules_to_save": ["lm_head"]}),
    "embeddings": ({}, {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "DoRA": ({}, {"use_dora": True}),
    "trained biases of the adapter": (
        {"architecture": "qwen2"},
        {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
    ),
    "tied and with biases": ({"architecture": "qwen2", "tied": True}, {}),
    "weights that are stored transposed": ({"architecture": "gpt2", "tied": True}, {"fan_in_fan_out": True}),
    "scaled embeddings": ({"architecture": "gemma2", "tied": True}, {}),
}


@pytest.mark.parametrize(("base", "lora"), BY_LAYER.values(), ids=BY_LAYER)
def test_the_merge_by_layer_is_the_whole_merge(tmp_path, monkeypatch, whole_loads, base, lora) -> None:
    """Bit by bit: weights, log-probabilities, and the files beside them."""
    path = make_base(tmp_path, **base)
    adapter = make_adapter(tmp_path, path, **lora)
    run = make_run(tmp_path, path)
    monkeypatch.setattr(weights, "SHARD", "64KB")
    previous, policy = merge.merge_adapter(run, Step("train", 1), adapter, IDS)
    assert merge.prove(run, Step("train", 1), IDS, previous, policy)["merge_difference"] < 1e-4
    assert whole_loads == []

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert log_probs(model, IDS) == previous
    peft = PeftModel.from_pretrained(model, str(adapter))
    assert log_probs(peft, IDS) == policy != previous
    peft.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "expected")
    expected, merged = saved(tmp_path / "expected"), saved(model_of(run))
    assert merged.keys() == expected.keys()
    assert all(merged[name].equal(tensor) for name, tensor in expected.items())
    assert any(not tensor.equal(saved(path)[name]) for name, tensor in merged.items())

    files, likewise = settings_files(model_of(run)), settings_files(tmp_path / "expected")
    assert likewise.items() <= files.items()
    again, problems = AutoModelForCausalLM.from_pretrained(model_of(run), output_loading_info=True)
    assert not any(problems.values())
    assert log_probs(again, IDS) == log_probs(AutoModelForCausalLM.from_pretrained(tmp_path / "expected"), IDS)


def moe(folder: Path) -> Path:
    small = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": []}
    return make_base(folder, "qwen3_moe", **small)


def with_code(folder: Path) -> Path:
    """A model whose folder holds the code that it runs."""
    path = make_base(folder)
    (path / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\nclass Own(LlamaForCausalLM): pass\n"
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}))
    return path


def with_both(folder: Path) -> Path:
    """A model whose embeddings and output layer are tied by its settings and both stored."""
    path = make_base(folder, tied=True)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    file = path / index["weight_map"]["model.embed_tokens.weight"]
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    index["weight_map"]["lm_head.weight"] = file.name
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def with_old_names(folder: Path) -> Path:
    """A model whose tensors have the names of its inner model, as GPT-2 has on the hub."""
    path = make_base(folder, "gpt2", tied=True)
    for file in path.glob("*.safetensors"):
        save_file({name.removeprefix("transformer."): t for name, t in load_file(file).items()}, file, {"format": "pt"})
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name.removeprefix("transformer."): file for name, file in index["weight_map"].items()}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


WHOLE: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "experts that are fused when they are loaded": (moe, {"target_modules": ["q_proj"]}),
    "code of its own": (with_code, {}),
    "tied tensors that are both stored": (with_both, {}),
    "names of an inner model": (with_old_names, {"fan_in_fan_out": True}),
    "an adapter of a single parameter": (
        make_base,
        {"target_parameters": ["q_proj.weight"], "target_modules": ["k_proj"]},
    ),
    "trained tokens": (make_base, {"trainable_token_indices": [1, 2]}),
    "trained biases": (lambda folder: make_base(folder, "qwen2"), {"bias": "lora_only"}),
    "tied embeddings": (lambda folder: make_base(folder, tied=True), {"target_modules": ["embed_tokens", "q_proj"]}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "lora"), WHOLE.values(), ids=WHOLE)
def test_what_is_not_merged_by_layer_is_merged_whole(tmp_path, whole_loads, make, lora) -> None:
    path = make(tmp_path)
    adapter = make_adapter(tmp_path, path, **lora)
    run = make_run(tmp_path, path)
    run = Run(run.path, recipe_of(run.path, [f"model.trust_remote_code={make is with_code}"]))
    previous, _ = merge.merge_adapter(run, Step("train", 1), adapter, IDS)
    assert whole_loads == [str(path)]

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    # Without its adapter such a policy keeps the biases that were trained.
    assert (log_probs(model, IDS) == previous) == ("bias" not in lora)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "peft")
    merged, expected = saved(model_of(run)), saved(tmp_path / "peft")
    assert merged.keys() == expected.keys()
    assert all(merged[name].equal(tensor) for name, tensor in expected.items())
    assert (model_of(run) / "modeling_own.py").exists() == (make is with_code)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_the_same_whatever_the_files_and_the_way(tmp_path, monkeypatch, dtype) -> None:
    path = make_base(tmp_path)
    adapter = make_adapter(tmp_path, path)
    merged, figures = [], []
    for name, shard, way in (("few", "1GB", None), ("many", "64KB", None), ("whole", "1GB", whole_way)):
        run = make_run(tmp_path / name, path, dtype)
        monkeypatch.setattr(weights, "SHARD", shard)
        work = lambda run=run: merge.merge_adapter(run, Step("train", 1), adapter, IDS)  # noqa: E731
        figures.append(way(monkeypatch, work) if way else work())
        merged.append(model_of(run))
    assert figures[0] == figures[1] == figures[2]
    few, many, whole = map(saved, merged)
    assert few.keys() == many.keys() == whole.keys()
    assert {tensor.dtype for tensor in few.values()} == {getattr(torch, dtype)}
    assert all(few[name].equal(many[name]) and few[name].equal(whole[name]) for name in few)
    assert len(list(merged[1].glob("model-*.safetensors"))) > 2
    assert {p.name: p.read_bytes() for p in merged[0].iterdir()} == {
        p.name: p.read_bytes() for p in merged[2].iterdir()
    }


def test_the_weights_before_the_merge_are_those_that_are_served(tmp_path, monkeypatch) -> None:
    """What is stored in float32 and trained in bfloat16 is rounded to the nearest first, as its loading does."""
    path = make_base(tmp_path)
    run = make_run(tmp_path, path, "bfloat16")
    adapter = make_adapter(tmp_path, path, target_modules=["q_proj"])
    merge.merge_adapter(run, Step("train", 1), adapter, IDS)
    before, after = saved(path), saved(model_of(run))
    untouched = [name for name in before if "q_proj" not in name]
    assert all(after[name].equal(before[name].bfloat16()) for name in untouched)


def test_a_model_in_the_cache_of_the_hub_is_read_through_its_links(tmp_path, monkeypatch, whole_loads) -> None:
    path = make_base(tmp_path)
    adapter = make_adapter(tmp_path, path)
    cached = tmp_path / "cache" / "models--owner--name"
    snapshot = cached / "snapshots" / ("0" * 40)
    for folder in (cached / "refs", cached / "blobs", snapshot):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(sorted(path.iterdir())):
        shutil.move(file, cached / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    for module in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(module, str(tmp_path / "cache"))
    run = make_run(tmp_path, Path("owner/name"))
    previous, policy = merge.merge_adapter(run, Step("train", 1), adapter, IDS)
    merge.prove(run, Step("train", 1), IDS, previous, policy)
    assert whole_loads == []
    assert not any(file.is_symlink() for file in model_of(run).iterdir())


def test_a_weight_that_is_not_a_number_leaves_nothing(tmp_path) -> None:
    path = make_base(tmp_path)
    adapter = make_adapter(tmp_path, path, target_modules=["q_proj"])
    file = next(f for f in path.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(f))
    tensors = load_file(file)
    # No probe has this token.
    tensors["model.embed_tokens.weight"][-1] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    run = make_run(tmp_path, path)
    with pytest.raises(ValueError, match="the trained model of iteration 1 has weights that are not numbers"):
        merge.merge_adapter(run, Step("train", 1), adapter, IDS)
    assert not list(model_of(run).parent.glob("model*"))


@pytest.mark.parametrize("tied", [False, True])
def test_trained_weights_in_shards_are_cast_as_the_whole_model_is(tmp_path, monkeypatch, whole_loads, tied) -> None:
    path = make_base(tmp_path, tied=tied)
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(path)
    for weight in model.parameters():
        weight.data += 1e-3 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "trained", max_shard_size="64KB")
    runs = [make_run(tmp_path / name, path, "bfloat16", seeded=True) for name in ("lazy", "whole")]
    previous, policy = merge.cast_trained(runs[0], tmp_path / "trained", IDS)
    assert merge.prove(runs[0], Step("train", 0), IDS, previous, policy)["merge_share"] == pytest.approx(1, abs=0.5)
    assert whole_loads == []
    expected = whole_way(monkeypatch, lambda: merge.cast_trained(runs[1], tmp_path / "trained", IDS))
    assert (previous, policy) == expected
    assert policy == log_probs(model, IDS)
    lazy, whole = ({p.name: p.read_bytes() for p in model_of(run, 0).iterdir()} for run in runs)
    assert lazy == whole


PEAK = """
import sys
from pathlib import Path
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.training import merge, weights

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10

run, adapter = sys.argv[1:]
weights.SHARD = "10MB"
run, ids = Run.open(run), [[5, 9, 30, 41], [8, 60]]
Path("/proc/self/clear_refs").write_text("5")
before = peak()
figures = merge.merge_adapter(run, Step("train", 1), Path(adapter), ids)
merge.prove(run, Step("train", 1), ids, *figures)
print("peak", peak() - before)
"""


def test_no_model_is_ever_whole_in_memory(tmp_path, monkeypatch) -> None:
    """A process takes less than half of the model's size in float32, which whole models go through three times."""
    path = make_base(tmp_path, hidden_size=512, intermediate_size=1536, num_hidden_layers=16, dtype="bfloat16")
    adapter = make_adapter(tmp_path, path, target_modules=["q_proj", "up_proj"])
    size = 4 * sum(tensor.numel() for tensor in saved(path).values())
    run = make_run(tmp_path, path, "bfloat16")
    # Otherwise the C library keeps the memory of small tensors.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    command = [sys.executable, "-c", PEAK, str(run.path), str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("peak ")[1])
    assert size > 150_000_000
    assert peak < size / 2
