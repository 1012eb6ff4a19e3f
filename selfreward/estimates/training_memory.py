"""The memory of a training process on its device, and of the merge behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selfreward.estimates.activations import Batch, activations, head_bytes
from selfreward.estimates.architecture import Architecture, adapter_parameters
from selfreward.estimates.disk import BYTES_A_WEIGHT
from selfreward.estimates.machine import GIB, Device
from selfreward.launchers.batch import ACCUMULATION, PER_DEVICE, shared_batch
from selfreward.launchers.layout import Layout
from selfreward.recipe.recipe import Recipe
from selfreward.runs.stages import reference_of

# Bytes of optimizer state for a trained parameter, by words in the optimizer's name; AdamW has two moments in float32.
STATES = {"8bit": 2, "4bit": 1, "adafactor": 1, "lion": 4, "sgd": 0}
ADAM = 8
# NF4 with double quantization: four bits, and the scales of blocks of 64 (arXiv 2305.14314).
FOUR_BITS = 4.127 / 8
# What CUDA, NCCL and the libraries hold; and the share of the rest that PyTorch's allocator can't use. Assumptions.
CUDA_OVERHEAD, FRAGMENTS = GIB, 0.05
# Python with torch, transformers, TRL and datasets: measured.
LIBRARIES = int(0.65 * GIB)
# glibc's heap keeps holes between the tensors that stay: measured, as a share of what a forward pass without
# checkpointing would keep. In half precision smaller tensors fill some of them. Larger tensors than HEAP leave none.
HOLES = {"float32": 1.0, "bfloat16": 0.5, "float16": 0.5}
# Float32 tensors that are there at once: of one that is read, rounded by chance and cast; and of one that is merged,
# with the adapter's product and their sum. Measured.
CAST_COPIES, MERGE_COPIES, SHARD = {"float32": 1, "bfloat16": 3, "float16": 3}, 4, 2 * 10**9


@dataclass(frozen=True)
class Sharing:
    """How processes share a model: by which factor each has less. 1: each has its own copy.

    The name is empty for one process. What is offloaded waits in main memory.
    """

    name: str
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    weights_offloaded: bool = False
    optimizer_offloaded: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one training process at its worst moment.

    ``gathered``: weights of other processes, for the time that a layer needs them. ``activations`` wait for the
    backward pass; ``working`` is what the output layer's tiles or a layer hold at once, whichever is more.
    """

    weights: int
    gathered: int
    reference: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Training:
    """One training: how the recipe's batch is shared, and the memory of each process.

    ``trained``: parameters. ``merge``: bytes of main memory that the first process of all then needs.
    """

    ranks: int
    sharing: str
    per_device: int
    accumulation: int
    length: int
    checkpointing: bool
    trained: int
    memory: Memory
    merge: int


def sharing(config: Path | None, ranks: int) -> Sharing:
    """What a file of ``accelerate config`` says. Raises ValueError for a kind that is not known here."""
    content = {} if config is None else yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    kind = str(content.get("distributed_type", "NO"))
    if ranks == 1:
        return Sharing("")
    if kind == "DEEPSPEED":
        options = content.get("deepspeed_config") or {}
        stage = int(options.get("zero_stage", 2))
        weights, gradients, optimizer = (ranks if stage >= least else 1 for least in (3, 2, 1))
        away = [options.get(f"offload_{part}_device") in ("cpu", "nvme") for part in ("param", "optimizer")]
        return Sharing(f"ZeRO-{stage}", weights, gradients, optimizer, *away)
    if kind == "FSDP" and not content.get("use_cpu"):
        offloaded = bool((content.get("fsdp_config") or {}).get("fsdp_offload_params"))
        return Sharing("FSDP", ranks, ranks, ranks, weights_offloaded=offloaded, optimizer_offloaded=offloaded)
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP"):
        return Sharing("DDP")
    raise ValueError(f"{config}: distributed_type is {kind}, which is not planned. Use a file of configs/accelerate")


def dpo(recipe: Recipe, sizes: Architecture, layout: Layout, device: Device) -> Training:
    """The training of an iteration: of all that the recipe has, the one that takes the most memory."""
    every = [_dpo(recipe, sizes, t, layout, device) for t in range(1, recipe.iterations + 1)]
    return max(every, key=lambda each: each.memory.total)


def _dpo(recipe: Recipe, sizes: Architecture, iteration: int, layout: Layout, device: Device) -> Training:
    options, lora = recipe.training.dpo_options(iteration), recipe.training.lora
    if options.get("disable_dropout", True):
        lora = {**lora, "lora_dropout": 0.0}
    width = BYTES_A_WEIGHT[recipe.model.dtype]
    inner = FOUR_BITS if recipe.training.load_in_4bit else width
    frozen = int((sizes.parameters - sizes.embeddings) * inner) + sizes.embeddings * width
    second = frozen if reference_of(recipe, iteration) != iteration else 0
    work = _Work(recipe, sizes, options, layout, device, 2, lora, adapter_parameters(recipe.model, lora), frozen)
    if not second or not options.get("precompute_ref_log_probs"):
        return work.training(second)
    # The reference is there before the first step alone, and then nothing is kept for a backward pass.
    before, then = work.training(second), work.training(0)
    before = replace(before, memory=replace(before.memory, gradients=0, optimizer=0, activations=0))
    return max(before, then, key=lambda each: each.memory.total)


def sft(recipe: Recipe, sizes: Architecture, layout: Layout, device: Device) -> Training:
    """The seed stage's training, of all weights in float32."""
    return _Work(recipe, sizes, recipe.training.sft, layout, device, 1, None, sizes.parameters, 0).training(0)


@dataclass(frozen=True)
class _Work:
    """What a training has to do: ``rows`` for an example, ``trained`` parameters, ``frozen`` bytes besides."""

    recipe: Recipe
    sizes: Architecture
    options: dict[str, Any]
    layout: Layout
    device: Device
    rows: int
    lora: dict[str, Any] | None
    trained: int
    frozen: int

    def training(self, reference: int) -> Training:
        """With a reference model of so many bytes beside the one that is trained."""
        ranks = self.layout.ranks
        shares, batch = sharing(self.recipe.launch.accelerate_config, ranks), shared_batch(self.options, ranks)
        return Training(
            ranks=ranks,
            sharing=shares.name,
            per_device=batch[PER_DEVICE],
            accumulation=batch[ACCUMULATION],
            length=self._length,
            checkpointing=self._checkpointing,
            trained=self.trained,
            memory=self._memory(shares, Batch(self.rows * batch[PER_DEVICE], self._length), reference),
            merge=merge(self.sizes, self.recipe.model.dtype),
        )

    @property
    def _checkpointing(self) -> bool:
        return bool(self.options.get("gradient_checkpointing", True))

    @property
    def _length(self) -> int:
        """The most tokens of a row: longer ones are not trained, and an engine makes none that it has no room for."""
        limits = [self.options.get("max_length", 1024), self.sizes.context]
        limits += [self.recipe.engine.vllm.get("max_model_len")] if self.lora is not None else []
        return min(int(limit) for limit in limits if limit)

    def _memory(self, shares: Sharing, batch: Batch, reference: int) -> Memory:
        model, on_cpu = self.recipe.model, self.device.is_cpu
        held = activations(model, self.lora, batch, self._checkpointing)
        head = head_bytes(batch, self.sizes.hidden, self.sizes.vocabulary, model.dtype, on_cpu)
        working = max(held.passing, head)
        if on_cpu:
            whole = activations(model, self.lora, batch, checkpointing=False)
            overhead = LIBRARIES + int(HOLES[model.dtype] * whole.on_heap)
        else:
            overhead = CUDA_OVERHEAD + int(FRAGMENTS * (held.kept + working))
        # DDP has the gradients once more, in the buckets that it sends.
        buckets = 2 if self.layout.ranks > 1 and shares.gradients == 1 else 1
        return Memory(
            weights=0 if shares.weights_offloaded else self.frozen // shares.weights,
            gathered=self._gathered if shares.weights > 1 else 0,
            reference=reference // shares.weights,
            adapter=4 * self.trained // shares.weights,
            gradients=4 * self.trained // shares.gradients * buckets,
            optimizer=0 if shares.optimizer_offloaded else _state(self.options) * self.trained // shares.optimizer,
            activations=held.kept,
            working=working,
            overhead=overhead,
        )

    @property
    def _gathered(self) -> int:
        """Two layers, one of which is on its way; the embeddings; and the output layer's own copy of its weights."""
        elements = 2 * self.sizes.largest_layer + self.sizes.embeddings + self.sizes.output
        return elements * BYTES_A_WEIGHT[self.recipe.model.dtype]


def merge(sizes: Architecture, dtype: str) -> int:
    """Bytes of main memory for the merge: a shard of the new model, and a tensor with what it is made from."""
    tensor = 4 * max(CAST_COPIES[dtype] * sizes.largest_tensor, MERGE_COPIES * sizes.largest_inner)
    return LIBRARIES + min(SHARD, sizes.weight_bytes(dtype)) + tensor


def _state(options: dict[str, Any]) -> int:
    """Bytes that the optimizer keeps for a trained parameter."""
    name = str(options.get("optim", "adamw"))
    return next((size for word, size in STATES.items() if word in name), ADAM)
