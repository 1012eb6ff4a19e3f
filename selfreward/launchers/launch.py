"""Where engines and trainings run. Every launcher starts the same two commands: a worker that serves an engine, and
``selfreward stage train RUN --iteration T``."""

from __future__ import annotations

import shlex

from selfreward.errors import BY_EXIT_STATUS, NodeLost
from selfreward.launchers.base import Launcher, Training, wait
from selfreward.launchers.batch import shared_batch
from selfreward.launchers.layout import Layout, replicas
from selfreward.launchers.local import LocalLauncher
from selfreward.launchers.logs import FOLDER, first_failure
from selfreward.launchers.torchrun import TorchrunLauncher
from selfreward.recipe.recipe import Recipe
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime.extras import optional
from selfreward.runtime.gpus import num_gpus
from selfreward.runtime.lock import part_of
from selfreward.runtime.progress import console
from selfreward.runtime.ranks import world_size
from selfreward.runtime.shutdown import stop


def find_launcher(recipe: Recipe) -> Launcher:
    """The launcher that a recipe names.

    Raises:
        ValueError: there is no allocation of SLURM, no cluster of Ray, or Ray is not installed.
    """
    kind = recipe.launch.launcher
    if kind == "slurm":
        from selfreward.launchers.slurm import SlurmLauncher

        return SlurmLauncher()
    if kind == "ray":
        with optional("launch.launcher: ray", "ray"):
            from selfreward.launchers.ray.launcher import RayLauncher

        return RayLauncher(recipe)
    gpus = num_gpus()
    several = gpus > 1 or (recipe.launch.replicas or 1) > 1
    return LocalLauncher(out_of_process=several if kind is None else kind == "local", gpus=gpus)


def torchrun_launcher(recipe: Recipe) -> TorchrunLauncher:
    """The launcher of a process that ``accelerate launch`` or ``torchrun`` started, as one of several.

    Raises:
        ValueError: the recipe names another launcher, or a way to train that is none of several ranks.
    """
    launch = recipe.launch
    others = {
        "launcher": launch.launcher if launch.launcher in ("slurm", "ray") else None,
        "train": launch.train if launch.train in ("inline", "process") else None,
        "accelerate_config": launch.accelerate_config,
        "processes": launch.processes,
    }
    for key, value in others.items():
        if value is not None:
            raise ValueError(
                f"launch.{key} is {value}, and this run was started as {world_size()} ranks, which train. "
                f"Take launch.{key} out, or start it with selfreward run alone"
            )
    several = None if launch.launcher is None and launch.replicas is None else launch.launcher != "inline"
    return TorchrunLauncher(several)


def require_layout(recipe: Recipe, launcher: Launcher) -> None:
    """Refuses what would come out hours later.

    Raises:
        ValueError: an engine has no room, or a batch can't be shared by the processes that train.
    """
    for engine in recipe.engines:
        replicas(recipe.launch, engine, launcher.nodes, launcher.gpus)
    if recipe.launch.train == "inline" and launcher.gpus > 1:
        raise ValueError(
            f"launch.train is inline, and this process sees {launcher.gpus} GPUs, on which TRL does not train in one "
            "process. Take launch.train out, or show it one with CUDA_VISIBLE_DEVICES"
        )
    layout = Layout.of(recipe, launcher.nodes, launcher.gpus)
    ranks = launcher.size if isinstance(launcher, TorchrunLauncher) else layout.ranks
    for iteration in range(recipe.iterations + 1):
        options = recipe.training.dpo_options(iteration) if iteration else recipe.training.sft
        if iteration or recipe.seed_data is not None:
            shared_batch(options, ranks)


def how_to_train(recipe: Recipe, launcher: Launcher) -> str:
    """``inline``, ``process`` or ``accelerate``."""
    launch = recipe.launch
    if isinstance(launcher, TorchrunLauncher):
        return "accelerate"
    if launch.train is not None:
        return launch.train
    elsewhere = launch.launcher in ("slurm", "ray")
    if launch.accelerate_config or launch.processes or Layout.of(recipe, launcher.nodes, launcher.gpus).ranks > 1:
        return "accelerate"
    return "process" if launcher.gpus or elsewhere else "inline"


def launch_training(run: Run, step: Step, launcher: Launcher) -> bool:
    """Trains in child processes, or returns False where training belongs into this one.

    A process of its own gives the GPU's memory back when it ends, whatever the libraries keep.

    Raises:
        ChildProcessError: a child failed.
        SelfrewardError: the children were stopped, or ended for a reason that has a name.
    """
    how = how_to_train(run.recipe, launcher)
    if how == "inline":
        return False
    for left in range(run.recipe.launch.max_restarts, -1, -1):
        try:
            # Anew each time, as there may be other nodes.
            _train(run, step, launcher, training_of(run, step, launcher, how))
            break
        except NodeLost as error:
            if not left:
                raise
            console.print(f"  {error}; going on from the last checkpoint", markup=False)
    return True


def _train(run: Run, step: Step, launcher: Launcher, training: Training) -> None:
    status = wait(launcher.start_training(training, part_of(run.path)))
    if run.stage(step.stage, step.iteration).done:
        return
    stop.check()
    if status in launcher.lost:
        raise NodeLost(f"{step} lost a node, or ran out of memory and was killed (exit status {status})")
    if status in BY_EXIT_STATUS:
        raise BY_EXIT_STATUS[status](f"{step} ended; its messages stand above")
    raise ChildProcessError(_failure(training, status))


def training_of(run: Run, step: Step, launcher: Launcher, how: str) -> Training:
    """What a step that trains starts."""
    layout = Layout.of(run.recipe, launcher.nodes, launcher.gpus)
    every = run.path / FOLDER / run.stage(step.stage, step.iteration).name.replace("/", "-")
    # An earlier attempt may have left errors there.
    logs = every / str(1 + sum(1 for _ in every.glob("*")))
    if how == "process":
        return Training(run.path, step, 1, 1, None, logs)
    return Training(run.path, step, layout.nodes, layout.processes, run.recipe.launch.accelerate_config, logs)


def _failure(training: Training, status: int | None) -> str:
    command = f"To see it alone: {shlex.join(training.command())}"
    found = first_failure(training.logs)
    if found is None:
        return f"{training.step} ended with exit code {status}; its messages stand above. {command}"
    return (
        f"{training.step}: rank {found.rank} failed first, with {found.error}\n{found.where}\n"
        f"All that it printed is in {found.log}. {command}"
    )


def leave_group() -> None:
    """Ends the process group of a launched stage; without it gloo aborts after a good training."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
