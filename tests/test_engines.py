"""The engines that hold weights themselves, and the scripted one. Both real ones pass the same tests."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_random_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from vllm import SamplingParams as VLLMParams

from selfreward.engines import Completion, Engine, SamplingParams
from selfreward.engines.base import TOO_LONG
from selfreward.engines.scripted import ScriptedEngine
from selfreward.recipe import registry
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
from selfreward.records import Message

# The smallest block of the CPU, so that long prompts have whole blocks to share.
VLLM_OPTIONS = {"max_model_len": 128, "max_num_seqs": 64, "block_size": 32, "kv_cache_memory_bytes": 1 << 26}
EXTRA_EOS = "yes"

GREEDY = SamplingParams(temperature=0.0, top_p=1.0, max_tokens=24)
SAMPLED = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=24)
NUCLEUS = SamplingParams(temperature=0.7, top_p=0.8, max_tokens=16)

NOUNS = "ant bear camel deer elk fox goat horse jackal koala lion mouse otter pig rabbit seal".split()
# Of 1 to 16 words, so that a batch of them is padded.
PROMPTS = [[{"role": "user", "content": " ".join(NOUNS[:num])}] for num in range(1, 17)]

# Of three blocks and a bit.
TEXT = [(37 * place) % 150 for place in range(100)]

Request = tuple[list[Message], SamplingParams, list[int]]


def make_models(folder: Path) -> tuple[Path, Path]:
    """Two models of 128 positions whose generation config has a second EOS, and a penalty that no recipe asks for."""
    paths = make_random_model(folder / "a", seed=1), make_random_model(folder / "b", seed=2)
    for path in paths:
        config = AutoConfig.from_pretrained(path)
        config.max_position_embeddings = 128
        config.save_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        eos = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(EXTRA_EOS)]
        GenerationConfig(eos_token_id=eos, repetition_penalty=3.0).save_pretrained(path)
    return paths


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("engines"))


def start(name: str, path: Path, batch_size: int = 8, dtype: str = "float32") -> Engine:
    settings = EngineSettings(name=name, vllm=VLLM_OPTIONS, transformers={"batch_size": batch_size})
    kind = registry.load(name, registry.ENGINES, "engine")
    return kind(str(path), ModelSettings(path=str(path), dtype=dtype), settings)


@pytest.fixture(scope="module")
def engines(models: tuple[Path, Path]) -> Iterator[Callable[[str], Engine]]:
    """Starts each engine once."""
    started: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        if name not in started:
            started[name] = start(name, models[0])
        return started[name]

    yield get
    for engine in started.values():
        engine.close()


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, engines: Callable[[str], Engine]) -> Engine:
    return engines(request.param)


def run(engine: Engine, requests: Sequence[Request]) -> list[list[Completion]]:
    """All requests in flight at once."""

    async def everything() -> list[list[Completion]]:
        return await asyncio.gather(*(engine.generate(*request) for request in requests))

    return asyncio.run(everything())


def one(engine: Engine, messages: list[Message], params: SamplingParams, seed: int = 0) -> Completion:
    return run(engine, [(messages, params, [seed])])[0][0]


def reference(path: Path, messages: list[Message], max_tokens: int) -> Completion:
    """What transformers' own greedy ``generate`` gives for one prompt, without any penalty."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config = GenerationConfig()
    eos = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(EXTRA_EOS)]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, do_sample=False, max_new_tokens=max_tokens, eos_token_id=eos, pad_token_id=0)
    new = output[0, ids["input_ids"].shape[1] :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True)
    return Completion(text, "stop" if new[-1] in eos else "length", len(new))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, NUCLEUS], ids=["greedy", "sampled", "nucleus"])
def test_a_result_does_not_depend_on_what_shares_the_batch(engine: Engine, params: SamplingParams) -> None:
    requests = [(messages, params, [7 * place, 7 * place + 1]) for place, messages in enumerate(PROMPTS)]
    together = run(engine, requests)
    assert run(engine, requests[::-1]) == together[::-1]
    assert [run(engine, [request])[0] for request in requests] == together


def test_requests_with_different_params_share_a_run(engine: Engine) -> None:
    mixed = [(PROMPTS[place], params, [place]) for place in range(9) for params in (GREEDY, SAMPLED, NUCLEUS)]
    assert run(engine, mixed) == [run(engine, [request])[0] for request in mixed]


def test_completions_are_in_the_order_of_the_seeds(engine: Engine) -> None:
    seeds = [3, 1, 2, 1]
    completions = run(engine, [(PROMPTS[4], SAMPLED, seeds)])[0]
    assert completions == [one(engine, PROMPTS[4], SAMPLED, seed) for seed in seeds]
    assert completions[1] == completions[3]
    assert len({completion.text for completion in completions}) == 3


def test_greedy_is_transformers_own(engine: Engine, models: tuple[Path, Path]) -> None:
    """Also: the two engines give the same, and neither takes a penalty from the generation config."""
    completions = run(engine, [(messages, GREEDY, [0]) for messages in PROMPTS])
    assert [c for [c] in completions] == [reference(models[0], messages, 24) for messages in PROMPTS]


def test_temperature_and_top_p_give_the_exact_distribution(engine: Engine, models: tuple[Path, Path]) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.6, max_tokens=1)
    num = 3000
    observed = Counter(c.text for c in run(engine, [(PROMPTS[2], params, list(range(num)))])[0])
    expected = next_token_distribution(models[0], PROMPTS[2], params)
    assert 3 <= len(expected) <= 30, "a nucleus that shows something"
    assert set(observed) <= set(expected)
    for text, probability in expected.items():
        # Four standard deviations.
        allowed = 4 * (num * probability * (1 - probability)) ** 0.5
        assert observed[text] == pytest.approx(num * probability, abs=allowed)


def next_token_distribution(path: Path, messages: list[Message], params: SamplingParams) -> dict[str, float]:
    """The nucleus and its probabilities, by definition: the fewest likeliest tokens that hold top_p."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        probabilities = (model(**ids).logits[0, -1] / params.temperature).softmax(-1)
    nucleus: dict[int, float] = {}
    for token in probabilities.argsort(descending=True).tolist():
        if sum(nucleus.values()) >= params.top_p:
            break
        nucleus[token] = float(probabilities[token])
    texts: Counter[str] = Counter()
    for token, probability in nucleus.items():
        texts[tokenizer.decode([token], skip_special_tokens=True)] += probability / sum(nucleus.values())
    return dict(texts)


@pytest.mark.parametrize("penalty", [2.0, -2.0])
def test_a_presence_penalty_is_taken_from_what_the_output_has(
    engine: Engine, models: tuple[Path, Path], penalty: float
) -> None:
    """By definition, and so both engines give the same: what stands in the prompt alone is not penalized."""
    params = replace(GREEDY, presence_penalty=penalty)
    completions = [c for [c] in run(engine, [(messages, params, [0]) for messages in PROMPTS])]
    assert completions == [penalized(models[0], messages, 24, penalty) for messages in PROMPTS]
    plain = [c for [c] in run(engine, [(messages, GREEDY, [0]) for messages in PROMPTS])]
    assert sum(new != old for new, old in zip(completions, plain, strict=True)) > 8


def penalized(path: Path, messages: list[Message], max_tokens: int, penalty: float) -> Completion:
    """Greedy decoding, token by token."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    eos = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(EXTRA_EOS)]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    new: list[int] = []
    with torch.inference_mode():
        while len(new) < max_tokens and (not new or new[-1] not in eos):
            logits = model(input_ids=torch.tensor([[*prompt, *new]])).logits[0, -1]
            for token in set(new):
                logits[token] -= penalty
            new.append(int(logits.argmax()))
    text = tokenizer.decode(new, skip_special_tokens=True)
    return Completion(text, "stop" if new[-1] in eos else "length", len(new))


def test_a_presence_penalty_comes_before_the_temperature(engine: Engine, models: tuple[Path, Path]) -> None:
    """At a low temperature a sample is the greedy one of the penalized scores."""
    for temperature in (0.0, 0.001):
        params = SamplingParams(temperature, 1.0, 24, presence_penalty=0.3)
        assert one(engine, PROMPTS[5], params) == penalized(models[0], PROMPTS[5], 24, 0.3)


def test_finish_reasons_and_token_counts(engine: Engine) -> None:
    completions = run(engine, [(PROMPTS[3], SAMPLED, list(range(200)))])[0]
    stopped = [c for c in completions if c.finish_reason == "stop"]
    cut_off = [c for c in completions if c.finish_reason == "length"]
    assert stopped
    assert cut_off
    assert len(stopped) + len(cut_off) == 200
    assert {c.num_tokens for c in cut_off} == {24}
    assert any(c.num_tokens < 24 for c in stopped)
    assert not any("<|eos|>" in c.text or "<|pad|>" in c.text for c in completions)
    # The second EOS is a word, so it stands in the text where it ended a response.
    assert any(c.text.endswith(EXTRA_EOS) for c in stopped)
    assert not any(EXTRA_EOS in c.text.split() for c in cut_off)


def test_a_first_token_that_ends_counts_as_one(engine: Engine) -> None:
    params = SamplingParams(temperature=1.5, top_p=1.0, max_tokens=1)
    completions = run(engine, [(PROMPTS[6], params, list(range(1000)))])[0]
    assert {c.num_tokens for c in completions} == {1}
    assert Completion("", "stop", 1) in completions
    assert Completion(EXTRA_EOS, "stop", 1) in completions


def test_a_prompt_that_leaves_no_room(engine: Engine) -> None:
    tokens_of_template = 4  # bos, user, end, assistant
    room = 128 - tokens_of_template - 24
    fits, too_long = ([{"role": "user", "content": " ".join(["ant"] * num)}] for num in (room, room + 1))
    assert run(engine, [(too_long, GREEDY, [0, 1])])[0] == [TOO_LONG, TOO_LONG]
    assert one(engine, fits, GREEDY).finish_reason != "prompt_too_long"


def test_reload_serves_the_new_weights(engine: Engine, models: tuple[Path, Path]) -> None:
    long = [{"role": "user", "content": " ".join(NOUNS * 5)}]
    requests: list[Request] = [(long, GREEDY, [0]), *((messages, GREEDY, [0]) for messages in PROMPTS)]
    before = run(engine, requests)
    engine.reload(str(models[1]))
    try:
        assert engine.model == str(models[1])
        after = run(engine, requests)
        assert [c for [c] in after] == [reference(models[1], messages, 24) for messages, _, _ in requests]
        assert all(new != old for new, old in zip(after, before, strict=True))
    finally:
        engine.reload(str(models[0]))
    assert run(engine, requests) == before


def reference_logprobs(path: Path, ids: Sequence[int]) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logprobs[place - 1, ids[place]]) for place in range(1, len(ids))]


def greatest_difference(figures: Sequence[float] | None, others: Sequence[float]) -> float:
    assert figures is not None
    return max(abs(figure - other) for figure, other in zip(figures, others, strict=True))


def test_logprobs_are_those_of_the_model(engine: Engine, models: tuple[Path, Path]) -> None:
    expected = reference_logprobs(models[0], TEXT)
    completion = one(engine, PROMPTS[5], SAMPLED)

    async def at_once() -> None:
        for _ in range(2):
            every, last, [sample] = await asyncio.gather(
                engine.logprobs(TEXT), engine.logprobs(TEXT, last=20), engine.generate(PROMPTS[5], SAMPLED, [0])
            )
            assert greatest_difference(every, expected) < 1e-4
            assert greatest_difference(last, expected[-20:]) < 1e-4
            assert sample == completion

    asyncio.run(at_once())


def test_a_stale_prefix_cache_shows_in_the_logprobs_of_the_last_tokens(
    engines: Callable[[str], Engine], models: tuple[Path, Path]
) -> None:
    engine = engines("vllm")
    true = reference_logprobs(models[1], TEXT)
    asyncio.run(engine.logprobs(TEXT, last=8))
    try:
        # What a reload does, but for the cache, which holds what the old weights made of the text.
        engine._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(models[1])})  # type: ignore[attr-defined]
        assert greatest_difference(asyncio.run(engine.logprobs(TEXT)), true) < 1e-4
        assert greatest_difference(asyncio.run(engine.logprobs(TEXT, last=8)), true[-8:]) > 0.1
        engine.reload(str(models[1]))
        assert greatest_difference(asyncio.run(engine.logprobs(TEXT, last=8)), true[-8:]) < 1e-4
    finally:
        engine.reload(str(models[0]))


def test_a_prefix_cache_that_is_in_use_does_not_outlive_a_reload(
    engines: Callable[[str], Engine], models: tuple[Path, Path]
) -> None:
    engine = engines("vllm")
    asyncio.run(engine.logprobs(TEXT, last=8))
    # vLLM does not empty a cache while a request holds a part of it.
    core = engine._engine  # type: ignore[attr-defined]
    core.add_request("held", {"prompt_token_ids": TEXT}, VLLMParams(max_tokens=20, detokenize=False))
    core.step()
    engine.reload(str(models[1]))
    try:
        figures = asyncio.run(engine.logprobs(TEXT, last=8))
        assert greatest_difference(figures, reference_logprobs(models[1], TEXT)[-8:]) < 1e-4
    finally:
        engine.reload(str(models[0]))


def test_a_script_gives_no_logprobs(tiny_random_model: Path) -> None:
    model = ModelSettings(path=str(tiny_random_model))
    assert asyncio.run(ScriptedEngine(model.path, model, EngineSettings()).logprobs(TEXT)) is None


def test_a_failed_stage_leaves_the_engine_usable(engine: Engine, models: tuple[Path, Path]) -> None:
    before = one(engine, PROMPTS[5], SAMPLED)

    async def fails() -> None:
        await engine.generate(PROMPTS[0], SamplingParams(0.0, 1.0, 1), [0])
        raise KeyError("a bug in a judge")

    async def stage() -> None:
        async with asyncio.TaskGroup() as group:
            for messages in PROMPTS:
                group.create_task(engine.generate(messages, SAMPLED, [1, 2]))
            group.create_task(fails())

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(stage())
    assert [type(error) for error in raised.value.exceptions] == [KeyError]
    assert one(engine, PROMPTS[5], SAMPLED) == before
    engine.reload(str(models[0]))


def test_one_cancelled_request_does_not_hang_the_others(engine: Engine) -> None:
    expected = one(engine, PROMPTS[5], SAMPLED)

    async def stage() -> Completion:
        kept = asyncio.create_task(engine.generate(PROMPTS[5], SAMPLED, [0]))
        dropped = asyncio.create_task(engine.generate(PROMPTS[6], SAMPLED, [0]))
        await asyncio.sleep(0)
        dropped.cancel()
        async with asyncio.timeout(30):
            return (await kept)[0]

    assert asyncio.run(stage()) == expected


def test_an_error_of_the_model_reaches_every_request(
    engines: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines("transformers")

    def out_of_memory(**inputs: object) -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(engine._model, "generate", out_of_memory)  # type: ignore[attr-defined]
        run(engine, [(messages, GREEDY, [0]) for messages in PROMPTS])
    assert one(engine, PROMPTS[0], GREEDY).num_tokens > 0


def test_batch_size_does_not_change_results(engines: Callable[[str], Engine], models: tuple[Path, Path]) -> None:
    single = start("transformers", models[0], batch_size=1)
    requests = [(messages, SAMPLED, [1, 2]) for messages in PROMPTS]
    assert run(single, requests) == run(engines("transformers"), requests)


def test_batches_in_half_precision_do_not_change_results(models: tuple[Path, Path]) -> None:
    engine = start("transformers", models[0], dtype="bfloat16")
    for params in (GREEDY, SAMPLED):
        requests = [(messages, params, [1, 2, 3]) for messages in PROMPTS]
        assert run(engine, requests) == [run(engine, [request])[0] for request in requests]


def test_batches_are_full_and_hold_prompts_of_similar_length(
    engines: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines("transformers")
    sizes: list[list[int]] = []
    model = engine._model  # type: ignore[attr-defined]
    generate = model.generate

    def watched(**inputs: Any) -> Any:
        sizes.append(inputs["attention_mask"].sum(1).tolist())
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", watched)
    run(engine, [(messages, GREEDY, [0]) for messages in PROMPTS])
    assert sizes == [list(range(20, 12, -1)), list(range(12, 4, -1))]


def test_a_model_without_eos_in_its_generation_config_stops_at_the_tokenizers(tmp_path: Path) -> None:
    path = make_random_model(tmp_path / "model", seed=3)
    config = path / "generation_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "eos_token_id"}))
    engine = start("transformers", path)
    completions = run(engine, [(PROMPTS[0], SAMPLED, list(range(100)))])[0]
    assert {c.finish_reason for c in completions} == {"stop", "length"}


def test_scripted_engine(monkeypatch: pytest.MonkeyPatch, tiny_random_model: Path) -> None:
    cut_off = Completion("one two", "length", 2)
    monkeypatch.setattr(
        ScriptedEngine,
        "script",
        staticmethod(lambda model, text, seed: cut_off if seed == 9 else f"{Path(model).name} {text} {seed}"),
        raising=False,
    )
    engine = start("selfreward.engines.scripted:ScriptedEngine", tiny_random_model)
    assert run(engine, [([{"role": "user", "content": "hello"}], GREEDY, [1, 9])])[0] == [
        Completion("random hello 1", "stop", 4),
        cut_off,
    ]
    engine.reload("/models/next")
    assert one(engine, [{"role": "user", "content": "hello"}], GREEDY, 2).text == "next hello 2"
