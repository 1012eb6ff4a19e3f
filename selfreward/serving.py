"""The engines of a run: which model they serve, the proof that they do, and when they make room."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from selfreward import handover, registry
from selfreward.engines import Completion, Engine, SamplingParams
from selfreward.errors import EngineDied
from selfreward.judges.panel import Panel, Seat
from selfreward.progress import console
from selfreward.records import Message
from selfreward.rundir import Run
from selfreward.settings.engine import EngineSettings, ModelSettings
from selfreward.stages.gather import run_coroutine
from selfreward.stopping import stop

T = TypeVar("T")
PAUSE = 2.0  # seconds before an engine is started again
# Tokens at the end of each probe that are also asked for in the way of a sample.
ENDS = 4


class SupervisedEngine:
    """An engine that is started again when it dies, as often as the recipe allows."""

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        self._model, self._settings = model, settings
        self._engine = self._start(model_path)
        self._restarts = 0

    @property
    def model(self) -> str:
        return self._engine.model

    async def sample(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        """As :meth:`Engine.sample`. Raises EngineDied once there are no restarts left."""
        return await self._ask(lambda engine: engine.sample(messages, params, seeds))

    async def chances(self, messages: Sequence[Message], begun: str, options: Sequence[str]) -> list[float] | None:
        """As :meth:`Sampler.chances`."""
        return await self._ask(lambda engine: engine.chances(messages, begun, options))

    async def rate(self, messages: Sequence[Message]) -> float | None:
        """As :meth:`Sampler.rate`."""
        return await self._ask(lambda engine: engine.rate(messages))

    async def logprobs(self, texts: Sequence[Sequence[int]], last: int | None = None) -> list[list[float]] | None:
        """As :meth:`Engine.logprobs`, of several texts at once."""
        found = await asyncio.gather(*(self._ask(partial(_logprobs, ids, last)) for ids in texts))
        given = [figures for figures in found if figures is not None]
        return given if len(given) == len(texts) else None

    @property
    def failures(self) -> Mapping[str, int]:
        """How many requests to a server failed so far, by kind; engines without a server count none."""
        return dict(getattr(self._engine, "failures", {}))

    def reload(self, model_path: str) -> None:
        """As :meth:`Engine.reload`."""
        try:
            self._engine.reload(model_path)
        except EngineDied as error:
            self._restart(self._engine, error, model_path)

    def close(self) -> None:
        self._engine.close()

    def _start(self, model_path: str) -> Engine:
        engine: Engine = registry.load(self._settings.name, registry.ENGINES, "engine")(
            model_path, self._model, self._settings
        )
        return engine

    async def _ask(self, request: Callable[[Engine], Awaitable[T]]) -> T:
        while True:
            engine = self._engine
            try:
                return await request(engine)
            except EngineDied as error:
                # SLURM ends an engine's process together with the run's.
                stop.check()
                self._restart(engine, error, engine.model)

    def _restart(self, dead: Engine, error: EngineDied, model_path: str) -> None:
        if dead is not self._engine:
            return  # another coroutine has started it again
        dead.close()
        while self._restarts < self._settings.max_restarts:
            self._restarts += 1
            console.print(f"  {error}; starting it again ({self._restarts} of {self._settings.max_restarts})")
            # The memory of a process that was killed may take a moment to come back.
            time.sleep(PAUSE)
            try:
                self._engine = self._start(model_path)
                return
            except EngineDied as again:
                error = again
        raise EngineDied(
            f"{error}. It was started again {self._restarts} times (engine.max_restarts). What was finished is "
            "kept: find out why in the messages above, then selfreward resume"
        ) from error


async def _logprobs(ids: Sequence[int], last: int | None, engine: Engine) -> list[float] | None:
    return await engine.logprobs(ids, last)


class Engines:
    """Starts engines when they are first needed and hands them new weights where they can stay up."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._recipe = run.recipe
        self._policy: SupervisedEngine | None = None
        self._others: dict[str, SupervisedEngine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def policy(self, model_path: str) -> SupervisedEngine:
        """The engine that samples, serving the weights at ``model_path``.

        Raises:
            HandoverError: it serves other weights than those that were trained.
        """
        if self._policy is None:
            self.make_room()
            self._policy = SupervisedEngine(model_path, self._recipe.model, self._recipe.engine)
            self._prove(self._policy)
        elif self._policy.model != model_path:
            if (probes := handover.read_probes(model_path)) is not None:
                # With what the old weights leave in a prefix cache now, the proof would fail if it outlived them.
                run_coroutine(self._policy.logprobs(probes.ids, ENDS))
            self._policy.reload(model_path)
            self._prove(self._policy)
        return self._policy

    def _prove(self, engine: SupervisedEngine) -> None:
        """Asks the engine for the probes of the model that it is to serve, and records what it answers."""
        probes = handover.read_probes(engine.model)
        if probes is None:
            return
        every = run_coroutine(engine.logprobs(probes.ids))
        ends = run_coroutine(engine.logprobs(probes.ids, ENDS))
        name = self._run.model_name(engine.model)
        if every is None or ends is None:
            self._run.log({"stage": "handover", "model": name, "proof": "none: this engine tells no log-probabilities"})
            return
        evidence = handover.require_served(probes, every, name)
        sampled = handover.require_served(probes.ends(ENDS), ends, f"{name} through its prefix cache")
        self._run.log({"stage": "handover", "model": name, **asdict(evidence), "sampled": asdict(sampled)})

    def judge(self, seat: Seat, model_path: str) -> SupervisedEngine:
        """The engine that a judge asks: the policy's own, unless the recipe names another engine or model."""
        if seat.is_policy:
            return self.policy(model_path)
        return self.other(seat.settings.model, seat.settings.engine)

    def other(self, model: ModelSettings | None, settings: EngineSettings | None) -> SupervisedEngine:
        """The engine of a judge or teacher that is not the policy, started when it is first asked for.

        Args:
            model: what it serves. None: the recipe's own model, or what a server serves.
            settings: None: as the policy's.
        """
        settings = settings or self._recipe.engine
        name = f"{settings.model_dump_json()} {model and model.model_dump_json()}"
        if name not in self._others:
            if model is not None:
                self.make_room()
            served = model or self._recipe.model
            self._others[name] = SupervisedEngine(served.path, served, settings)
        return self._others[name]

    @property
    def judges_itself(self) -> bool:
        """Whether the model that samples is the only judge."""
        return Panel(self._recipe.judge).is_policy

    def make_room(self) -> None:
        """Gives memory back for training or another engine, unless the recipe or the lack of a GPU lets it be."""
        keep = self._recipe.launch.keep_engine
        if keep is None:
            keep = not has_gpu()
        if not keep:
            self._close()

    def _close(self) -> None:
        for engine in (self._policy, *self._others.values()):
            if engine is not None:
                engine.close()
        self._policy = None
        self._others.clear()


def has_gpu() -> bool:
    """Whether torch sees an NVIDIA or AMD GPU.

    The driver library is asked rather than CUDA, which would take memory and forbid to fork processes.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return bool(torch.cuda.is_available())
