"""The plan in words, and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from selfreward.estimates import speed
from selfreward.estimates.fits import Problem, first_problem, held_by_engine
from selfreward.estimates.machine import GIB
from selfreward.estimates.run_estimate import RunEstimate, Stage
from selfreward.estimates.training_memory import Training

ROW = "  {:<34} {:>9} {:>10} {:>10} {:>10} {:>9} {:>10}  {}"


def as_dict(estimate: RunEstimate) -> dict[str, Any]:
    """Everything, in bytes, tokens and seconds."""
    problem = first_problem(estimate)
    return {
        "name": estimate.recipe.name,
        "machine": asdict(estimate.machine),
        "layout": asdict(estimate.layout),
        "model": asdict(estimate.sizes),
        "serving": {**asdict(estimate.serving), "cached_tokens": estimate.serving.cached_tokens},
        "seed_training": _training_dict(estimate.sft),
        "training": _training_dict(estimate.dpo),
        "keep_engine": {"chosen": estimate.keeps_engine, "true": _kept(estimate), "false": _ended(estimate)},
        "stages": [_stage_dict(stage) for stage in estimate.stages],
        "seconds": estimate.seconds,
        "disk": estimate.disk,
        "assumptions": list(assumptions(estimate)),
        "problem": None if problem is None else asdict(problem),
    }


def _training_dict(trained: Training | None) -> dict[str, Any] | None:
    return None if trained is None else {**asdict(trained), "total": trained.memory.total}


def _stage_dict(stage: Stage) -> dict[str, Any]:
    place = {"iteration": stage.step.iteration, "stage": stage.step.stage, "processes": stage.processes}
    return {**place, **asdict(stage.load), "disk": stage.disk, "measured_in": stage.measured_in}


def _kept(estimate: RunEstimate) -> dict[str, float]:
    """Bytes of a device that an engine has during training if it is kept, and the seconds until it serves again."""
    return {"bytes": held_by_engine(estimate), "seconds": speed.WAKE_S + estimate.loading}


def _ended(estimate: RunEstimate) -> dict[str, float]:
    """The same of an engine that ends, and is started again."""
    start = speed.CPU_START_S if estimate.machine.device.is_cpu else speed.START_S
    return {"bytes": 0, "seconds": start + estimate.loading}


def lines(estimate: RunEstimate) -> Iterator[str]:
    """The plan as text."""
    yield from _head(estimate)
    yield from _serving(estimate)
    for name, trained in (("seed", estimate.sft), ("training", estimate.dpo)):
        if trained is not None:
            yield from _training(name, trained)
    yield from _engine(estimate)
    yield from _stages(estimate)
    yield "assumed"
    yield from (f"  {each}" for each in assumptions(estimate))
    yield from _verdict(first_problem(estimate))


def _head(estimate: RunEstimate) -> Iterator[str]:
    machine, sizes, dtype = estimate.machine, estimate.sizes, estimate.recipe.model.dtype
    one = f"{machine.device.name}, {_bytes(machine.device.memory)}"
    where = (
        f"{machine.gpus} x {one} each" if machine.gpus else f"no GPU, {_bytes(machine.device.memory)} of main memory"
    )
    yield f"run        {estimate.recipe.name}, on {machine.nodes} {_many('node', machine.nodes)} with {where}"
    active = f", {_billions(sizes.active)} of them for a token" if sizes.active < sizes.parameters else ""
    weights = _bytes(sizes.weight_bytes(dtype))
    yield f"model      {_billions(sizes.parameters)} parameters{active}: {weights} in {dtype}"


def _serving(estimate: RunEstimate) -> Iterator[str]:
    served = estimate.serving
    split = f", each on {served.devices} GPUs" if served.devices > 1 else ""
    parts = {"weights": served.weights, "computing": served.computing, "overhead": served.overhead}
    yield f"serving    {served.replicas} {_many('replica', served.replicas)}{split}: {_parts(parts)} on each device"
    room = f"{served.cached_tokens:,} tokens of {served.bytes_per_token / 1024:,.1f} KiB"
    longest = f"{served.sequences:,.1f} sequences of {served.max_model_len:,}"
    yield f"           KV cache {_bytes(max(0, served.cache))}: {room}, or {longest}"


def _training(name: str, trained: Training) -> Iterator[str]:
    memory = asdict(trained.memory)
    shared = f", {trained.sharing}" if trained.sharing else ""
    batch = f"{trained.per_device} x {trained.accumulation} x {trained.ranks}"
    yield (
        f"{name:<10} {trained.ranks} {_many('process', trained.ranks)}{shared}; a step of "
        f"{trained.per_device * trained.accumulation * trained.ranks} ({batch}), up to {trained.length:,} tokens each, "
        f"gradient checkpointing {'on' if trained.checkpointing else 'off'}; {_billions(trained.trained)} trained"
    )
    yield f"           {_parts({n: size for n, size in memory.items() if size})}: {_bytes(trained.memory.total)} each"
    yield f"           then the merge, in main memory, on one process: {_bytes(trained.merge)}"


def _engine(estimate: RunEstimate) -> Iterator[str]:
    kept, ended = _kept(estimate), _ended(estimate)
    chosen = "kept" if estimate.keeps_engine else "ended"
    yield (
        f"engine     {chosen} while there is training (launch.keep_engine). Kept, it holds {_bytes(kept['bytes'])} of "
        f"a device and serves again after {kept['seconds']:.0f} s; ended, nothing, and {ended['seconds']:.0f} s"
    )


def _stages(estimate: RunEstimate) -> Iterator[str]:
    yield ROW.format("stage", "processes", "read", "written", "trained", "time", "disk", "")
    for stage in estimate.stages:
        load = stage.load
        tokens = [_count(n) for n in (load.read, load.written, load.trained)]
        source = "" if stage.measured_in is None else f"measured in iteration {stage.measured_in}"
        yield ROW.format(
            str(stage.step),
            stage.processes,
            *tokens,
            _time(load.seconds),
            _bytes(stage.disk) if stage.disk else "",
            source,
        ).rstrip()
    unknown = any(stage.load.seconds is None for stage in estimate.stages)
    more = ", and what other models and servers take" if unknown else ""
    yield f"in all     {_time(estimate.seconds)}{more}; {_bytes(estimate.disk)} of disk at most"


def assumptions(estimate: RunEstimate) -> Iterator[str]:
    """What the figures rest on that is not known."""
    device, lengths = estimate.machine.device, estimate.lengths
    yield (
        f"{device.name}: {device.bandwidth / 1e9:,.0f} GB/s of memory, {device.flops / 1e12:,.2f} TFLOPS. Decoding "
        f"reaches {speed.OF_BANDWIDTH:.0%} of the first, reading {speed.OF_FLOPS_READING:.0%} and training "
        f"{speed.OF_FLOPS_TRAINING:.0%} of the second"
    )
    known = "responses" in estimate.measured
    yield (
        f"a prompt has {lengths.prompt:.0f} tokens; a text has {lengths.share:.0%} of max_tokens"
        f"{' (measured)' if known else ''}; a judge's own prompt has {lengths.instructions:.0f}"
    )
    if estimate.recipe.iterations:
        known = "pairs" in estimate.measured
        yield f"an iteration makes {estimate.pairs:,} pairs{' (measured)' if known else ', one for each prompt'}"
    yield "prefixes that requests share are read once; training memory is that of a batch of the longest rows"


def _verdict(problem: Problem | None) -> Iterator[str]:
    if problem is None:
        yield "fits       everything has room"
        return
    need = problem.need
    yield f"NO ROOM    {need.what} needs {_bytes(need.needs)}, and there is {_bytes(need.has)}: {need.where}"
    if problem.then is None:
        yield "           no setting is known that makes it fit: take larger devices, more of them, or a smaller model"
        return
    yield f"           {_bytes(problem.then.needs)} of {_bytes(problem.then.has)} with: {' '.join(problem.settings)}"


def _parts(parts: dict[str, int]) -> str:
    return " + ".join(f"{name} {_bytes(size)}" for name, size in parts.items())


def _bytes(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):,.1f} MiB"


def _billions(number: int) -> str:
    return f"{number / 1e9:,.2f} B" if number >= 1e8 else f"{number / 1e6:,.2f} M"


def _count(number: int) -> str:
    """A number of tokens, in millions from one on."""
    return "" if not number else f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds else ""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _many(word: str, number: int) -> str:
    return word if number == 1 else f"{word}es" if word.endswith("s") else f"{word}s"
