"""Every finished request of a stage, on the disk as soon as it finishes. No torch.

One line a request: a checksum, the hash of what was asked, and the completion. Asking again finds the answer,
so a stage that was killed is simply run again: its coroutines take the same way, and what had finished is not
asked a second time. That holds for any judge or prompt source, however many requests it makes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from binascii import crc32, unhexlify
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from selfreward.errors import DiskFull
from selfreward.runtime.atomic import sync, write_all
from selfreward.runtime.progress import console

# A power cut costs at most what was finished within one second or these many requests.
SYNC_EVERY_S = 1.0
SYNC_EVERY_LINES = 256
# Below this many free bytes the stage stops while the journal can still be closed in order.
RESERVED_BYTES = 64 << 20


class Journal:
    """Appends values under keys of 32 hexadecimal digits; the index in memory holds keys and places alone."""

    def __init__(self, path: Path) -> None:
        """Opens or makes a journal, and cuts off a line that was not finished; a damaged one is passed over."""
        self._path = path
        self._places: dict[bytes, int] = {}
        self._writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._end = self._recovered = self._recover()
        sync(path.parent)
        self._reader = path.open("rb")
        self._unsynced = 0
        self._error: OSError | DiskFull | None = None
        self._closing = False
        self._wake = threading.Event()
        self._syncer = threading.Thread(target=self._keep_synced, name=f"sync {path}", daemon=True)
        self._syncer.start()

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, key: str) -> Any | None:
        """The value that was added under a key, or None."""
        place = self._places.get(unhexlify(key))
        if place is None:
            return None
        self._reader.seek(place)
        return json.loads(self._reader.readline()[_VALUE:])

    def had(self, key: str) -> bool:
        """Whether a key was there when the journal was opened: an earlier attempt added it."""
        place = self._places.get(unhexlify(key))
        return place is not None and place < self._recovered

    def add(self, key: str, value: Any) -> None:
        """Appends a value: safe from a kill now, and from a power cut within a second.

        Raises:
            DiskFull: the disk has no room, or can't be written to.
        """
        line = _line(key, value)
        if self._error is not None:
            raise self._failed(self._error)
        try:
            write_all(self._writer, line)
        except OSError as error:
            # What follows a half-written line would be cut off with it.
            self._error = error
            raise self._failed(error) from None
        self._places[unhexlify(key)] = self._end
        self._end += len(line)
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY_LINES:
            self._wake.set()

    def close(self) -> None:
        """Puts everything on the disk. Raises DiskFull if that failed."""
        self._closing = True
        self._wake.set()
        self._syncer.join()
        self._reader.close()
        os.close(self._writer)
        if self._error is not None:
            raise self._failed(self._error)

    def _recover(self) -> int:
        """Reads the keys of all whole lines and returns where the last line ends; the file is cut there."""
        end, damaged = 0, 0
        with self._path.open("rb") as file:
            for line in file:
                if line[-1:] != b"\n":
                    break
                if _is_whole(line):
                    self._places[unhexlify(line[_KEY : _VALUE - 1])] = end
                else:
                    damaged += 1
                end += len(line)
        torn, stage = self._path.stat().st_size - end, self._path.parent.name
        if damaged:
            console.print(f"  {stage}: {damaged} lines of the journal are damaged; what they held is asked again")
        if torn:
            console.print(f"  {stage}: cut off {torn} bytes of a record that was not finished")
            os.truncate(self._path, end)
            os.fsync(self._writer)
        return end

    def _keep_synced(self) -> None:
        """One thread beside the writer, which waits for no disk. An error is raised by the next ``add``."""
        while not self._closing or self._unsynced:
            self._wake.wait(SYNC_EVERY_S)
            self._wake.clear()
            if not self._unsynced:
                continue
            self._unsynced = 0
            try:
                os.fsync(self._writer)
                free = shutil.disk_usage(self._path.parent).free
            except OSError as error:
                self._error = error
                return
            if free < RESERVED_BYTES:
                self._error = DiskFull(f"{self._path.parent}: {free >> 20} MiB of disk are left")
                return

    def _failed(self, error: OSError | DiskFull) -> DiskFull:
        return DiskFull(f"{self._path}: {error}. Make room on the disk; nothing that was finished before is lost")


_KEY = 9  # behind 8 digits of CRC-32 and a space
_VALUE = _KEY + 33  # behind 32 digits and a space


def _line(key: str, value: Any) -> bytes:
    body = f"{key} {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n".encode()
    return b"%08x %b" % (crc32(body), body)


def _is_whole(line: bytes) -> bool:
    return line[-1:] == b"\n" and line[:_KEY] == b"%08x " % crc32(line[_KEY:])
