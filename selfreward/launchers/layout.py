"""How many processes a run has, and which GPUs are whose. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from selfreward.recipe.engine_facts import engine_facts
from selfreward.recipe.engine_settings import EngineSettings
from selfreward.recipe.launch_settings import LaunchSettings
from selfreward.recipe.recipe import Recipe

# vLLM's options whose product is the number of GPUs that one copy of a model is on.
SPLITS = ("tensor_parallel_size", "pipeline_parallel_size")


@dataclass(frozen=True)
class GPUSlot:
    """Where a replica is: on which node, and on which of its GPUs, as numbers from 0; none without GPUs."""

    node: int
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What a recipe makes of some nodes.

    ``gpus`` and ``processes`` (that train) are those of each node; ``replicas`` (that sample and judge) and ``ranks``
    (that train) all of them.
    """

    nodes: int
    gpus: int
    replicas: int
    processes: int
    ranks: int

    @classmethod
    def of(cls, recipe: Recipe, nodes: int, gpus: int) -> Layout:
        """Args: ``gpus``: of each node.

        Raises:
            ValueError: a replica needs more GPUs than a node has, or there are more replicas than GPUs hold.
        """
        wanted, found = recipe.launch.replicas, replicas(recipe.launch, recipe.engine, nodes, gpus)
        if (wanted or 1) > found:
            raise ValueError(
                f"launch.replicas is {wanted}, and {nodes} nodes with {gpus} GPUs hold {found} of "
                f"{gpus_per_replica(recipe.engine)} GPUs. Write replicas: {found}, or let each have fewer"
            )
        each = processes(recipe.launch, gpus)
        return cls(nodes, gpus, found, each, 1 if recipe.launch.one_trains else nodes * each)


def gpus_per_replica(engine: EngineSettings) -> int:
    """On how many GPUs one copy of the model is."""
    tensor, pipeline = (int(engine.vllm.get(name) or 1) for name in SPLITS)
    return tensor * pipeline


def replicas(launch: LaunchSettings, engine: EngineSettings, nodes: int, gpus: int) -> int:
    """How many copies of a model serve side by side: as many as the recipe says, as far as there are GPUs.

    Raises:
        ValueError: a copy needs more GPUs than a node has.
    """
    if launch.launcher == "inline" or engine_facts(engine.name).is_client:
        return 1
    if not gpus:
        return launch.replicas or nodes
    each, names = gpus_per_replica(engine), " x ".join(f"engine.vllm.{name}" for name in SPLITS)
    if each > gpus:
        raise ValueError(
            f"{names} is {each}, and a node has {gpus} GPUs: a replica stays on one node. Lower it to at most {gpus}"
        )
    most = nodes * (gpus // each)
    return min(launch.replicas or most, most)


def processes(launch: LaunchSettings, gpus: int) -> int:
    """The training processes on each node."""
    if launch.one_trains:
        return 1
    return launch.processes or _of_file(launch.accelerate_config) or max(1, gpus)


def gpu_slot(number: int, engine: EngineSettings, nodes: int, gpus: int) -> GPUSlot:
    """Where a replica is: they go to the nodes in turn."""
    number_here, each = number // nodes, gpus_per_replica(engine)
    return GPUSlot(number % nodes, tuple(range(number_here * each, (number_here + 1) * each)) if gpus else ())


def shipped_config(name: str) -> Path:
    """A file of ``configs/accelerate``: beside the package in a checkout, under ``share`` of what pip installs into.

    Raises:
        ValueError: this installation has none.
    """
    for folder in Path(__file__).parents[1:]:
        for configs in (folder / "configs" / "accelerate", folder / "share" / "selfreward" / "configs" / "accelerate"):
            if (configs / name).is_file():
                return configs / name
    raise ValueError(f"this installation of selfreward has no configs/accelerate/{name}. Install it again with pip")


def _of_file(config: Path | None) -> int | None:
    """The processes of one node in a file of ``accelerate config``, which has those of all nodes."""
    if config is None:
        return None
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    num = content.get("num_processes") if isinstance(content, dict) else None
    if not isinstance(num, int):
        raise ValueError(f"{config} has no num_processes. Add it, or write launch.processes")
    return max(1, num // int(content.get("num_machines") or 1))
