"""The first thing that has no room, and the settings with which it would have, found by planning again with each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from selfreward.estimates.machine import GIB
from selfreward.estimates.run_estimate import RunEstimate
from selfreward.estimates.training_memory import Training
from selfreward.launchers.batch import ACCUMULATION, PER_DEVICE
from selfreward.launchers.layout import shipped_config
from selfreward.recipe.recipe import edited_recipe

# What an engine holds on a GPU while it sleeps: its CUDA context, and some buffers.
ASLEEP = int(1.5 * GIB)
# Tokens of a judge's own prompt, and of what it judges an answer to.
AROUND_TOKENS = 512


@dataclass(frozen=True)
class Need:
    """How many bytes something ``needs`` and ``has``."""

    what: str
    needs: int
    has: int
    where: str = ""


@dataclass(frozen=True)
class Problem:
    """A need that is not met, and what it would be ``then``, with ``settings`` as they are typed, if any are known."""

    need: Need
    settings: tuple[str, ...] = ()
    then: Need | None = None


Settings = tuple[str, ...]


def first_problem(estimate: RunEstimate) -> Problem | None:
    """The first thing of a run that does not fit, in the order in which it would be met."""
    checks: list[tuple[Callable[[RunEstimate], Need | None], Callable[[RunEstimate], Iterator[Settings]]]] = [
        (_seed, _for_the_seed),
        (_cache, _for_serving),
        (_serving, _for_serving),
        (_dpo, _for_dpo),
        (_merge, _nothing),
        (_disk, _nothing),
    ]
    for look, changes in checks:
        need = look(estimate)
        if need is None or need.needs <= need.has:
            continue
        for settings in changes(estimate):
            other = _with(estimate, settings)
            then = None if other is None else look(other)
            if then is not None and then.needs <= then.has:
                return Problem(need, settings, then)
        return Problem(need)
    return None


def _with(estimate: RunEstimate, settings: Settings) -> RunEstimate | None:
    """The plan with other settings, or None where the recipe can't have them."""
    try:
        other = RunEstimate(edited_recipe(estimate.recipe.model_dump(mode="json"), settings), estimate.machine)
        assert other.layout.replicas
    except ValueError:
        return None
    return other


def _seed(estimate: RunEstimate) -> Need | None:
    return _training(estimate, estimate.sft, "training of the seed", kept=0)


def _dpo(estimate: RunEstimate) -> Need | None:
    return _training(estimate, estimate.dpo, "training", kept=held_by_engine(estimate) if estimate.keeps_engine else 0)


def _training(estimate: RunEstimate, trained: Training | None, what: str, kept: int) -> Need | None:
    """On a CPU all processes of a node share its memory."""
    if trained is None:
        return None
    device = estimate.machine.device
    needs = trained.memory.total * (estimate.layout.processes if device.is_cpu else 1) + kept
    return Need(what, needs, device.memory, "main memory" if device.is_cpu else f"each {device.name}")


def held_by_engine(estimate: RunEstimate) -> int:
    """Bytes of a device that an engine which is kept has while there is training."""
    return estimate.serving.total * estimate.layout.replicas if estimate.machine.device.is_cpu else ASLEEP


def _cache(estimate: RunEstimate) -> Need | None:
    """One sequence has to fit into a KV cache whose size the recipe gives, or the loop on a CPU."""
    served = estimate.serving
    if served.given is None:
        return None
    needs = served.max_model_len * served.bytes_per_token
    return Need(f"one sequence of {served.max_model_len:,} tokens", needs, served.given, "the KV cache")


def _serving(estimate: RunEstimate) -> Need | None:
    served, device = estimate.serving, estimate.machine.device
    cache = served.max_model_len * served.bytes_per_token if served.given is None else served.given
    needs = served.weights + served.computing + served.overhead + cache
    where = "main memory" if device.is_cpu else f"each {device.name}, of which vLLM may take this much"
    return Need("serving", needs * (served.replicas if device.is_cpu else 1), served.budget, where)


def _merge(estimate: RunEstimate) -> Need | None:
    """Main memory is known where there are no GPUs; elsewhere this machine need not be the one of the run."""
    trained = estimate.dpo or estimate.sft
    assert trained is not None
    device = estimate.machine.device
    return Need("the merge", trained.merge, device.memory, "main memory") if device.is_cpu else None


def _disk(estimate: RunEstimate) -> Need | None:
    folder = estimate.recipe.run_dir.absolute()
    while not folder.is_dir():
        folder = folder.parent
    run = estimate.recipe.run_dir / estimate.recipe.name
    written = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return Need(
        "the run folder", max(0, estimate.disk - written), shutil.disk_usage(folder).free, f"the disk of {folder}"
    )


def _nothing(estimate: RunEstimate) -> Iterator[Settings]:
    return iter(())


def _for_serving(estimate: RunEstimate) -> Iterator[Settings]:
    """More of the GPU, a context that still holds what a judge reads and writes, more GPUs to a replica."""
    recipe, served, key = estimate.recipe, estimate.serving, "engine.vllm."
    if recipe.engine.name != "vllm":
        if (size := recipe.engine.transformers.batch_size) > 1:
            yield from ((f"engine.transformers.batch_size={size >> by}",) for by in range(1, size.bit_length()))
        return
    if float(recipe.engine.vllm.get("gpu_memory_utilization") or 1) < 0.9 and not estimate.machine.device.is_cpu:
        yield (f"{key}gpu_memory_utilization=0.92",)
    least = recipe.responses.max_tokens + max(judge.max_tokens for judge in recipe.judge.judges) + AROUND_TOKENS
    longest = min(served.cached_tokens, served.max_model_len) // 256 * 256
    if longest >= least:
        yield (f"{key}max_model_len={longest}",)
    tensor = 2 * int(recipe.engine.vllm.get("tensor_parallel_size") or 1)
    while tensor <= estimate.machine.gpus and estimate.sizes.heads % tensor == 0:
        yield (f"{key}tensor_parallel_size={tensor}",)
        tensor *= 2
    if served.given is not None:
        shorter = min(least, served.max_model_len)
        yield (f"{key}max_model_len={shorter}", f"{key}kv_cache_memory_bytes={shorter * served.bytes_per_token}")


def _for_the_seed(estimate: RunEstimate) -> Iterator[Settings]:
    assert estimate.sft is not None
    return _for_training(estimate, estimate.sft, "training.sft.")


def _for_dpo(estimate: RunEstimate) -> Iterator[Settings]:
    assert estimate.dpo is not None
    return _for_training(estimate, estimate.dpo, "training.dpo.")


def _for_training(estimate: RunEstimate, trained: Training, key: str) -> Iterator[Settings]:
    """What changes no result, each alone and then with those before it; then coarser weights, and shorter rows."""
    every: Settings = ()
    for settings in _without_effect(estimate, trained, key):
        yield settings
        if (every := _joined(every, settings)) != settings:
            yield every
    if key == "training.dpo." and not estimate.machine.device.is_cpu:
        yield _joined(every, ("training.load_in_4bit=true",))
    length = trained.length // 2
    while length >= 256:
        yield _joined(every, (f"{key}max_length={length}",))
        length //= 2


def _without_effect(estimate: RunEstimate, trained: Training, key: str) -> Iterator[Settings]:
    """The batch of a step stays what it is."""
    if estimate.keeps_engine and key == "training.dpo.":
        yield ("launch.keep_engine=false",)
    if not trained.checkpointing:
        yield (f"{key}gradient_checkpointing=true",)
    batch, size = trained.per_device * trained.accumulation * trained.ranks, trained.per_device
    while size > 1:
        size //= 2
        if batch % size == 0:
            yield (f"{key}{PER_DEVICE}={size}", f"{key}{ACCUMULATION}={batch // size}")
    if trained.ranks > 1 and trained.sharing != "FSDP" and not estimate.machine.device.is_cpu:
        # The file's own number of processes may be that of another machine.
        config = shipped_config("fsdp2.yaml")
        yield (f"launch.accelerate_config={config}", f"launch.processes={estimate.layout.processes}")


def _joined(first: Settings, second: Settings) -> Settings:
    """Both, with the second one's values for keys that both have."""
    values = dict(setting.split("=", 1) for setting in (*first, *second))
    return tuple(f"{key}={value}" for key, value in values.items())
