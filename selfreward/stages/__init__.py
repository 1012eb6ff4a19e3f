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

# In the order of an iteration; which of them a recipe has: :func:`selfreward.plan.names`.
# Iteration 0 is the seed stage: train and evaluate alone.
NAMES = (
    "prompts",
    "anchors",
    "responses",
    "judgements",
    "previous_judgements",
    "implicit",
    "draft_pairs",
    "draft_train",
    "lookahead",
    "pairs",
    "meta",
    "train",
    "evaluate",
)
TRAINING = ("train", "draft_train")


def load(name: str) -> Stage:
    """The function of a stage. A draft's pairs and training are made as the iteration's own, in other folders."""
    if (own := name.removeprefix("draft_")) != name:
        return lambda run, iteration, engines: load(own)(run.drafting(), iteration, engines)
    stage: Stage = importlib.import_module(f"selfreward.stages.{name}").stage
    return stage
