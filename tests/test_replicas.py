"""Replicas share one list of prompts: however many there are, and whichever of them dies, the records are the same."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from small import num_lines, small_recipe

import selfreward
from scripts import Numbers
from selfreward import loop
from selfreward.engines import Completion, SamplingParams
from selfreward.errors import EngineDied
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.records import Message, Response, by_prompt
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines

TINY = Path(selfreward.__file__).parent / "tiny" / "model"
NUM = 23  # prompts: neither two nor three nor four divide it


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", "tests")
    launch, engine = {"launcher": "local"}, {"name": "scripts:Slow"}
    return small_recipe(tmp_path, NUM, {}, launch=launch, engine=engine)


def sampled(path: Path, *overrides: str) -> Run:
    run = Run.create(selfreward.load_recipe(path, list(overrides)))
    with Engines(run) as engines:
        if not run.stage("prompts", 1).done:
            loop.perform(run, Step("prompts", 1), engines)
        loop.perform(run, Step("responses", 1), engines)
    return run


def records(run: Run) -> list[bytes]:
    return [(run.stage(stage, 1).path / "records.jsonl").read_bytes() for stage in ("responses", "judgements")]


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "selfreward.engines.worker" in p.cmdline()]


def test_four_two_and_one_replica_give_the_same_records(recipe_file: Path) -> None:
    inline = sampled(recipe_file, "name=inline", "launch.launcher=inline")
    for replicas in (4, 2, 1):
        run = sampled(recipe_file, f"name=r{replicas}", f"launch.replicas={replicas}")
        assert records(run) == records(inline)
    assert workers() == []


class Assassin(threading.Thread):
    """Does something to the first replica once some requests of a stage are finished."""

    def __init__(self, run: Run, act: Callable[[psutil.Process], object], after: int = 20) -> None:
        super().__init__(daemon=True)
        self._journal, self._act, self._after = run.stage("responses", 1).path / "journal.jsonl", act, after
        self.done = False

    def run(self) -> None:
        while num_lines(self._journal) < self._after:
            time.sleep(0.01)
        self._act(workers()[0])
        self.done = True


def attacked(path: Path, act: Callable[[psutil.Process], object], *overrides: str) -> Run:
    run = Run.create(selfreward.load_recipe(path, ["name=attacked", "engine.max_in_flight=2", *overrides]))
    assassin = Assassin(run, act)
    with Engines(run) as engines:
        loop.perform(run, Step("prompts", 1), engines)
        assassin.start()
        loop.perform(run, Step("responses", 1), engines)
    assert assassin.done, "the stage ended before it was attacked"
    return run


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_what_a_killed_replica_had_in_flight_goes_to_the_others(
    recipe_file: Path, max_restarts: int, capfd: pytest.CaptureFixture[str]
) -> None:
    inline = sampled(recipe_file, "name=inline", "launch.launcher=inline")
    options = ["launch.replicas=3", f"engine.max_restarts={max_restarts}"]
    run = attacked(recipe_file, psutil.Process.kill, *options)
    assert records(run) == records(inline)
    said = "starting it again (1 of 2)" if max_restarts else "going on with 2 of 3 replicas"
    assert re.search(rf"replica \d ended \(exit status -9\); {re.escape(said)}", capfd.readouterr().err)
    assert workers() == []


def test_a_replica_that_hangs_is_killed_and_its_prompts_go_to_the_others(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfreward.engines.remote.SILENCE_TIMEOUT_S", 16.0)
    inline = sampled(recipe_file, "name=inline", "launch.launcher=inline")
    options = ["launch.replicas=2", "engine.max_restarts=0"]
    assert records(attacked(recipe_file, psutil.Process.suspend, *options)) == records(inline)
    assert workers() == []


def test_a_slow_replica_takes_fewer_prompts(recipe_file: Path) -> None:
    run = sampled(recipe_file, "launch.replicas=2", "engine.name=test_replicas:Named", "engine.max_in_flight=2")
    counts = Counter(response.text for response in run.records("responses", 1, Response))
    assert counts["slow"] < counts["fast"]


def test_all_requests_of_a_prompt_go_to_one_replica(recipe_file: Path) -> None:
    run = sampled(recipe_file, "launch.replicas=2", "engine.name=test_replicas:Named")
    asked = by_prompt(run.records("responses", 1, Response))
    assert {len({response.text for response in these}) for these in asked.values()} == {1}


def test_a_run_that_lost_all_replicas_tells_and_goes_on_with_another_number(recipe_file: Path) -> None:
    inline = sampled(recipe_file, "name=inline", "launch.launcher=inline")

    def kill_all(_: psutil.Process) -> None:
        for worker in workers():
            worker.kill()

    options = ["launch.replicas=2", "engine.max_restarts=0"]
    with pytest.raises(EngineDied, match=r"replica \d ended \(exit status -9\)"):
        attacked(recipe_file, kill_all, *options)
    run = sampled(recipe_file, "name=attacked", "launch.replicas=3")
    assert records(run) == records(inline)
    assert run.stage("responses", 1).summary["resumed"] >= 20


def test_replicas_end_with_a_driver_that_is_killed(recipe_file: Path) -> None:
    command = [sys.executable, "-m", "selfreward", "run", str(recipe_file), "launch.replicas=2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        journal = recipe_file.parent / "runs" / "test" / "iter_1" / "responses" / "journal.jsonl"
        while not journal.is_file() or journal.stat().st_size < 1000:
            time.sleep(0.05)
        found = psutil.Process(driver.pid).children()
        assert len(found) == 2
        driver.kill()
    gone, alive = psutil.wait_procs(found, timeout=20)
    assert (len(gone), alive) == (2, [])


def test_what_a_replica_prints_is_in_its_log_and_its_errors_are_the_drivers(
    recipe_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["launch.replicas=2", "engine.name=test_replicas:Talker"]
    run = sampled(recipe_file, *options)
    log = (run.path / "logs" / "replica-1.log").read_text()
    assert "RANK None" in log
    assert "[replica 1] RANK None" in capfd.readouterr().err
    with pytest.raises(ValueError, match="M_t has no such option"):
        sampled(recipe_file, "name=refused", "launch.replicas=2", "engine.name=test_replicas:Refuses")
    with pytest.raises(RuntimeError, match=r"(?s)in the process of an engine:.*ZeroDivisionError"):
        sampled(recipe_file, "name=broken", "launch.replicas=2", "engine.name=test_replicas:Bug")
    assert workers() == []


def test_no_replica_takes_itself_for_a_rank(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "7")
    run = sampled(recipe_file, "launch.replicas=1", "engine.name=test_replicas:Talker")
    assert "variables []" in (run.path / "logs" / "replica-0.log").read_text()


class Named(Numbers):
    """Answers with its own name; the first one is slow."""

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        slow = _first()
        await asyncio.sleep(0.2 if slow else 0.01)
        if messages[-1]["content"].startswith("Review"):
            return await super().generate(messages, params, seeds)
        return [Completion("slow" if slow else "fast", "stop", 1) for _ in seeds]


def _first() -> bool:
    """Whether this process is the elder of the replicas."""
    brothers = [p for p in psutil.Process().parent().children() if "selfreward.engines.worker" in p.cmdline()]
    return min(brother.pid for brother in brothers) == os.getpid()


class Talker(Numbers):
    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        super().__init__(model_path, model, settings)
        print("RANK", os.environ.get("RANK"))
        print("variables", [name for name in os.environ if name.startswith(("LOCAL_", "MASTER", "TORCHEL", "ACCEL"))])
        sys.stdout.flush()


class Refuses(Numbers):
    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        raise ValueError("M_t has no such option")


class Bug(Numbers):
    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        return [1 // 0 for _ in seeds]  # type: ignore[misc]


@pytest.mark.cluster
def test_real_engines_share_the_prompts_and_one_is_killed(recipe_file: Path) -> None:
    options = ["engine.name=vllm", "engine.vllm.max_model_len=128", "engine.vllm.block_size=32"]
    # Memory is asked for by what is free when each starts.
    options += ["engine.vllm.gpu_memory_utilization=0.05", "engine.vllm.kv_cache_memory_bytes=67108864"]
    inline = sampled(recipe_file, "name=inline", "launch.launcher=inline", *options)
    assert records(sampled(recipe_file, "launch.replicas=3", *options)) == records(inline)
    options += ["launch.replicas=2", "engine.max_restarts=0"]
    assert records(attacked(recipe_file, psutil.Process.kill, *options)) == records(inline)
    assert workers() == []
