"""Everything that an engine is asked for goes to one in another process and comes back as it is."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfreward.engines import Completion, SamplingParams
from selfreward.engines.remote import PipeChannel, RemoteEngine
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings

HELLO = [{"role": "user", "content": "Hello, bear — Bär!"}]
PARAMS = SamplingParams(0.7, 0.9, 16)


class Echo:
    """Gives back what it is asked, so that nothing can be lost on the way."""

    def __init__(self, model_path, model, settings):
        self.model = model_path

    async def generate(self, messages, params, seeds):
        return [Completion(f"{messages} {params} {seed}", "stop", seed) for seed in seeds]

    async def option_probs(self, messages, prefix, options):
        if prefix == "too long":
            return None
        return [len(prefix) / 100, *(len(option) / 100 for option in options), len(messages) / 100]

    async def reward(self, messages):
        return len(messages[-1]["content"]) + 0.5

    async def logprobs(self, ids, last=None):
        return [float(token) for token in (ids[1:] if last is None else ids[-last:])]

    def reload(self, model_path):
        if not model_path:
            raise ValueError("there is no model of no name")
        self.model = model_path

    def sleep(self):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def engine() -> Iterator[RemoteEngine]:
    command = [sys.executable, "-m", "selfreward.engines.worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    channel = PipeChannel("echo", command, environment, 60.0, print)
    model, settings = ModelSettings.model_construct(path="M0"), EngineSettings(name="test_worker:Echo")
    remote = RemoteEngine(channel, "M0", model, settings)
    yield remote
    remote.close()


def test_texts(engine: RemoteEngine) -> None:
    found = asyncio.run(engine.generate(HELLO, PARAMS, [3, 4]))
    assert found == [Completion(f"{HELLO} {PARAMS} {seed}", "stop", seed) for seed in (3, 4)]


def test_probabilities_of_options(engine: RemoteEngine) -> None:
    assert asyncio.run(engine.option_probs(HELLO, "Score:", ["yes", "no"])) == [0.06, 0.03, 0.02, 0.01]
    assert asyncio.run(engine.option_probs(HELLO, "too long", ["yes"])) is None


def test_rewards_and_log_probabilities(engine: RemoteEngine) -> None:
    assert asyncio.run(engine.reward(HELLO)) == len(HELLO[0]["content"]) + 0.5
    assert asyncio.run(engine.logprobs([5, 6, 7])) == [6.0, 7.0]
    assert asyncio.run(engine.logprobs([5, 6, 7], last=1)) == [7.0]


def test_another_model_and_what_is_refused(engine: RemoteEngine) -> None:
    engine.sleep()
    engine.reload("iter_1/model")
    assert engine.model == "iter_1/model"
    with pytest.raises(ValueError, match="there is no model of no name"):
        engine.reload("")
