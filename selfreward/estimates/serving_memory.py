"""The memory of an engine on one device: weights, what a step computes with, and the KV cache in what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfreward.estimates.architecture import Architecture
from selfreward.estimates.disk import BYTES_A_WEIGHT
from selfreward.estimates.machine import GIB, Device
from selfreward.launchers.layout import SPLITS
from selfreward.recipe.recipe import Recipe

# Defaults of vLLM for an engine that is driven step by step, and what it and CUDA hold besides: the context, graphs,
# buffers of the collectives. Read in vLLM 0.32; the last figure is an assumption.
UTILIZATION, BATCHED_TOKENS, NUM_SEQS, VLLM_OVERHEAD = 0.92, 2048, 128, 2 * GIB
# Sampling with top_p sorts the logits: float32 values, probabilities, indices of 8 bytes, and copies.
BYTES_A_LOGIT = 24
# Without a GPU: what the engine's own libraries hold, and the cache unless the recipe says otherwise.
CPU_OVERHEAD, CPU_CACHE = GIB // 2, GIB


@dataclass(frozen=True)
class Serving:
    """Bytes on one device, and what the cache holds of the longest sequences that are allowed.

    ``budget``: what the engine may take. ``given``: the size of the cache where it is not what is left, which is below
    0 where not even the rest fits.
    """

    replicas: int
    devices: int
    budget: int
    weights: int
    computing: int
    overhead: int
    cache: int
    bytes_per_token: int
    max_model_len: int
    max_num_seqs: int
    given: int | None

    @property
    def cached_tokens(self) -> int:
        return max(0, self.cache) // self.bytes_per_token

    @property
    def sequences(self) -> float:
        """How many of the longest sequences are in the cache at once."""
        return self.cached_tokens / self.max_model_len

    @property
    def total(self) -> int:
        return self.weights + self.computing + self.overhead + max(0, self.cache)


def serving(recipe: Recipe, sizes: Architecture, replicas: int, device: Device) -> Serving:
    """What each device of a replica holds. Engines other than vLLM keep no cache ahead of their batches."""
    options, dtype = recipe.engine.vllm, recipe.model.dtype
    tensor, pipeline = (int(options.get(name) or 1) for name in SPLITS)
    longest = int(options.get("max_model_len") or sizes.context)
    width, num_seqs = BYTES_A_WEIGHT[dtype], int(options.get("max_num_seqs") or NUM_SEQS)
    # The last device of a pipeline has the embeddings besides its layers.
    inner = sizes.parameters - sizes.embeddings
    weights = (inner // pipeline + sizes.embeddings) // tensor * width
    batched = int(options.get("max_num_batched_tokens") or max(BATCHED_TOKENS, longest if device.is_cpu else 0))
    states = batched * (4 * sizes.hidden + 3 * sizes.intermediate // tensor) * width
    computing = states + num_seqs * sizes.vocabulary * BYTES_A_LOGIT
    overhead = CPU_OVERHEAD if device.is_cpu else VLLM_OVERHEAD
    token = _kv_bytes(sizes, options, dtype, tensor, pipeline)
    given: int | None = int(options.get("kv_cache_memory_bytes") or (CPU_CACHE if device.is_cpu else 0)) or None
    budget = device.memory if device.is_cpu else int(device.memory * _share(options))
    if recipe.engine.name != "vllm":
        # Keys and values live as long as their batch does, and are as long as its texts.
        num_seqs, budget = recipe.engine.transformers.batch_size, device.memory
        longest = min(longest, _longest_text(recipe))
        given = num_seqs * longest * token
    return Serving(
        replicas=replicas,
        devices=tensor * pipeline,
        budget=budget,
        weights=weights,
        computing=computing,
        overhead=overhead,
        cache=budget - weights - computing - overhead if given is None else given,
        bytes_per_token=token,
        max_model_len=longest,
        max_num_seqs=num_seqs,
        given=given,
    )


def _longest_text(recipe: Recipe) -> int:
    """A judge's prompt with a response, and what the judge writes."""
    return 512 + recipe.responses.max_tokens + max(judge.max_tokens for judge in recipe.judge.judges)


def _share(options: dict[str, Any]) -> float:
    return float(options.get("gpu_memory_utilization") or UTILIZATION)


def _kv_bytes(sizes: Architecture, options: dict[str, Any], dtype: str, tensor: int, pipeline: int) -> int:
    """Bytes a token, with the cache's own type if the recipe gives it one."""
    full = sizes.kv_bytes(dtype, tensor, pipeline)
    narrow = str(options.get("kv_cache_dtype") or "auto").startswith("fp8")
    return full // BYTES_A_WEIGHT[dtype] if narrow else full
