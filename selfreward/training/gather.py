"""What was trained, whole and in float32, wherever its parts are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import Trainer

Tensors = dict[str, torch.Tensor]


def save_trained(trainer: Trainer, folder: Path) -> None:
    """Writes the adapter, or the model if all of it was trained, as safetensors with its settings.

    Every rank takes part, as under FSDP and ZeRO each has a share of the weights; the first one writes. Upstream's
    own saving gathers the frozen weights as well, and under DeepSpeed has the rounded copies that half precision
    computes with.
    """
    tensors = _of_deepspeed(trainer) if trainer.is_deepspeed_enabled else _of_fsdp(trainer)
    if trainer.is_world_process_zero():
        _model(trainer).save_pretrained(folder, state_dict=tensors)


def _model(trainer: Trainer) -> Any:
    """The model itself, whatever prepared it to be trained."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def _of_deepspeed(trainer: Trainer) -> Tensors:
    """The optimizer's own weights, gathered one by one, and buffers; on the first rank alone, on the CPU."""
    from deepspeed.utils import safe_get_full_fp32_param

    model = _model(trainer)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first = trainer.is_world_process_zero()
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items() if name not in parameters and first}
    for name, weight in model.named_parameters():
        whole = safe_get_full_fp32_param(weight) if weight.requires_grad else None
        if whole is not None and first:
            tensors[name] = whole.cpu()
    return tensors


def _of_fsdp(trainer: Trainer) -> Tensors | None:
    """The same of FSDP; None where each rank has all of them anyway."""
    if not trainer.is_fsdp_enabled:
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = _model(trainer)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    tensors: Any = get_model_state_dict(model, options=options)
    # Gathered, tied weights would be two.
    again = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in tensors.items() if name not in again}
