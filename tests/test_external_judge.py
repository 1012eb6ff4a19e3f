"""Judges that are another model than the policy: behind a server, and on this machine."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_random_model
from test_openai_engine import ScriptedServer, ok

import selfreward
from selfreward import loop
from selfreward.records import Judgement, Response
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def judge_by(judge: str, tmp_path: Path, model: Path) -> tuple[list[Response], list[Judgement]]:
    tasks = ("Name two animals.", "Name three animals.")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": task}) + "\n" for task in tasks))
    (tmp_path / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: {tmp_path}/runs
iterations: 1
model: {{path: {model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
judge: {{template: judge.txt, votes: 2, {judge}}}
engine: {{name: "scripts:Numbers"}}
""")
    run = Run.create(selfreward.load_recipe(tmp_path / "run.yaml"))
    with Engines(run) as engines:
        for stage in ("prompts", "responses", "judgements"):
            loop.perform_here(run, Step(stage, 1), engines)
    return run.records("responses", 1, Response), run.records("judgements", 1, Judgement)


def test_a_model_behind_a_server_judges_under_its_own_name(server, tmp_path, tiny_random_model):
    server.script = lambda number, body: ok(f"I count.\nScore: {body['messages'][0]['content'].count('fox')}")
    judge = f"engine: {{name: openai, openai: {{base_url: '{server.url}', model: judge-7b}}}}"
    responses, judgements = judge_by(judge, tmp_path, tiny_random_model)
    words = {r.id: len(r.text.split()) for r in responses}
    assert [j.score for j in judgements] == [words[j.subject_ids[0]] for j in judgements]
    assert {r.model for r in responses} == {"M0"}
    assert {j.model for j in judgements} == {body["model"] for body in server.bodies} == {"judge-7b"}
    assert all(body["messages"][0]["content"].startswith("Review") for body in server.bodies)


def test_another_local_model_judges_under_its_own_name(tmp_path, tiny_random_model):
    judge_model = make_random_model(tmp_path / "big-judge", seed=9)
    judge = f"engine: {{name: 'scripts:Numbers'}}, model: {{path: {judge_model}}}"
    responses, judgements = judge_by(judge, tmp_path, tiny_random_model)
    assert {r.model for r in responses} == {"M0"}
    assert {j.model for j in judgements} == {"big-judge"}
    assert None not in {j.score for j in judgements}
