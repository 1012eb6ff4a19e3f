"""QLoRA: DPO on weights of four bits, and the adapter on those that were quantized."""

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from trainings import logged, make_run, resumed_from
from transformers import AutoModelForCausalLM

from selfreward.preflight import require_engine
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.training import dpo
from selfreward.training.dpo import train_iteration

PLAIN = {"lora": {"r": 4}, "dpo": {"disable_dropout": True}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_random_model: Path) -> dict[bool, Run]:
    """The runs with and without four bits."""
    folder = tmp_path_factory.mktemp("quantized")
    made = {bits: make_run(folder / str(bits), tiny_random_model, load_in_4bit=bits, **PLAIN) for bits in (True, False)}
    for run in made.values():
        train_iteration(run, Step("train", 1))
    return made


def test_the_policy_and_its_reference_are_quantized(runs: dict[bool, Run]) -> None:
    """They begin as one, and the weights of four bits give other losses from the second step on."""
    quantized, whole = (list(logged(runs[bits], "loss").values()) for bits in (True, False))
    assert quantized[0] == pytest.approx(whole[0], abs=1e-6)
    differences = [abs(a - b) for a, b in zip(quantized[1:], whole[1:], strict=True)]
    print(f"greatest difference of the loss to that without four bits: {max(differences)}")
    assert 1e-3 < max(differences) < 0.2
    assert quantized[-1] < quantized[0]


def test_the_adapter_is_merged_into_the_weights_as_they_were(runs: dict[bool, Run]) -> None:
    run = runs[True]
    base = AutoModelForCausalLM.from_pretrained(run.model_path(1))
    merged = PeftModel.from_pretrained(base, run.path / "iter_1/train/adapter").merge_and_unload().state_dict()
    saved = load_file(f"{run.model_path(2)}/model.safetensors")
    assert all(torch.allclose(tensor, merged[name], atol=1e-6) for name, tensor in saved.items())
    adapter = load_file(run.path / "iter_1/train/adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    # Steps of 1e-3 are seen in bfloat16 as well, and what was trained in it would lie on its grid.
    assert all(bool((tensor != tensor.bfloat16()).any()) for tensor in adapter.values())


def test_a_training_goes_on_bit_by_bit(tmp_path: Path, tiny_random_model: Path, runs: dict[bool, Run]) -> None:
    from test_ranks import stop_after

    run = make_run(tmp_path, tiny_random_model, load_in_4bit=True, **PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, run, 1, step=3)
    train_iteration(run, Step("train", 1))
    assert resumed_from(run) == [3]
    assert logged(run, "loss") == logged(runs[True], "loss")


def test_another_reference_is_quantized_as_well(tmp_path: Path, tiny_random_model: Path, monkeypatch) -> None:
    loaded = []
    load = dpo.load_model

    def remembered(*given, **options):
        loaded.append(load(*given, **options))
        return loaded[-1]

    monkeypatch.setattr(dpo, "load_model", remembered)
    run = make_run(tmp_path, tiny_random_model, iterations=2, load_in_4bit=True, reference="seed", **PLAIN)
    train_iteration(run, Step("train", 1))
    train_iteration(run, Step("train", 2))
    assert [model.is_loaded_in_4bit for model in loaded] == [True, True, True]


def test_a_missing_library_is_told_before_anything_runs(tmp_path, tiny_random_model, monkeypatch) -> None:
    run = make_run(tmp_path, tiny_random_model, load_in_4bit=True, **PLAIN)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ValueError, match=r"load_in_4bit is true.*bitsandbytes.*selfreward\[qlora\]"):
        require_engine(run.recipe)
    with pytest.raises(ValueError, match="bitsandbytes"):
        train_iteration(run, Step("train", 1))
