"""Attempts of the command as processes to be killed, with a disk that can be made to fail."""

from __future__ import annotations

import builtins
import errno
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
# What the command imports on its way, in a process that starts no thread pool and no engine, so that it can be forked.
IMPORTED = (
    "selfreward.cli",
    "selfreward.runs.history",
    "selfreward.loop",
    "selfreward.report.status",
    "selfreward.stages.evaluate",
    "selfreward.stages.overlap",
    "selfreward.stages.pairs",
    "selfreward.stages.prompts",
    "selfreward.training.dpo",
    "selfreward.training.sft",
    "selfreward.engines.vllm",
)
HUNG = 120.0  # seconds that no attempt takes


@dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th operation on the run's files; 0: never, the operations are only listed.

    ``effect`` is ``before`` or ``after``, a SIGKILL on that side of it, or an errno that it ends with; ``lasting``:
    so do all that follow. ``kinds`` are the operations that count.
    """

    at: int = 0
    effect: str | int = "before"
    lasting: bool = False
    kinds: tuple[str, ...] = ("replace",)


EVERY_KIND = ("write", "fsync", "replace", "mkdir", "open", "safetensors", "torch", "tokenizer")


class Attempt:
    """One start of the command, in a session and process group of its own."""

    def __init__(self, process: Any, log: Path) -> None:
        self._process, self._log = process, log
        self._before = log.stat().st_size if log.exists() else 0
        self.started = time.time()
        process.start()
        self.pid: int = process.pid

    @property
    def over(self) -> bool:
        return not self._process.is_alive()

    @property
    def output(self) -> str:
        """What it has written on standard output and standard error."""
        return self._log.read_bytes()[self._before :].decode(errors="replace") if self._log.exists() else ""

    @property
    def operations(self) -> list[str]:
        """With a fault: each operation that counts, as its kind and the file within the folder of runs."""
        return _listing(self._log).read_text().splitlines()

    def signal(self, number: int) -> None:
        """Signals the process alone, if it is there."""
        if not self.over:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the whole group. In its first milliseconds the process has none."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self._process.join()

    def wait(self) -> int:
        """The exit status, or minus the signal that ended it. An attempt that hangs is killed and counts as 124."""
        self._process.join(HUNG)
        if not self.over:
            self.kill()
            return 124
        status: int = self._process.exitcode
        return status


class Forge:
    """Starts attempts in a tenth of a second: they are forked from a server that has imported everything."""

    def __init__(self) -> None:
        # The server is a program of its own: the process that asks for it may have threads, which a fork would break.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(IMPORTED))

    def start(self, folder: Path, log: Path, arguments: list[str], fault: Fault | None = None) -> Attempt:
        """Starts ``selfreward ARGUMENTS`` in ``folder``, with its output appended to ``log``."""
        process = self._context.Process(target=_command, args=(folder, log, arguments, fault))
        return Attempt(process, log)


def _command(folder: Path, log: Path, arguments: list[str], fault: Fault | None) -> None:
    os.setsid()
    # Otherwise half of the time goes into collections that visit, and so copy, all that was imported before the fork.
    gc.freeze()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.chdir(folder)
    sys.argv = ["selfreward", *arguments]
    if fault is not None:
        Disk(folder / "runs", fault, _listing(log)).install()
    from selfreward.cli import main

    main()


def _listing(log: Path) -> Path:
    return log.with_suffix(".operations")


class Disk:
    """Stands between this process and its operations on the files of a folder."""

    def __init__(self, root: Path, fault: Fault, listing: Path) -> None:
        self._root, self._fault = str(root.resolve()) + os.sep, fault
        self._numbers = count(1)
        self._listing = os.open(listing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        self._write = os.write

    def install(self) -> None:
        """Takes the place of the functions that write, wherever they were imported to."""
        import safetensors.torch
        import torch
        from transformers import PreTrainedTokenizerFast

        self._stand_in(os, "write", "write", lambda descriptor, data: _path_of(descriptor))
        self._stand_in(os, "fsync", "fsync", _path_of)
        self._stand_in(os, "replace", "replace", lambda source, target: target)
        self._stand_in(os, "mkdir", "mkdir", lambda path, *mode, **options: path)
        self._stand_in(
            safetensors.torch, "save_file", "safetensors", lambda tensors, filename, *rest, **options: filename
        )
        self._stand_in(torch, "save", "torch", lambda obj, f, *rest, **options: f)
        self._stand_in(
            PreTrainedTokenizerFast, "_save_pretrained", "tokenizer", lambda self, save_directory, **o: save_directory
        )
        self._stand_in(builtins, "open", "open", _written_to)

    def _stand_in(self, owner: Any, name: str, kind: str, path_of: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        if kind not in self._fault.kinds:
            return

        def operation(*args: Any, **options: Any) -> Any:
            path = path_of(*args, **options)
            if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(self._root):
                return original(*args, **options)
            with self._around(kind, os.path.abspath(path)) as fails:
                if fails:
                    _fail(kind, os.path.abspath(path), int(self._fault.effect), original, args, options)
                return original(*args, **options)

        setattr(owner, name, operation)
        for module in list(sys.modules.values()):
            for other in [key for key, value in vars(module).items() if value is original]:
                setattr(module, other, operation)

    @contextmanager
    def _around(self, kind: str, path: str) -> Iterator[bool]:
        fault, number = self._fault, next(self._numbers)
        self._write(self._listing, f"{kind} {path.removeprefix(self._root)}\n".encode())
        due = number == fault.at or (fault.lasting and 0 < fault.at < number)
        if due and fault.effect == "before":
            os.killpg(0, signal.SIGKILL)
        yield due and isinstance(fault.effect, int)
        if due and fault.effect == "after":
            os.killpg(0, signal.SIGKILL)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _written_to(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
    return file if set(mode) & set("wax+") else None


def _fail(kind: str, path: str, number: int, original: Callable[..., Any], args: Any, options: Any) -> None:
    """Ends an operation as on a disk that is full or broken, in each library's own words; half may be written."""
    words = f"{os.strerror(number)} (os error {number})"
    if kind == "write":
        original(args[0], bytes(args[1])[: len(args[1]) // 2])
    if kind == "open":
        original(*args, **options).close()
    if kind == "torch":
        original(*args, **options)
        os.truncate(path, os.path.getsize(path) // 2)
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    if kind == "safetensors":
        from safetensors import SafetensorError

        raise SafetensorError(f"Error while serializing: I/O error: {words}")
    if kind == "tokenizer":
        raise Exception(words)
    raise OSError(number, os.strerror(number), None if kind in ("write", "fsync") else path)


ERRORS = (errno.ENOSPC, errno.EIO)
