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
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import selfreward
from selfreward.chat import ChatEncoder, load_tokenizer
from selfreward.config import ModelSettings


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
