"""The devices that a run is planned for, and how fast they are taken to be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU of a machine with its main memory. Per second: bytes of memory, and operations in 16 bits.

    Figures of GPUs are their makers', of dense matrices, and none is ever reached: see ``speed``.
    """

    name: str
    memory: int
    bandwidth: float
    flops: float

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU


CPU = "CPU"
# NVIDIA's and AMD's data sheets: GB/s of memory, and TFLOPS of bfloat16 without sparsity.
GPUS = {
    name: Device(name, memory * GIB, bandwidth * 1e9, teraflops * 1e12)
    for name, memory, bandwidth, teraflops in (
        ("L4", 24, 300, 121),
        ("A10", 24, 600, 125),
        ("RTX4090", 24, 1008, 165),
        ("A100-40", 40, 1555, 312),
        ("L40S", 48, 864, 362),
        ("A100", 80, 2039, 312),
        ("H100", 80, 3350, 989),
        ("H200", 141, 4800, 989),
        ("B200", 180, 8000, 2250),
        ("MI300X", 192, 5300, 1307),
    )
}
# The one that a GPU of unknown name is taken to be, if it has at least as much memory: the slower of its size.
BY_MEMORY = ("L4", "A100-40", "L40S", "A100", "H200", "B200", "MI300X")
# What one core of a server does in float32, as measured in a training of a 0.5B model, twice over; and its memory.
CORE_FLOPS, CPU_BANDWIDTH = 80e9, 20e9


@dataclass(frozen=True)
class Machine:
    """``nodes`` with so many ``gpus`` each, or without any; ``device`` is one GPU, or the node's CPU."""

    nodes: int
    gpus: int
    device: Device


def machine(gpus: int | None, memory: str | None, nodes: int, gpu: str | None) -> Machine:
    """What is asked for, and for what is not, what this machine has.

    Raises:
        ValueError: an unknown GPU, or a size that is none.
    """
    here = _here() if gpus is None and gpu is None and memory is None else None
    num = gpus if gpus is not None else here[0] if here else 1
    if not num:
        return Machine(nodes, 0, cpu())
    return Machine(nodes, num, here[1] if here else _gpu(gpu, None if memory is None else size(memory)))


def cpu() -> Device:
    """The CPU of this machine."""
    return Device(CPU, main_memory(), CPU_BANDWIDTH, CORE_FLOPS * len(os.sched_getaffinity(0)))


def main_memory() -> int:
    """Bytes of main memory that this process may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdecimal() else total


def size(text: str) -> int:
    """Bytes of a size such as 80GiB or 24 GB. Raises ValueError for what is none."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ValueError(f"{text!r} is no size. Write it such as 80GiB") from None


def _gpu(name: str | None, memory: int | None) -> Device:
    if name is None and memory is None:
        return GPUS["H100"]
    if name is None:
        assert memory is not None
        known = [GPUS[each] for each in BY_MEMORY]
        like = next((each for each in known if each.memory >= memory), known[-1])
    else:
        found = next((each for each in GPUS.values() if each.name.lower() == name.lower()), None)
        if found is None:
            raise ValueError(f"no GPU is called {name!r} here. Known: {', '.join(GPUS)}. Or give --gpu-memory")
        like = found
    return Device(like.name, memory or like.memory, like.bandwidth, like.flops)


def _here() -> tuple[int, Device]:
    """How many GPUs this machine has, and one of them; its CPU if it has none."""
    from selfreward.runtime.gpus import num_gpus

    num = num_gpus()
    if not num:
        return 0, cpu()
    import torch

    properties = torch.cuda.get_device_properties(0)
    named = [each for each in GPUS.values() if each.name.lower() in properties.name.lower().replace(" ", "")]
    like = max(named, key=lambda each: len(each.name), default=_gpu(None, properties.total_memory))
    return num, Device(like.name, properties.total_memory, like.bandwidth, like.flops)
