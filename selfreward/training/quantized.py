"""QLoRA: a policy whose frozen weights have four bits each (arXiv 2305.14314). No torch until a model is loaded."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from selfreward.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers import Trainer


def require_quantization(recipe: Recipe) -> None:
    """Raises ValueError for a run that is to train with four bits where bitsandbytes is not installed."""
    wanted = recipe.training.load_in_4bit and recipe.iterations
    if wanted and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "training.load_in_4bit is true, which needs bitsandbytes, which is not installed. Install it (pip install "
            '"selfreward[qlora]"), or write load_in_4bit: false'
        )


def load_options(recipe: Recipe) -> dict[str, Any]:
    """What ``from_pretrained`` is given for the policy and its reference: NF4 with double quantization, or nothing.

    Raises:
        ValueError: as :func:`require_quantization`.
    """
    require_quantization(recipe)
    if not recipe.training.load_in_4bit:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, recipe.model.dtype)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP and ZeRO-3 divide only what is stored as numbers of the model's own type.
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": settings}


def widen_adapter(trainer: Trainer) -> None:
    """Gives a quantized policy an adapter in float32: TRL casts it to bfloat16, in which most steps are lost."""
    for weight in trainer.accelerator.unwrap_model(trainer.model).parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
