"""The OpenAI engine against a real ``vllm serve`` on the CPU, and against a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from selfreward.engines import Completion, SamplingParams
from selfreward.engines.base import TOO_LONG
from selfreward.engines.openai import OpenAIEngine
from selfreward.engines.transformers import TransformersEngine
from selfreward.records import Message
from selfreward.settings.engine import EngineSettings, ModelSettings

KEY = "sk-a-secret-that-must-stay-one"
GREEDY = SamplingParams(temperature=0.0, top_p=1.0, max_tokens=12)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=12)
HELLO = [{"role": "user", "content": "Name five animals"}]

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


@pytest.fixture(scope="module")
def vllm_server(tiny_random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a vLLM server that asks for KEY."""
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [*SERVE, "--port", str(port), "--model", str(tiny_random_model)]
    # Or it compiles how log-probabilities are ranked, at the first request for some, in spite of --enforce-eager.
    environment = {**os.environ, "VLLM_API_KEY": KEY, "TORCHDYNAMO_DISABLE": "1"}
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


def start(base_url: str, **options: Any) -> OpenAIEngine:
    openai = {"base_url": base_url, "model": "tiny", "api_key_env": "JUDGE_KEY", **options}
    return OpenAIEngine("some/model", ModelSettings(path="some/model"), EngineSettings(name="openai", openai=openai))


def sample(
    engine: OpenAIEngine | TransformersEngine,
    prompts: Sequence[list[Message]],
    params: SamplingParams,
    seeds: list[int],
) -> list[list[Completion]]:
    async def everything() -> list[list[Completion]]:
        return await asyncio.gather(*(engine.sample(messages, params, seeds) for messages in prompts))

    return asyncio.run(everything())


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


# A real server


@pytest.mark.usefixtures("key")
def test_greedy_is_that_of_the_weights(vllm_server: str, tiny_random_model: Path) -> None:
    prompts = [HELLO, user("ant"), user("bear camel deer elk fox")]
    local = TransformersEngine(
        str(tiny_random_model),
        ModelSettings(path=str(tiny_random_model), dtype="float32"),
        EngineSettings(name="transformers"),
    )
    served = sample(start(vllm_server), prompts, GREEDY, [0])
    # The server decodes token by token, which keeps the space before the first word.
    assert [[(c.text.strip(), c.finish_reason, c.num_tokens) for c in completions] for completions in served] == [
        [(c.text.strip(), c.finish_reason, c.num_tokens) for c in completions]
        for completions in sample(local, prompts, GREEDY, [0])
    ]


@pytest.mark.usefixtures("key")
def test_a_seed_decides_the_completion(vllm_server: str) -> None:
    engine = start(vllm_server)
    prompts = [user(word) for word in ("ant", "bear camel", "deer elk fox")]
    seeds = [5, 4_294_967_295, 5, 6]
    together = sample(engine, prompts, SAMPLED, seeds)
    assert together == [sample(engine, [messages], SAMPLED, seeds)[0] for messages in prompts]
    assert together[0][0] == together[0][2]
    assert len({completion.text for completion in together[0]}) == 3


@pytest.mark.usefixtures("key")
def test_finish_reasons(vllm_server: str) -> None:
    params = SamplingParams(temperature=1.5, top_p=1.0, max_tokens=60)
    completions = sample(start(vllm_server), [user("ant")], params, list(range(60)))[0]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert {c.num_tokens for c in completions if c.finish_reason == "length"} == {60}
    assert all(0 < c.num_tokens <= 60 for c in completions)


@pytest.mark.usefixtures("key")
def test_a_prompt_longer_than_the_context(vllm_server: str) -> None:
    assert sample(start(vllm_server), [user("ant " * 200)], GREEDY, [0, 1]) == [[TOO_LONG, TOO_LONG]]


@pytest.mark.usefixtures("key")
def test_chances_are_those_of_the_weights_where_the_server_tells_them(
    vllm_server: str, tiny_random_model: Path
) -> None:
    local = TransformersEngine(
        str(tiny_random_model),
        ModelSettings(path=str(tiny_random_model), dtype="float32"),
        EngineSettings(name="transformers"),
    )
    words = [word for word in local._chat.tokenizer.get_vocab() if "<|" not in word and word.strip()]
    for messages in (HELLO, user("ant"), user("bear camel deer elk fox")):
        true = asyncio.run(local.chances(messages, "", words))
        told = asyncio.run(start(vllm_server).chances(messages, "", words))
        assert true is not None
        assert told is not None
        known = [(chance, right) for chance, right in zip(told, true, strict=True) if chance]
        # The twenty likeliest, of which some may be control tokens.
        assert 12 <= len(known) <= 20
        assert [chance for chance, _ in known] == pytest.approx([right for _, right in known], abs=1e-4)
        assert {right for _, right in known} == set(sorted(true)[-len(known) :])
    assert asyncio.run(start(vllm_server).chances(user("ant " * 200), "", words)) is None


@pytest.mark.usefixtures("key")
def test_a_model_that_the_server_lacks(vllm_server: str) -> None:
    with pytest.raises(ValueError, match=f"{vllm_server} answered 404.*'other'.*one of the server's"):
        sample(start(vllm_server, model="other"), [HELLO], GREEDY, [0])


def test_a_wrong_key(vllm_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with pytest.raises(ValueError, match=r"answered 401.*environment variable JUDGE_KEY") as raised:
        sample(start(vllm_server), [HELLO], GREEDY, [0])
    assert "sk-wrong" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.usefixtures("key")
def test_one_engine_serves_one_event_loop_after_another(vllm_server: str) -> None:
    engine = start(vllm_server)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = sample(engine, [HELLO], SAMPLED, [1, 2])
        assert engine._client.is_closed()
        assert sample(engine, [HELLO], SAMPLED, [1, 2]) == first
        assert engine._client.is_closed()
        gc.collect()
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []


# A server that misbehaves on purpose

Answer = tuple[int, dict[str, Any]]
Script = Callable[[int, dict[str, Any]], Answer]


class ScriptedServer:
    """Answers the n-th request with ``script(n, body)`` and notes what came."""

    def __init__(self) -> None:
        self.script: Script = lambda number, body: ok("fine")
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, body: dict[str, Any], key: str | None) -> Answer:
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

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = server.answer(body, self.headers["Authorization"])
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                # The client waits as long as a server asks it to, here not at all.
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def ok(content: str | None, finish_reason: str = "stop", num_tokens: int | None = 3) -> Answer:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": 1 + (num_tokens or 0)}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
    return 200, answer if num_tokens is None else {**answer, "usage": usage}


def failure(status: int, message: str, **fields: Any) -> Answer:
    return status, {"error": {"message": message, **fields}}


@pytest.mark.usefixtures("key")
def test_what_a_request_holds(server: ScriptedServer) -> None:
    assert sample(start(server.url), [HELLO], SAMPLED, [7]) == [[Completion("fine", "stop", 3)]]
    sampling = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 12, "seed": 7}
    assert server.bodies == [{"model": "tiny", "messages": HELLO, **sampling}]
    assert server.keys == [f"Bearer {KEY}"]


def test_completions_are_in_the_order_of_the_seeds(server: ScriptedServer) -> None:
    def later_seeds_first(number: int, body: dict[str, Any]) -> Answer:
        time.sleep((10 - body["seed"]) * 0.01)
        return ok(str(body["seed"]))

    server.script = later_seeds_first
    assert [c.text for c in sample(start(server.url), [HELLO], SAMPLED, [1, 9, 4])[0]] == ["1", "9", "4"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ok(None), Completion("", "stop", 3)),
        (ok(""), Completion("", "stop", 3)),
        (ok("cut", "length", 12), Completion("cut", "length", 12)),
        (ok("", "content_filter"), Completion("", "stop", 3)),
        (ok("no usage", num_tokens=None), Completion("no usage", "stop", 0)),
    ],
)
def test_answers(server: ScriptedServer, answer: Answer, expected: Completion) -> None:
    server.script = lambda number, body: answer
    assert sample(start(server.url), [HELLO], SAMPLED, [0]) == [[expected]]


@pytest.mark.parametrize(
    "error",
    [
        failure(400, "This model's maximum context length is 8192 tokens. You requested 9000.", code=400),
        failure(400, "Too many tokens.", code="context_length_exceeded"),
        failure(400, "the request exceeds the available context size", type="exceed_context_size_error"),
        failure(400, "prompt is too long: 210000 tokens > 200000 maximum"),
    ],
)
def test_what_servers_say_of_a_long_prompt(server: ScriptedServer, error: Answer) -> None:
    server.script = lambda number, body: error
    assert sample(start(server.url), [HELLO], SAMPLED, [0]) == [[TOO_LONG]]
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_retried(server: ScriptedServer, status: int) -> None:
    server.script = lambda number, body: ok("at last") if number == 3 else failure(status, "busy")
    assert sample(start(server.url, max_retries=2), [HELLO], SAMPLED, [0]) == [[Completion("at last", "stop", 3)]]
    assert len(server.bodies) == 3


def test_a_lasting_failure_is_told(server: ScriptedServer) -> None:
    server.script = lambda number, body: failure(500, "the disk is full.")
    with pytest.raises(ValueError, match=r"/v1 answered 500: the disk is full\. See the server's log"):
        sample(start(server.url, max_retries=2), [HELLO], SAMPLED, [0])
    assert len(server.bodies) == 3


def test_too_many_requests_names_the_settings(server: ScriptedServer) -> None:
    server.script = lambda number, body: failure(429, "slow down")
    with pytest.raises(ValueError, match=r"answered 429: .*slow down.* Lower openai\.max_concurrency"):
        sample(start(server.url, max_retries=0), [HELLO], SAMPLED, [0])


def test_a_bad_request_is_not_a_long_prompt(server: ScriptedServer) -> None:
    server.script = lambda number, body: failure(400, "Unsupported parameter: 'seed'")
    with pytest.raises(ValueError, match=r"answered 400: .*Unsupported parameter: 'seed'"):
        sample(start(server.url), [HELLO], SAMPLED, [0])
    assert len(server.bodies) == 1


def test_an_answer_without_a_choice(server: ScriptedServer) -> None:
    server.script = lambda number, body: (200, {**ok("")[1], "choices": []})
    with pytest.raises(ValueError, match="without a choice"):
        sample(start(server.url), [HELLO], SAMPLED, [0])


def test_no_more_than_max_concurrency_at_once(server: ScriptedServer) -> None:
    def slow(number: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.02)
        return ok("fine")

    server.script = slow
    engine = start(server.url, max_concurrency=3)
    assert len(sample(engine, [HELLO] * 5, SAMPLED, [1, 2, 3, 4])) == 5
    assert server.most_at_once == 3
    assert len(server.bodies) == 20


def test_a_server_that_does_not_answer_in_time(server: ScriptedServer) -> None:
    def slow(number: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.5)
        return ok("late")

    server.script = slow
    with pytest.raises(ValueError, match=r"did not answer in 0\.1 s, after 0 retries\. Raise openai\.timeout"):
        sample(start(server.url, timeout=0.1, max_retries=0), [HELLO], SAMPLED, [0])


def test_a_server_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ValueError, match=f"{url} can't be reached.*Is it running"):
        sample(start(url, max_retries=0), [HELLO], SAMPLED, [0])


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_no_error_shows_the_key(server: ScriptedServer, status: int) -> None:
    """Not even where the server repeats it."""
    server.script = lambda number, body: failure(status, f"wrong key: {KEY}")
    with pytest.raises(ValueError, match="wrong key") as raised:
        sample(start(server.url, max_retries=0), [HELLO], SAMPLED, [0])
    assert KEY not in "".join(traceback.format_exception(raised.value))


def test_a_missing_key_is_named_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ValueError, match=r"https://judge\.example/v1 needs a key.*JUDGE_KEY is not set") as raised:
        start("https://someone:hunter2@judge.example/v1")
    assert "hunter2" not in str(raised.value)


def test_a_local_server_needs_no_key(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the key of another service isn't sent to it."""
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        sample(start(url), [HELLO], SAMPLED, [0])
    assert server.keys == ["Bearer none", "Bearer none"]


def test_a_key_may_end_in_a_line_break(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    sample(start(server.url), [HELLO], SAMPLED, [0])
    assert server.keys == [f"Bearer {KEY}"]


def with_logprobs(tokens: dict[str, float] | None) -> Answer:
    """An answer that tells the probabilities of its first token."""
    status, answer = ok("4", "length", 1)
    top = [{"token": token, "logprob": math.log(chance), "bytes": None} for token, chance in (tokens or {}).items()]
    first = {"token": "4", "logprob": 0.0, "bytes": None, "top_logprobs": top}
    answer["choices"][0]["logprobs"] = None if tokens is None else {"content": [first], "refusal": None}
    return status, answer


def test_chances_sum_the_tokens_of_an_option(server: ScriptedServer) -> None:
    tokens = {"4": 0.5, " 4": 0.125, "\n4": 0.0625, "Four": 0.125, "40": 0.0625, "3": 0.03125, "4 ": 0.03125}
    server.script = lambda number, body: with_logprobs(tokens)
    assert asyncio.run(start(server.url).chances(HELLO, "", ["3", "4", "5"])) == pytest.approx([0.03125, 0.6875, 0.0])
    settings = {"temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    assert server.bodies == [{"model": "tiny", "messages": HELLO, **settings}]


def test_chances_of_a_prompt_that_is_too_long(server: ScriptedServer) -> None:
    server.script = lambda number, body: failure(400, "prompt is too long: 210000 tokens > 200000 maximum")
    assert asyncio.run(start(server.url).chances(HELLO, "", ["3", "4"])) is None


@pytest.mark.parametrize("tokens", [None, {}])
def test_a_server_that_tells_no_probabilities(server: ScriptedServer, tokens: dict[str, float] | None) -> None:
    server.script = lambda number, body: with_logprobs(tokens)
    with pytest.raises(
        ValueError, match=r"/v1 tells no log-probabilities of model 'tiny'\. Judge with one that samples"
    ):
        asyncio.run(start(server.url).chances(HELLO, "", ["3", "4"]))


def test_an_answer_that_is_begun_cannot_be_continued(server: ScriptedServer) -> None:
    with pytest.raises(
        ValueError, match=r"can't let tiny go on .* Use the judge yes_no, or pairwise with think: false, or judge with"
    ):
        asyncio.run(start(server.url).chances(HELLO, "Score:", ["3", "4"]))
    assert server.bodies == []


def test_reload_says_what_to_do_instead(server: ScriptedServer) -> None:
    with pytest.raises(ValueError, match=r"can't serve runs/x/iter_1/model.*judge\.engine"):
        start(server.url).reload("runs/x/iter_1/model")
