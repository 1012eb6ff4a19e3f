"""Checkpoints that a training resumes from.

Upstream writes and reads them: weights, optimizer, schedule, random numbers, order of the data. A checkpoint counts
once the first rank has marked it, after every rank has written its part and all of it is on the disk. (Renaming a
folder that several ranks write to is what broke upstream's own trainer.)

As many ranks of the same kind go on bit by bit. Other ranks go on with the same steps, and draw what is random
(dropout, NEFTune's noise) anew: where every rank has all weights, and under FSDP2, whose checkpoints hold whole tensors
(FULL_STATE_DICT) or are divided anew when they are read (SHARDED_STATE_DICT). What a rank of DeepSpeed has written
fits no other number of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_model_param_count

from selfreward.errors import Stopped
from selfreward.runtime import shutdown
from selfreward.runtime.progress import console
from selfreward.runtime.whole_folder import discard, mark, marked, require_room, size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

# A trained parameter in float32, and Adam's two averages.
BYTES_A_PARAMETER = 12
# Each rank has all weights, and the first one saves them.
REPLICATED = ("NO", "MULTI_CPU", "MULTI_GPU")
FSDP2 = "FSDP2"


class Checkpoints(TrainerCallback):
    """Marks what the trainer saves, keeps the newest, and stops the training in order when that is asked for."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._folder = Path(str(trainer.args.output_dir))
        self._shape = {"ranks": trainer.accelerator.num_processes, "kind": _kind(trainer)}

    def newest(self) -> Path | None:
        """The checkpoint to resume from; all others are removed. Called by every rank."""
        if self._trainer.is_world_process_zero():
            steps = {folder: step for folder in self._all() if (step := self._usable(folder)) is not None}
            best = max(steps, key=lambda folder: steps[folder], default=None)
            for folder in self._all():
                if folder != best:
                    discard(folder)
            if best is not None:
                self._adopt(best)
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
        if not self._fits(marker):
            console.print(
                f"{folder.name} is of {_words(marker)}, and of no use to {_words(self._shape)}: training starts again"
            )
            return None
        return int(marker["step"])

    def _fits(self, marker: dict[str, Any]) -> bool:
        kinds = {marker["kind"], self._shape["kind"]}
        if kinds <= {*REPLICATED}:
            return True
        return len(kinds) == 1 and (marker["ranks"] == self._shape["ranks"] or marker["kind"].startswith(FSDP2))

    def _adopt(self, checkpoint: Path) -> None:
        """Lets all ranks draw anew if a checkpoint is of others, and not only those that it has no state for."""
        marker = marked(checkpoint)
        assert marker is not None
        if any(marker[name] != value for name, value in self._shape.items()):
            console.print(f"{checkpoint.name} is of {_words(marker)}, and {_words(self._shape)} go on from it")
            for state in checkpoint.glob("rng_state*.pth"):
                state.unlink()

    def _stop_asked(self) -> bool:
        """Whether any rank was asked to stop: all must stop in the same step."""
        asked = torch.tensor(float(shutdown.stop.requested), device=self._trainer.accelerator.device)
        return bool(self._trainer.accelerator.reduce(asked, "sum") > 0)

    def _require_room(self, model: PreTrainedModel) -> None:
        known = [size(folder) for folder in self._all()]
        needed = max(known, default=BYTES_A_PARAMETER * get_model_param_count(model, trainable_only=True))
        require_room(self._folder, needed, "a checkpoint")


def _kind(trainer: Trainer) -> str:
    """How ranks share the weights, and for FSDP2 in what form they save them."""
    kind = trainer.accelerator.distributed_type
    if kind is DistributedType.FSDP and trainer.accelerator.is_fsdp2:
        return f"{FSDP2} {trainer.accelerator.state.fsdp_plugin.state_dict_type.name}"
    return str(kind.value)


def _words(shape: dict[str, Any]) -> str:
    return f"{shape['ranks']} x {shape['kind']}"
