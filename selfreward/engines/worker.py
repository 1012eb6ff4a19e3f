"""A process that serves one engine: requests are lines of JSON on its standard input, answers on its standard output.

It needs no port and no address: whatever carries these two streams, a pipe or ``srun``, carries the work. The process
ends with its standard input, so that none is left behind when the one that asks is gone. No torch before the start.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

from selfreward.engines.base import Engine, SamplingParams, start_here
from selfreward.engines.messages import HEARTBEAT, HEARTBEAT_S, Answer, Request
from selfreward.errors import EngineDied
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.recipe.loader import STORED
from selfreward.runtime.gpus import see

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Queue


class Worker:
    """Answers requests with an engine. What it raises travels as text, under the name of its kind."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    async def answer(self, request: Request) -> Answer:
        """``answer``, or what went wrong: ``died`` (EngineDied), ``refused`` (ValueError) or ``failed``."""
        try:
            return {"answer": await self._do(**request)}
        except EngineDied as error:
            return {"died": str(error)}
        except ValueError as error:
            return {"refused": str(error)}
        except Exception:
            return {"failed": traceback.format_exc()}

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    async def _do(self, do: str, **given: Any) -> Any:
        if do == "start":
            return self._start(**given)
        assert self._engine is not None, "it was started first"
        if do == "generate":
            params = SamplingParams(**given["params"])
            completions = await self._engine.generate(given["messages"], params, given["seeds"])
            return [asdict(completion) for completion in completions]
        if do in ("reload", "sleep"):
            return getattr(self._engine, do)(**given)
        return await getattr(self._engine, do)(**given)

    def _start(self, model_path: str, model: str, settings: str) -> None:
        # The files that they name were checked where the recipe was read.
        model_settings = ModelSettings.model_validate_json(model, context=STORED)
        engine_settings = EngineSettings.model_validate_json(settings, context=STORED)
        # In this thread, which lives as long as the process: a core of vLLM ends with the thread that started it.
        self._engine = start_here(model_settings, engine_settings, model_path)


class _Lines:
    """The two streams. What libraries print to standard output goes to standard error."""

    def __init__(self) -> None:
        self._answers: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def write(self, answer: Answer) -> None:
        line = json.dumps(answer, ensure_ascii=False).encode() + b"\n"
        try:
            with self._lock:
                self._answers.write(line)
                self._answers.flush()
        except BrokenPipeError:
            os._exit(1)

    def read(self, loop: AbstractEventLoop, requests: Queue[Request | None]) -> None:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            if request["do"] == "close":
                loop.call_soon_threadsafe(requests.put_nowait, None)
                return
            loop.call_soon_threadsafe(requests.put_nowait, request)
        # Whoever asked is gone. The engine may be in the middle of anything, and its processes end with this one.
        os._exit(1)

    def _beat(self) -> None:
        while True:
            self.write(HEARTBEAT)
            threading.Event().wait(HEARTBEAT_S)


async def _serve(lines: _Lines) -> None:
    worker, requests, loop = Worker(), asyncio.Queue[Request | None](), asyncio.get_running_loop()
    threading.Thread(target=lines.read, args=(loop, requests), name="requests", daemon=True).start()
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int, request: Request) -> None:
        lines.write({"number": number, **await worker.answer(request)})

    while (request := await requests.get()) is not None:
        task = asyncio.create_task(one(request.pop("number"), request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    worker.close()


def main() -> None:
    # Ctrl-C and a job's SIGTERM reach every process. The one that asks decides what they mean, and ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if devices := [int(device) for device in sys.argv[1:]]:
        see(devices, os.environ)
    asyncio.run(_serve(_Lines()))


if __name__ == "__main__":
    main()
