"""Checkpoints that a training resumes from.

Upstream writes and reads them: weights, optimizer, schedule, random numbers, order of the data. A checkpoint counts
once the first rank has marked it, after every rank has written its part and all of it is on the disk. (Renaming a
folder that several ranks write to is what broke upstream's own trainer.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_model_param_count

from selfreward import stopping
from selfreward.errors import Stopped
from selfreward.progress import console
from selfreward.training.files import discard, mark, marked, require_room, size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

# A trained parameter in float32, and Adam's two averages.
BYTES_A_PARAMETER = 12


class Checkpoints(TrainerCallback):
    """Marks what the trainer saves, keeps the newest, and stops the training in order when that is asked for."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._folder = Path(str(trainer.args.output_dir))
        accelerator = trainer.accelerator
        # A rank's part of a checkpoint is of no use to another number of ranks, or another way to share the weights.
        self._shape = {"ranks": accelerator.num_processes, "kind": accelerator.distributed_type.value}

    def newest(self) -> Path | None:
        """The checkpoint to resume from; all others are removed. Called by every rank."""
        if self._trainer.is_world_process_zero():
            steps = {folder: step for folder in self._all() if (step := self._usable(folder)) is not None}
            best = max(steps, key=lambda folder: steps[folder], default=None)
            for folder in self._all():
                if folder != best:
                    discard(folder)
        self._trainer.accelerator.wait_for_everyone()
        return next(iter(self._all()), None)

    def require_end(self) -> None:
        """Raises Stopped after a training that was stopped before its end."""
        state = self._trainer.state
        if state.global_step < state.max_steps:
            raise Stopped(f"stopped as asked in step {state.global_step} of {state.max_steps}, and saved")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            # The trained weights are saved next. (And from a checkpoint of the last step, where that is not the end of
            # an epoch, upstream would train one step more.)
            control.should_save, control.should_log = False, True
        elif self._stop_asked():
            control.should_save = control.should_training_stop = True
        if control.should_save:
            # Sums since the last log are in no checkpoint.
            control.should_log = True
            if state.is_world_process_zero:
                self._require_room(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            newest = self._folder / f"checkpoint-{state.global_step}"
            mark(newest, {"step": state.global_step, **self._shape})
            for folder in self._all():
                if folder != newest:
                    discard(folder)
        # No rank may end, and take the others with it, before the marker is on the disk.
        self._trainer.accelerator.wait_for_everyone()

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint-*"))

    def _usable(self, folder: Path) -> int | None:
        marker = marked(folder)
        if marker is None:
            return None
        if {name: marker[name] for name in self._shape} != self._shape:
            console.print(f"{folder.name} is of {marker['ranks']} x {marker['kind']}: training starts again")
            return None
        return int(marker["step"])

    def _stop_asked(self) -> bool:
        """Whether any rank was asked to stop: all must stop in the same step."""
        asked = torch.tensor(float(stopping.stop.requested), device=self._trainer.accelerator.device)
        return bool(self._trainer.accelerator.reduce(asked, "sum") > 0)

    def _require_room(self, model: PreTrainedModel) -> None:
        known = [size(folder) for folder in self._all()]
        needed = max(known, default=BYTES_A_PARAMETER * get_model_param_count(model, trainable_only=True))
        require_room(self._folder, needed, "a checkpoint")
