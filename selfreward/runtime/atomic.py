"""Files that survive a power cut: every write of a run that must be whole goes through here. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from binascii import crc32
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfreward.errors import Damaged

SEAL = "sha256"
BUFFER_BYTES = 1 << 20


def sync(path: Path) -> None:
    """Puts a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Puts every file of a folder on the disk, with the names that lead to it."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def replace(temporary: Path, path: Path) -> None:
    """Renames onto ``path`` once the bytes are on the disk, so that a power cut leaves the old or the new."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def write_bytes(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        buffer = bytearray()
        for chunk in chunks:
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                write_all(descriptor, buffer)
                buffer.clear()
        write_all(descriptor, buffer)
    finally:
        os.close(descriptor)
    replace(temporary, path)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """``os.write`` until everything is written: a nearly full disk may take a part only."""
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:] if done else data)


_hashes: dict[tuple[Any, ...], str] = {}


def hash_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, computed once in this process while the file stays the same one.

    The time of change (ctime) can't be set back by a program, as that of modification can.
    """
    info = path.stat()
    key = (str(path), info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def json_hash(content: Any) -> str:
    """The SHA-256 of a JSON value, whatever its order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all, with the hash of its content as the last entry."""
    write_bytes(path, [_sealed(content)])


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a file of :func:`write_sealed`.

    Raises:
        Damaged: any byte of the file is another than the one that was written.
    """
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        content.pop(SEAL)
        whole = _sealed(content) == raw
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise Damaged(
            f"{path} is not what the run wrote: its hash differs. Bring it back from a copy of the run; "
            "selfreward verify RUN names every file that differs"
        )
    return dict(content)


def _sealed(content: Mapping[str, Any]) -> bytes:
    sealed = {**content, SEAL: json_hash(content)}
    return (json.dumps(sealed, indent=2, ensure_ascii=False) + "\n").encode()


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Appends a JSON line whose last entry is the CRC-32 of those before it, behind the last whole line."""
    body = json.dumps(content, ensure_ascii=False)
    line = f'{body[:-1]}, "crc": "{crc32(body.encode()):08x}"}}\n'
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # A kill or a full disk left a part of a line.
            os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
        write_all(descriptor, line.encode())
    finally:
        os.close(descriptor)


def is_whole_line(line: bytes) -> bool:
    """Whether a line is one of :func:`append_line`, with no byte changed."""
    body, comma, crc = line.rpartition(b', "crc": "')
    return bool(comma) and crc == b'%08x"}\n' % crc32(body + b"}")
