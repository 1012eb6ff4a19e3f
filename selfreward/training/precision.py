"""Figures of the loss in float32 where the weights are shared by FSDP2."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import Trainer


class WidePrecision(Trainer):
    """Keeps accelerate from rounding to half precision what FSDP2 hands over: outputs, and gradients to be summed.

    The outputs are the log-probabilities of tokens. In bfloat16 their sum over a completion, of some hundred nats, has
    steps of 1 or 2, and DPO's loss is a difference of such sums.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """As upstream's, before a model is prepared."""
        super().create_accelerator_and_postprocess()
        plugin = self.accelerator.state.fsdp_plugin if self.accelerator.is_fsdp2 else None
        if plugin is not None and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = replace(
                plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32
            )
