"""What samples: one small protocol and its engines."""

from selfreward.engines.base import Completion, Engine, Sampler, SamplingParams

__all__ = ["Completion", "Engine", "Sampler", "SamplingParams"]
