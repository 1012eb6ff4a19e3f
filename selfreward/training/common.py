"""What SFT and DPO share: loading a model, trainer arguments, logs, and keeping what was trained."""

from __future__ import annotations

import os
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config
from transformers.trainer_pt_utils import get_model_param_count

from selfreward.launchers.batch import shared_batch
from selfreward.records import derive_seed
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runs.stored import SEED_OF_TRAINING
from selfreward.runtime.gpus import has_gpu
from selfreward.runtime.progress import track
from selfreward.runtime.whole_folder import discard, mark, marked, require_room
from selfreward.text.chat import model_errors
from selfreward.training.checkpoints import Checkpoints
from selfreward.training.finite import LOWER
from selfreward.training.gather import save_trained
from selfreward.training.upstream_internals import keep_event_files

FIGURES = ("rewards/accuracies", "rewards/margins")

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerControl

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def load_model(path: str, run: Run, dtype: torch.dtype | None = None, **options: Any) -> PreTrainedModel:
    """A causal language model from safetensors; ``dtype`` is the recipe's unless given, ``options`` transformers'."""
    settings = run.recipe.model
    with model_errors(path):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or getattr(torch, settings.dtype),
            revision=None if Path(path).is_dir() else settings.revision,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            **options,
        )
    return model


def load_alone(path: str | Path, run: Run, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model for this one process, which computes in float32 with weights as they are in ``dtype``."""
    # Under ZeRO-3 transformers would otherwise split it over all ranks, who load nothing.
    unset_hf_deepspeed_config()
    model: PreTrainedModel = load_model(str(path), run, dtype).float()
    return model


def checkpoints_folder(run: Run, step: Step) -> Path:
    """Where a training keeps what it would resume from, until its stage is done."""
    return run.folder(step).path / "checkpoints"


def trainer_options(run: Run, step: Step, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options with what the loop decides: where to write, the seed, the precision, the trackers."""
    dtype = run.recipe.model.dtype
    return {
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "save_steps": 0.1,
        "logging_steps": 5,
        "disable_tqdm": True,
        "use_cpu": not has_gpu(),
        "dataloader_pin_memory": has_gpu(),
        **options,
        "output_dir": str(checkpoints_folder(run, step)),
        "save_strategy": "steps",
        "run_name": f"{run.recipe.name}-{step.iteration}{'' if step.stage == 'train' else f'-{step.stage}'}",
        "report_to": run.recipe.tracking.report_to or "none",
        "seed": derive_seed(run.recipe.seed, step.iteration, SEED_OF_TRAINING) % 2**31,
        # Otherwise the trainer logs an average in the place of a loss that is not a number.
        "logging_nan_inf_filter": False,
    }


def arguments(kind: type[Arguments], run: Run, step: Step, options: dict[str, Any]) -> Arguments:
    """The trainer's arguments, with the recipe's batch shared among the processes that there are.

    Raises:
        ValueError: they can't share it evenly, or some of them are to train the same examples.
    """
    for dimension in ("tp", "cp", "sp"):
        size = os.environ.get(f"PARALLELISM_CONFIG_{dimension.upper()}_SIZE", "1")
        if size != "1":
            raise ValueError(
                f"accelerate's file has a parallelism_config with {dimension}_size {size}: as many processes would "
                "train the same examples, and a step a part of the recipe's batch. Write 1, or take fsdp2.yaml"
            )
    # Where the recipe has float32, upstream would take the precision of accelerate's file.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    args = kind(**trainer_options(run, step, options))
    # Only now the number of processes is sure.
    for name, value in shared_batch(options, args.world_size).items():
        setattr(args, name, value)
    return args


def with_defaults(defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options over the paper's; a schedule of the recipe's own has no arguments of the paper's."""
    if "lr_scheduler_type" in options:
        defaults = {name: value for name, value in defaults.items() if name != "lr_scheduler_kwargs"}
    return _with_relative({**defaults, **options})


def _with_relative(options: dict[str, Any]) -> dict[str, Any]:
    """The least learning rate of a schedule as a share of the greatest.

    Upstream divides as well, by a ``defaults`` of the optimizer, which DeepSpeed's has not.
    """
    schedule = dict(options.get("lr_scheduler_kwargs") or {})
    if schedule.get("min_lr") is None:
        return options
    schedule["min_lr_rate"] = schedule.pop("min_lr") / options["learning_rate"]
    return {**options, "lr_scheduler_kwargs": schedule}


class Watch(TrainerCallback):
    """Shows the trainer's steps, and puts its logs into ``metrics.jsonl`` beside the loop's."""

    def __init__(self, run: Run, step: Step) -> None:
        self._run, self._place = run, {"iteration": step.iteration, "stage": step.stage}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._counter = self._open.enter_context(track("training steps", state.max_steps - state.global_step))

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
        if logs and not args.fp16 and not isfinite(logs.get("grad_norm", 0.0)):
            # In float16 the loss is scaled up, and such a step is skipped.
            raise ValueError(f"the gradient became {logs['grad_norm']} in step {state.global_step}. {LOWER}")
        if logs and state.is_world_process_zero:
            if "train_loss" in logs:
                # Upstream's holds the steps since the last resume alone.
                logs["train_loss"] = mean_loss(state)
            self._run.log({**self._place, "step": state.global_step, **logs})


def train(trainer: Trainer, run: Run, step: Step) -> dict[str, Any]:
    """Trains, from the last whole checkpoint on, and returns the number of steps and the last figures.

    Raises:
        ValueError: a loss or gradient that is not a number; such a model goes no further.
        Stopped: the process was asked to stop; a checkpoint of the step is on the disk.
        DiskFull: the disk has no room for a checkpoint.
    """
    trainer.remove_callback(PrinterCallback)
    checkpoints, watch = Checkpoints(trainer), Watch(run, step)
    for callback in (checkpoints, watch):
        trainer.add_callback(callback)
    keep_event_files(trainer, run.path / "tracking" / run.folder(step).name)
    newest = checkpoints.newest()
    if newest is not None:
        state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
        # Upstream has made numbers of steps out of shares, and would warn of a difference.
        trainer.args.save_steps, trainer.args.logging_steps = state.save_steps, state.logging_steps
        if trainer.is_world_process_zero():
            run.log({"iteration": step.iteration, "stage": step.stage, "resumed_from_step": state.global_step})
    with watch:
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    checkpoints.require_end()
    history = trainer.state.log_history
    figures = {name: float(entry[name]) for entry in history for name in FIGURES if name in entry}
    return {"steps": trainer.state.global_step, "train_loss": mean_loss(trainer.state), **figures}


def keep_trained(trainer: Trainer, folder: Path, summary: dict[str, Any]) -> None:
    """Saves what was trained as ``trained`` among the checkpoints: what is left to do needs no trainer.

    Every rank takes part, as under FSDP and ZeRO-3 each has a share of the weights.

    Raises:
        DiskFull: the disk has no room for it.
    """
    if trainer.is_world_process_zero():
        # Trained weights are float32.
        require_room(folder, 4 * get_model_param_count(trainer.model, trainable_only=True), "what was trained")
    save_trained(trainer, folder / "trained")
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        mark(folder / "trained", summary)
        for checkpoint in folder.glob("checkpoint-*"):
            discard(checkpoint)


def trained_before(folder: Path, args: TrainingArguments) -> dict[str, Any] | None:
    """The summary of a training that was interrupted after its last step, or None. Called by every rank."""
    summary = marked(folder / "trained")
    # All have looked before the first one goes on and removes it.
    args.distributed_state.wait_for_everyone()
    return summary


def mean_loss(state: TrainerState) -> float:
    """The mean over all steps, of which each entry of the log holds those since the one before it."""
    total = last = 0.0
    for entry in state.log_history:
        if "loss" in entry:
            total, last = total + float(entry["loss"]) * (entry["step"] - last), entry["step"]
    return total / last
