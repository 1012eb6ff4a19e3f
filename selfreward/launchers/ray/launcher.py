"""A cluster of Ray: an actor for each replica, and one on each node for a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from selfreward.engines.remote import WorkerChannel
from selfreward.launchers.base import Training, TrainingJob, worker_command
from selfreward.launchers.layout import GPUSlot
from selfreward.launchers.ray.channel import RayChannel
from selfreward.launchers.ray.cluster import CPU_SHARE, alive, gpus, join, nodes
from selfreward.launchers.ray.hosts import ours
from selfreward.launchers.ray.training_job import RayJob
from selfreward.recipe.recipe import Recipe

# Of a node's own resource, for a place on just that node.
NODE_SHARE = 0.001


class RayLauncher:
    """Implements :class:`selfreward.launchers.base.Launcher` on the cluster that this machine is part of."""

    out_of_process = True
    lost = ()

    def __init__(self, recipe: Recipe) -> None:
        """Joins the cluster.

        Raises:
            ValueError: none runs here.
        """
        join()
        # A run that began on GPUs does not go on without any.
        self._with_gpus = any(map(gpus, alive()))
        # Engines that are asleep keep their GPUs, as Ray sees it.
        self._shares = bool(recipe.launch.keep_engine)

    @property
    def nodes(self) -> int:
        """The nodes that live and have GPUs; all where none has."""
        return len(nodes(self._with_gpus))

    @property
    def gpus(self) -> int:
        """The GPUs of the node that has fewest."""
        return min(map(gpus, nodes(self._with_gpus)))

    def start_worker(self, name: str, slot: GPUSlot, stall_timeout: float, log: Callable[[str], None]) -> WorkerChannel:
        # Ray knows where there is room, and lets an actor see its own GPUs alone.
        command = worker_command(GPUSlot(0, tuple(range(len(slot.devices)))))
        return RayChannel(name, command, len(slot.devices), stall_timeout, log)

    def start_training(self, training: Training, environment: Mapping[str, str]) -> TrainingJob:
        variables, each = {**ours(os.environ), **environment}, self.gpus
        if not (self._shares and self._with_gpus):
            share = {"CPU": CPU_SHARE, "GPU": each} if each else {"CPU": CPU_SHARE}
            return RayJob(training, variables, share, [{}] * training.nodes, self._with_gpus)
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(each)))
        places = [{f"node:{node['NodeManagerAddress']}": NODE_SHARE} for node in nodes(True)]
        return RayJob(training, variables, {}, places[: training.nodes], True)
