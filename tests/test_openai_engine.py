"""The OpenAI engine against a real ``vllm serve`` on the CPU, and against a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from servers import (
    GARBAGE,
    WHOLE,
    Answer,
    Reply,
    ScriptedServer,
    failure,
    free_port,
    half_failing,
    ok,
    scripted_server,
    vllm_serve,
)

from selfreward.engines import Completion, SamplingParams
from selfreward.engines.base import TOO_LONG
from selfreward.engines.journaled import JournaledEngine, total
from selfreward.engines.openai import OpenAIEngine, served_models
from selfreward.engines.replica_pool import ReplicaPool
from selfreward.engines.transformers import TransformersEngine
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.records import Message
from selfreward.runs.journal import Journal

KEY = "sk-a-secret-that-must-stay-one"
GREEDY = SamplingParams(temperature=0.0, top_p=1.0, max_tokens=12)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=12)
HELLO = [{"role": "user", "content": "Name five animals"}]


@pytest.fixture(scope="module")
def vllm_server(tiny_random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a vLLM server that asks for KEY."""
    with vllm_serve(tiny_random_model, KEY, tmp_path_factory.mktemp("serve") / "log.txt") as url:
        yield url


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


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
        return await asyncio.gather(*(engine.generate(messages, params, seeds) for messages in prompts))

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
        true = asyncio.run(local.option_probs(messages, "", words))
        told = asyncio.run(start(vllm_server).option_probs(messages, "", words))
        assert true is not None
        assert told is not None
        known = [(chance, right) for chance, right in zip(told, true, strict=True) if chance]
        # The twenty likeliest, of which some may be control tokens.
        assert 12 <= len(known) <= 20
        assert [chance for chance, _ in known] == pytest.approx([right for _, right in known], abs=1e-4)
        assert {right for _, right in known} == set(sorted(true)[-len(known) :])
    assert asyncio.run(start(vllm_server).option_probs(user("ant " * 200), "", words)) is None


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
        assert engine._server._client.is_closed()
        assert sample(engine, [HELLO], SAMPLED, [1, 2]) == first
        assert engine._server._client.is_closed()
        gc.collect()
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []


def test_the_data_command_keeps_32_requests_in_flight(
    vllm_server: str, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the count of a server that hands them on. Of a random model noise is an instruction, as nothing filters it."""
    from datasets import load_dataset

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "template.txt").write_text("{examples}")
    (tmp_path / "seeds.jsonl").write_text("".join(f'{{"prompt": "{word}"}}\n' for word in ("ant", "bear", "deer")))
    words = (
        f"self-instruct --seeds seeds.jsonl --num 8 --model {server.url} --out out self_instruct.template=template.txt"
    )
    options = [
        "self_instruct.human=1",
        "self_instruct.machine=0",
        "self_instruct.tasks=1",
        "self_instruct.instances=0",
        "self_instruct.requests=96",
    ]
    sampling = ["generation.temperature=1.5", "generation.top_p=1.0", "generation.max_tokens=100", "filters.use=[]"]
    command = [sys.executable, "-m", "selfreward", "data", *words.split(), *options, *sampling]
    together = threading.Barrier(32)

    def hand_on(number: int, body: dict[str, Any]) -> Answer:
        if number <= together.parties:
            # The first is not answered before the last has come, and one too many would come meanwhile.
            together.wait(timeout=60)
            time.sleep(0.5)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{vllm_server}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)

    server.script = hand_on
    process = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert server.most_at_once == 32
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert len(loaded["train"]) == 8
    assert all(row["prompt"] == [{"role": "user", "content": row["instruction"]}] for row in loaded["train"])


# A server that misbehaves on purpose


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
    with pytest.raises(
        ValueError,
        match=r"/v1 answered 500: the disk is full \(try 3; what was finished before is kept\)\. See the server",
    ):
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
    with pytest.raises(ValueError, match=r"did not answer in 0\.1 s \(try 1; .*\)\. Raise openai\.timeout"):
        sample(start(server.url, timeout=0.1, max_retries=0), [HELLO], SAMPLED, [0])


def test_a_server_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ValueError, match=f"{url} can't be reached.*Is it running"):
        sample(start(url, max_retries=0), [HELLO], SAMPLED, [0])


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(
    "answer",
    [
        *(failure(status, f"wrong key: {KEY}") for status in (400, 401, 403, 500)),
        Reply(body=f"wrong key: {KEY}".encode()),
    ],
)
def test_no_error_shows_the_key(server: ScriptedServer, answer: Answer | Reply) -> None:
    """Not even where the server repeats it."""
    server.script = lambda number, body: answer
    with pytest.raises(ValueError, match="wrong key") as raised:
        sample(start(server.url, max_retries=0), [HELLO], SAMPLED, [0])
    assert KEY not in "".join(traceback.format_exception(raised.value))


def once(answer: Answer | Reply) -> Callable[[int, dict[str, Any]], Answer | Reply]:
    """Then a good answer."""
    return lambda number, body: answer if number == 1 else ok("at last")


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_asked_again(server: ScriptedServer, answer: Reply) -> None:
    server.script = once(answer)
    engine = start(server.url)
    assert sample(engine, [HELLO], SAMPLED, [0]) == [[Completion("at last", "stop", 3)]]
    assert engine.failures == {"garbage": 1}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (GARBAGE["html"], r"can't be read \(Invalid JSON.*\): '<html><body>Bad gateway.*try 3.*openai\.base_url end"),
        (GARBAGE["an error"], r"\(choices: Field required\): .*upstream is away"),
        (GARBAGE["no choice"], r"\(choices: List should have at least 1 item.*is model 'tiny' a chat model\?"),
        (GARBAGE["a list as content"], r"\(choices\.0\.message\.content: Input should be a valid string\)"),
        (GARBAGE["given up"], r"choices\.0\.finish_reason: .*the server gave this request up"),
    ],
)
def test_lasting_garbage_is_told(server: ScriptedServer, answer: Reply, message: str) -> None:
    server.script = lambda number, body: answer
    with pytest.raises(ValueError, match=message):
        sample(start(server.url, max_retries=2), [HELLO], SAMPLED, [0])
    assert len(server.bodies) == 3


@pytest.mark.parametrize("sent", [-1, 0, 20])
def test_a_broken_connection_is_tried_again(server: ScriptedServer, sent: int) -> None:
    """Before the head of the answer, before the body, or in the middle of it."""
    server.script = once(Reply(body=WHOLE, sent=sent))
    engine = start(server.url)
    assert sample(engine, [HELLO], SAMPLED, [0]) == [[Completion("at last", "stop", 3)]]
    assert engine.failures == {"connection": 1}


@pytest.mark.parametrize("answer", [Reply(body=WHOLE, waits=2.0), Reply(body=WHOLE, drip=0.05)], ids=["late", "drips"])
def test_an_answer_beyond_the_timeout_is_given_up(server: ScriptedServer, answer: Reply) -> None:
    """Also one of which there is always a bit more in time."""
    server.script = once(answer)
    engine, began = start(server.url, timeout=0.3), time.monotonic()
    assert sample(engine, [HELLO], SAMPLED, [0]) == [[Completion("at last", "stop", 3)]]
    assert engine.failures == {"timeout": 1}
    assert time.monotonic() - began < 2.0


def test_a_server_that_fails_half_of_the_time(server: ScriptedServer) -> None:
    """Requests never end a run at the default of retries, and all completions are there."""
    prompts = [user(f"prompt {number}") for number in range(60)]
    server.script = lambda number, body: ok(f"{body['messages'][0]['content']} {body['seed']}")
    expected = sample(start(server.url), prompts, SAMPLED, [1, 2])
    assert expected[7][1].text == "prompt 7 2"
    asked = len(server.bodies)
    server.script = half_failing(server.script)
    engine = start(server.url)
    assert sample(engine, prompts, SAMPLED, [1, 2]) == expected
    assert set(engine.failures) == {"500", "503", "429", "connection", "garbage"}
    # A connection may break before the server has read the request.
    unseen = 120 + sum(engine.failures.values()) - (len(server.bodies) - asked)
    assert 0 <= unseen < engine.failures["connection"]
    assert 70 < sum(engine.failures.values()) < 180


def test_a_server_that_has_answered_is_given_more_time(server: ScriptedServer) -> None:
    server.script = lambda number, body: ok("fine") if number == 1 else failure(503, "it is started again")
    engine = start(server.url, max_retries=2)
    sample(engine, [HELLO], SAMPLED, [0])
    with pytest.raises(ValueError, match=r"answered 503: .*started again.*\(try 9;"):
        sample(engine, [HELLO], SAMPLED, [1])
    assert len(server.bodies) == 1 + 1 + 2 * 4


@pytest.mark.parametrize(
    "headers",
    [
        ("Retry-After", "3600"),
        ("Retry-After", formatdate(time.time() + 3600, usegmt=True)),
        ("x-should-retry", "false"),
    ],
)
def test_a_server_that_says_not_now_is_not_asked_again(server: ScriptedServer, headers: tuple[str, str]) -> None:
    body = b'{"error": {"message": "You exceeded your quota"}}'
    server.script = lambda number, body_: Reply(429, body, headers=(headers,))
    with pytest.raises(ValueError, match=r"answered 429: .*exceeded your quota"):
        sample(start(server.url), [HELLO], SAMPLED, [0])
    assert len(server.bodies) == 1


def test_garbage_that_asks_for_a_long_pause_is_not_waited_for(server: ScriptedServer) -> None:
    server.script = lambda number, body: Reply(body=b"<html>closed</html>", headers=(("Retry-After", "inf"),))
    with pytest.raises(ValueError, match=r"can't be read .*closed"):
        sample(start(server.url), [HELLO], SAMPLED, [0])
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "value", ["1.0", pytest.param(formatdate(time.time(), usegmt=True), id="now"), "soon", "nan", "-1", "Mon, 99 Foo"]
)
def test_a_pause_that_the_server_asks_for(server: ScriptedServer, value: str) -> None:
    """What is no pause leaves the engine to its own, of about half a second."""
    server.script = once(Reply(503, b"", headers=(("Retry-After", value),)))
    began = time.monotonic()
    assert sample(start(server.url), [HELLO], SAMPLED, [0])[0][0].text == "at last"
    assert time.monotonic() - began >= (1.0 if value == "1.0" else 0.375)


def test_failures_reach_the_summary_of_each_stage(server: ScriptedServer, tmp_path: Path) -> None:
    settings = EngineSettings(name="openai", openai={"base_url": server.url, "model": "tiny"})
    engine = ReplicaPool.single("tiny", ModelSettings.model_construct(path="tiny"), settings)

    def stage(name: str, *answers: Answer | Reply) -> dict[str, Any]:
        script = iter(answers)
        server.script = lambda number, body: next(script)
        with Journal(tmp_path / name) as journal:
            asked = JournaledEngine(engine, journal, "teacher")
            asyncio.run(asked.generate(HELLO, SAMPLED, [1, 2]))
            assert total([asked]) == asked.figures()
            return asked.summary(1.0)

    assert stage("one", failure(503, "busy"), ok("a"), failure(500, "a bug"), failure(503, "busy"), ok("b")) == {
        "tokens_per_second": 6,
        "server_failures_500": 1,
        "server_failures_503": 2,
    }
    assert stage("two", ok("a"), GARBAGE["empty"], ok("b")) == {"tokens_per_second": 6, "server_failures_garbage": 1}
    assert stage("three", ok("a"), ok("b")) == {"tokens_per_second": 6}


def test_what_a_server_serves_is_asked_again_as_well(server: ScriptedServer) -> None:
    answers = [
        failure(503, "busy"),
        GARBAGE["html"],
        (200, {"data": [{"id": "one"}, {"id": "two", "object": "model"}]}),
    ]
    server.listed = lambda number: answers[number - 1]
    assert served_models(server.url) == ["one", "two"]
    server.listed = lambda number: failure(404, "no such page")
    with pytest.raises(ValueError, match=r"answered 404: .*does openai\.base_url end as it should"):
        served_models(server.url)


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
    assert asyncio.run(start(server.url).option_probs(HELLO, "", ["3", "4", "5"])) == pytest.approx(
        [0.03125, 0.6875, 0.0]
    )
    settings = {"temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    assert server.bodies == [{"model": "tiny", "messages": HELLO, **settings}]


def test_chances_of_a_prompt_that_is_too_long(server: ScriptedServer) -> None:
    server.script = lambda number, body: failure(400, "prompt is too long: 210000 tokens > 200000 maximum")
    assert asyncio.run(start(server.url).option_probs(HELLO, "", ["3", "4"])) is None


@pytest.mark.parametrize("tokens", [None, {}])
def test_a_server_that_tells_no_probabilities(server: ScriptedServer, tokens: dict[str, float] | None) -> None:
    server.script = lambda number, body: with_logprobs(tokens)
    with pytest.raises(
        ValueError, match=r"/v1 tells no log-probabilities of model 'tiny'\. Judge with one that samples"
    ):
        asyncio.run(start(server.url).option_probs(HELLO, "", ["3", "4"]))


def test_an_answer_that_is_begun_cannot_be_continued(server: ScriptedServer) -> None:
    with pytest.raises(
        ValueError, match=r"can't let tiny go on .* Use the judge yes_no, or pairwise with think: false, or judge with"
    ):
        asyncio.run(start(server.url).option_probs(HELLO, "Score:", ["3", "4"]))
    assert server.bodies == []
