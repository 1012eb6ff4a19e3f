"""Folders that count only when they are whole, and whether the disk has room for them. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfreward.errors import DiskFull
from selfreward.runtime.atomic import read_sealed, sync, sync_tree, write_sealed

MARKER = "complete.json"


def mark(folder: Path, content: Mapping[str, Any], marker: str = MARKER) -> None:
    """Makes a folder count, once all of it is on the disk."""
    sync_tree(folder)
    write_sealed(folder / marker, content)
    sync(folder.parent)


def marked(folder: Path) -> dict[str, Any] | None:
    """What :func:`mark` wrote, or None for a folder that is missing or not whole."""
    path = folder / MARKER
    return read_sealed(path) if path.is_file() else None


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place of ``folder`` once all of it is on the disk.

    For what is to hold no marker, as a model is: its name tells that it is whole.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    discard(temporary)
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
    except BaseException:
        discard(temporary)
        raise
    discard(folder)
    os.replace(temporary, folder)
    sync(folder.parent)


def discard(folder: Path) -> None:
    """Removes a folder if it is there; killed in between, it leaves one that does not count."""
    (folder / MARKER).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


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
