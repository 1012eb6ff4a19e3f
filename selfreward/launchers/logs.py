"""A log of each process, and what made the first one of a training fail. No torch."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from selfreward.runtime import ranks
from selfreward.runtime.progress import console
from selfreward.runtime.redact import redact

FOLDER = "logs"
# Where torchrun wants to be told of an error.
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


class Log:
    """Takes what one process prints, for its file ``logs/NAME.log`` and for the person who watches.

    Also where the file can't be written, which is said once: a process whose messages nobody takes stands still.
    """

    def __init__(self, run: Path, name: str) -> None:
        self._name = name
        self.path = run / FOLDER / f"{name.replace(' ', '-')}.log"
        self.path.parent.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self._failed = False

    def __call__(self, line: str) -> None:
        with self._lock:
            self._write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {redact(line)}\n")
        console.print(f"[{self._name}] {line}", markup=False, soft_wrap=True)

    def _write(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if not self._failed:
                console.print(f"  {self.path} can't be written: {error}", markup=False, soft_wrap=True)
            self._failed = True


@dataclass(frozen=True)
class Failure:
    """The error of one process. ``log`` is the folder with all that it printed."""

    log: Path
    rank: str
    error: str
    where: str


def report(error: BaseException) -> None:
    """Tells the launcher of this process, if there is one that wants to know, what ends it."""
    path = os.environ.get(ERROR_FILE_VARIABLE)
    # The rank of a run ends after its part of a training, which knows better.
    if path and not os.path.exists(path):
        words = redact(f"{type(error).__name__}: {error}")
        where = redact("".join(traceback.format_exception(error)))
        extra = {"py_callstack": where, "timestamp": str(int(time.time())), "rank": str(ranks.rank())}
        Path(path).write_text(json.dumps({"message": {"message": words, "extraInfo": extra}}), encoding="utf-8")


def first_failure(logs: Path) -> Failure | None:
    """The first of the processes of a training that told of an error; the others often fail of its end."""
    reports = sorted(logs.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    if not reports:
        return None
    message = json.loads(reports[0].read_text(encoding="utf-8"))["message"]
    extra = message["extraInfo"]
    rank = extra.get("rank", reports[0].parent.name)
    return Failure(reports[0].parent, rank, message["message"], extra["py_callstack"])
