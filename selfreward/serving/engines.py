"""The engines of a run: which model they serve, the proof that they do, and when they make room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from types import TracebackType
from typing import Self

from selfreward.engines import Engine
from selfreward.engines.base import start_here
from selfreward.engines.concurrency import run_coroutine
from selfreward.engines.remote import RemoteEngine
from selfreward.engines.replica_pool import Prove, ReplicaPool
from selfreward.launchers import launch
from selfreward.launchers.base import Launcher
from selfreward.launchers.layout import GPUSlot, gpu_slot, replicas
from selfreward.launchers.logs import Log
from selfreward.recipe.engine_facts import engine_facts
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.runs.run import Run
from selfreward.serving import weight_check

# Tokens at the end of each probe that are also asked for in the way of a sample.
PROBE_TAIL_TOKENS = 4


class Engines:
    """Starts engines when they are first needed and hands them new weights where they can stay up."""

    def __init__(self, run: Run, launcher: Launcher | None = None) -> None:
        """Args: ``launcher``: starts their processes; None: the one that the recipe names."""
        self._run = run
        self._recipe = run.recipe
        self._given = launcher
        self._policy: ReplicaPool | None = None
        self._others: dict[str, ReplicaPool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @cached_property
    def launcher(self) -> Launcher:
        """What starts processes: asked for what there is when the first one is needed."""
        return self._given or launch.find_launcher(self._recipe)

    @property
    def in_flight(self) -> int:
        """How many prompts are worked on at once, by all replicas of the policy."""
        return self._recipe.engine.max_in_flight * self._replicas(self._recipe.engine)

    def policy(self, model_path: str) -> ReplicaPool:
        """The engine that samples, serving the weights at ``model_path``.

        Raises:
            WeightCheckError: it serves other weights than those that were trained.
        """
        if self._policy is None:
            self.make_room()
            self._policy = self._start("replica", model_path, self._recipe.model, self._recipe.engine, self._prove)
        elif self._policy.asleep:
            # They have its memory.
            self._close_others()
            self._policy.reload(model_path)
        elif self._policy.model != model_path:
            probes = weight_check.read_probes(model_path)

            def fill_cache(engine: Engine) -> None:
                # With what the old weights leave in a prefix cache now, the proof would fail if it outlived them.
                if probes is not None:
                    run_coroutine(_ask(engine, probes.ids, PROBE_TAIL_TOKENS))

            self._policy.reload(model_path, fill_cache)
        return self._policy

    def _prove(self, engine: Engine) -> None:
        """Asks an engine for the probes of the model that it is to serve, and records what it answers."""
        probes = weight_check.read_probes(engine.model)
        if probes is None:
            return
        every = run_coroutine(_ask(engine, probes.ids))
        ends = run_coroutine(_ask(engine, probes.ids, PROBE_TAIL_TOKENS))
        name = self._run.model_name(engine.model)
        if every is None or ends is None:
            self._run.log({"stage": "handover", "model": name, "proof": "none: this engine tells no log-probabilities"})
            return
        evidence = weight_check.require_served(probes, every, name)
        sampled = weight_check.require_served(probes.ends(PROBE_TAIL_TOKENS), ends, f"{name} through its prefix cache")
        self._run.log({"stage": "handover", "model": name, **asdict(evidence), "sampled": asdict(sampled)})

    def other(self, model: ModelSettings | None, settings: EngineSettings | None) -> ReplicaPool:
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
            self._others[name] = self._start(f"judge {len(self._others)}", served.path, served, settings)
        elif model is not None and self._policy is not None and self._recipe.launch.keep_engine and self.launcher.gpus:
            self._policy.sleep()
        return self._others[name]

    def make_room(self) -> None:
        """Gives memory back for training or another engine, unless the recipe or the lack of a GPU lets it be."""
        keep, gpus = self._recipe.launch.keep_engine, self.launcher.gpus
        if keep and gpus and self._policy is not None:
            self._policy.sleep()
            self._close_others()
        elif not (keep if keep is not None else not gpus):
            self._close()

    def _start(
        self,
        name: str,
        model_path: str,
        model: ModelSettings,
        settings: EngineSettings,
        prove: Prove = lambda engine: None,
    ) -> ReplicaPool:
        """Engines that serve a model: as many as the launcher has room for, or one in this process."""
        facts = engine_facts(settings.name)
        if self._recipe.launch.keep_engine and self.launcher.gpus and facts.sleep_option is not None:
            block = {**getattr(settings, settings.name), facts.sleep_option: True}
            settings = settings.model_copy(update={settings.name: block})
        if not self.launcher.out_of_process or facts.is_client:
            here = partial(start_here, model, settings)
            return ReplicaPool(model_path, [here], settings.max_restarts, out_of_process=False, prove=prove)
        starts = [
            partial(self._start_out_of_process, f"{name} {number}", self._slot(number, settings), model, settings)
            for number in range(self._replicas(settings))
        ]
        return ReplicaPool(model_path, starts, settings.max_restarts, prove=prove)

    def _replicas(self, settings: EngineSettings) -> int:
        return replicas(self._recipe.launch, settings, self.launcher.nodes, self.launcher.gpus)

    def _slot(self, number: int, settings: EngineSettings) -> GPUSlot:
        return gpu_slot(number, settings, self.launcher.nodes, self.launcher.gpus)

    def _start_out_of_process(
        self, name: str, where: GPUSlot, model: ModelSettings, settings: EngineSettings, model_path: str
    ) -> Engine:
        log = Log(self._run.path, name)
        channel = self.launcher.start_worker(name, where, settings.stall_timeout, log)
        return RemoteEngine(channel, model_path, model, settings)

    def _close(self) -> None:
        if self._policy is not None:
            self._policy.close()
        self._policy = None
        self._close_others()

    def _close_others(self) -> None:
        for pool in self._others.values():
            pool.close()
        self._others.clear()


async def _ask(engine: Engine, texts: Sequence[Sequence[int]], last: int | None = None) -> list[list[float]] | None:
    """As :meth:`Engine.logprobs`, of several texts at once."""
    found = await asyncio.gather(*(engine.logprobs(ids, last) for ids in texts))
    given = [figures for figures in found if figures is not None]
    return given if len(given) == len(texts) else None
