"""The stages: one function each, ``stage(run, iteration, engines)``, which is also one command.

A stage reads the records of the stages before it, writes its own, and returns its summary: counts and
figures for ``stage.json`` and ``metrics.jsonl``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfreward.rundir import Run
    from selfreward.serving import Engines

Summary = dict[str, Any]
Stage = Callable[["Run", int, "Engines"], Summary]

# In the order of an iteration. Iteration 0 is the seed stage: train and evaluate alone.
NAMES = ("prompts", "responses", "judgements", "pairs", "train", "evaluate")


def load(name: str) -> Stage:
    """The function of a stage."""
    stage: Stage = importlib.import_module(f"selfreward.stages.{name}").stage
    return stage
