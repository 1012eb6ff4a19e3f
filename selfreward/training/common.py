"""What SFT and DPO share: loading a model, trainer arguments, logs, and saving what is served next."""

from __future__ import annotations

from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.integrations import unset_hf_deepspeed_config

from selfreward.chat import load_tokenizer, model_errors
from selfreward.progress import track
from selfreward.records import derive_seed
from selfreward.rundir import Run
from selfreward.serving import has_gpu

LOWER = "Lower the learning_rate, or set max_grad_norm"
FIGURES = ("train_loss", "rewards/accuracies", "rewards/margins")

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )


def load_model(path: str, run: Run, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A causal language model from safetensors; ``dtype`` is the recipe's unless given."""
    settings = run.recipe.model
    with model_errors(path):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or getattr(torch, settings.dtype),
            revision=None if Path(path).is_dir() else settings.revision,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
        )
    return model


def load_alone(path: str, run: Run) -> PreTrainedModel:
    """A model in float32 for this one process, after a training that several shared."""
    # Under ZeRO-3 transformers would otherwise split it over all of them, who load nothing.
    unset_hf_deepspeed_config()
    return load_model(path, run, torch.float32)


def trainer_options(run: Run, iteration: int, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options with what the loop decides: where to write, the seed, the precision, the trackers."""
    dtype = run.recipe.model.dtype
    return {
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "save_strategy": "no",
        "logging_steps": 5,
        "disable_tqdm": True,
        "use_cpu": not has_gpu(),
        "dataloader_pin_memory": has_gpu(),
        **options,
        "output_dir": str(run.stage("train", iteration).path),
        "run_name": f"{run.recipe.name}-{iteration}",
        "report_to": run.recipe.tracking.report_to or "none",
        "seed": derive_seed(run.recipe.seed, iteration, "train") % 2**31,
        # Otherwise the trainer logs an average in the place of a loss that is not a number.
        "logging_nan_inf_filter": False,
    }


def with_defaults(defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options over the paper's; a schedule of the recipe's own has no arguments of the paper's."""
    if "lr_scheduler_type" in options:
        defaults = {name: value for name, value in defaults.items() if name != "lr_scheduler_kwargs"}
    return {**defaults, **options}


def save_model(model: PreTrainedModel, run: Run, source: str, iteration: int) -> None:
    """Writes a model in the recipe's dtype, as safetensors, with the tokenizer and chat template it is served with.

    Raises:
        ValueError: a weight that is not a finite number.
    """
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise ValueError(f"the trained model of iteration {iteration} has weights that are not numbers. {LOWER}")
    out = run.stage("model", iteration).path
    model.to(getattr(torch, run.recipe.model.dtype)).save_pretrained(out)
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(source, run.recipe.model)
    tokenizer.save_pretrained(out)


class Watch(TrainerCallback):
    """Shows the trainer's steps, and puts its logs into ``metrics.jsonl`` beside the loop's."""

    def __init__(self, run: Run, iteration: int) -> None:
        self._run, self._iteration = run, iteration
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._counter = self._open.enter_context(track("training steps", state.max_steps))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._counter.advance()

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


def train(trainer: Trainer, run: Run, iteration: int) -> dict[str, Any]:
    """Trains, and returns the number of steps and the last figures.

    Raises:
        ValueError: a loss that is not a number; such a model goes no further.
    """
    trainer.remove_callback(PrinterCallback)
    watch = Watch(run, iteration)
    trainer.add_callback(watch)
    with watch:
        trainer.train()
    history = trainer.state.log_history
    broken = [entry["loss"] for entry in history if not isfinite(float(entry.get("loss", 0.0)))]
    if broken:
        raise ValueError(
            f"the training loss became {broken[0]}. {LOWER}; all losses are in {run.path / 'metrics.jsonl'}"
        )
    figures = {name: float(entry[name]) for entry in history for name in FIGURES if name in entry}
    return {"steps": trainer.state.global_step, **figures}
