"""DPO that counts a pair as far as two models agree on it: CREAM (arXiv 2410.12735).

The loss is C times that of the pair and 1 - C times that of the pair turned around. With x the pair's reward margin,
C (-log sigmoid(x)) + (1 - C) (-log sigmoid(-x)) = -(log sigmoid(x) - (1 - C) x): TRL's own loss and a linear term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from selfreward.training.finite import FiniteDPOTrainer
from selfreward.training.upstream_internals import consistent_loss

COLUMN = "consistency"


class _Consistent(Trainer):
    """Brings C in where TRL's loss calls ``logsigmoid``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Reference log-probabilities that come first are there by now, from batches without the column.
        self.data_collator = _WithConsistency(self.data_collator)
        self.args.remove_unused_columns = False

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, of a batch with the column ``consistency``."""
        others = {name: value for name, value in inputs.items() if name != COLUMN}
        with consistent_loss(inputs[COLUMN]):
            return super().compute_loss(model, others, *args, **kwargs)


class ConsistentDPOTrainer(_Consistent, FiniteDPOTrainer):
    """TRL's trainer for rows with a column ``consistency``: the C of each pair, from 0 to 1."""


@dataclass
class _WithConsistency:
    """TRL's collator, and the column it leaves out."""

    collator: Any

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collator(examples)
        return {**batch, COLUMN: torch.tensor([example[COLUMN] for example in examples])}
