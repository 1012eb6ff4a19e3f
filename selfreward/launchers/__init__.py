"""Where training runs. Every launcher starts the same command, ``selfreward stage train RUN --iteration T``."""

from __future__ import annotations

import subprocess
import sys

from selfreward.rundir import Run
from selfreward.serving import has_gpu


def launch_training(run: Run, iteration: int) -> bool:
    """Trains in a child process, or returns False where training belongs into this one.

    A process of its own gives the GPU's memory back when it ends, whatever the libraries keep.

    Raises:
        ChildProcessError: the child failed.
    """
    command = training_command(run, iteration)
    if command is None:
        return False
    # The child's words belong to the messages (2), as standard output is the caller's.
    result = subprocess.run(command, stdout=2, check=False)
    if result.returncode or not run.stage("train", iteration).done:
        raise ChildProcessError(
            f"training of iteration {iteration} ended with exit code {result.returncode}; its messages stand above. "
            f"To see it alone: {' '.join(command)}"
        )
    return True


def training_command(run: Run, iteration: int) -> list[str] | None:
    """The command that trains an iteration, or None for training in this process."""
    launch = run.recipe.launch
    how = launch.train or ("process" if has_gpu() else "inline")
    stage = ["-m", "selfreward", "stage", "train", str(run.path), "--iteration", str(iteration)]
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
