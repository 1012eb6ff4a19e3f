"""A judge that is a Python function."""

from __future__ import annotations

from collections.abc import Sequence

from selfreward.engines import Sampler
from selfreward.judges.base import Judge
from selfreward.judges.score_function import ScoreFunction
from selfreward.judges.single import one_judgement, refuse_settings
from selfreward.recipe import registry
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Judgement, Prompt, Response


class VerifierJudge(Judge):
    """Calls ``function(prompt, response, **options)``, which gives a score, or None to abstain; asks no engine.

    The function runs in the run's own process, in no sandbox, and each call holds up all others: name only code that
    you trust, and let it run nothing that a model wrote.
    """

    uses = ("verifier",)

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        name = settings.verifier.function
        # A function of the user's own may have any scale above 0, which is taken for the worst.
        highest = 1.0 if name in registry.VERIFIERS else None
        return JudgeFacts(
            needs=(), writes=False, lowest=0.0, highest=highest, is_taught=False, makes_data=False, runs=name
        )

    @classmethod
    def check(cls, settings: JudgeSettings) -> None:
        """Refuses settings of a judge that asks a model, and options that the function does not take."""
        refuse_settings(settings, ("template", "reference", "engine", "model"))
        ScoreFunction(settings.verifier.function, "verifier", settings.verifier.options)

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises ValueError for a function that can't be found, or options that it does not take."""
        super().__init__(settings)
        self._name = settings.verifier.function
        self._function = ScoreFunction(self._name, "verifier", settings.verifier.options)

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        return [self._judge(prompt, response, seed) for response in responses]

    def _judge(self, prompt: Prompt, response: Response, seed: int) -> Judgement:
        score = self._function(prompt, response.text)
        if score is None:
            text, error = f"{self._name} abstains", "abstained"
        else:
            text, error = f"{self._name} gives {score:g}", None
        return one_judgement(self.settings, response, seed, text, self._name, score=score, error=error)
