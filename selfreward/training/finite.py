"""A loss that is not a number ends a training in the step where it appears."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer
from trl import DPOTrainer, SFTTrainer

from selfreward.training.upstream_internals import WidePrecision

LOWER = "Lower the learning_rate, or set max_grad_norm"


class _FiniteLoss(Trainer):
    """Looks at each loss before the optimizer uses its gradient."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Raises ValueError if the loss is not a finite number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the training loss became {loss.item()} in step {self.state.global_step + 1}. {LOWER}; "
                "the losses before it are in the run's metrics.jsonl"
            )
        return loss


class FiniteDPOTrainer(_FiniteLoss, WidePrecision, DPOTrainer):
    """TRL's trainer, and no step with a loss that is not a number."""


class FiniteSFTTrainer(_FiniteLoss, WidePrecision, SFTTrainer):
    """TRL's trainer, and no step with a loss that is not a number."""
