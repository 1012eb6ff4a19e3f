"""What scores responses."""

from selfreward.judges.base import Example, Judge, make_judgement, mean_scores
from selfreward.judges.panel import Panel, Seat, panel_of

__all__ = ["Example", "Judge", "Panel", "Seat", "make_judgement", "mean_scores", "panel_of"]
