"""The plan in words, and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from selfreward.estimates import speed
from selfreward.estimates.fits import Problem, first_problem, held_by_engine
from selfreward.estimates.machine import GIB
from selfreward.estimates.run_estimate import Outline, Stage
from selfreward.estimates.training_memory import Training

ROW = "  {:<34} {:>9} {:>10} {:>10} {:>10} {:>9} {:>10}  {}"


def as_dict(outline: Outline) -> dict[str, Any]:
    """Everything, in bytes, tokens and seconds."""
    problem = first_problem(outline)
    return {
        "name": outline.recipe.name,
        "machine": asdict(outline.machine),
        "layout": asdict(outline.layout),
        "model": asdict(outline.sizes),
        "serving": {**asdict(outline.serving), "cached_tokens": outline.serving.cached_tokens},
        "seed_training": _training_dict(outline.sft),
        "training": _training_dict(outline.dpo),
        "keep_engine": {"chosen": outline.keeps_engine, "true": _kept(outline), "false": _ended(outline)},
        "stages": [_stage_dict(stage) for stage in outline.stages],
        "seconds": outline.seconds,
        "disk": outline.disk,
        "assumptions": list(assumptions(outline)),
        "problem": None if problem is None else asdict(problem),
    }


def _training_dict(trained: Training | None) -> dict[str, Any] | None:
    return None if trained is None else {**asdict(trained), "total": trained.memory.total}


def _stage_dict(stage: Stage) -> dict[str, Any]:
    place = {"iteration": stage.step.iteration, "stage": stage.step.stage, "processes": stage.processes}
    return {**place, **asdict(stage.load), "disk": stage.disk, "measured_in": stage.measured_in}


def _kept(outline: Outline) -> dict[str, float]:
    """Bytes of a device that an engine has during training if it is kept, and the seconds until it serves again."""
    return {"bytes": held_by_engine(outline), "seconds": speed.WAKE + outline.loading}


def _ended(outline: Outline) -> dict[str, float]:
    """The same of an engine that ends, and is started again."""
    start = speed.CPU_START if outline.machine.device.is_cpu else speed.START
    return {"bytes": 0, "seconds": start + outline.loading}


def lines(outline: Outline) -> Iterator[str]:
    """The plan as text."""
    yield from _head(outline)
    yield from _serving(outline)
    for name, trained in (("seed", outline.sft), ("training", outline.dpo)):
        if trained is not None:
            yield from _training(name, trained)
    yield from _engine(outline)
    yield from _stages(outline)
    yield "assumed"
    yield from (f"  {each}" for each in assumptions(outline))
    yield from _verdict(first_problem(outline))


def _head(outline: Outline) -> Iterator[str]:
    machine, sizes, dtype = outline.machine, outline.sizes, outline.recipe.model.dtype
    one = f"{machine.device.name}, {_bytes(machine.device.memory)}"
    where = (
        f"{machine.gpus} x {one} each" if machine.gpus else f"no GPU, {_bytes(machine.device.memory)} of main memory"
    )
    yield f"run        {outline.recipe.name}, on {machine.nodes} {_many('node', machine.nodes)} with {where}"
    active = f", {_billions(sizes.active)} of them for a token" if sizes.active < sizes.parameters else ""
    weights = _bytes(sizes.weight_bytes(dtype))
    yield f"model      {_billions(sizes.parameters)} parameters{active}: {weights} in {dtype}"


def _serving(outline: Outline) -> Iterator[str]:
    served = outline.serving
    split = f", each on {served.devices} GPUs" if served.devices > 1 else ""
    parts = {"weights": served.weights, "computing": served.computing, "overhead": served.overhead}
    yield f"serving    {served.replicas} {_many('replica', served.replicas)}{split}: {_parts(parts)} on each device"
    room = f"{served.cached_tokens:,} tokens of {served.bytes_a_token / 1024:,.1f} KiB"
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


def _engine(outline: Outline) -> Iterator[str]:
    kept, ended = _kept(outline), _ended(outline)
    chosen = "kept" if outline.keeps_engine else "ended"
    yield (
        f"engine     {chosen} while there is training (launch.keep_engine). Kept, it holds {_bytes(kept['bytes'])} of "
        f"a device and serves again after {kept['seconds']:.0f} s; ended, nothing, and {ended['seconds']:.0f} s"
    )


def _stages(outline: Outline) -> Iterator[str]:
    yield ROW.format("stage", "processes", "read", "written", "trained", "time", "disk", "")
    for stage in outline.stages:
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
    unknown = any(stage.load.seconds is None for stage in outline.stages)
    more = ", and what other models and servers take" if unknown else ""
    yield f"in all     {_time(outline.seconds)}{more}; {_bytes(outline.disk)} of disk at most"


def assumptions(outline: Outline) -> Iterator[str]:
    """What the figures rest on that is not known."""
    device, lengths = outline.machine.device, outline.lengths
    yield (
        f"{device.name}: {device.bandwidth / 1e9:,.0f} GB/s of memory, {device.flops / 1e12:,.2f} TFLOPS. Decoding "
        f"reaches {speed.OF_BANDWIDTH:.0%} of the first, reading {speed.OF_FLOPS_READING:.0%} and training "
        f"{speed.OF_FLOPS_TRAINING:.0%} of the second"
    )
    known = "responses" in outline.measured
    yield (
        f"a prompt has {lengths.prompt:.0f} tokens; a text has {lengths.share:.0%} of max_tokens"
        f"{' (measured)' if known else ''}; a judge's own prompt has {lengths.instructions:.0f}"
    )
    if outline.recipe.iterations:
        known = "pairs" in outline.measured
        yield f"an iteration makes {outline.pairs:,} pairs{' (measured)' if known else ', one for each prompt'}"
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
