"""From what was trained to the model that is served next, and the proof that they are the same.

Both go through the model layer by layer: the weights are read from safetensors when they are used, and one process
holds a few gigabytes of a model of any size. Where :func:`open_lazily` or :func:`merges_by_layer` says no, the whole
model is loaded in float32 instead.
"""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

from selfreward.records import derive_seed
from selfreward.runs.run import Run
from selfreward.runs.stages import SEED_STEP, Step
from selfreward.runs.stored import PROBES, SEED_OF_ROUNDING
from selfreward.runtime.whole_folder import require_room, written_whole
from selfreward.serving.weight_check import LogProbs, Probes, require_merged
from selfreward.text.chat import load_tokenizer
from selfreward.training.common import load_alone
from selfreward.training.finite import LOWER
from selfreward.training.probes import log_probs
from selfreward.training.rounding import round_stochastically
from selfreward.training.weights import LazyModel, Weights, open_lazily, weighed, write_shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_adapter(run: Run, step: Step, adapter: Path, ids: list[list[int]]) -> tuple[LogProbs, LogProbs]:
    """Adds the adapter to M_t in float32, where the sum is exact enough, and casts once to the recipe's dtype.

    Merging in bfloat16 itself shifts the loss (peft#1388).

    Returns:
        The probes' log-probabilities under M_t and the policy.

    Raises:
        ValueError: a weight or a log-probability that is not a finite number.
        DiskFull: the disk has no room for the model.
    """
    source = run.model_path(step.iteration)
    lazy = open_lazily(source, run.recipe.model, _dtype(run))
    if lazy is not None:
        policy = _load_adapter(lazy.model, adapter)
        if merges_by_layer(policy, lazy.weights):
            with weighed(policy, _of_policy(policy, lazy.weights)):
                figures = _both(policy, ids)
            _save_lazily(lazy, Merged(policy, lazy.weights).__getitem__, run, source, step)
            return figures
    policy = PeftModel.from_pretrained(load_alone(source, run), str(adapter), torch_device="cpu")
    figures = _both(policy, ids)
    save_model(policy.merge_and_unload(safe_merge=True), run, source, step)
    return figures


def cast_trained(run: Run, trained: Path, ids: list[list[int]]) -> tuple[LogProbs, LogProbs]:
    """Casts the float32 weights of the seed stage's training to the recipe's dtype.

    Returns and raises:
        As :func:`merge_adapter`, the log-probabilities of the policy being those before the cast.
    """
    source = run.model_path(0)
    previous = _figures(source, run, ids, _dtype(run))
    lazy = open_lazily(str(trained), run.recipe.model, torch.float32)
    if lazy is None:
        model = load_alone(trained, run, torch.float32)
        policy = log_probs(model, ids)
        save_model(model, run, source, SEED_STEP)
        return previous, policy
    with weighed(lazy.model, lazy.weights):
        policy = log_probs(lazy.model, ids)
    _save_lazily(lazy, lazy.weights.__getitem__, run, source, SEED_STEP)
    return previous, policy


def prove(run: Run, step: Step, ids: list[list[int]], previous: LogProbs, policy: LogProbs) -> dict[str, float]:
    """Reads the saved model back, compares it with the policy and leaves the probes in ``train/probes.json``.

    Raises:
        WeightCheckError: it is not the trained policy, or training changed nothing.
    """
    merged = _figures(str(run.model_folder(step)), run, ids, _dtype(run))
    probes = Probes(run.recipe.model.dtype, ids, previous, policy, merged)
    evidence = require_merged(probes)
    probes.write(run.folder(step).path / PROBES)
    return {"merge_difference": evidence.greatest, "merge_share": evidence.share}


def merges_by_layer(policy: PeftModel, weights: Weights) -> bool:
    """Whether an adapter changes nothing but layers that PEFT can merge one by one, each with weights of its own.

    Not so: adapters of single parameters or tokens, trained biases, replicated layers, and a layer whose weights are
    tied to another's.
    """
    settings: Any = policy.peft_config[policy.active_adapter]
    wrappers = _wrappers(policy)
    known = all(isinstance(each, (lora.Linear, lora.Embedding, ModulesToSaveWrapper)) for each in wrappers.values())
    names = {f"{path}.{name}" for path, each in wrappers.items() for name in _inner(each).state_dict()}
    missing = any(tensor.is_meta and _base_name(name) not in weights for name, tensor in policy.state_dict().items())
    return (
        known
        and not missing
        and names <= set(weights)
        and not names & weights.tied()
        and settings.bias == "none"
        and not settings.layer_replication
    )


class Merged:
    """The tensors of a model with its adapter, by their names without it, in float32."""

    def __init__(self, policy: PeftModel, weights: Weights) -> None:
        self._weights = weights
        self._wrappers = _wrappers(policy)
        self._owners = {f"{path}.{n}": path for path, each in self._wrappers.items() for n in _inner(each).state_dict()}
        self._last: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._owners.get(name)
        if path is None:
            return self._weights[name]
        if self._last[0] != path:
            # The tensors of a layer mostly follow each other; two layers at a time would be one too many.
            self._last = ("", {})
            self._last = (path, self._merge(path))
        return self._last[1][name.removeprefix(f"{path}.")]

    def _merge(self, path: str) -> dict[str, torch.Tensor]:
        """The tensors of one layer, by PEFT's own arithmetic on a copy of it that has its weights."""
        wrapper = self._wrappers[path]
        if isinstance(wrapper, ModulesToSaveWrapper):
            return dict(wrapper.modules_to_save[wrapper.active_adapters[0]].state_dict())
        layer = copy.deepcopy(wrapper)
        base = layer.get_base_layer()
        base.load_state_dict({name: self._weights[f"{path}.{name}"] for name in base.state_dict()}, assign=True)
        layer.merge(safe_merge=True)
        return dict(base.state_dict())


def save_model(model: PreTrainedModel, run: Run, source: str, step: Step) -> None:
    """Writes a whole model in the recipe's dtype, as safetensors, with what it is served with.

    Raises:
        ValueError: a weight that is not a finite number.
        DiskFull: the disk has no room for it.
    """
    for name, weight in model.named_parameters():
        weight.data = _cast(name, weight.data, run, step)
    dtype: Any = _dtype(run)
    model.to(dtype)
    with _new_model(run, source, step, sum(weight.nbytes for weight in model.parameters())) as folder:
        model.save_pretrained(folder)


def _save_lazily(lazy: LazyModel, tensor: Callable[[str], torch.Tensor], run: Run, source: str, step: Step) -> None:
    """The same, tensor by tensor: ``tensor`` gives the one of a name in float32."""
    dtype = _dtype(run)
    planned = {name: each.to(dtype) if each.is_floating_point() else each for name, each in lazy.tensors.items()}
    with _new_model(run, source, step, sum(each.nbytes for each in planned.values())) as folder:
        write_shards(folder, planned, lambda name: _cast(name, tensor(name), run, step))
        lazy.save_settings(folder, dtype)


def _cast(name: str, weight: torch.Tensor, run: Run, step: Step) -> torch.Tensor:
    """A tensor in the recipe's dtype, rounded alike however the model is split into files."""
    if not weight.is_floating_point():
        return weight
    weight = round_stochastically(
        weight, _dtype(run), derive_seed(run.recipe.seed, step.iteration, SEED_OF_ROUNDING, name)
    )
    if not bool(weight.isfinite().all()):
        raise ValueError(f"the trained model of iteration {step.iteration} has weights that are not numbers. {LOWER}")
    return weight.contiguous()


@contextmanager
def _new_model(run: Run, source: str, step: Step, num_bytes: int) -> Iterator[Path]:
    """A folder to write a model's weights and settings into.

    It gets the tokenizer and chat template, and its name, once all of it is on the disk.
    """
    path = run.model_folder(step)
    with written_whole(path) as folder:
        require_room(path, num_bytes, f"the model of iteration {step.iteration}")
        yield folder
        load_tokenizer(source, run.recipe.model).save_pretrained(folder)


def _figures(path: str, run: Run, ids: list[list[int]], dtype: torch.dtype) -> LogProbs:
    """The probes' log-probabilities under a model."""
    lazy = open_lazily(path, run.recipe.model, dtype)
    if lazy is None:
        return log_probs(load_alone(path, run, dtype), ids)
    with weighed(lazy.model, lazy.weights):
        return log_probs(lazy.model, ids)


def _both(policy: PeftModel, ids: list[list[int]]) -> tuple[LogProbs, LogProbs]:
    """The probes' log-probabilities with the adapter off and on."""
    figures = log_probs(policy, ids)
    with policy.disable_adapter():
        return log_probs(policy, ids), figures


def _load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """A policy whose adapter is in memory, and the model below it on the meta device."""
    policy = PeftModel.from_pretrained(model, str(adapter), low_cpu_mem_usage=True)
    # PEFT puts what it loads where the model is.
    tensors = policy.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in tensors.items()}
    places = get_peft_model_state_dict(policy, state_dict=tensors, save_embedding_layers=False)
    stored = load_peft_weights(str(adapter), device="cpu")
    own = {names[id(places[key])]: tensor for key, tensor in stored.items() if key in places}
    policy.load_state_dict(own, strict=False, assign=True)
    return policy.float()


def _of_policy(policy: PeftModel, weights: Weights) -> Mapping[str, torch.Tensor]:
    """The tensors of a policy by its own names: those of the model from the disk, and those of the adapter."""
    tensors = policy.state_dict()
    base = {name: _base_name(name) for name in tensors if _base_name(name) in weights}
    return ChainMap({name: tensors[name] for name in tensors.keys() - base.keys()}, weights.renamed(base))  # type: ignore[arg-type]


def _base_name(name: str) -> str:
    """The name in the model of what has another one in the policy."""
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _wrappers(policy: PeftModel) -> dict[str, BaseTunerLayer | AuxiliaryTrainingWrapper]:
    """PEFT's own layers, by the names that the model has for those inside of them."""
    modules = policy.named_modules()
    return {
        _base_name(path): each for path, each in modules if isinstance(each, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }


def _inner(wrapper: BaseTunerLayer | AuxiliaryTrainingWrapper) -> torch.nn.Module:
    """The model's own layer inside of one of PEFT's."""
    inner = wrapper.original_module if isinstance(wrapper, AuxiliaryTrainingWrapper) else wrapper.get_base_layer()
    assert isinstance(inner, torch.nn.Module)
    return inner


def _dtype(run: Run) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, run.recipe.model.dtype)
    return dtype
