"""The weights that are served are those that were trained."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_random_model
from peft.tuners.lora import Linear
from trainings import make_run

from selfreward.engines import Engine, SamplingParams
from selfreward.engines.transformers import TransformersEngine
from selfreward.engines.vllm import VLLMEngine
from selfreward.errors import WeightCheckError
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.runs import history
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.engines import Engines
from selfreward.serving.weight_check import Probes
from selfreward.training.dpo import train_iteration

GREEDY = SamplingParams(temperature=0.0, top_p=1.0, max_tokens=12)
MESSAGES = [{"role": "user", "content": "Name three birds."}]
SETTINGS = EngineSettings(vllm={"max_model_len": 128})


def text(engine: Engine) -> str:
    return asyncio.run(engine.generate(MESSAGES, GREEDY, [0]))[0].text


@pytest.mark.parametrize("tied", [False, True])
def test_vllm_serves_another_model_with_tied_or_untied_embeddings(tmp_path: Path, tied: bool) -> None:
    """An output layer that is tied to the embeddings is not reached by vLLM's reload."""
    paths = [str(make_random_model(tmp_path / str(seed), seed, tied=tied)) for seed in (0, 1)]
    model = ModelSettings(path=paths[0], dtype="float32")
    engine = VLLMEngine(paths[0], model, SETTINGS)
    served = []
    for path in (paths[0], paths[1], paths[0]):
        if engine.model != path:
            engine.reload(path)
        served.append(text(engine))
    engine.close()
    expected = [text(TransformersEngine(path, model, SETTINGS)) for path in paths]
    assert served == [expected[0], expected[1], expected[0]]
    assert expected[0] != expected[1]


IN_ITS_OWN_PROCESS = """
import asyncio, multiprocessing, sys
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.engines import SamplingParams
from selfreward.engines.vllm import VLLMEngine

if __name__ == "__main__":
    first, second = sys.argv[1:]
    settings = EngineSettings(vllm={"max_model_len": 128})
    engine = VLLMEngine(first, ModelSettings(path=first, dtype="float32"), settings)
    message = [{"role": "user", "content": "Name three birds."}]
    for path in (first, second):
        if engine.model != path:
            engine.reload(path)
        print(">", asyncio.run(engine.generate(message, SamplingParams(0.0, 1.0, 12), [0]))[0].text)
    children = multiprocessing.active_children()
    engine.close()
    print(">", len(children), len(multiprocessing.active_children()))
"""


def test_an_engine_in_its_own_process_serves_the_same_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, where the engine's memory is free once its process has ended."""
    paths = [str(make_random_model(tmp_path / str(seed), seed)) for seed in (0, 1)]
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    script = tmp_path / "script.py"
    script.write_text(IN_ITS_OWN_PROCESS)
    command = [sys.executable, str(script), *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # vLLM's own log goes to standard output as well.
    *texts, counts = [line.removeprefix("> ") for line in result.stdout.splitlines() if line.startswith("> ")]
    model = ModelSettings(path=paths[0], dtype="float32")
    assert texts == [text(TransformersEngine(path, model, SETTINGS)) for path in paths]
    assert counts == "1 0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose M1 is a random model and whose M2 was trained on texts that fill blocks of the prefix cache."""
    folder = tmp_path_factory.mktemp("trained")
    run = make_run(folder, make_random_model(folder / "model", seed=0))
    path = run.stage("pairs", 1).path / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["prompt"][0]["content"] = " ".join([row["prompt"][0]["content"]] * 16)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_iteration(run, Step("train", 1))
    assert all(len(ids) > 64 for ids in Probes.read(run.stage("train", 1).path / "probes.json").ids)
    return run


@pytest.fixture(params=["vllm", "transformers"])
def serving(request: pytest.FixtureRequest, trained: Run) -> Iterator[Engines]:
    """The engines of that run, with the real vLLM or transformers."""
    overrides = [f"engine.name={request.param}", "engine.vllm.max_model_len=256", "engine.vllm.block_size=32"]
    run = Run(trained.path, history.recipe_of(trained.path, overrides))
    (run.path / "metrics.jsonl").unlink(missing_ok=True)
    with Engines(run) as engines:
        yield engines


def proofs(run: Run) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "handover"]


def test_a_right_hand_over_is_proved_and_recorded(serving: Engines, trained: Run) -> None:
    serving.policy(trained.model_path(1))
    serving.policy(trained.model_path(2))
    [proof] = proofs(trained)
    assert proof["model"] == "iter_1/model"
    for evidence in (proof, proof["sampled"]):
        assert evidence["difference"] < 1e-4
        assert evidence["share"] == pytest.approx(1.0, abs=1e-3)


def test_an_engine_that_starts_with_a_trained_model_proves_it_too(serving: Engines, trained: Run) -> None:
    serving.policy(trained.model_path(2))
    assert len(proofs(trained)) == 1


def test_old_weights_are_not_taken_for_the_new_ones(serving: Engines, trained: Run, monkeypatch) -> None:
    monkeypatch.setattr(VLLMEngine, "_replace_weights", lambda self, path: True)
    monkeypatch.setattr(TransformersEngine, "reload", lambda self, path: setattr(self, "model", path))
    serving.policy(trained.model_path(1))
    with pytest.raises(
        WeightCheckError, match=r"does not serve iter_1/model: .* differ from .* by .* -?0% of the change"
    ):
        serving.policy(trained.model_path(2))


def test_an_adapter_that_was_left_out_is_found(serving: Engines, trained: Run) -> None:
    merged = Path(trained.model_path(2), "model.safetensors")
    right = merged.read_bytes()
    merged.write_bytes(Path(trained.model_path(1), "model.safetensors").read_bytes())
    try:
        with pytest.raises(WeightCheckError, match=r"does not serve iter_1/model: .* -?0% of the change is served"):
            serving.policy(trained.model_path(2))
    finally:
        merged.write_bytes(right)


@pytest.mark.parametrize("serving", ["vllm"], indirect=True)
def test_a_prefix_cache_of_the_old_weights_is_found(serving: Engines, trained: Run, monkeypatch) -> None:
    engine = serving.policy(trained.model_path(1))
    llm = engine.engines[0]._engine
    monkeypatch.setattr(type(llm), "reset_prefix_cache", lambda self: True)
    with pytest.raises(WeightCheckError, match="does not serve iter_1/model through its prefix cache"):
        serving.policy(trained.model_path(2))


def test_a_merge_that_lost_the_adapter_stops_the_training(tmp_path: Path, tiny_random_model: Path, monkeypatch) -> None:
    run = make_run(tmp_path, tiny_random_model)
    monkeypatch.setattr(Linear, "merge", lambda self, **options: None)
    with pytest.raises(WeightCheckError, match="the saved model is not the trained policy"):
        train_iteration(run, Step("train", 1))
    assert not run.stage("train", 1).done
