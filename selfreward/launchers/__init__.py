"""Where training runs. Every launcher starts the same command, ``selfreward stage train RUN --iteration T``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from selfreward.errors import SelfrewardError
from selfreward.lock import part_of
from selfreward.plan import Step
from selfreward.rundir import Run
from selfreward.serving import has_gpu
from selfreward.stopping import stop

LOOK = 0.2  # seconds between two looks at the child


def launch_training(run: Run, step: Step) -> bool:
    """Trains in a child process, or returns False where training belongs into this one.

    A process of its own gives the GPU's memory back when it ends, whatever the libraries keep.

    Raises:
        ChildProcessError: the child failed.
        SelfrewardError: the child was stopped, or ended for a reason that has a name.
    """
    command = training_command(run, step)
    if command is None:
        return False
    # The child's words belong to the messages (2), as standard output is the caller's. A group of its own lets
    # every process of a launcher be asked to stop, and be ended.
    child = subprocess.Popen(command, stdout=2, env={**os.environ, **part_of(run.path)}, process_group=0)
    try:
        _wait(child)
    finally:
        _signal(child, signal.SIGKILL)
        child.wait()
    if run.stage(step.stage, step.iteration).done:
        return True
    stop.check()
    for kind in SelfrewardError.__subclasses__():
        if kind.exit_status == child.returncode:
            raise kind(f"{step} ended; its messages stand above")
    raise ChildProcessError(
        f"{step} ended with exit code {child.returncode}; its messages stand above. "
        f"To see it alone: {' '.join(command)}"
    )


def _wait(child: subprocess.Popen[bytes]) -> None:
    """Until the child and all that it started have ended, or the grace period is over."""
    asked = False
    while _alive(child) and not stop.overdue:
        if stop.requested and not asked:
            asked = True
            _signal(child, signal.SIGTERM)
        time.sleep(LOOK)


def _alive(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child runs; once asked to stop, whether anything of its group does: a launcher may end first."""
    if child.poll() is None:
        return True
    return stop.requested and _signal(child, 0)


def _signal(child: subprocess.Popen[bytes], number: int) -> bool:
    """Signals the child's whole group, and returns whether there is one."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return False
    return True


def training_command(run: Run, step: Step) -> list[str] | None:
    """The command that performs a training, or None for training in this process."""
    launch = run.recipe.launch
    how = launch.train or ("process" if has_gpu() else "inline")
    stage = ["-m", "selfreward", "stage", step.stage, str(run.path), "--iteration", str(step.iteration)]
    if how == "inline":
        return None
    if how == "process":
        return [sys.executable, *stage]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*accelerate, "--config_file", str(launch.accelerate_config), *stage]


def leave_group() -> None:
    """Ends the process group of a launched stage; without it gloo aborts after a good training."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
