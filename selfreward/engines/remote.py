"""An engine in another process, which :mod:`selfreward.engines.worker` serves."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict
from queue import SimpleQueue
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Protocol

from selfreward.engines.base import Completion, SamplingParams
from selfreward.engines.messages import HEARTBEAT_S, Answer, Request
from selfreward.engines.pending import Pending
from selfreward.errors import EngineDied
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.records import Message
from selfreward.runtime.atomic import write_all
from selfreward.runtime.shutdown import stop

# Seconds that a worker has to end in after it was asked to.
SHUTDOWN_TIMEOUT_S = 20.0
# Seconds without a sign of life after which a worker that has once given one is dead. It beats in a thread of its own,
# whatever its engine does; neither srun nor SSH would tell for minutes that its node is gone.
SILENCE_TIMEOUT_S = 60.0
POLL_S = 0.2  # seconds between two looks at whether this process was asked to stop


class WorkerChannel(Protocol):
    """The way to a worker, from any thread."""

    def ask(self, request: Request) -> Future[Answer]:
        """The worker's answer to come; EngineDied where the worker has ended."""

    def close(self) -> None:
        """Ends the worker and all that it started, and returns once its memory is free."""


class RemoteEngine:
    """Implements :class:`selfreward.engines.base.Engine` by asking a worker."""

    def __init__(self, channel: WorkerChannel, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        """Starts the engine in its worker, and returns once it serves.

        Raises:
            EngineDied: the engine or its worker ended.
            ValueError: the engine refuses its settings or the model.
        """
        self._channel = channel
        self.model = model_path
        start = {"model_path": model_path, "model": model.model_dump_json(), "settings": settings.model_dump_json()}
        try:
            self._wait("start", **start)
        except BaseException:
            channel.close()
            raise

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        found = await self._ask("generate", messages=list(messages), params=asdict(params), seeds=list(seeds))
        return [Completion(**completion) for completion in found]

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> list[float] | None:
        found: list[float] | None = await self._ask("logprobs", ids=list(ids), last=last)
        return found

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        asked = {"messages": list(messages), "prefix": prefix, "options": list(options)}
        found: list[float] | None = await self._ask("option_probs", **asked)
        return found

    async def reward(self, messages: Sequence[Message]) -> float | None:
        found: float | None = await self._ask("reward", messages=list(messages))
        return found

    def reload(self, model_path: str) -> None:
        self._wait("reload", model_path=model_path)
        self.model = model_path

    def sleep(self) -> None:
        self._wait("sleep")

    def close(self) -> None:
        self._channel.close()

    async def _ask(self, do: str, **given: Any) -> Any:
        return _result(await asyncio.wrap_future(self._channel.ask({"do": do, **given})))

    def _wait(self, do: str, **given: Any) -> Any:
        answer = self._channel.ask({"do": do, **given})
        # Loading a model takes minutes, which nobody has who was asked to stop.
        while not wait([answer], timeout=POLL_S).done:
            stop.check()
        return _result(answer.result())


def _result(answer: Answer) -> Any:
    if "died" in answer:
        raise EngineDied(answer["died"])
    if "refused" in answer:
        raise ValueError(answer["refused"])
    if "failed" in answer:
        raise RuntimeError(f"in the process of an engine:\n{answer['failed']}")
    return answer["answer"]


class PipeChannel:
    """The way to a worker whose standard streams end in a child process: the worker itself, or what carries them."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        stall_timeout: float,
        log: Callable[[str], None],
    ) -> None:
        """Args:
        name: of the worker, for messages.
        command: the child.
        environment: the child's.
        stall_timeout: seconds until its first sign of life; once it has given one, SILENCE_TIMEOUT_S may be less.
        log: takes each line of its standard error.
        """
        self._name, self._patience = name, stall_timeout
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=dict(environment), stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
        )
        self._pending = Pending()
        # A thread writes, as a worker that reads nothing would stop the event loop and all other replicas.
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write, name=f"requests of {name}", daemon=True),
            threading.Thread(target=self._read, name=f"answers of {name}", daemon=True),
            threading.Thread(target=self._pass_on, args=(log,), name=f"messages of {name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, request: Request) -> Future[Answer]:
        number, future = self._pending.add()
        self._requests.put(json.dumps({"number": number, **request}, ensure_ascii=False).encode() + b"\n")
        return future

    def close(self) -> None:
        self._requests.put(b'{"do": "close"}\n')
        self._end()
        self._requests.put(None)
        for thread in self._threads:
            thread.join(SHUTDOWN_TIMEOUT_S)

    def _end(self) -> int:
        """The exit status of the child, which is killed if it does not end."""
        try:
            return self._process.wait(SHUTDOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _write(self) -> None:
        assert self._process.stdin is not None
        # If it has ended, the thread that reads its answers tells all who wait.
        with self._process.stdin, suppress(BrokenPipeError):
            for line in iter(self._requests.get, None):
                write_all(self._process.stdin.fileno(), line)

    def _read(self) -> None:
        """Hands answers over until the worker has ended; whatever else ends this, ends the worker."""
        try:
            why = self._listen()
        except Exception as error:
            why = f"said what can't be read: {error}"
        if why is not None:
            self._process.kill()
        status = self._end()
        self._pending.end(f"{self._name} {why or f'ended (exit status {status})'}")

    def _listen(self) -> str | None:
        assert self._process.stdout is not None
        buffer, silent = b"", 0
        # Looks are counted, as a clock would also count the hours between Ctrl-Z and fg.
        with self._process.stdout as answers, DefaultSelector() as selector:
            selector.register(answers, EVENT_READ)
            while silent < self._patience:
                if not selector.select(1.0):
                    silent += 1
                    continue
                silent, self._patience = 0, max(3 * HEARTBEAT_S, min(self._patience, SILENCE_TIMEOUT_S))
                if not (chunk := os.read(answers.fileno(), 1 << 20)):
                    return None
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    answer = json.loads(line)
                    self._pending.settle(answer.pop("number", None), answer)
        return f"gave no sign of life for {self._patience:g} s"

    def _pass_on(self, log: Callable[[str], None]) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as messages:
            for line in messages:
                log(line.decode(errors="replace").rstrip("\n"))
