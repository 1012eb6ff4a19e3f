"""What an engine's log-probabilities say about the weights that it serves."""

import random
import subprocess
import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import torch
from trainings import make_run
from transformers import AutoModelForCausalLM

from selfreward.errors import Damaged, WeightCheckError
from selfreward.runs.stages import Step
from selfreward.serving.weight_check import Probes, compare, read_probes, require_merged, require_served
from selfreward.training.dpo import train_iteration
from selfreward.training.sft import train_seed

LENGTHS = (250, 251, 249, 250)  # a thousand tokens


def texts(value: float | None, random_state: random.Random, spread: float = 1.0) -> list[list[float]]:
    """The same figure for every token, or figures drawn from a normal distribution."""
    return [[random_state.gauss(0, spread) if value is None else value for _ in range(n)] for n in LENGTHS]


def add(first: list[list[float]], second: list[list[float]], factor: float = 1.0) -> list[list[float]]:
    return [[a + factor * b for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]


def make_probes(change: float = 0.02, dtype: str = "bfloat16", seed: int = 0) -> Probes:
    """A model whose training has changed each token's log-probability by ``change`` nats, in the root mean square."""
    state = random.Random(seed)
    previous = add(texts(-3.0, state), texts(None, state))
    policy = add(previous, texts(None, state, change))
    return Probes(dtype, [[1] * (n + 1) for n in LENGTHS], previous, policy, policy)


def test_the_new_weights_are_told_from_the_old_ones() -> None:
    probes = make_probes()
    evidence = require_served(probes, probes.merged, "iter_1/model")
    assert (evidence.difference, evidence.share) == (0.0, pytest.approx(1.0))
    with pytest.raises(
        WeightCheckError,
        match=r"does not serve iter_1/model: its log-prob.* by 0\.016\d nats in the mean \(bound 0\.1 in bfloat16\), "
        r"and 0% of the change is served\. Restart it with launch\.keep_engine: false",
    ):
        require_served(probes, probes.previous, "iter_1/model")


@pytest.mark.parametrize(("part", "accepted"), [(0.0, False), (0.45, False), (0.55, True), (1.0, True), (1.4, True)])
def test_part_of_the_change_is_measured_as_that_part(part: float, accepted: bool) -> None:
    probes = make_probes()
    served = add(probes.previous, add(probes.merged, probes.previous, -1), part)
    assert compare(probes, served).share == pytest.approx(part)
    if accepted:
        require_served(probes, served, "iter_1/model")
    else:
        with pytest.raises(WeightCheckError):
            require_served(probes, served, "iter_1/model")


def test_noise_four_times_as_large_as_the_change_misleads_nobody() -> None:
    for seed in range(50):
        probes, state = make_probes(change=0.02, seed=seed), random.Random(f"noise {seed}")
        noise = texts(None, state, 0.08)
        require_served(probes, add(probes.merged, noise), "new")
        with pytest.raises(WeightCheckError):
            require_served(probes, add(probes.previous, noise), "old")


def test_noise_forty_times_as_large_raises_no_false_alarm() -> None:
    """Then nobody can tell, and the share's standard error says so."""
    for seed in range(50):
        probes = make_probes(change=0.002, seed=seed)
        evidence = require_served(probes, add(probes.merged, texts(None, random.Random(seed), 0.08)), "new")
        assert evidence.share_error > 1


@pytest.mark.parametrize(("dtype", "noise"), [("float32", 0.002), ("float16", 0.04), ("bfloat16", 0.2)])
def test_what_is_too_far_from_the_policy_is_refused(dtype: str, noise: float) -> None:
    """Whatever the share: some third model, or arithmetic that is broken."""
    probes = make_probes(change=1.0, dtype=dtype)
    state = random.Random(0)
    require_served(probes, add(probes.merged, texts(None, state, noise / 4)), "new")
    with pytest.raises(WeightCheckError, match=f"in {dtype}"):
        require_served(probes, add(probes.merged, texts(None, state, noise)), "new")
    with pytest.raises(WeightCheckError, match="by nan nats"):
        require_served(probes, [[nan] * n for n in LENGTHS], "new")


def test_other_tokens_than_those_asked_for_are_no_evidence() -> None:
    probes = make_probes()
    with pytest.raises(ValueError, match="zip"):
        compare(probes, probes.merged[:-1])


def test_a_merge_is_checked_against_the_policy() -> None:
    probes = make_probes()
    assert require_merged(probes).share == pytest.approx(1)
    with pytest.raises(WeightCheckError, match=r"differs by 0\.0\d+ nats .* and 0% of the change is in it"):
        require_merged(replace(probes, merged=probes.previous))
    with pytest.raises(WeightCheckError, match=r"differs by 0\.6 nats \(bound 0\.5 in bfloat16\)"):
        require_merged(replace(probes, merged=[[probes.policy[0][0] + 0.6, *probes.policy[0][1:]], *probes.policy[1:]]))
    with pytest.raises(WeightCheckError, match="training changed nothing"):
        require_merged(replace(probes, policy=probes.previous))


def test_the_file_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    probes = make_probes()
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "probes.json"
    probes.write(path)
    assert read_probes(str(tmp_path / "model")) == probes
    assert read_probes("owner/name") is None
    path.write_bytes(path.read_bytes().replace(b"-3.", b"-2.", 1))
    with pytest.raises(Damaged):
        read_probes(str(tmp_path / "model"))


@torch.no_grad()
def served_by_transformers(path: str, probes: Probes) -> list[list[float]]:
    """What an engine of the model's own dtype gives."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, probes.dtype))
    rows = [model(torch.tensor([ids])).logits[0].float().log_softmax(-1) for ids in probes.ids]
    return [
        [row[n, token].item() for n, token in enumerate(ids[1:])] for row, ids in zip(rows, probes.ids, strict=True)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("iteration", [0, 1])
def test_a_trained_model_is_told_from_the_one_before_it(tmp_path, tiny_random_model, dtype, iteration) -> None:
    run = make_run(tmp_path, tiny_random_model, dtype, seeded=iteration == 0)
    summary = train_iteration(run, Step("train", 1)) if iteration else train_seed(run)
    probes = read_probes(run.model_path(iteration + 1))
    assert probes is not None
    assert [len(ids) for ids in probes.ids] == [len(row) + 1 for row in probes.policy]
    assert len(probes.ids) == 4
    assert 0 <= summary["merge_difference"] < (1e-4 if dtype == "float32" else 0.2)
    new, old = (served_by_transformers(run.model_path(t), probes) for t in (iteration + 1, iteration))
    evidence = require_served(probes, new, "new")
    assert evidence.share == pytest.approx(1, abs=1e-3 if dtype == "float32" else 0.1)
    with pytest.raises(WeightCheckError):
        require_served(probes, old, "new")


def test_long_texts_are_cut_to_their_end() -> None:
    from selfreward.recipe.engine_settings import ModelSettings
    from selfreward.text.chat import load_tokenizer
    from selfreward.training.probes import probe_ids

    folder = str(Path(__file__).parent.parent / "selfreward" / "tiny" / "model")
    tokenizer = load_tokenizer(folder, ModelSettings(path=folder))
    conversation = [{"role": "user", "content": "count " * 400}, {"role": "assistant", "content": "bear"}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
    for options, length in (({}, 256), ({"max_model_len": 128}, 127), ({"max_model_len": -1}, 256)):
        (ids,) = probe_ids(tokenizer, [conversation], options)
        assert ids == [whole[0], *whole[1 - length :]]


def test_comparing_imports_no_torch() -> None:
    code = "import sys, selfreward.serving.weight_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
