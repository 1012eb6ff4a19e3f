"""An engine that dies is started again, a bounded number of times, and nothing that it finished is asked twice."""

import asyncio
from collections.abc import Callable
from typing import ClassVar

import pytest

from selfreward.engines import Completion, Engine, SamplingParams
from selfreward.engines.replica_pool import ReplicaPool
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import EngineDied
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings

ASKED = [{"role": "user", "content": "Name a bird."}]
PARAMS = SamplingParams(1.0, 1.0, 8)


class Mortal(ScriptedEngine):
    """Dies after a number of requests, each time it is started."""

    script = staticmethod(lambda model, text, seed: f"{model} {seed}")
    started: ClassVar[list[str]] = []
    closed: ClassVar[int] = 0
    lives: ClassVar[int] = 2

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        super().__init__(model_path, model, settings)
        self.started.append(model_path)
        self._left = self.lives

    async def generate(self, messages, params, seeds) -> list[Completion]:
        if self._left == 0:
            raise EngineDied("the engine died")
        self._left -= 1
        return await super().generate(messages, params, seeds)

    def reload(self, model_path: str) -> None:
        raise EngineDied("the engine died")

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfreward.engines.replica_pool.RESTART_PAUSE_S", 0.0)


class Stillborn(Mortal):
    """Does not start the second time."""

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        super().__init__(model_path, model, settings)
        if len(self.started) == 2:
            raise EngineDied("no memory yet")


def test_a_restart_that_fails_is_tried_again() -> None:
    Mortal.started, Mortal.closed = [], 0
    settings = EngineSettings(name="test_supervision:Stillborn", max_restarts=2)
    engine = ReplicaPool.single("M1", ModelSettings.model_construct(path="M1"), settings)
    assert ask(engine, 0, 1, 2) == ["M1 0", "M1 1", "M1 2"]
    assert Mortal.started == ["M1", "M1", "M1"]


@pytest.fixture
def engine() -> ReplicaPool:
    Mortal.started, Mortal.closed = [], 0
    settings = EngineSettings(name="test_supervision:Mortal", max_restarts=2)
    return ReplicaPool.single("M1", ModelSettings.model_construct(path="M1"), settings)


def ask(engine: ReplicaPool, *seeds: int) -> list[str]:
    async def all_at_once() -> list[list[Completion]]:
        return await asyncio.gather(*(engine.generate(ASKED, PARAMS, [seed]) for seed in seeds))

    return [completion.text for [completion] in asyncio.run(all_at_once())]


def test_requests_survive_the_death_of_their_engine(engine: ReplicaPool) -> None:
    assert ask(engine, 0, 1, 2, 3, 4) == ["M1 0", "M1 1", "M1 2", "M1 3", "M1 4"]
    assert Mortal.started == ["M1", "M1", "M1"]
    assert Mortal.closed == 2


def test_too_many_deaths_have_a_name(engine: ReplicaPool) -> None:
    with pytest.raises(EngineDied, match=r"the engine died\. It was started again 2 times \(engine\.max_restarts\)"):
        ask(engine, *range(9))


def test_an_engine_that_dies_at_its_reload_starts_with_the_new_model(engine: ReplicaPool) -> None:
    engine.reload("M2")
    assert Mortal.started == ["M1", "M2"]
    assert ask(engine, 0) == ["M2 0"]


class Sleeper(Mortal):
    """One of several; knows whether it sleeps, and may die of being asked to."""

    lives = 1000
    dies_asleep: ClassVar[bool] = False

    def __init__(self, model_path: str) -> None:
        super().__init__(model_path, ModelSettings.model_construct(path=model_path), EngineSettings())
        self.asleep = False

    def sleep(self) -> None:
        if Sleeper.dies_asleep:
            Sleeper.dies_asleep = False
            raise EngineDied("the engine died")
        self.asleep = True

    def reload(self, model_path: str) -> None:
        self.model, self.asleep = model_path, False


def two(prove: Callable[[Engine], None] = lambda engine: None) -> ReplicaPool:
    Mortal.started, Mortal.closed = [], 0
    return ReplicaPool("M1", [Sleeper, Sleeper], max_restarts=1, prove=prove)


def test_what_dies_as_it_falls_asleep_is_not_up_before_the_others() -> None:
    pool = two()
    Sleeper.dies_asleep = True
    pool.sleep()
    assert [engine.asleep for engine in pool.engines] == [True]
    pool.reload("M2")
    assert [(engine.model, engine.asleep) for engine in pool.engines] == [("M2", False)] * 2
    pool.close()


def test_a_replica_that_is_being_started_sleeps_with_the_others() -> None:
    pool = two()
    first = pool.replicas[0]
    pool._lost(first, pool.engines[0], EngineDied("the engine died"))
    pool.sleep()
    assert [engine.asleep for engine in pool.engines] == [True, True]
    pool.reload("M2")
    assert [engine.model for engine in pool.engines] == ["M2", "M2"]
    assert [replica.restarts for replica in pool.replicas] == [1, 0]
    pool.close()


def test_a_replica_that_dies_in_its_proof_costs_a_restart_and_not_the_run() -> None:
    deaths = [EngineDied("the engine died")]

    def prove(engine: Engine) -> None:
        if engine.model == "M2" and deaths:
            raise deaths.pop()

    pool = two(prove)
    pool.reload("M2")
    pool.sleep()  # waits for what is being started
    assert len(pool.engines) == 2
    assert sum(replica.restarts for replica in pool.replicas) == 1
    pool.close()
