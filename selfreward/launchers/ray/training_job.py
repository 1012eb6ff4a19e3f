"""A training on the nodes of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from selfreward.engines.messages import HEARTBEAT_S
from selfreward.engines.remote import SILENCE_TIMEOUT_S
from selfreward.errors import NodeLost
from selfreward.launchers.base import Training
from selfreward.launchers.ray.cluster import ROOM_TIMEOUT_S, actor, alive, nodes, result, wait_for, why
from selfreward.launchers.ray.hosts import TrainingHost
from selfreward.runtime.progress import console
from selfreward.runtime.shutdown import stop

NODE_DEATH_TIMEOUT_S = 30.0  # seconds in which Ray notices that a node is dead
DEAD = "its node has died"  # in Ray's words


class RayJob:
    """Implements :class:`selfreward.launchers.base.TrainingJob`: one command on each node, with its number."""

    def __init__(
        self,
        training: Training,
        environment: Mapping[str, str],
        share: Mapping[str, float],
        places: Sequence[Mapping[str, float]],
        with_gpus: bool,
    ) -> None:
        """Returns once the commands run.

        Args:
            training: what to start.
            environment: its variables.
            share: what each of its actors takes of what Ray hands out.
            places: for each of them, what binds it to a node.
            with_gpus: whether the nodes have GPUs.

        Raises:
            NodeLost: there are too few nodes by now.
            ValueError: a node doesn't see the folder of this process.
        """
        self._several = training.nodes > 1
        self._hosts: list[Any] = []
        self._statuses: list[int | None] = [None] * training.nodes
        self._places: list[tuple[str, int, str]] = []
        self._group = placement_group([{**share, **place} for place in places], strategy="STRICT_SPREAD")
        try:
            _require_room(self._group, training, with_gpus)
            self._start(training, environment, share)
        except BaseException:
            self.kill()
            raise

    def poll(self) -> int | None:
        for number, (status, lines) in enumerate(self._ask("poll")):
            self._statuses[number] = status
            self._print(number, lines)
        failed = [status for status in self._statuses if status]
        # The others may wait for one that failed for ever.
        if None in self._statuses and not failed:
            return None
        return failed[0] if failed else 0

    def kill(self) -> None:
        ended = [host.end.remote() for host in self._hosts]
        wait_for(ended)
        for place, answer in enumerate(ended):
            # What ran on a node that is gone is gone, too.
            with suppress(RayError):
                self._print(place, ray.get(answer, timeout=0))
        for host in self._hosts:
            ray.kill(host)
        self._hosts = []
        remove_placement_group(self._group)

    def _start(self, training: Training, environment: Mapping[str, str], share: Mapping[str, float]) -> None:
        cpus, gpus = (share.get(name, 0) for name in ("CPU", "GPU"))
        for number in range(training.nodes):
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
            host = actor(TrainingHost, environment, num_cpus=cpus, num_gpus=gpus, scheduling_strategy=place)
            self._hosts.append(host)
        self._places = self._ask("place", timeout=ROOM_TIMEOUT_S)
        ip, port, _ = self._places[0]
        commands = [training.command(str(number), ip, port) for number in range(training.nodes)]
        self._ask("start", *([command] for command in commands))

    def _ask(self, method: str, *arguments: Sequence[Any], timeout: float = SILENCE_TIMEOUT_S) -> list[Any]:
        """What each of the actors answers. Raises NodeLost."""
        given = arguments or [()] * len(self._hosts)
        answers = [getattr(host, method).remote(*each) for host, each in zip(self._hosts, given, strict=True)]
        found = []
        for number, answer in enumerate(answers):
            try:
                found.append(result(answer, timeout))
            except (RayActorError, GetTimeoutError) as error:
                raise self._lost(number, error) from None
        return found

    def _lost(self, number: int, error: RayError) -> NodeLost:
        reason = "it gives no answer" if isinstance(error, GetTimeoutError) else why(error)
        if not self._places:
            return NodeLost(f"a node was lost as a training began on it: {reason}")
        ip, _, name = self._places[number]
        # The training would be planned with it again as long as Ray has not noticed that it is dead.
        deadline = time.monotonic() + NODE_DEATH_TIMEOUT_S
        while (lives := name in {node["NodeID"] for node in alive()}) and time.monotonic() < deadline:
            time.sleep(0.5)
        return NodeLost(f"the training lost node {ip}: {reason if lives else DEAD}")

    def _print(self, number: int, lines: Sequence[str]) -> None:
        where = f"[{self._places[number][0]}] " if self._several else ""
        for line in lines:
            console.print(f"{where}{line}", markup=False, highlight=False, soft_wrap=True)


def _require_room(group: PlacementGroup, training: Training, with_gpus: bool) -> None:
    """Waits for the nodes of a training.

    Raises:
        NodeLost: there are too few by now.
        Stopped: this process was asked to stop meanwhile.
    """
    said = time.monotonic() + HEARTBEAT_S
    stop.check()
    while not group.wait(1):
        stop.check()
        if len(nodes(with_gpus)) < training.nodes:
            raise NodeLost(f"{training.step} needs {training.nodes} nodes, and one of them is lost")
        if time.monotonic() > said:
            said = float("inf")
            console.print(
                f"  {training.step} waits for {training.nodes} nodes with room: see ray status", soft_wrap=True
            )
