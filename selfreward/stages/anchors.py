"""Responses of M1, the anchor, to the prompts of a later iteration (Temporal Self-Rewarding, arXiv 2508.06026)."""

from __future__ import annotations

from selfreward.runs.run import Run
from selfreward.runs.stages import Summary
from selfreward.serving.engines import Engines
from selfreward.stages.responses import sample_with


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the responses in the order of the prompts, then of k. The paper's anchor is M0, which may not chat yet."""
    return sample_with(run, iteration, engines, run.model_path(1), "anchors")
