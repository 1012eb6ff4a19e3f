"""What scores responses."""

from selfreward.judges.base import Example, Judge, make_judgement, mean_scores
from selfreward.judges.panel import BoundJudge, Panel, panel_of

__all__ = ["BoundJudge", "Example", "Judge", "Panel", "make_judgement", "mean_scores", "panel_of"]
