"""The stages of a run by name. No torch."""

from __future__ import annotations

from typing import Any

# In the order of an iteration; which of them a recipe has: :func:`selfreward.runs.plan.names`.
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

# The counts and figures that a stage returns, for ``stage.json`` and ``metrics.jsonl``.
Summary = dict[str, Any]
