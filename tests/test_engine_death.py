"""An engine whose core has a process of its own: seen to die or hang, ended with the run, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# One process plays all the acts, as each start of such an engine takes 20 to 40 s on two cores.
ACTS = """
import asyncio, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from unittest.mock import patch

from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.engines import SamplingParams
from selfreward.engines.vllm import VLLMEngine
from selfreward.errors import EngineDied

MODEL = ModelSettings(path=sys.argv[1], dtype="float32")
SETTINGS = EngineSettings(vllm={"max_model_len": 512, "kv_cache_memory_bytes": 1 << 26}, stall_timeout=5.0)
MESSAGES = [{"role": "user", "content": "Name three birds."}]


def start():
    return VLLMEngine(MODEL.path, MODEL, SETTINGS)


def core():
    [process] = multiprocessing.active_children()
    return process.pid


def text(engine):
    return asyncio.run(engine.generate(MESSAGES, SamplingParams(0.0, 1.0, 12), [0]))[0].text


async def interrupt(engine, action):
    \"\"\"Does something to the core in the midst of long requests, and returns what each of those raised.\"\"\"
    long = SamplingParams(1.5, 1.0, 480)
    requests = [asyncio.create_task(engine.generate(MESSAGES, long, range(i, i + 8))) for i in range(0, 240, 8)]
    await engine.generate(MESSAGES, SamplingParams(1.0, 1.0, 1), [0])
    action()
    return {str(error) for error in await asyncio.gather(*requests, return_exceptions=True)}


def during(engine, action):
    return asyncio.run(interrupt(engine, action))


def failure(function, *args):
    try:
        function(*args)
    except EngineDied as error:
        return error


def kill_at_birth():
    while not multiprocessing.active_children():
        time.sleep(0.01)
    os.kill(core(), signal.SIGKILL)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def show(*facts):
    print(">", *facts, flush=True)


if __name__ == "__main__":
    engine = start()
    before = text(engine)
    os.kill(core(), signal.SIGINT)
    show("Ctrl-C:", text(engine) == before)

    show("given up:", *during(engine, lambda: engine._engine.engine_core.sleep(0, "abort")))
    engine._engine.engine_core.wake_up()

    show("killed:", *during(engine, lambda: os.kill(core(), signal.SIGKILL)))
    show("killed, reload:", failure(engine.reload, MODEL.path))
    engine.close()
    engine.close()
    show("left:", multiprocessing.active_children())

    threading.Thread(target=kill_at_birth, daemon=True).start()
    show("killed at birth:", failure(start))
    with patch.dict(os.environ, VLLM_ENGINE_READY_TIMEOUT_S="1"):
        show("late:", failure(start))
    show("left:", multiprocessing.active_children())

    engine = start()
    show("again:", text(engine) == before)
    show("stopped:", *during(engine, lambda: os.kill(core(), signal.SIGSTOP)))
    show("stopped, reload:", failure(engine.reload, MODEL.path))
    engine.close()
    show("left:", multiprocessing.active_children())

    threading.Thread(target=start, daemon=True).start()
    while not (multiprocessing.active_children() and children(core())):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""

STALL = "vLLM's core gave no sign of life for 5 s. If it only works slowly, raise engine.stall_timeout"
PLAY = [
    "Ctrl-C: True",
    "given up: vLLM's core gave up its requests (abort)",
    "killed: vLLM's core died (exit status: EngineCore -9)",
    "killed, reload: vLLM's core died (exit status: EngineCore -9)",
    "left: []",
    "killed at birth: vLLM's core died while it started. The messages above say why",
    "late: vLLM's core was not ready after 1 s. If it only loads slowly, set the environment variable "
    "VLLM_ENGINE_READY_TIMEOUT_S to more seconds",
    "left: []",
    "again: True",
    f"stopped: {STALL}",
    f"stopped, reload: {STALL}",
    "left: []",
]


def running(group: int) -> Iterator[str]:
    """The names of the processes of a group, but for those that are dead and not yet collected."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state != "Z":
            yield name


def test_a_core_that_dies_or_hangs_is_named_and_nothing_is_left(
    tiny_random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    script = tmp_path / "acts.py"
    script.write_text(ACTS)
    command = [sys.executable, str(script), str(tiny_random_model)]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
    try:
        status = process.wait()
        shown = [line[2:] for line in (tmp_path / "out").read_text().splitlines() if line.startswith("> ")]
        assert shown == PLAY, (tmp_path / "err").read_text()
        assert status == -signal.SIGKILL
        # What outlives the process that was killed alone would be there until the time limit of the test.
        while any(running(process.pid)):
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
