"""The additive judge of Self-Rewarding Language Models (arXiv 2401.10020, figure 2)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from importlib import resources

from selfreward.config import JudgeSettings
from selfreward.engines import Completion, Sampler, SamplingParams
from selfreward.records import Judgement, Message, Prompt, Response, content_id, derive_seed

FIELDS = ("prompt", "response")
# A line that announces a score, whatever Markdown surrounds the word.
_SCORE_LINE = re.compile(r"^[\s*_#>-]*((total|final) )?score[\s*_]*:(?P<rest>.*)$", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"(?P<score>-?[0-9]+(\.[0-9]+)?)(\s*(/|out of)\s*(?P<best>[0-9]+))?( points?)?\.?")


class AdditiveJudge:
    """Sampled votes, one point for each criterion met; the score of a response is the mean of its votes."""

    pointwise = True

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._params = SamplingParams.of(settings)
        if settings.template is None:
            self._template = (resources.files(__package__) / "templates" / "additive.txt").read_text("utf-8")
        else:
            self._template = settings.template.read_text("utf-8")
        self._template = self._template.strip()
        missing = [f"{{{name}}}" for name in FIELDS if f"{{{name}}}" not in self._template]
        if missing:
            raise ValueError(
                f"judge.template {settings.template} has no {' and no '.join(missing)}. "
                "Write {prompt} and {response} where the two belong"
            )

    def messages(self, prompt: str, response: str) -> list[Message]:
        texts = {"{prompt}": prompt, "{response}": response}
        # In one pass: a response that holds "{prompt}" is not a template.
        content = re.sub(r"\{prompt\}|\{response\}", lambda match: texts[match.group()], self._template)
        return [{"role": "user", "content": content}]

    def parse(self, text: str) -> tuple[float | None, str | None]:
        """Reads the last line that announces a score.

        Errors are ``no_score``, ``malformed_score`` and ``out_of_range``.
        """
        lines = [match["rest"] for match in _SCORE_LINE.finditer(text)]
        if not lines:
            return None, "no_score"
        number = _NUMBER.fullmatch(lines[-1].strip(" \t\r*_`<>[]"))
        if number is None or number["best"] not in (None, str(self._settings.max_score)):
            return None, "malformed_score"
        score = float(number["score"])
        if not self._settings.min_score <= score <= self._settings.max_score:
            return None, "out_of_range"
        return score, None

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        votes = await asyncio.gather(*(self._votes(engine, prompt, response, seed) for response in responses))
        return [judgement for of_response in votes for judgement in of_response]

    async def _votes(self, engine: Sampler, prompt: Prompt, response: Response, seed: int) -> list[Judgement]:
        seeds = [derive_seed(seed, response.id, vote) for vote in range(self._settings.votes)]
        completions = await engine.sample(self.messages(prompt.text, response.text), self._params, seeds)
        return [
            self._judgement(response, vote, seeds[vote], completion, engine.model)
            for vote, completion in enumerate(completions)
        ]

    def _judgement(self, response: Response, vote: int, seed: int, completion: Completion, model: str) -> Judgement:
        score, error = self.parse(completion.text)
        if completion.finish_reason == "prompt_too_long":
            error = "prompt_too_long"
        return Judgement(
            id=content_id("judgement", response.id, vote, seed, completion.text),
            prompt_id=response.prompt_id,
            subject_ids=[response.id],
            judge=self._settings.name,
            vote=vote,
            raw_text=completion.text,
            score=score,
            error=error,
            num_tokens=completion.num_tokens,
            seed=seed,
            model=model,
        )
