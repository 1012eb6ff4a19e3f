"""A judge that is a reward model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from selfreward.engines import Sampler
from selfreward.judges.base import Example, mean_scores
from selfreward.judges.single import one_judgement, refuse_settings
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Prompt, Response


class RewardModelJudge:
    """The score of a response is the reward of the conversation that it ends; rewards have no range."""

    pointwise = True
    best = None
    scores = staticmethod(mean_scores)

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises ValueError for settings of a judge that reads a prompt."""
        refuse_settings(settings, ("template", "reference"))
        self._settings = settings

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        return await asyncio.gather(*(self._judge(engine, prompt, response, seed) for response in responses))

    async def _judge(self, engine: Sampler, prompt: Prompt, response: Response, seed: int) -> Judgement:
        reward = await engine.reward([*prompt.messages, {"role": "assistant", "content": response.text}])
        text, score, error = "", reward, None
        if reward is None:
            error = "prompt_too_long"
        else:
            text = f"reward {reward:.6g}"
            if not math.isfinite(reward):
                score, error = None, "not_finite"
        return one_judgement(self._settings, response, seed, text, engine.model, score=score, error=error)

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """None: the reward model is not trained here."""
        return []
