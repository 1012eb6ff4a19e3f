"""What scores responses."""

from selfreward.judges.base import Example, Judge, make_judgement, mean_scores
from selfreward.judges.panel import Panel, Seat

__all__ = ["Example", "Judge", "Panel", "Seat", "make_judgement", "mean_scores"]
