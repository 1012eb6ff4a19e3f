"""The mean of the judge's own distribution of scores, in place of one score that it happens to write."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Any

from selfreward.engines import Completion, Sampler
from selfreward.judges.additive import AdditiveJudge
from selfreward.judges.base import Example, make_judgement
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.records import Graded, Judgement, Message, Prompt, Response, derive_seed
from selfreward.text.scores import SCORE_LINE, announced, read_score

ANNOUNCEMENT = "Score:"
# With less probability on all options together, their proportions are noise.
LEAST_MASS = 1e-3
_MARKUP = re.compile(r"[\s*_`<>\[\]]*")


class ExpectedScoreJudge(AdditiveJudge):
    """The additive judge, scored by the mean of the score's distribution (arXiv 2503.03064).

    With ``think`` each vote is a sampled text, and the distribution is read where that text announces its score;
    reasons tend to leave little of it but one score. Without, it is read at once at the beginning of the answer, in
    one forward pass a response.

    Figures: ``mass``, the probability on all scores together; ``spread``, the distribution's standard deviation; and
    ``written``, the score that the text itself gives, where it can be read.
    """

    uses = ("expected",)

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        thinks = settings.expected.think
        return JudgeFacts(
            needs=(*(("generate",) if thinks else ()), "option_probs", "prefix"),
            writes=thinks,
            lowest=float(settings.min_score),
            highest=float(settings.max_score),
            makes_data=thinks,
        )

    @classmethod
    def check(cls, settings: JudgeSettings) -> None:
        if not settings.expected.think:
            refuse_votes(settings, "Take votes out, or set expected.think to true")

    def __init__(self, settings: JudgeSettings) -> None:
        super().__init__(settings)
        scores = range(settings.min_score, settings.max_score + 1)
        self._options, self._values = [str(score) for score in scores], [float(score) for score in scores]

    async def _votes(
        self, engine: Sampler, prompt: Prompt, response: Response, seed: int, reference: str | None
    ) -> list[Judgement]:
        messages = self.messages(prompt.text, response.text, reference)
        seeds = [derive_seed(seed, response.id, vote) for vote in range(self.settings.votes)]
        if self.settings.expected.think:
            completions = await engine.generate(messages, self._params, seeds)
            verdicts = await asyncio.gather(*(self._read(engine, messages, each) for each in completions))
        else:
            probs = await engine.option_probs(messages, ANNOUNCEMENT, self._options)
            completions = [Completion(shown(self._options, probs), "stop", 0)]
            verdicts = [self._verdict(probs)]
        name, model = self.settings.name, engine.model
        return [
            make_judgement(name, [response], vote, seeds[vote], completion, model, reference=reference, **verdict)
            for vote, (completion, verdict) in enumerate(zip(completions, verdicts, strict=True))
        ]

    async def _read(self, engine: Sampler, messages: Sequence[Message], completion: Completion) -> dict[str, Any]:
        """The verdict of a sampled text."""
        cut = completion.finish_reason == "length"
        prefix, error = up_to_score(completion.text, cut)
        if prefix is None:
            return {"error": error}
        verdict = self._verdict(await engine.option_probs(messages, prefix, self._options))
        written, _ = self.parse(completion.text, cut)
        if written is not None:
            verdict["figures"] = {**verdict.get("figures", {}), "written": written}
        return verdict

    def _verdict(self, probs: Sequence[float] | None) -> dict[str, Any]:
        verdict = mean_of(probs, self._values)
        if probs is not None and "score" in verdict:
            squares = sum(p * (value - verdict["score"]) ** 2 for p, value in zip(probs, self._values, strict=True))
            verdict["figures"]["spread"] = math.sqrt(squares / sum(probs))
        return verdict

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """Whole judgements with ``think``, else the line of the score alone.

        Raises:
            ValueError: a judgement without a score.
        """
        if self.settings.expected.think:
            return super().examples(graded)
        return [
            Example(self.messages(g.prompt, g.response, g.reference), f"{ANNOUNCEMENT} {label:g}")
            for g, label in zip(graded, labels(graded, self.settings), strict=True)
        ]


def up_to_score(text: str, cut: bool = False) -> tuple[str | None, str | None]:
    """The beginning of a judgement, up to where its last announced score stands, or the name of an error.

    Errors are ``no_score`` and those of :func:`announced`, which also says what ``cut`` is.
    """
    line, error = announced(SCORE_LINE, text, cut)
    if line is None:
        return None, error or "no_score"
    markup = _MARKUP.match(line["rest"])
    assert markup is not None, "it may be empty"
    return text[: line.start("rest")] + markup.group().rstrip(), None


def mean_of(probs: Sequence[float] | None, values: Sequence[float]) -> dict[str, Any]:
    """What a distribution says, as the verdict of :func:`make_judgement`.

    Args:
        probs: the probability of each option, or None where the prompt does not fit.
        values: what each option counts.

    Returns:
        ``score``, or ``error`` (``prompt_too_long`` or ``no_mass``); ``figures`` with ``mass``.
    """
    if probs is None:
        return {"error": "prompt_too_long"}
    mass = sum(probs)
    if mass < LEAST_MASS:
        return {"error": "no_mass", "figures": {"mass": mass}}
    mean = sum(p * value for p, value in zip(probs, values, strict=True)) / mass
    return {"score": mean, "figures": {"mass": mass}}


def shown(options: Sequence[str], probs: Sequence[float] | None) -> str:
    """A distribution to read; empty where there is none."""
    return ", ".join(f"{option}: {p:.4f}" for option, p in zip(options, probs, strict=True)) if probs else ""


def refuse_votes(settings: JudgeSettings, way_out: str) -> None:
    """Raises ValueError if votes were asked for, where each would be the same."""
    # The default can't be told from a 3 that was written, as a run's stored recipe has every setting.
    if settings.votes not in (1, JudgeSettings.model_fields["votes"].default):
        raise ValueError(
            f"votes is {settings.votes}, and {settings.name} here reads each response's distribution once, which is "
            f"always the same. {way_out}"
        )


def labels(graded: Sequence[Graded], settings: JudgeSettings) -> list[float]:
    """The score in each judgement of judging data.

    Raises:
        ValueError: a judgement without one.
    """
    found = []
    for number, example in enumerate(graded, start=1):
        label, error = read_score(example.judgement, settings.min_score, settings.max_score)
        if label is None:
            raise ValueError(
                f"judging data, example {number}: no label, {error} in {example.judgement!r}. End the judgement with "
                f"a line such as {ANNOUNCEMENT} {settings.max_score}"
            )
        found.append(label)
    return found
