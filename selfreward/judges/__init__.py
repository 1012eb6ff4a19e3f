"""What scores responses."""

from selfreward.engines.model_requests import Requests
from selfreward.judges.base import Example, Judge, make_judgement, mean_scores
from selfreward.judges.panel import BoundJudge, Panel, panel_of
from selfreward.recipe.judge_facts import JudgeFacts

__all__ = [
    "BoundJudge",
    "Example",
    "Judge",
    "JudgeFacts",
    "Panel",
    "Requests",
    "make_judgement",
    "mean_scores",
    "panel_of",
]
