"""Servers that tests talk to: a real ``vllm serve`` on the CPU, and one that answers as a script says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest

# As stack.md has it for the CPU: seeds crash chunked prefill, compiling takes a minute, memory is shared.
SERVE = [
    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--served-model-name", "tiny"),
    *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "32", "--max-num-batched-tokens", "2048"),
    *("--no-enable-chunked-prefill", "--enforce-eager", "--gpu-memory-utilization", "0.2"),
    *("--kv-cache-memory-bytes", str(1 << 26), "--host", "127.0.0.1"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def vllm_serve(model: Path, key: str, log: Path) -> Iterator[str]:
    """The base URL of a vLLM server that asks for ``key``."""
    port = free_port()
    command = [*SERVE, "--port", str(port), "--model", str(model)]
    # Or it compiles how log-probabilities are ranked, at the first request for some, in spite of --enforce-eager.
    environment = {**os.environ, "VLLM_API_KEY": key, "TORCHDYNAMO_DISABLE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for_health(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        stop_group(process)


def wait_for_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    pytest.fail(f"vllm serve did not start:\n{log.read_text()[-3000:]}")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and the engine process that it started."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


@dataclass(frozen=True)
class Reply:
    """What goes over the wire. ``sent``: after so many bytes of the body the connection is reset; -1: before the head.

    ``drip``: seconds between two bytes of the body. ``waits``: seconds before anything is sent.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    # The client waits as long as a server asks it to, here hardly at all.
    headers: tuple[tuple[str, str], ...] = (("retry-after-ms", "1"),)
    sent: int | None = None
    drip: float = 0.0
    waits: float = 0.0


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, such as one that was killed, is no error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


Answer = tuple[int, dict[str, Any]]
Script = Callable[[int, dict[str, Any]], Answer | Reply]


class ScriptedServer:
    """Answers the n-th request with ``script(n, body)`` and notes what came. It serves the model ``tiny``."""

    def __init__(self) -> None:
        self.script: Script = lambda number, body: ok("fine")
        self.listed: Callable[[int], Answer | Reply] = lambda number: (200, {"data": [{"id": "tiny"}]})
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lists = 0
        self._lock = threading.Lock()
        self.http = _Http(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, body: dict[str, Any], key: str | None) -> Answer | Reply:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.bodies.append(body)
            self.keys.append(key)
            number = len(self.bodies)
        answer = self.script(number, body)
        with self._lock:
            self._at_once -= 1
        return answer

    def list(self) -> Answer | Reply:
        with self._lock:
            self._lists += 1
            return self.listed(self._lists)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                if len(body := self.rfile.read(length)) < length:
                    raise ConnectionAbortedError
                self._send(server.answer(json.loads(body), self.headers["Authorization"]))

            def do_GET(self) -> None:
                self._send(server.list())

            def _send(self, answer: Answer | Reply) -> None:
                reply = answer if isinstance(answer, Reply) else Reply(answer[0], json.dumps(answer[1]).encode())
                time.sleep(reply.waits)
                if reply.sent != -1:
                    self._send_head(reply)
                    for part in (
                        [reply.body[: reply.sent]] if not reply.drip else map(bytes, zip(reply.body, strict=True))
                    ):
                        self.wfile.write(part)
                        time.sleep(reply.drip)
                if reply.sent is not None:
                    self._reset()

            def _send_head(self, reply: Reply) -> None:
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.body)))
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.end_headers()

            def _reset(self) -> None:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextlib.contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def ok(content: Any, finish_reason: str = "stop", num_tokens: int | None = 3) -> Answer:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": 1 + (num_tokens or 0)}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
    return 200, answer if num_tokens is None else {**answer, "usage": usage}


def failure(status: int, message: str, **fields: Any) -> Answer:
    return status, {"error": {"message": message, **fields}}


WHOLE = json.dumps(ok("a text of an answer that is cut")[1]).encode()
# What comes with status 200 and is no answer.
GARBAGE = {
    "html": Reply(body=b"<html><body>Bad gateway</body></html>", content_type="text/html"),
    "html as json": Reply(body=b"<html><body>Bad gateway</body></html>"),
    "truncated": Reply(body=WHOLE[: len(WHOLE) // 2]),
    "empty": Reply(body=b""),
    "not utf-8": Reply(body=WHOLE.replace(b"text", b"t\xff\xfext")),
    "a list": Reply(body=b"[1, 2]"),
    "null": Reply(body=b"null"),
    "a text": Reply(body=b'"fine"'),
    "another shape": Reply(body=b'{"result": "fine"}'),
    "an error": Reply(body=b'{"error": {"message": "upstream is away", "code": 502}}'),
    "no choice": Reply(body=json.dumps({**ok("")[1], "choices": []}).encode()),
    "null choices": Reply(body=json.dumps({**ok("")[1], "choices": None}).encode()),
    "no message": Reply(body=json.dumps({**ok("")[1], "choices": [{"text": "fine"}]}).encode()),
    "a list as content": Reply(body=json.dumps(ok([{"type": "text", "text": "fine"}])[1]).encode()),
    "half a character": Reply(body=json.dumps(ok("\ud83d")[1]).encode()),
    "given up": Reply(body=json.dumps(ok("a text that is c", "abort")[1]).encode()),
}
FAILURES: list[Answer | Reply] = [
    failure(500, "a bug"),
    Reply(503, b"<html>busy</html>", "text/html"),
    Reply(429, b'{"error": {"message": "slow down"}}', headers=(("Retry-After", "0.05"),)),
    Reply(sent=-1),
    Reply(body=WHOLE, sent=20),
    *GARBAGE.values(),
]


def half_failing(script: Script) -> Script:
    """The same answers, but each time that a request is made it fails with a chance of one in two.

    Only the first time a connection breaks, after which a client waits by itself, longer and longer.
    """
    patient = [each for each in FAILURES if not (isinstance(each, Reply) and each.sent is not None)]
    times: dict[str, int] = {}
    lock = threading.Lock()

    def flaky(number: int, body: dict[str, Any]) -> Answer | Reply:
        request = json.dumps(body, sort_keys=True)
        with lock:
            times[request] = times.get(request, 0) + 1
            chance = Random(f"{request} {times[request]}")
        failures = FAILURES if times[request] == 1 else patient
        return chance.choice(failures) if chance.random() < 0.5 else script(number, body)

    return flaky
