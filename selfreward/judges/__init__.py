"""What scores responses."""

from selfreward.judges.base import Judge, mean_scores

__all__ = ["Judge", "mean_scores"]
