"""``selfreward data`` with a teacher behind a server that writes as a real model does, and fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import writers
from servers import Answer, Reply, Script, ScriptedServer, failure, half_failing, ok, scripted_server

from selfreward.data import prompt_jobs
from selfreward.data.job import make
from selfreward.recipe.data_settings import DataJob
from selfreward.recipe.loader import edit

ROOT = Path(__file__).parents[1]
SMALL = ["self_instruct.requests=4", "self_instruct.human=3", "self_instruct.machine=2"]
MADE = ("train.jsonl", "removed.jsonl", "README.md")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.jsonl"
    rows = [
        {
            "instruction": f"Seed {number}: write about the letter {letter} {letter * 9}.",
            "instances": [{"input": "", "output": f"{letter} is a letter."}],
            "is_classification": number % 3 == 0,
        }
        for number, letter in enumerate("abcdefgh")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(number: int, body: dict[str, Any]) -> Answer:
    """What the scripted model says, as a server puts it."""
    said = writers.reply("tiny", body["messages"][0]["content"], body["seed"])
    assert said is not None
    if isinstance(said, str):
        return ok(said)
    if said.finish_reason == "prompt_too_long":
        return failure(400, "This model's maximum context length is 128 tokens.")
    return ok(said.text, said.finish_reason)


class Counted:
    """A script that counts the requests that it answers."""

    def __init__(self, script: Script, enough: int | None = None) -> None:
        self._script, self._enough, self._lock = script, enough, threading.Lock()
        self.answered: Counter[str] = Counter()
        self.reached = threading.Event()

    def __call__(self, number: int, body: dict[str, Any]) -> Answer | Reply:
        with self._lock:
            self.answered[request(body)] += 1
            if self.answered.total() == self._enough:
                self.reached.set()
        return self._script(number, body)


def request(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)


def begin(server: ScriptedServer, out: str, folder: Path) -> subprocess.Popen[str]:
    words = ["self-instruct", "--seeds", "seeds.jsonl", "--num", "30", "--model", server.url, "--out", out, *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "selfreward", "data", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """What it said, once it is done."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def bytes_of(out: Path) -> list[bytes]:
    return [(out / "data" / name).read_bytes() for name in MADE]


@pytest.mark.usefixtures("seeds")
def test_a_server_that_fails_half_of_the_time_and_a_kill_change_nothing(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = written
    end(begin(server, "smooth", tmp_path))
    expected = {request(body) for body in server.bodies}
    assert len(server.bodies) == len(expected)

    listed = server.listed
    server.listed = lambda number: (Reply(body=b"<html>"), failure(503, "busy"), listed(number))[min(number - 2, 2)]
    counted = Counted(written, enough=len(expected) // 2)
    server.script = half_failing(counted)
    process = begin(server, "rough", tmp_path)
    assert counted.reached.wait(120), process.poll()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [journal] = (tmp_path / "rough" / "data").glob("journal*")
    kept = journal.read_bytes().count(b"\n")
    assert len(expected) // 4 < kept < len(expected)
    assert not (tmp_path / "rough" / "data" / "stage.json").exists()

    server.bodies.clear()
    said = end(begin(server, "rough", tmp_path))
    # What is not in the journal is asked, and nothing else.
    assert len({request(body) for body in server.bodies}) == len(expected) - kept
    assert set(counted.answered) == expected
    assert bytes_of(tmp_path / "rough") == bytes_of(tmp_path / "smooth")
    figures = json.loads((tmp_path / "rough" / "data" / "stage.json").read_text())["summary"]
    assert figures["rows"] == 30
    assert figures["rounds"] > 1
    assert figures["resumed"] > 0
    failures = {name: count for name, count in figures.items() if name.startswith("server_failures_")}
    assert failures["server_failures_garbage"] > 5
    assert sum(failures.values()) > (len(expected) - kept) // 2
    assert f"server_failures_garbage {failures['server_failures_garbage']}" in said


def test_a_server_that_is_gone_for_good_ends_the_command_and_the_next_one_goes_on(
    server: ScriptedServer, seeds: Path, tmp_path: Path
) -> None:
    data = {
        "prompts": {"source": "self_instruct", "path": str(seeds), "num": 30},
        "engine": {"name": "openai", "openai": {"base_url": server.url, "model": "tiny", "max_retries": 1}},
    }
    job = edit(DataJob, data, [f"prompts.{override}" for override in SMALL])
    work = partial(prompt_jobs.work, job)
    server.script = written
    smooth = make(job, "self_instruct", tmp_path / "smooth", work)
    asked = len(server.bodies)

    server.bodies.clear()
    server.script = lambda number, body: (
        failure(503, "the disk is full") if number > asked // 2 else written(number, body)
    )
    with pytest.raises(ValueError, match=r"answered 503: the disk is full \(try 5; what was finished before is kept\)"):
        make(job, "self_instruct", tmp_path / "rough", work)
    finished = {request(body) for body in server.bodies[: asked // 2]}

    server.bodies.clear()
    server.script = written
    assert bytes_of(make(job, "self_instruct", tmp_path / "rough", work)) == bytes_of(smooth)
    assert not finished & {request(body) for body in server.bodies}
    assert len(server.bodies) == asked - len(finished)
