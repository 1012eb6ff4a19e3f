"""Judgements by M_{t-1} of what M_t judges too, to see how far the two rank alike (CREAM, arXiv 2410.12735)."""

from __future__ import annotations

from selfreward.runs.run import Run
from selfreward.runs.stages import Summary
from selfreward.serving.engines import Engines
from selfreward.stages.judgements import judge_with


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the judgements in the order of prompts, judges, responses and votes, asked with M_t's own seeds.

    Raises:
        ValueError: the parse rate is below ``judge.min_parse_rate``.
    """
    return judge_with(run, iteration, engines, run.model_path(iteration - 1), "previous_judgements")
