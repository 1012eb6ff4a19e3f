"""SFT for the seed (M0 to M1), DPO for an iteration (M_t to M_{t+1}).

Under ``accelerate launch`` every rank runs this function; the first one writes.
"""

from __future__ import annotations

from selfreward.runs.run import Run
from selfreward.runs.stages import Summary
from selfreward.serving.engines import Engines


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the trainer's files to ``train`` and the new model to ``model``."""
    if iteration == 0:
        from selfreward.training.sft import train_seed

        return train_seed(run)
    from selfreward.training.dpo import train_iteration

    return train_iteration(run, iteration)
