"""Models whose weights stay on the disk: read from safetensors when they are used, and written shard by shard."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import cpu_offload, init_empty_weights
from accelerate.hooks import remove_hook_from_submodules
from huggingface_hub import split_torch_state_dict_into_shards
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import unset_hf_deepspeed_config
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import get_checkpoint_shard_files

from selfreward.text.chat import model_errors
from selfreward.training.upstream_internals import (
    find_file,
    is_converted,
    load_generation_config,
    stays_in_float32,
    whole_layers,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from selfreward.recipe.engine_settings import ModelSettings

# A shard is in memory while it is written.
SHARD = "1GB"


class Weights(Mapping[str, torch.Tensor]):
    """Tensors in float32, read from safetensors each time they are asked for, rounded to ``dtype`` first."""

    def __init__(self, places: Mapping[str, tuple[str, str]], dtype: torch.dtype) -> None:
        """``places`` has the file and the name in it of each tensor; those that are tied share a place."""
        self._places, self._dtype = places, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        path, stored = self._places[name]
        # A file that stays open would keep all of it in memory that was ever read.
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(stored)
        return tensor.to(self._dtype).float() if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def tied(self) -> set[str]:
        """The names of tensors that are also another's."""
        names = defaultdict(list)
        for name, place in self._places.items():
            names[place].append(name)
        return {name for group in names.values() if len(group) > 1 for name in group}

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """The same tensors by new names, each with its old one."""
        return Weights({new: self._places[old] for new, old in names.items()}, self._dtype)


@dataclass(frozen=True)
class LazyModel:
    """A model on the meta device, its buffers on the CPU, and the weights on the disk that belong to it.

    ``tensors`` has a tensor on the meta device for each that is stored, of those that are tied one.
    """

    model: PreTrainedModel
    weights: Weights
    tensors: Mapping[str, torch.Tensor]

    def save_settings(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes what transformers writes beside weights of ``dtype``."""
        config = self.model.config
        config.dtype, config.architectures = str(dtype).removeprefix("torch."), [type(self.model).__name__]
        config.save_pretrained(folder)
        if self.model.can_generate():
            self.model.generation_config.save_pretrained(folder)


def open_lazily(path: str, settings: ModelSettings, dtype: torch.dtype) -> LazyModel | None:
    """A model for this one process that computes in float32 with weights as they are in ``dtype``.

    Returns:
        None where only transformers' own loading is sure to give the right weights: a model with code of its own,
        a quantized one, and files whose tensors are not simply those of the model, by its own names.
    """
    unset_hf_deepspeed_config()
    revision = None if Path(path).is_dir() else settings.revision
    with model_errors(path):
        files = _files(path, revision)
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=settings.trust_remote_code)
    if not files or not _is_plain(config, settings):
        return None
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=settings.trust_remote_code
        )
    model.tie_weights()
    places = _places(model, files, dtype)
    if places is None:
        return None
    weights = Weights(places, dtype)
    for name, buffer in model.named_buffers():
        if name in places:
            buffer.copy_(weights[name])
    if model.can_generate():
        load_generation_config(model, path, revision)
    stored = {name: tensor.to("meta") for name, tensor in model.state_dict().items() if places[name][1] == name}
    return LazyModel(model.float().eval(), weights, stored)


def _files(path: str, revision: str | None) -> dict[str, str]:
    """The file of each tensor by the name that it has there; none where there are no safetensors."""
    found = {name: find_file(path, name, revision) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)}
    if whole := found[SAFE_WEIGHTS_NAME]:
        with safe_open(whole, framework="pt") as file:
            return dict.fromkeys(file.keys(), whole)
    if index := found[SAFE_WEIGHTS_INDEX_NAME]:
        shards, metadata = get_checkpoint_shard_files(path, index, revision=revision)
        by_name = {Path(shard).name: shard for shard in shards}
        return {name: by_name[Path(file).name] for name, file in metadata["weight_map"].items()}
    return {}


def _is_plain(config: PretrainedConfig, settings: ModelSettings) -> bool:
    """Whether the model's code is transformers' own and its weights are stored as they are used."""
    own_code = settings.trust_remote_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    unusual = any(getattr(config, name, None) for name in ("quantization_config", "transformers_weights"))
    return not own_code and not unusual


def _places(model: PreTrainedModel, files: Mapping[str, str], dtype: torch.dtype) -> dict[str, tuple[str, str]] | None:
    """The file and name of each tensor of a model, or None if its tensors are not those of the files.

    The files may hold others besides, which transformers leaves out as well.
    """
    if is_converted(model, files) or (dtype != torch.float32 and stays_in_float32(model)):
        return None
    names = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].append(name)
    places: dict[str, tuple[str, str]] = {}
    for tied in names.values():
        stored = [name for name in tied if name in files]
        if len(stored) != 1:
            return None
        places |= dict.fromkeys(tied, (files[stored[0]], stored[0]))
    shapes = _shapes(places)
    same = all(tensor.shape == shapes[name] for name, tensor in model.state_dict().items())
    return places if same else None


def _shapes(places: Mapping[str, tuple[str, str]]) -> dict[str, torch.Size]:
    by_file: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, (path, stored) in places.items():
        by_file[path].append((name, stored))
    shapes: dict[str, torch.Size] = {}
    for path, names in by_file.items():
        with safe_open(path, framework="pt") as file:
            shapes |= {name: torch.Size(file.get_slice(stored).get_shape()) for name, stored in names}
    return shapes


@contextmanager
def weighed(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Lets a model on the meta device compute: each layer gets its weights when it is called, and gives them back.

    Args:
        model: with a LoRA or without.
        weights: every parameter by its name in the model.
    """
    # What reaches into a module without calling it are a model's layers, and those of an adapter.
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers = {type(module).__name__ for module in model.modules() if isinstance(module, wrappers)}
    layers |= whole_layers(model)
    cpu_offload(model, execution_device="cpu", state_dict=weights, preload_module_classes=sorted(layers))
    try:
        yield
    finally:
        remove_hook_from_submodules(model)


def write_shards(folder: Path, planned: Mapping[str, torch.Tensor], tensor: Callable[[str], torch.Tensor]) -> None:
    """Writes tensors as safetensors that transformers and vLLM load, with an index if there are several files.

    Args:
        folder: where to.
        planned: by name, tensors on the meta device.
        tensor: gives the one of a name when it is its turn.
    """
    plan = split_torch_state_dict_into_shards(
        dict(planned), filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD
    )
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensor(name) for name in names}, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")
