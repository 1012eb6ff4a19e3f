"""Which GPUs this machine has. The driver library is asked rather than CUDA, which would take memory and forbid to
fork processes."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def num_gpus() -> int:
    """The NVIDIA or AMD GPUs that torch sees."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_gpu() -> bool:
    """Whether torch sees any."""
    return num_gpus() > 0


def take_one() -> None:
    """Lets a process that trains alone see the first GPU alone; TRL refuses to put copies of a model on several."""
    if num_gpus() > 1:
        see([0], os.environ)


def see(devices: Sequence[int], environment: MutableMapping[str, str]) -> None:
    """Lets CUDA see only some of the GPUs that an environment shows, by their place among them."""
    shown = environment.get(VISIBLE)
    names = shown.split(",") if shown else [str(device) for device in range(max(devices) + 1)]
    environment[VISIBLE] = ",".join(names[device] for device in devices)
