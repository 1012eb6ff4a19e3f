"""A judge that is a reward model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from selfreward.engines import Sampler
from selfreward.judges.base import Judge
from selfreward.judges.single import one_judgement, refuse_settings
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Judgement, Prompt, Response


class RewardModelJudge(Judge):
    """The score of a response is the reward of the conversation that it ends; rewards have no range."""

    uses = ()

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        return JudgeFacts(needs=("reward",), writes=False, is_taught=False, makes_data=False)

    @classmethod
    def check(cls, settings: JudgeSettings) -> None:
        """Refuses settings of a judge that reads a prompt."""
        refuse_settings(settings, ("template", "reference"))

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
        return one_judgement(self.settings, response, seed, text, engine.model, score=score, error=error)
