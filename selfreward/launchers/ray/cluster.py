"""A cluster of Ray, as this process sees it."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, AuthenticationError, RayError, RayTaskError

from selfreward.engines.messages import HEARTBEAT_S
from selfreward.engines.remote import SHUTDOWN_TIMEOUT_S
from selfreward.errors import NodeLost

# Of a CPU, what an actor asks Ray for: so little that engines which stay up leave room for a training beside them.
CPU_SHARE = 0.1
ROOM_TIMEOUT_S = 120.0  # seconds until an actor is given up for which there is no room


def join() -> None:
    """Makes this process a driver of the cluster that runs here.

    Raises:
        ValueError: there is none.
    """
    if ray.is_initialized():
        return
    # A cluster that is gone, and whose address is still known, would be looked for for a quarter of an hour.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    # It takes SIGTERM for itself.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Its own way to show what actors print mixes it with its state, and both with the output of this process.
        ray.init(address="auto", namespace="selfreward", logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, AuthenticationError) as error:
        fact = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"launch.launcher is ray, and there is no cluster of Ray that this process can join: {fact}. Start one "
            "with ray start --head, and ray start --address=HOST:6379 on the other nodes, or submit the run to one: "
            "see launch/ray/README.md"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def alive() -> list[dict[str, Any]]:
    """The nodes that live, as far as Ray has noticed."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def nodes(with_gpus: bool) -> list[dict[str, Any]]:
    """The nodes that live and can work.

    Raises:
        NodeLost: none can any more.
    """
    living = alive()
    # The head node of a cluster is often told to take no work, by having no CPUs.
    found = [node for node in living if (gpus(node) if with_gpus else node["Resources"].get("CPU", 0) >= CPU_SHARE)]
    if not found:
        what = "GPU" if with_gpus else "CPU"
        raise NodeLost(
            f"none of the {len(living)} nodes of the cluster of Ray that are up has a {what}. See ray status"
        )
    return sorted(found, key=lambda node: str(node["NodeID"]))


def gpus(node: Mapping[str, Any]) -> int:
    """How many GPUs a node has."""
    return int(node["Resources"].get("GPU", 0))


def actor(kind: type, environment: Mapping[str, str], **options: Any) -> Any:
    """Asks for an actor of :mod:`selfreward.launchers.ray.hosts`. Args: ``options``: Ray's own."""
    remote: Any = ray.remote(**options)
    return remote(kind).remote(os.getcwd(), dict(environment))


def result(answer: ray.ObjectRef[Any], timeout: float | None = None) -> Any:
    """What an actor returns; or raises, without Ray's wrapping."""
    try:
        return ray.get(answer, timeout=timeout)
    except RayTaskError as error:
        raise error.cause from None


def wait_for(answers: Sequence[Any]) -> None:
    """Returns once all are there, or an error in their place, or too much time has passed."""
    if answers:
        ray.wait(list(answers), num_returns=len(answers), timeout=SHUTDOWN_TIMEOUT_S + HEARTBEAT_S)


def why(error: RayError) -> str:
    """The one clause that matters of what Ray says of the end of an actor."""
    if isinstance(error, ActorUnavailableError):
        return "it can't be reached"
    found = re.search(r"because (.+?)(\.|$)", str(error), re.MULTILINE)
    return found[1] if found else " ".join(str(error).split())
