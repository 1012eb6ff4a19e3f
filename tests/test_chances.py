"""The probabilities of the next token, which the expected score is computed from."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from test_chat import BUILDERS, control_ids
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from selfreward.engines import Completion, Engine, SamplingParams
from selfreward.engines.base import TOO_LONG
from selfreward.engines.journaled import JournaledEngine
from selfreward.engines.scripted import ScriptedEngine
from selfreward.recipe import registry
from selfreward.recipe.engine_facts import engine_facts, require_needs
from selfreward.recipe.engine_settings import EngineSettings, ModelSettings, OpenAISettings
from selfreward.records import Message, derive_seed
from selfreward.runs.journal import Journal
from selfreward.text.chat import ChatEncoder

SCORES = [str(score) for score in range(6)]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["Review the answer of a bear, and give it a score. I count the words.\nScore: 0 1 2 3 4 5 points"] * 4
VLLM_OPTIONS = {
    "max_model_len": 256,
    "max_num_seqs": 256,
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 26,
    "disable_log_stats": False,
}
ONE_TOKEN = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=1)
BEGINNINGS = ["", "Score:", "I count <|im_end|>\n<|im_start|>user\nthe words.\nScore:"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Of bytes, with a score as up to three tokens: bare, behind a space, and 4 behind a tab as well."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens([AddedToken("\t4", normalized=False)])
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHATML)


def make_judge(path: Path) -> Path:
    """A model with random weights, but that half of its next tokens are scores; how they are spread, the text decides.

    The hidden state behind one prompt, which is like those behind others, lifts the logits of those tokens.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    scores = [token for ids in score_ids(tokenizer, SCORES).values() for token in ids]
    prompt = tokenizer.apply_chat_template(user("Review"), add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        state = model.model(**prompt).last_hidden_state[0, -1]
        model.lm_head.weight[scores] += 8 * state / state.square().sum()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def score_ids(tokenizer: PreTrainedTokenizerFast, options: Sequence[str]) -> dict[str, list[int]]:
    """By going through the vocabulary."""
    return {
        option: [token for token in range(len(tokenizer)) if tokenizer.decode([token]).lstrip() == option]
        for option in options
    }


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_judge(tmp_path_factory.mktemp("chances") / "judge")


def start(name: str, path: Path) -> Any:
    settings = EngineSettings(
        name=name, vllm=VLLM_OPTIONS, openai=OpenAISettings(base_url="http://localhost:1/v1", model="judge")
    )
    return registry.load(name, registry.ENGINES, "engine")(
        str(path), ModelSettings(path=str(path), dtype="float32"), settings
    )


@pytest.fixture(scope="module")
def engines(judge: Path) -> Iterator[Callable[[str], Any]]:
    """Starts each engine once."""
    started: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in started:
            started[name] = start(name, judge)
        return started[name]

    yield get
    for engine in started.values():
        engine.close()


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, engines: Callable[[str], Any]) -> Any:
    return engines(request.param)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


WORDS = CORPUS[0].split()
CASES = [user(" ".join(random.Random(place).choices(WORDS, k=2 + place % 4))) for place in range(50)]


def ask(engine: Engine, cases: Sequence[list[Message]], prefix: str = "", options: Sequence[str] = SCORES) -> Any:
    """All at once."""

    async def everything() -> list[list[float] | None]:
        return await asyncio.gather(*(engine.option_probs(messages, prefix, options) for messages in cases))

    return asyncio.run(everything())


class Reference:
    """The distribution of the next token by one plain forward pass over ids that are found in another way."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def ids(self, messages: list[Message], prefix: str) -> list[int]:
        """The rendered text, in which what looks like a control token in ``prefix`` is encoded as text."""
        encode = self.tokenizer.backend_tokenizer
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
        encode.encode_special_tokens = True
        try:
            return [*prompt, *encode.encode(prefix, add_special_tokens=False).ids]
        finally:
            encode.encode_special_tokens = False

    @torch.inference_mode()
    def __call__(self, messages: list[Message], prefix: str) -> torch.Tensor:
        return self._model(input_ids=torch.tensor([self.ids(messages, prefix)])).logits[0, -1].softmax(-1)


@pytest.fixture(scope="module")
def reference(judge: Path) -> Reference:
    return Reference(judge)


@pytest.mark.parametrize("prefix", BEGINNINGS, ids=["none", "plain", "control text"])
def test_they_are_those_of_the_model(engine: Engine, reference: Reference, prefix: str) -> None:
    groups = score_ids(reference.tokenizer, SCORES)
    assert [len(ids) for ids in groups.values()] == [2, 2, 2, 2, 3, 2]
    for messages, probs in zip(CASES, ask(engine, CASES, prefix), strict=True):
        probabilities = reference(messages, prefix)
        assert probs == pytest.approx([float(probabilities[ids].sum()) for ids in groups.values()], abs=1e-4)
        others = [token for token in range(len(probabilities)) if all(token not in ids for ids in groups.values())]
        assert 1 - sum(probs) == pytest.approx(float(probabilities[others].sum()), abs=1e-4)


def test_requests_of_other_kinds_share_the_batch(engine: Engine, reference: Reference) -> None:
    """Such as samples, and those for more tokens than one request of vLLM may ask for."""
    texts = {reference.tokenizer.decode([token]).lstrip() for token in range(256)} - {"", "\ufffd"}
    many = sorted(text for text in texts if text.isascii())
    alone = ask(engine, CASES[:6]), asyncio.run(engine.generate(CASES[0], ONE_TOKEN, [1, 2, 3]))

    async def together() -> tuple[Any, ...]:
        return await asyncio.gather(
            *(engine.option_probs(messages, "", SCORES[: 1 + place]) for place, messages in enumerate(CASES[:6])),
            engine.generate(CASES[0], ONE_TOKEN, [1, 2, 3]),
            engine.option_probs(CASES[0], "", many * 2),
        )

    *few, sampled, most = asyncio.run(together())
    for place, probs in enumerate(few):
        assert probs == pytest.approx(alone[0][place][: 1 + place], abs=1e-5)
    assert sampled == alone[1]
    assert len(many) * 2 > 128
    probabilities = reference(CASES[0], "")
    expected = [float(probabilities[ids].sum()) for ids in score_ids(reference.tokenizer, many).values()]
    assert most == pytest.approx(expected * 2, abs=1e-4)


def test_a_prompt_without_room_for_a_token(engine: Engine, reference: Reference) -> None:
    fits = user("a" + " a" * (255 - len(reference.ids(user("a"), ""))))
    assert len(reference.ids(fits, "")) == 255
    [probs, too_long] = ask(engine, [fits, user(fits[0]["content"] + " a")])
    assert probs == pytest.approx(
        [float(reference(fits, "")[ids].sum()) for ids in score_ids(reference.tokenizer, SCORES).values()], abs=1e-4
    )
    assert too_long is None
    assert ask(engine, [fits], "a") == [None]


def test_an_option_of_several_tokens(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"'42' is no token of this model, which writes it as \['4', '2'\].*one token"):
        ask(engine, CASES[:1], options=["1", "42"])
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' is no token"):
        ask(engine, CASES[:1], options=["<|im_end|>"])


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_the_beginning_of_an_answer_is_text_that_goes_on(kind: str) -> None:
    """Without control tokens, and without a space that some tokenizers put before every text."""
    chat = ChatEncoder(BUILDERS[kind]())
    messages = user("Name five animals")
    control = [token for token in chat.tokenizer.get_added_vocab() if token != "<b>"]
    prompt = chat.encode(messages)
    for prefix in ("", "Score:", " Score:", "I count.\nScore:", *control, "".join(control), f"bear{control[0]}camel"):
        ids = chat.begin(messages, prefix)
        assert ids[: len(prompt)] == prompt
        assert control_ids(chat, ids[len(prompt) :]) == []
        if kind != "tiny":  # which has no letters to keep strange words with
            decode = chat.tokenizer.decode
            assert decode(ids, skip_special_tokens=False) == decode(prompt, skip_special_tokens=False) + prefix


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_all_tokens_of_an_option(kind: str) -> None:
    """In a vocabulary with byte fallback, a byte is one more way to write a character."""
    chat = ChatEncoder(BUILDERS[kind]())
    for option, ids in score_ids(chat.tokenizer, [*SCORES, "Score"]).items():
        if ids:
            assert chat.option_ids(option) == ids
    fallback = chat.tokenizer.get_vocab().get("<0x34>")
    assert (fallback in chat.option_ids("4")) == (kind in ("mistral", "gemma"))


def expected_score(probs: Sequence[float]) -> float:
    return sum(score * chance for score, chance in enumerate(probs)) / sum(probs)


def z_scores(probs: Sequence[Sequence[float]], votes: Sequence[Sequence[int]]) -> list[float]:
    """How far the mean of each case's votes lies from its expected score, in standard errors of that mean."""
    figures = []
    for row, cast in zip(probs, votes, strict=True):
        mean = expected_score(row)
        variance = sum(chance * (score - mean) ** 2 for score, chance in enumerate(row)) / sum(row)
        figures.append((fmean(cast) - mean) / (variance / len(cast)) ** 0.5)
    return figures


def sampled_texts(engine: Engine, cases: Sequence[list[Message]]) -> list[list[str]]:
    """2,000 tokens of each case; no two cases share a seed, as their noise would then be the same."""

    async def everything() -> list[list[Completion]]:
        return await asyncio.gather(
            *(
                engine.generate(messages, ONE_TOKEN, [derive_seed(messages[0]["content"], n) for n in range(2000)])
                for messages in cases
            )
        )

    return [[completion.text.lstrip() for completion in row] for row in asyncio.run(everything())]


def test_the_expected_score_is_the_mean_of_sampled_votes(
    engines: Callable[[str], Any], reference: Reference, record_property: Callable[[str, object], None]
) -> None:
    """50 cases of 2,000 sampled tokens each, of which those that are scores count as votes.

    If the figures are right, the z of a case is normal and the sum of their squares chi-squared with 50 degrees of
    freedom. The bounds are those that right figures pass in 99.8% of such tests.
    """
    engine = engines("vllm")
    probs = ask(engine, CASES)

    texts = [text for start in range(0, 50, 5) for text in sampled_texts(engine, CASES[start : start + 5])]
    votes = [[int(text) for text in row if text in SCORES] for row in texts]
    z = z_scores(probs, votes)
    squares = sum(figure**2 for figure in z)
    figures = {
        "votes": sum(map(len, votes)),
        "expected scores": (min(map(expected_score, probs)), max(map(expected_score, probs))),
        "mean z": fmean(z),
        "mean z squared": squares / 50,
        "above 2": sum(abs(figure) > 2 for figure in z),
        "greatest": max(map(abs, z)),
    }
    record_property("figures", figures)
    print(figures)
    assert min(map(len, votes)) >= 20, "enough for a mean to be nearly normal"
    assert chi2.ppf(0.001, 50) < squares < chi2.ppf(0.999, 50)
    assert abs(fmean(z)) < 3.1 / 50**0.5
    assert figures["above 2"] <= 8
    assert figures["greatest"] < 4

    bare = [ids[0] for ids in score_ids(reference.tokenizer, SCORES).values()]
    without_spaces = [reference(messages, "")[bare].tolist() for messages in CASES]
    assert sum(figure**2 for figure in z_scores(without_spaces, votes)) > 10 * chi2.ppf(0.999, 50)
    # The share of votes among all tokens is what the chances sum to.
    shares = [
        (len(cast) - 2000 * sum(row)) / (2000 * sum(row) * (1 - sum(row))) ** 0.5
        for cast, row in zip(votes, probs, strict=True)
    ]
    assert chi2.ppf(0.001, 50) < sum(figure**2 for figure in shares) < chi2.ppf(0.999, 50)


def test_a_long_prefix_is_found_in_the_cache(engines: Callable[[str], Any], reference: Reference) -> None:
    engine = engines("vllm")
    rubric = "Count the points of the answer. " * 20
    first, second = user(rubric + "bear"), user(rubric + "camel, deer")
    queries, hits = engine.prefix_cache()
    ask(engine, [first])
    assert engine.prefix_cache() == (queries + len(reference.ids(first, "")), hits)
    ask(engine, [second])
    found = engine.prefix_cache()[1] - hits
    assert found % 32 == 0
    assert 100 < found <= len(reference.ids(user(rubric), ""))


def test_hits_that_are_not_counted(engines: Callable[[str], Any]) -> None:
    engine = engines("vllm")
    engine._args.disable_log_stats = True
    try:
        with pytest.raises(ValueError, match=r"does not count .* Set vllm\.disable_log_stats to false"):
            engine.prefix_cache()
    finally:
        engine._args.disable_log_stats = False


@pytest.mark.parametrize("name", ["vllm", "transformers", "openai", "selfreward.engines.scripted:ScriptedEngine"])
def test_an_engine_that_writes_gives_no_rewards(name: str) -> None:
    facts = engine_facts(name)
    assert {"generate", "option_probs", "close"} <= facts.can
    assert "reward" not in facts.can
    assert ("prefix" in facts.can) == (name != "openai")
    with pytest.raises(ValueError, match=r"which can't give rewards\. Engines that can: classifier"):
        require_needs("reward_model", name, ["reward"])


@pytest.mark.parametrize(
    ("answer", "prefix", "expected"),
    [
        ("4", "", [0.0, 1.0, 0.0]),
        (" 10 points", "", [0.0, 0.0, 1.0]),
        ("I count.\nScore: 1", "I count.\nScore:", [1.0, 0.0, 0.0]),
        ("I count.\nScore: 1", "", [0.0, 0.0, 0.0]),
        ("no idea", "", [0.0, 0.0, 0.0]),
        (Completion("4", "stop", 1), "", [0.0, 1.0, 0.0]),
        (TOO_LONG, "", None),
    ],
)
def test_a_script_is_certain(
    monkeypatch: pytest.MonkeyPatch, answer: str | Completion, prefix: str, expected: list[float] | None
) -> None:
    monkeypatch.setattr(ScriptedEngine, "script", staticmethod(lambda model, text, seed: answer), raising=False)
    engine = ScriptedEngine("m", ModelSettings.model_construct(path="m"), EngineSettings())
    assert ask(engine, CASES[:1], prefix, ["1", "4", "10"]) == [expected]


class Counting(ScriptedEngine):
    """Tells chances after a while, notes what it was asked, and finds long texts too long."""

    def __init__(self) -> None:
        self.model = "m"
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        text = messages[-1]["content"]
        self.asked.append((text, prefix, tuple(options)))
        await asyncio.sleep(0.01)
        return None if len(text) > 20 else [1 / len(options)] * len(options)


def test_a_journaled_engine_asks_once(tmp_path: Path) -> None:
    engine = Counting()
    asks = [(user("a"), "", SCORES), (user("a"), "", SCORES), (user("a" * 30), "", SCORES), (user("a"), "b", SCORES)]

    async def everything(journaled: JournaledEngine) -> list[list[float] | None]:
        return await asyncio.gather(*(journaled.option_probs(*one) for one in asks))

    for _ in range(2):
        with Journal(tmp_path / "j") as journal:
            found = asyncio.run(everything(JournaledEngine(engine, journal, "judge")))
        assert found == [[1 / 6] * 6, [1 / 6] * 6, None, [1 / 6] * 6]
        assert engine.asked == [(m[0]["content"], b, tuple(o)) for m, b, o in (asks[0], *asks[2:])]

    with Journal(tmp_path / "j") as journal:
        other = JournaledEngine(engine, journal, "judge")
        asyncio.run(other.option_probs(user("a"), "", SCORES[1:]))
        asyncio.run(JournaledEngine(engine, journal, "policy").option_probs(user("a"), "", SCORES))
    assert len(engine.asked) == 5
