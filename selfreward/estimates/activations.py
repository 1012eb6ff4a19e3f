"""What one training step holds in memory besides weights: seen by making the step, on tensors without content.

PyTorch's fake tensors have shapes, types and lifetimes, and no memory behind them. So the model's own code says what it
keeps for the backward pass, with the recipe's LoRA, precision and checkpointing, whatever the architecture.

The output layer comes by itself. TRL (from 1.16) never has all logits at once: it makes tiles of 4,096 tokens by 32,768
words, one after the other, and makes them again on the way back.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from selfreward.estimates.architecture import build, configuration, read, with_adapter
from selfreward.estimates.disk import BYTES_A_WEIGHT
from selfreward.recipe.engine_settings import ModelSettings

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

TILE_TOKENS, TILE_WORDS = 4096, 32768
# On a GPU one kernel changes a tile in place. On a CPU seven float32 copies and a mask stand beside it.
CPU_BYTES_A_PLACE = 7 * 4 + 1
# Below this, glibc takes memory from a heap and not from the system.
HEAP = 32 << 20


@dataclass(frozen=True)
class Activations:
    """Bytes that one process holds for a batch, at most.

    ``kept`` from the forward pass to the backward pass, ``passing`` besides at once while either goes through a layer.
    ``on_heap``: of what is kept, the tensors that glibc puts on its heap.
    """

    kept: int
    passing: int
    on_heap: int


@dataclass(frozen=True)
class Batch:
    """What one process trains at once: ``rows`` of ``length`` tokens each; DPO has two rows for a pair."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def head_bytes(batch: Batch, hidden: int, vocabulary: int, dtype: str, on_cpu: bool) -> int:
    """The most that the output layer and the loss hold at once, on their way back."""
    width = BYTES_A_WEIGHT[dtype]
    places = min(batch.tokens, TILE_TOKENS) * min(vocabulary, TILE_WORDS)
    tile = places * (width + (CPU_BYTES_A_PLACE if on_cpu else 0))
    # The hidden states that are scored, and their gradient in float32 and as it is handed on.
    return tile + batch.tokens * hidden * (2 * width + 4)


def activations(model: ModelSettings, lora: dict[str, Any] | None, batch: Batch, checkpointing: bool) -> Activations:
    """What the layers hold of one batch, at their full number.

    Layers that are alike are not all gone through: the second one shows what each further one adds.

    Args:
        model: the model, and the precision that it computes in.
        lora: options of the adapter that is trained; None: all weights are, in float32.
        batch: of one process.
        checkpointing: whether each layer's own activations are made again on the way back.
    """
    return _of_all_layers(model, None if lora is None else json.dumps(lora, sort_keys=True), batch, checkpointing)


@cache
def _of_all_layers(model: ModelSettings, lora: str | None, batch: Batch, checkpointing: bool) -> Activations:
    sizes, options = read(model), None if lora is None else json.loads(lora)
    if not sizes.uniform or sizes.layers <= 2:
        return of_layers(model, options, batch, checkpointing, sizes.layers)
    one, two = (of_layers(model, options, batch, checkpointing, depth) for depth in (1, 2))
    more = sizes.layers - 2
    return Activations(
        kept=two.kept + more * (two.kept - one.kept),
        passing=two.passing,
        on_heap=two.on_heap + more * (two.on_heap - one.on_heap),
    )


def of_layers(
    model: ModelSettings, lora: dict[str, Any] | None, batch: Batch, checkpointing: bool, depth: int
) -> Activations:
    """A step of a model's first layers."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    trained = build(model, shallow(configuration(model), depth), None if lora is not None else "float32")
    policy: Any = trained if lora is None else with_adapter(trained, lora)
    half = model.dtype != "float32"
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialize(policy)
        if checkpointing:
            if lora is not None:
                policy.enable_input_require_grads()
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
        ids = torch.zeros(batch.rows, batch.length, dtype=torch.long)
        with watched(_tensors(policy)) as watch:
            with torch.autocast("cpu", dtype=getattr(torch, model.dtype)) if half else nullcontext():
                backbone = trained.base_model
                hidden = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
            kept, on_heap = watch.now, watch.on_heap
            hidden.sum().backward()
    return Activations(kept, watch.peak - kept, on_heap)


def shallow(config: PretrainedConfig, depth: int) -> PretrainedConfig:
    """The configuration of the same model with its first layers alone."""
    text = config.get_text_config()
    full = text.num_hidden_layers
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == full:
            setattr(text, name, value[:depth])
    text.num_hidden_layers = depth
    return config


def _tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters of a model, their gradients, and its buffers."""
    weights = list(model.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return [*weights, *gradients, *model.buffers()]


def _materialize(module: torch.nn.Module) -> None:
    """Gives a model on the meta device fake tensors on the CPU, where autocast works, and gradients of what is trained.

    A gradient that is there already is added to, as it is from the second batch of a step on.
    """
    made: dict[int, torch.Tensor] = {}
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _like(tensor)
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


def _like(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, torch.nn.Parameter):
        return empty
    weight = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    if weight.requires_grad:
        weight.grad = torch.empty_like(empty)
    return weight


class Watch:
    """Bytes of the tensors that were made and are still there."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        self.now = self.peak = self.on_heap = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in before}

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        # A storage's own address, which a later one can have again once this one is gone.
        place, size = storage._cdata, storage.nbytes()
        if place in self._alive:
            return
        self._alive.add(place)
        self._count(size, 1)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self._count(size, -1)

    def _count(self, size: int, sign: int) -> None:
        self.now += sign * size
        self.on_heap += sign * size * (size < HEAP)
        self.peak = max(self.peak, self.now)


@contextmanager
def watched(before: Iterable[torch.Tensor]) -> Iterator[Watch]:
    """Counts the tensors that are made inside; ``before`` are there already and do not count, nor do views of them."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    watch = Watch(before)

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tree_map_only(torch.Tensor, watch.see, result)
            return result

    with Mode():  # type: ignore[no-untyped-call]
        yield watch
