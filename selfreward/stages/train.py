"""SFT for the seed (M0 to M1), DPO for an iteration (M_t to M_{t+1}).

Under ``accelerate launch`` every rank runs this function; the first one writes.
"""

from __future__ import annotations

from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.serving.engines import Engines


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes the trainer's files into the stage's folder, and the new model beside it."""
    if step.iteration == 0:
        from selfreward.training.sft import train_seed

        return train_seed(run)
    from selfreward.training.dpo import train_iteration

    return train_iteration(run, step)
