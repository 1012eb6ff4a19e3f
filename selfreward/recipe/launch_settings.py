"""What starts the processes of a run, and how many."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfreward.recipe.base import PositiveInt, Settings
from selfreward.recipe.loader import RecipeFile


class LaunchSettings(Settings):
    """Where a run's processes run, how many there are, and what stays in memory while it trains."""

    decides = False

    launcher: Literal["inline", "local", "slurm", "ray"] | None = Field(
        None,
        description="What starts engines and trainings: inline (one engine, in this process), local (processes on "
        "this machine), slurm (job steps on all nodes of the allocation) or ray (actors on all nodes of the cluster). "
        "Empty: local where this machine has several GPUs, inline otherwise.",
    )
    replicas: PositiveInt | None = Field(
        None,
        description="Copies of the model that sample and judge side by side, each on vllm.tensor_parallel_size x "
        "pipeline_parallel_size GPUs. Empty: as many as the GPUs of all nodes hold, and one on each node without GPUs.",
    )
    train: Literal["inline", "process", "accelerate"] | None = Field(
        None,
        description="Training in this process, in one of its own, or under `accelerate launch`. Empty: accelerate "
        "where there are several GPUs or nodes, a process of its own on one GPU, inline on a CPU.",
    )
    accelerate_config: RecipeFile | None = Field(
        None,
        description="A file of configs/accelerate/ for `accelerate`, which says how the processes of one node share a "
        "model. Empty: DDP.",
    )
    processes: PositiveInt | None = Field(
        None,
        description="Training processes on each node. Empty: those of accelerate_config, or one for each GPU.",
    )
    keep_engine: bool | None = Field(
        None,
        description="While it trains, keep the engine up and hand it the new weights: on a GPU it sleeps meanwhile, "
        "without weights and cache. Empty: yes on a CPU, no on a GPU, where a process that ends gives back all memory.",
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        2, description="How often a training that lost a node goes on from its last checkpoint on those that are left."
    )
    grace: Annotated[float, Field(ge=0)] = Field(
        60.0, description="Seconds after SIGTERM or Ctrl-C in which what is in flight may finish."
    )
    private: bool = Field(True, description="Make the run folder readable by its owner alone.")

    @property
    def one_trains(self) -> bool:
        """Whether the recipe has all of a training in one process."""
        return self.train in ("inline", "process")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accelerate_config is not None and self.one_trains:
            raise ValueError(
                f"launch.train is {self.train!r} and accelerate_config is {self.accelerate_config}, which only "
                "`accelerate launch` reads. Write launch.train: accelerate, or take the file out"
            )
        if self.processes is not None and self.one_trains:
            raise ValueError(
                f"launch.train is {self.train!r}, which is one process, and processes is {self.processes}. Take one out"
            )
        if self.launcher == "inline" and (self.replicas or 1) > 1:
            raise ValueError(
                f"launch.launcher is inline and replicas is {self.replicas}: one process has one engine. "
                "Write launcher: local, slurm or ray, or replicas: 1"
            )
        if self.launcher in ("slurm", "ray") and self.train == "inline":
            raise ValueError(
                f"launch.train is inline and launcher is {self.launcher}, which trains in processes that it starts. "
                "Take launch.train out"
            )
        return self
