"""Folders that count only when they are whole, and whether the disk has room for them. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfreward.errors import DiskFull
from selfreward.runtime.atomic import read_sealed, sync, sync_tree, write_sealed

MARKER = "complete.json"


def mark(folder: Path, content: Mapping[str, Any]) -> None:
    """Makes a folder count, once all of it is on the disk."""
    sync_tree(folder)
    write_sealed(folder / MARKER, content)
    sync(folder.parent)


def marked(folder: Path) -> dict[str, Any] | None:
    """What :func:`mark` wrote, or None for a folder that is missing or not whole."""
    path = folder / MARKER
    return read_sealed(path) if path.is_file() else None


def discard(folder: Path) -> None:
    """Removes a folder if it is there; killed in between, it leaves one that does not count."""
    (folder / MARKER).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)


def size(folder: Path) -> int:
    """The bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFull if there is less room beside a folder than what is about to be written, in bytes."""
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise DiskFull(
            f"{what} needs about {_mib(needed)}, and {folder.parent} has {_mib(free)} left. Make room and resume: "
            "nothing that was finished before is lost"
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.1f} MiB"
