"""Models and an environment that need no network, no GPU and few threads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where torch sees none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from selfreward.runtime.gpus import has_gpu

    for item in marked if not has_gpu() else ():
        item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))


def leave_disk(patch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Lets every disk have so many bytes left, as far as this process can tell."""
    usage = shutil.disk_usage("/")
    patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=num_bytes))


def make_random_model(path: Path, seed: int, architecture: str = "llama", tied: bool = False) -> Path:
    """Saves a small model with random weights and the tiny world's tokenizer."""
    import torch
    from tiny_world.pretrain import build_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        # Wide enough for some tokens to be much likelier than others.
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model."""
    return make_random_model(tmp_path_factory.mktemp("models") / "random", seed=0)
