"""DPO with a fresh LoRA on M_t, whose merge is M_{t+1} (arXiv 2401.10020, section 2.4).

There is no ``ref_model``: the policy with its adapter off *is* M_t, the reference.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel
from trl import DPOConfig, DPOTrainer

from selfreward.chat import load_tokenizer
from selfreward.judges.load import load_judge
from selfreward.prompts.dataset import read_graded
from selfreward.records import PreferencePair, derive_seed
from selfreward.rundir import Run
from selfreward.training.common import load_alone, load_model, save_model, train, trainer_options, with_defaults

# Section 3.1.2: batch 16, cosine from 1e-6 to 1e-7, beta 0.1.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-7},
    "per_device_train_batch_size": 16,
    "beta": 0.1,
}
LORA_DEFAULTS: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def train_iteration(run: Run, iteration: int) -> dict[str, Any]:
    """Trains on the iteration's pairs, keeps the adapter in ``train/adapter`` and writes M_{t+1} to ``model``.

    Raises:
        ValueError: a loss or a merged weight that is not a number.
    """
    source = run.model_path(iteration)
    settings = run.recipe.training
    rows = preference_rows(run, iteration)
    trainer = DPOTrainer(
        model=load_model(source, run),
        args=DPOConfig(**trainer_options(run, iteration, with_defaults(DEFAULTS, settings.dpo))),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(source, run.recipe.model),
        peft_config=LoraConfig(**{**LORA_DEFAULTS, **settings.lora}, task_type="CAUSAL_LM"),
    )
    summary = train(trainer, run, iteration)
    adapter = str(run.stage("train", iteration).path / "adapter")
    trainer.save_model(adapter)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        merge(run, source, adapter, iteration)
    return {"examples": len(rows), **summary}


def preference_rows(run: Run, iteration: int) -> list[dict[str, Any]]:
    """The iteration's pairs in TRL's columns, with the rehearsed judging examples.

    A rehearsed row has its right judgement as chosen *and* rejected: the preference term is then constant
    and has no gradient, so that the row adds nothing but the NLL term. That is the pretraining mix of
    InstructGPT (arXiv 2203.02155) with judging data in the place of pretraining data.
    """
    pairs = run.records("pairs", iteration, PreferencePair)
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    num = round(run.recipe.training.rehearsal * len(pairs))
    if not num:
        return rows
    assert run.recipe.seed_data is not None
    graded = read_graded(run.recipe.seed_data.eft)
    picked = random.Random(derive_seed(run.recipe.seed, iteration, "rehearsal")).sample(graded, min(num, len(graded)))
    judge = load_judge(run.recipe)
    for example in picked:
        verdict = [{"role": "assistant", "content": example.judgement}]
        rows.append(
            {"prompt": judge.messages(example.prompt, example.response), "chosen": verdict, "rejected": verdict}
        )
    return rows


def merge(run: Run, source: str, adapter: str, iteration: int) -> None:
    """Adds the adapter to M_t in float32, where the sum is exact enough, and casts once to the recipe's dtype.

    Merging in bfloat16 itself shifts the loss (peft#1388).
    """
    base = load_alone(source, run)
    merged = PeftModel.from_pretrained(base, adapter, torch_device="cpu").merge_and_unload(safe_merge=True)
    save_model(merged, run, source, iteration)
