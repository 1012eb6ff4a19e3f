"""What SFT and DPO share: loading a model, trainer arguments, logs, and saving what is served next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from selfreward.chat import load_tokenizer
from selfreward.rundir import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments


def load_model(path: str, run: Run, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A causal language model from safetensors; ``dtype`` is the recipe's unless given."""
    settings = run.recipe.model
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype or getattr(torch, settings.dtype),
        revision=None if Path(path).is_dir() else settings.revision,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=True,
    )
    return model


def trainer_options(run: Run, iteration: int, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options with what the loop decides: where to write, the seed, the precision, the trackers."""
    dtype = run.recipe.model.dtype
    return {
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "save_strategy": "no",
        "logging_steps": 5,
        "disable_tqdm": True,
        **options,
        "output_dir": str(run.stage("train", iteration).path),
        "run_name": f"{run.recipe.name}-{iteration}",
        "report_to": run.recipe.tracking.report_to or "none",
        "seed": run.recipe.seed + iteration,
    }


def save_model(model: PreTrainedModel, run: Run, source: str, iteration: int) -> None:
    """Writes a model in the recipe's dtype, as safetensors, with the tokenizer and chat template it is served with."""
    out = run.stage("model", iteration).path
    model.to(getattr(torch, run.recipe.model.dtype)).save_pretrained(out)
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(source, run.recipe.model)
    tokenizer.save_pretrained(out)


class LogToRun(TrainerCallback):  # type: ignore[misc]
    """Puts the trainer's own logs into ``metrics.jsonl`` beside the loop's."""

    def __init__(self, run: Run, iteration: int) -> None:
        self._run, self._iteration = run, iteration

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self._run.log({"iteration": self._iteration, "stage": "train", "step": state.global_step, **logs})


def finish(run: Run, log_history: list[dict[str, float]]) -> dict[str, float]:
    """The trainer's summary: its last figures.

    Raises:
        ValueError: a loss that is not a number; such a model goes no further.
    """
    losses = [entry["loss"] for entry in log_history if "loss" in entry]
    broken = [loss for loss in losses if loss != loss or abs(loss) == float("inf")]
    if broken:
        raise ValueError(
            f"the training loss became {broken[0]}. Lower training.*.learning_rate, or set max_grad_norm; "
            f"the losses are in {run.path / 'metrics.jsonl'}"
        )
    wanted = ("train_loss", "rewards/accuracies", "rewards/margins", "loss", "epoch")
    return {name: entry[name] for entry in log_history for name in wanted if name in entry}
