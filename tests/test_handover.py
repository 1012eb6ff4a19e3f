"""The weights that are served are those that were trained."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_random_model

from selfreward.config import EngineSettings, ModelSettings
from selfreward.engines import Engine, SamplingParams
from selfreward.engines.transformers import TransformersEngine
from selfreward.engines.vllm import VLLMEngine

GREEDY = SamplingParams(temperature=0.0, top_p=1.0, max_tokens=12)
MESSAGES = [{"role": "user", "content": "Name three birds."}]
SETTINGS = EngineSettings(vllm={"max_model_len": 128})


def text(engine: Engine) -> str:
    return asyncio.run(engine.sample(MESSAGES, GREEDY, [0]))[0].text


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
from selfreward.config import EngineSettings, ModelSettings
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
        print(">", asyncio.run(engine.sample(message, SamplingParams(0.0, 1.0, 12), [0]))[0].text)
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
