"""The weights that are served are those that were trained."""

import asyncio
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
