"""The seed stage: SFT on instruction and judging data makes M1 (arXiv 2401.10020, section 2.1)."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from selfreward.chat import fits, load_tokenizer
from selfreward.judges.load import load_judge
from selfreward.prompts.dataset import read_demonstrations, read_graded
from selfreward.rundir import Run
from selfreward.training.common import load_alone, load_model, save_model, train, trainer_options, with_defaults

# Section 3.1.2: batch 16, cosine from 5.5e-6 to 1.1e-6, loss on the target tokens only.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5.5e-6,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1.1e-6},
    "per_device_train_batch_size": 16,
}


def train_seed(run: Run) -> dict[str, Any]:
    """Trains M1 from M0 on the recipe's IFT and EFT data and writes it to ``seed/model``.

    Raises:
        ValueError: bad lines in the data, or a loss that is not a number.
    """
    source = run.model_path(0)
    options = with_defaults(DEFAULTS, run.recipe.training.sft)
    tokenizer = load_tokenizer(source, run.recipe.model)
    every = seed_rows(run)
    rows = [row for row in every if fits(tokenizer, [*row["prompt"], *row["completion"]], options)]
    if not rows:
        raise ValueError(f"none of {len(every)} examples of seed_data fits: raise training.sft.max_length")
    trainer = SFTTrainer(
        # In bfloat16 most steps of this size are lost in rounding: master weights are float32, computing is not.
        model=load_model(source, run, torch.float32),
        args=SFTConfig(**trainer_options(run, 0, options)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    summary = train(trainer, run, 0)
    # Every rank takes part in saving, as under FSDP and ZeRO-3 each has a share of the weights.
    trained = run.stage("train", 0).path / "trained"
    trainer.save_model(str(trained))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        save_model(load_alone(str(trained), run), run, source, 0)
        shutil.rmtree(trained)
    return {"examples": len(rows), "too_long": len(every) - len(rows), **summary}


def seed_rows(run: Run) -> list[dict[str, Any]]:
    """IFT and EFT in TRL's prompt-completion format; EFT's prompt is the judge's own."""
    assert run.recipe.seed_data is not None
    judge = load_judge(run.recipe)
    rows = [
        _row([{"role": "user", "content": d.prompt}], d.response) for d in read_demonstrations(run.recipe.seed_data.ift)
    ]
    rows += [_row(judge.messages(g.prompt, g.response), g.judgement) for g in read_graded(run.recipe.seed_data.eft)]
    return rows


def _row(prompt: list[dict[str, str]], completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": completion}]}
