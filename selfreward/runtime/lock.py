"""One writer per run folder, on whichever host, and no child that outlives it. No torch.

The file ``lock`` of the run folder is never deleted. Who writes to the run holds its ``flock``, which the kernel
gives back however the holder ends, and has its name in the file, with a ``beat`` that it keeps raising:

* NFS carries ``flock`` to every host. Where it reaches this host only (``localflock`` of Lustre, ``local_lock`` of
  NFS), the beat tells whether a holder on another host is alive. It is watched for a while on one's own clock; the
  clocks of two hosts are never compared.
* A holder whose name was replaced in the file has lost the run to another host, and ends.
* A forked process shares the open file: the lock stays held until the last process that was forked while it was
  held has ended, or the holder leaves its ``with``; children that watch the holder live as long. Programs that are
  started (``exec``) don't get the file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType

from selfreward.errors import RunLocked
from selfreward.runtime.atomic import write_all
from selfreward.runtime.progress import console
from selfreward.runtime.ranks import is_first
from selfreward.runtime.shutdown import stop

LOCK_FILE = "lock"
TOKEN_VARIABLE = "SELFREWARD_LOCK"  # of the environment: its holder's token makes a process part of that run
HEARTBEAT_S = 5.0  # seconds between two beats
POLL_S = 0.5  # seconds between two looks at whether the holder was asked to stop
WATCH_S = 12.0  # seconds: two beats and some delay
# Half a second in all: a probe's lock is over by then, and a new holder has its name in the file.
MAX_TRIES, RETRY_PAUSE_S = 20, 0.025
SHUTDOWN_TIMEOUT_S = 5.0  # seconds between SIGTERM and the end
FILE_BYTES = 512  # bytes of the file: always as many, so that a write in place leaves nothing of the one before
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """Who writes to a run.

    ``certain`` is False for a process of another host that didn't release the run while its lock is free: it was
    killed, or the lock doesn't reach from its host to this one.
    """

    host: str
    pid: int
    started: str
    certain: bool = True


@dataclass(frozen=True)
class _Entry:
    """The file's content."""

    host: str
    pid: int
    started: str
    token: str
    beat: int = 0
    stopping: bool = False  # whether the holder was asked to stop, which its children are to do as well

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"


class RunLock:
    """Makes this process the only one that writes to the run folder while the ``with`` block runs.

    Enters freely where the run is locked by someone this process belongs to: in a process whose ``RANK`` is not 0,
    and in one with the holder's ``token`` as ``SELFREWARD_LOCK`` in its environment.

    Raises:
        RunLocked: within a second if another process holds it; within ``WATCH_S`` seconds if that process is on
            another host and ``flock`` is local to each.
        ValueError: the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self.token = secrets.token_hex(16)
        self._descriptor: int | None = None
        self._leaving = threading.Event()

    def __enter__(self) -> RunLock:
        if not is_first() or self._is_child():
            return self
        # NFS locks for writing need a descriptor for writing; through a link, another file would be written to.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _take(descriptor, self.path)
            _refuse_if_it_beats(self.path)
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            self._entry = _Entry(socket.gethostname(), os.getpid(), started, self.token)
            _write(descriptor, self._entry)
            self._leaving.clear()
            self._thread = threading.Thread(target=self._beat, args=(descriptor,), name="lock", daemon=True)
            self._thread.start()
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A forked process that leaves the block must not take the lock from the one that entered it.
        if self._descriptor is None or self._entry.pid != os.getpid():
            return
        self._leaving.set()
        self._thread.join()
        descriptor, self._descriptor = self._descriptor, None
        try:
            if not self._is_lost():
                os.ftruncate(descriptor, 0)
                os.fsync(descriptor)
        finally:
            # Closing alone would leave the lock with the processes that were forked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _is_child(self) -> bool:
        entry = _read(self.path)
        if entry is None or entry.token != os.environ.get(TOKEN_VARIABLE):
            return False
        self.token = entry.token
        return True

    def _is_lost(self) -> bool:
        """Whether another process took the run while this one seemed dead to it."""
        entry = _read(self.path)
        return entry is not None and entry.token != self.token

    def _beat(self, descriptor: int) -> None:
        looks = 0
        while not self._leaving.wait(min(POLL_S, HEARTBEAT_S)):
            looks += 1
            if looks * POLL_S < HEARTBEAT_S and stop.requested == self._entry.stopping:
                continue
            looks = 0
            try:
                if self._is_lost():
                    _end(f"another host took {self.path}, as it did not see this process: this one ends", self._leaving)
                    return
                self._entry = replace(self._entry, beat=self._entry.beat + 1, stopping=stop.requested)
                _write(descriptor, self._entry)
            except OSError as error:
                # The lock is still held, so the run goes on: what it writes itself decides whether the disk is usable.
                _say(f"{self.path}: {error}. Trying again", "yellow")


def part_of(folder: Path) -> dict[str, str]:
    """The environment by which a child process is part of the run that this process holds."""
    entry = _read(folder / LOCK_FILE)
    return {} if entry is None else {TOKEN_VARIABLE: entry.token}


def holder(folder: Path) -> Holder | None:
    """Who writes to the run now, as far as this host can tell; None: nobody.

    Makes no file, and a writer that starts at the same moment outlasts the look.

    Raises:
        PermissionError: the run is another user's.
    """
    path = folder / LOCK_FILE
    for _ in range(MAX_TRIES):
        entry, free = _read(path), _is_free(path)
        if entry is not None or free:
            break
        time.sleep(RETRY_PAUSE_S)
    if free and (entry is None or entry.host == socket.gethostname()):
        return None
    if entry is None:
        return Holder("an unknown host", 0, "an unknown time")
    return Holder(entry.host, entry.pid, entry.started, certain=not free)


def watch_holder(folder: Path, poll: float = 0.5) -> None:
    """Ends this process once the holder that started it is dead; looks every ``poll`` seconds, in a thread.

    At once, as the run may already have another holder. A holder that was asked to stop asks this process: not every
    launcher hands a signal on, and torchrun kills its ranks 30 seconds after one. Does nothing in a process that no
    holder started.
    """
    if token := os.environ.get(TOKEN_VARIABLE):
        threading.Thread(
            target=_watch, args=(folder / LOCK_FILE, token, poll), name="watch_holder", daemon=True
        ).start()


def _watch(path: Path, token: str, poll: float) -> None:
    while _lives(path, token):
        if (entry := _read(path)) is not None and entry.token == token and entry.stopping:
            stop.ask()
        time.sleep(poll)
    _say(f"the process that started this one and held {path} is gone: this one ends too")
    os._exit(RunLocked.exit_status)


def _lives(path: Path, token: str) -> bool:
    try:
        entry = _read(path)
        if entry is not None and entry.token != token:
            return False
        if not _is_free(path):
            return True
        return entry is not None and entry.host != socket.gethostname() and _beats(path, entry)
    except OSError:
        return True  # a file system that fails for a moment says nothing about the holder


def _end(reason: str, leaving: threading.Event) -> None:
    """Asks this process to end, and ends it if it isn't ``leaving`` by then."""
    _say(reason, "red")
    os.kill(os.getpid(), signal.SIGTERM)
    if not leaving.wait(SHUTDOWN_TIMEOUT_S):
        os._exit(RunLocked.exit_status)


def _say(line: str, style: str | None = None) -> None:
    # Who read the output may have died with the holder (rich raises SystemExit then): what follows is to happen anyway.
    with suppress(OSError, SystemExit):
        console.print(line, style=style, markup=False, soft_wrap=True)


def _take(descriptor: int, path: Path) -> None:
    """Takes the lock.

    flock, not lockf: a lock of lockf is gone as soon as the process closes any descriptor of the file, such as one
    that it was read through.
    """
    for _ in range(MAX_TRIES):
        try:
            if _flock(descriptor, fcntl.LOCK_EX):
                return
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            way_out = "Mount it with locks (Lustre: -o flock), or set run_dir to a folder of another one"
            raise ValueError(f"the file system of {path} has no locks: {error.strerror}. {way_out}") from error
        time.sleep(RETRY_PAUSE_S)
    raise _refusal(path)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(path: Path) -> bool:
    """Whether nobody holds the lock that this host sees; probes don't disturb each other, as they are shared."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        free = _flock(descriptor, fcntl.LOCK_SH)
        if free:
            # Closing alone would leave the probe's lock with a process that another thread forks right now.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return free
    finally:
        os.close(descriptor)


def _refuse_if_it_beats(path: Path) -> None:
    """Raises RunLocked if the lock was free here and yet its last holder, on another host, is alive."""
    entry = _read(path)
    if entry is None or entry.host == socket.gethostname():
        return
    why = "it did not release the run, and locks may not reach from its host to this one"
    _say(f"watching for {WATCH_S:g} s whether {entry} is alive: {why}")
    if _beats(path, entry):
        raise _refusal(path)


def _beats(path: Path, before: _Entry) -> bool:
    """Whether the entry changes within ``WATCH_S`` seconds, other than by its release."""
    deadline = time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 10)
        now = _read(path)
        if now != before:
            return now is not None
    return False


def _refusal(path: Path) -> RunLocked:
    entry = _read(path)
    if entry is None:
        return RunLocked(
            f"{path.parent} is being written by a process that has not given its name. "
            f"Wait until it ends, or see which it is: fuser {path}"
        )
    way_out = f"stop it: kill {entry.pid} on {entry.host}"
    if entry.host == socket.gethostname() and _is_gone(entry.pid):
        way_out = f"as {entry.pid} itself has ended, find the process that it left behind: fuser {path}"
    return RunLocked(f"{path.parent} is being written by {entry}. Wait until it ends, or {way_out}")


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def _read(path: Path) -> _Entry | None:
    """Who is named in the file; None: it is missing, released or unreadable.

    Opens it anew, as NFS asks the server then; reads it again if it was caught in the middle of a write.
    """
    for _ in range(3):
        raw = _content(path)
        entry = _parse(raw)
        if entry is not None or not raw:
            return entry
        time.sleep(RETRY_PAUSE_S)
    return None


def _content(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.read(descriptor, FILE_BYTES)
    finally:
        os.close(descriptor)


def _parse(raw: bytes) -> _Entry | None:
    try:
        entry = _Entry(**json.loads(raw))
    except (ValueError, TypeError):
        return None
    return entry if [type(value) for value in astuple(entry)] == [str, int, str, str, int, bool] else None


def _write(descriptor: int, entry: _Entry) -> None:
    data = json.dumps(asdict(entry)).encode()
    assert len(data) < FILE_BYTES, f"{len(data)} bytes"
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_all(descriptor, data.ljust(FILE_BYTES - 1) + b"\n")
    os.fsync(descriptor)
