"""DPO with a fresh LoRA on M_t, whose merge is M_{t+1} (arXiv 2401.10020, section 2.4).

The policy with its adapter off *is* M_t, and needs no second model where M_t is the reference. With
training.load_in_4bit both are M_t with four bits a weight, and the adapter is added to the M_t that was quantized.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import LoraConfig
from transformers.distributed.fsdp import is_fsdp_enabled
from trl import DPOConfig

from selfreward.launchers.batch import DEFAULT_BATCH, PER_DEVICE
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, reference_of
from selfreward.runtime.atomic import sync_tree
from selfreward.runtime.whole_folder import discard
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
from selfreward.training.consistency import COLUMN, ConsistentDPOTrainer
from selfreward.training.examples import preference_rows, rows_by_source, split
from selfreward.training.finite import FiniteDPOTrainer
from selfreward.training.merge import merge_adapter, prove
from selfreward.training.probes import NUM_TEXTS, probe_ids
from selfreward.training.quantized import load_options, widen_adapter
from selfreward.training.upstream_internals import drop_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Section 3.1.2: batch 16, cosine from 1e-6 to 1e-7, beta 0.1.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-7},
    PER_DEVICE: DEFAULT_BATCH,
    "beta": 0.1,
}
LORA_DEFAULTS: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def train_iteration(run: Run, step: Step) -> dict[str, Any]:
    """Trains on the iteration's pairs, keeps the adapter in the stage's folder and writes M_{t+1} beside it.

    An interrupted training goes on from its last checkpoint, an interrupted merge from the adapter.

    Raises:
        ValueError: a loss or a weight that is not a number.
        Stopped: the process was asked to stop before the last step.
        DiskFull: the disk has no room for a checkpoint or the model.
        WeightCheckError: the merged model is not the trained policy.
    """
    folder = checkpoints_folder(run, step)
    options = with_defaults(DEFAULTS, run.recipe.training.dpo_options(step.iteration))
    args = arguments(DPOConfig, run, step, options)
    summary = trained_before(folder, args)
    if summary is None:
        summary = train_adapter(run, step, args)
    if args.process_index == 0:
        summary |= merge(run, step, folder / "trained")
        _keep_adapter(folder / "trained", folder.with_name("adapter"))
    return summary


def train_adapter(run: Run, step: Step, args: DPOConfig) -> dict[str, Any]:
    """Leaves the adapter in ``train/checkpoints/trained``, marked with the summary, which is returned."""
    source = run.model_path(step.iteration)
    tokenizer = load_tokenizer(source, run.recipe.model)
    by_source = rows_by_source(run, step)
    every = [row for rows in by_source.values() for row in rows]
    rows, left_out = split(every, ("chosen", "rejected"), ChatEncoder(tokenizer), run.recipe.training.dpo)
    weighed = any(row.get(COLUMN, 1.0) < 1 for row in rows)
    trainer = (ConsistentDPOTrainer if weighed else FiniteDPOTrainer)(
        model=load_model(source, run, **load_options(run.recipe)),
        ref_model=reference_model(run, step, args),
        args=args,
        train_dataset=_dataset(rows, checkpoints_folder(run, step) / "rows", args),
        processing_class=tokenizer,
        peft_config=LoraConfig(**{**LORA_DEFAULTS, **run.recipe.training.lora}, task_type="CAUSAL_LM"),
    )
    if run.recipe.training.load_in_4bit:
        widen_adapter(trainer)
    if args.precompute_ref_log_probs:
        drop_reference(trainer)
    added = {source: len(rows) for source, rows in by_source.items() if source != "pairs"}
    summary = {"examples": len(rows), **added, **left_out, **train(trainer, run, step)}
    keep_trained(trainer, checkpoints_folder(run, step), summary)
    return summary


def _dataset(rows: list[dict[str, Any]], folder: Path, args: DPOConfig) -> Dataset:
    """The rows; on the disk where TRL's first rank is to leave the reference's figures beside them for the others."""
    dataset = Dataset.from_list(rows)
    if args.world_size == 1 or not args.precompute_ref_log_probs:
        return dataset
    if args.process_index == 0:
        discard(folder)
        dataset.save_to_disk(folder)
    args.distributed_state.wait_for_everyone()
    return Dataset.load_from_disk(folder)


def reference_model(run: Run, step: Step, args: DPOConfig) -> PreTrainedModel | None:
    """The model that DPO measures the policy against, or None where it is M_t: the policy with its adapter off.

    Raises:
        ValueError: accelerate is to give weights to the policy alone, and this is a second model.
    """
    t = reference_of(run.recipe, step.iteration)
    # Before the training the policy is not on the GPUs that share it, where TRL computes the reference's figures.
    elsewhere = args.precompute_ref_log_probs and os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if t == step.iteration and not elsewhere:
        return None
    if is_fsdp_enabled():
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is true, and the reference is a second model, of which the other ranks "
            "would have no weights. Write false in accelerate's file, or training.reference: previous without "
            "precompute_ref_log_probs"
        )
    return load_model(run.model_path(t), run, **load_options(run.recipe)).requires_grad_(False)


def merge(run: Run, step: Step, adapter: Path) -> dict[str, float]:
    """Writes M_{t+1} and the probes, and returns how near it is to the trained policy."""
    rows = preference_rows(run, step)[: NUM_TEXTS // 2]
    conversations = [[*row["prompt"], *row[side]] for row in rows for side in ("chosen", "rejected")]
    tokenizer = load_tokenizer(run.model_path(step.iteration), run.recipe.model)
    ids = probe_ids(tokenizer, conversations, run.recipe.engine.vllm)
    previous, policy = merge_adapter(run, step, adapter, ids)
    return prove(run, step, ids, previous, policy)


def _keep_adapter(trained: Path, adapter: Path) -> None:
    """Copies the weights and their settings, without upstream's card."""
    adapter.mkdir(exist_ok=True)
    shutil.copyfile(trained / "adapter_model.safetensors", adapter / "adapter_model.safetensors")
    settings = json.loads((trained / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(settings["target_modules"], list):
        # A set in PEFT, in another order in each process.
        settings["target_modules"].sort()
    (adapter / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    sync_tree(adapter)
