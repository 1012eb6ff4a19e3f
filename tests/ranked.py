"""Trainings in each of several ranks: ``accelerate launch tests/ranked.py [--shard] RUN:ITERATION[:STEP] ...``.

A STEP is the one in which the training is to stop. ``--shard`` lets accelerate shard with FSDP on a CPU, as torch does.
"""

import sys

import transformers.training_args
from accelerate import PartialState
from accelerate.utils import DistributedType

from selfreward.errors import Stopped
from selfreward.launchers.launch import leave_group
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime import shutdown
from selfreward.training import dpo, sft
from selfreward.training.common import arguments


class InStep(shutdown.Stop):
    """Asked for once at the end of each step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


def sharded(*given):
    """The trainer's arguments, in a state that accelerate takes for GPUs: it never asks FSDP on others."""
    args = arguments(*given)
    PartialState().distributed_type = DistributedType.MULTI_GPU
    return args


def train(job: str) -> None:
    path, iteration, *step = job.split(":")
    run, before = Run.open(path), shutdown.stop
    if step:
        shutdown.stop = InStep(int(step[0]))
    try:
        dpo.train_iteration(run, Step("train", int(iteration))) if int(iteration) else sft.train_seed(run)
        assert not step
    except Stopped:
        assert step
    shutdown.stop = before


if __name__ == "__main__":
    # DeepSpeed trains on CPUs where transformers sees no use_cpu, and then wants a GPU for bfloat16.
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    jobs = sys.argv[1:]
    if jobs[0] == "--shard":
        dpo.arguments = sft.arguments = sharded
        jobs = jobs[1:]
    for job in jobs:
        train(job)
    leave_group()
