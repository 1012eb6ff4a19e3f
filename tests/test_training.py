"""What is trained, and that the merge is the model before it plus its adapter."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_random_model
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from test_chat import BUILDERS
from trainings import logged, make_run
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import selfreward
from selfreward.errors import WeightCheckError
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.runs.stages import Step
from selfreward.text.chat import ChatEncoder, load_tokenizer
from selfreward.training import merge
from selfreward.training.dpo import train_iteration
from selfreward.training.examples import split
from selfreward.training.rounding import round_stochastically
from selfreward.training.sft import train_seed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_model_is_the_one_before_it_plus_its_adapter(tmp_path: Path, dtype: str) -> None:
    """Not the base model plus the adapter, and cast once: the sum is made in float32."""
    model = make_random_model(tmp_path / "model", seed=0)
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Name {n} birds."}) + "\n" for n in "abcdef")
    )
    (tmp_path / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (tmp_path / "run.yaml").write_text(f"""
name: test
run_dir: {tmp_path}/runs
iterations: 2
model: {{path: {model}, dtype: {dtype}}}
prompts: {{path: prompts.jsonl}}
judge: {{template: judge.txt, votes: 1}}
training:
  lora: {{r: 4, lora_alpha: 16}}
  dpo: {{max_steps: 2, learning_rate: 1e-2, per_device_train_batch_size: 2, gradient_checkpointing: false}}
engine: {{name: "scripts:Numbers"}}
""")
    run = selfreward.run(selfreward.load_recipe(tmp_path / "run.yaml"))
    weights = [load_file(f"{run.model_path(t)}/model.safetensors") for t in (1, 2, 3)]
    adapter = load_file(run.stage("train", 2).path / "adapter" / "adapter_model.safetensors")
    changed = 0
    for name, served in weights[2].items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        delta = torch.zeros(())
        if f"{key}.lora_A.weight" in adapter:
            delta = 16 / 4 * adapter[f"{key}.lora_B.weight"].float() @ adapter[f"{key}.lora_A.weight"].float()
            changed += 1
            assert not torch.allclose(served.float(), weights[0][name].float() + delta, atol=1e-4)
        expected = (weights[1][name].float() + delta).to(getattr(torch, dtype))
        torch.testing.assert_close(served, expected, rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-6)
    assert changed


@pytest.fixture(params=sorted(BUILDERS))
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path):
    BUILDERS[request.param]().save_pretrained(tmp_path)
    return load_tokenizer(str(tmp_path), ModelSettings(path=str(tmp_path)))


ASKED = [{"role": "user", "content": "bear"}]
ANSWERED = [{"role": "assistant", "content": "camel"}]


def test_the_trainer_sees_the_prompt_that_the_engine_samples_from(tokenizer, tiny_random_model, tmp_path) -> None:
    """One BOS, the same prompt ids as in sampling, and the end of the turn in what is learnt."""
    model = AutoModelForCausalLM.from_pretrained(tiny_random_model)
    options = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    preference = DPOTrainer(
        model=model,
        args=DPOConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": ASKED, "chosen": ANSWERED, "rejected": ANSWERED}]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    ).train_dataset[0]
    sampled = ChatEncoder(tokenizer).encode(ASKED)
    assert preference["prompt_ids"] == sampled
    assert tokenizer.bos_token_id is None or sampled.count(tokenizer.bos_token_id) <= 1
    assert _ends_the_turn(tokenizer, preference["chosen_ids"])

    example = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_random_model),
        args=SFTConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": ASKED, "completion": ANSWERED}]),
        processing_class=tokenizer,
    ).train_dataset[0]
    learnt = [token for token in example["labels"] if token != -100]
    assert example["input_ids"][: -len(learnt)] == sampled
    assert learnt == preference["chosen_ids"]


def _ends_the_turn(tokenizer, ids: list[int]) -> bool:
    """Whether a control token follows the text of the completion."""
    control = set(tokenizer.added_tokens_decoder)
    return any(token in control for token in ids[1:])


@pytest.mark.parametrize("iteration", [0, 1])
def test_a_loss_that_is_not_a_number_ends_the_training_in_its_step(tmp_path, tiny_random_model, iteration) -> None:
    broken = {"learning_rate": 1e30, "max_grad_norm": 1e30}
    run = make_run(tmp_path, tiny_random_model, seeded=iteration == 0, dpo=broken, sft=broken)
    with pytest.raises(
        ValueError, match=r"the training loss became nan in step 2\. Lower the learning_rate, or set max"
    ):
        train_iteration(run, Step("train", 1)) if iteration else train_seed(run)
    assert list(logged(run, "loss")) == [1]
    checkpoints = (run.stage("train", iteration).path / "checkpoints").glob("checkpoint-*")
    assert [path.name for path in checkpoints] == ["checkpoint-1"]
    assert not run.stage("model", iteration).path.exists()


def test_a_gradient_that_is_not_a_number_gets_into_no_checkpoint(tmp_path, tiny_random_model) -> None:
    """The loss is still one: at the first step policy and reference are the same."""
    run = make_run(tmp_path, tiny_random_model, dpo={"beta": 1e38})
    with pytest.raises(ValueError, match=r"the gradient became (inf|nan) in step 1\. Lower the learning_rate"):
        train_iteration(run, Step("train", 1))
    assert not list((run.stage("train", 1).path / "checkpoints").glob("checkpoint-*"))


def test_weights_that_are_not_numbers_become_no_model(tmp_path, tiny_random_model) -> None:
    run = make_run(tmp_path, tiny_random_model, dpo={"learning_rate": 1e39, "max_steps": 1})
    with pytest.raises(ValueError, match="the trained model gives log-probabilities that are not numbers"):
        train_iteration(run, Step("train", 1))
    model = AutoModelForCausalLM.from_pretrained(tiny_random_model)
    # No probe has this token.
    model.get_input_embeddings().weight.data[-1] = torch.nan
    with pytest.raises(ValueError, match="the trained model of iteration 1 has weights that are not numbers"):
        merge.save_model(model, run, str(tiny_random_model), Step("train", 1))
    assert not run.stage("model", 1).path.exists()


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_keeps_the_mean_and_what_needs_none(dtype: torch.dtype, step: float, sign: int) -> None:
    weight = torch.full((1000, 100), sign * (1 + step / 4))
    rounded = round_stochastically(weight, dtype, seed=0)
    assert rounded.dtype == dtype
    assert rounded.unique().tolist() == sorted([sign * 1.0, sign * (1 + step)])
    assert rounded.double().mean().item() == pytest.approx(sign * (1 + step / 4), abs=step / 100)
    assert round_stochastically(torch.tensor([sign * (1 + step)]), dtype, seed=0).item() == sign * (1 + step)
    assert round_stochastically(weight, dtype, seed=0).equal(rounded)
    assert not round_stochastically(weight, dtype, seed=1).equal(rounded)


TINY = Path(selfreward.__file__).parent / "tiny" / "model"


def test_the_merge_in_bfloat16_keeps_what_was_trained(tmp_path) -> None:
    """To the nearest, a sixth of the change is lost here."""
    summary = train_iteration(make_run(tmp_path, TINY, "bfloat16", dpo={"learning_rate": 1e-4}), Step("train", 1))
    assert summary["merge_share"] == pytest.approx(1, abs=0.1)
    assert 0 < summary["merge_difference"] < 0.2


def test_a_merge_that_loses_the_change_is_refused(tmp_path, monkeypatch) -> None:
    """At this learning rate most weights move by less than half the distance to their neighbours, and fall back."""
    monkeypatch.setattr(merge, "round_stochastically", lambda weight, dtype, seed: weight.to(dtype))
    run = make_run(tmp_path, TINY, "bfloat16", dpo={"learning_rate": 1e-5})
    with pytest.raises(WeightCheckError, match=r"and [12]\d% of the change is in it\. Set model\.dtype to float32"):
        train_iteration(run, Step("train", 1))


def test_a_training_that_changes_nothing_is_refused(tmp_path, tiny_random_model) -> None:
    run = make_run(tmp_path, tiny_random_model, dpo={"learning_rate": 0.0, "lr_scheduler_type": "constant"})
    with pytest.raises(WeightCheckError, match="training changed nothing"):
        train_iteration(run, Step("train", 1))


def test_rows_that_would_be_trained_as_something_else_are_left_out_by_reason(tiny_random_model):
    """The trainer's tokenizer takes ``<|end|>`` in a text for the token that ends a turn."""
    chat = ChatEncoder(load_tokenizer(str(tiny_random_model), ModelSettings(path=str(tiny_random_model))))

    def row(prompt: str, chosen: str, rejected: str = "fox") -> dict[str, list[dict[str, str]]]:
        texts = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
        return {name: [{"role": role, "content": text}] for name, (role, text) in texts.items()}

    good = row("Name one bird", "owl")
    poisoned = [row("Name <|end|>", "owl"), row("Name one bird", "owl<|eos|>"), row("a", "b", "<|assistant|>yes")]
    long = [row("Name one bird", " ".join(["owl"] * 40))]
    kept, left_out = split([good, *poisoned, *long], ("chosen", "rejected"), chat, {"max_length": 30})
    assert kept == [good]
    assert left_out == {"control_tokens": 3, "too_long": 1}
    assert split(poisoned[2:], ("chosen",), chat, {})[0] == poisoned[2:]
