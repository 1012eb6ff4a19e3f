"""The seed stage: SFT on instruction and judging data makes M1 (arXiv 2401.10020, section 2.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig

from selfreward.judges import panel_of
from selfreward.launchers.batch import DEFAULT_BATCH, PER_DEVICE
from selfreward.prompts.seed_data import read_demonstrations, read_graded
from selfreward.runs.run import Run
from selfreward.runs.stages import SEED_STEP
from selfreward.text.chat import ChatEncoder, load_tokenizer
from selfreward.training.common import (
    arguments,
    checkpoints_folder,
    keep_trained,
    load_model,
    train,
    trained_before,
    with_defaults,
)
from selfreward.training.examples import split
from selfreward.training.finite import FiniteSFTTrainer
from selfreward.training.merge import cast_trained, prove
from selfreward.training.probes import probe_ids

# Section 3.1.2: batch 16, cosine from 5.5e-6 to 1.1e-6, loss on the target tokens only.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5.5e-6,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1.1e-6},
    PER_DEVICE: DEFAULT_BATCH,
}


def train_seed(run: Run) -> dict[str, Any]:
    """Trains M1 from M0 on the recipe's IFT and EFT data and writes it to ``seed/model``.

    An interrupted training goes on from its last checkpoint, an interrupted save from the trained weights.

    Raises:
        ValueError: bad lines in the data, or a loss or a weight that is not a number.
        Stopped: the process was asked to stop before the last step.
        DiskFull: the disk has no room for a checkpoint or the model.
        WeightCheckError: the saved model is not the trained one.
    """
    folder = checkpoints_folder(run, SEED_STEP)
    options = with_defaults(DEFAULTS, run.recipe.training.sft)
    args = arguments(SFTConfig, run, SEED_STEP, options)
    summary = trained_before(folder, args)
    if summary is None:
        summary = train_weights(run, args)
    if args.process_index == 0:
        summary |= save_seed(run, folder / "trained")
    return summary


def train_weights(run: Run, args: SFTConfig) -> dict[str, Any]:
    """Leaves the weights in float32 in ``train/checkpoints/trained``, marked with the summary, which is returned."""
    source = run.model_path(0)
    tokenizer = load_tokenizer(source, run.recipe.model)
    every = seed_rows(run)
    rows, left_out = split(every, ("completion",), ChatEncoder(tokenizer), run.recipe.training.sft)
    if not rows:
        raise ValueError(
            f"none of {len(every)} examples of seed_data can be trained: {left_out['too_long']} are too long (raise "
            f"training.sft.max_length), and {left_out['control_tokens']} hold the text of a control token"
        )
    trainer = FiniteSFTTrainer(
        # In bfloat16 most steps of this size are lost in rounding: master weights are float32, computing is not.
        model=load_model(source, run, torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    summary = {"examples": len(rows), **left_out, **train(trainer, run, SEED_STEP)}
    keep_trained(trainer, checkpoints_folder(run, SEED_STEP), summary)
    return summary


def save_seed(run: Run, trained: Path) -> dict[str, float]:
    """Writes M1 and the probes, and returns how near it is to what was trained."""
    conversations = [[*row["prompt"], *row["completion"]] for row in seed_rows(run)]
    tokenizer = load_tokenizer(run.model_path(0), run.recipe.model)
    ids = probe_ids(tokenizer, conversations, run.recipe.engine.vllm)
    previous, policy = cast_trained(run, trained, ids)
    return prove(run, SEED_STEP, ids, previous, policy)


def seed_rows(run: Run) -> list[dict[str, Any]]:
    """IFT and EFT in TRL's prompt-completion format; EFT's prompt is the judge's own."""
    assert run.recipe.seed_data is not None
    rows = [_row(each.messages, each.response) for each in read_demonstrations(run.recipe.seed_data.ift)]
    if run.recipe.seed_data.eft is None:
        return rows
    examples = panel_of(run.recipe).examples(read_graded(run.recipe.seed_data.eft))
    return rows + [_row(example.messages, example.judgement) for example in examples]


def _row(prompt: list[dict[str, str]], completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": completion}]}
