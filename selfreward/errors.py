"""What ends a run before its end, each with an exit status of its own (sysexits.h where it has one). No torch.

A ``ValueError`` is something that the user can mend in the recipe or the data: exit status 1.
"""

from __future__ import annotations

import errno
import os


class SelfrewardError(Exception):
    """Ends the command with ``exit_status`` and the message; never a traceback."""

    exit_status = 1


class Stopped(SelfrewardError):
    """SIGTERM or Ctrl-C: what was in flight is in the journal, and ``selfreward resume`` goes on from there."""

    exit_status = 75


class RunLocked(SelfrewardError):
    """Another process is writing to the run."""

    exit_status = 73


class DiskFull(SelfrewardError):
    """The disk has no room for the stage, or an operation on it failed."""

    exit_status = 74


class EngineDied(SelfrewardError):
    """The engine's process ended or hung; raised to the user once it was restarted as often as the recipe allows."""

    exit_status = 69


class NodeLost(SelfrewardError):
    """A node of a training is gone; raised to the user once it went on without as often as the recipe allows."""

    exit_status = 71


class WeightCheckError(SelfrewardError):
    """The weights that are served are not those that were trained."""

    exit_status = 70


class Damaged(SelfrewardError):
    """A file of the run is not what the run wrote."""

    exit_status = 65


KINDS = (Stopped, RunLocked, DiskFull, EngineDied, NodeLost, WeightCheckError, Damaged)
BY_EXIT_STATUS = {kind.exit_status: kind for kind in KINDS}

_OF_THE_DISK = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)}


# What torch says when the file behind it takes no more, without the system's words.
_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container")


def disk_error(error: BaseException) -> DiskFull | None:
    """An error of the disk by its name, whichever library met it; None: it is another error.

    Libraries that write through Rust or C++ raise exceptions of their own, some of them while they handle the first.
    """
    cause: BaseException | None = error
    while cause is not None:
        if _is_of_the_disk(cause):
            return DiskFull(f"{cause}. Make room on the disk, or mend it; what was finished before is kept")
        cause = cause.__cause__ or cause.__context__
    return None


def _is_of_the_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _OF_THE_DISK
    text = str(error)
    named = any(words in text or f"os error {number})" in text for number, words in _OF_THE_DISK.items())
    return named or any(words in text for words in _TORCH_WRITER)
