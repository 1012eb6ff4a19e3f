"""What a judge is and says of itself, and what its judgements amount to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from selfreward.engines import Completion, Sampler
from selfreward.engines.model_requests import Requests
from selfreward.recipe.judge_facts import JudgeFacts
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.own_options import own_options
from selfreward.records import Graded, Judgement, Message, Prompt, Response, content_id

# Of the judges that write their own prompts; a recipe names a file of its own in their place.
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Example:
    """A judge prompt with its right judgement, to train judging with."""

    messages: list[Message]
    judgement: str


class Judge:
    """Scores the responses to one prompt: a plain coroutine over an engine, and what others ask of the class.

    A class has to write :meth:`judge` alone. The rest has defaults, which also hold for a user's class with another
    parent.

    Attributes:
        required: the methods without a default.
        pointwise: each response is judged by itself, so that judging can begin while others are still sampled.
        uses: the keys of the ``judge`` block that are for some judges alone and that this one reads, such as
            ``criteria``. None: any.
        Options: the settings class of ``judge.options``, a pydantic model. None: there are no options.
    """

    required: ClassVar[tuple[str, ...]] = ("judge",)
    pointwise = True
    uses: ClassVar[tuple[str, ...] | None] = None
    Options: ClassVar[type[BaseModel] | None] = None

    def __init__(self, settings: JudgeSettings) -> None:
        """Reads its part of the recipe, once the recipe has passed :meth:`check`.

        Raises:
            ValueError: settings or files that this judge can't work with.
        """
        self.settings = settings
        self.options: Any = own_options(self.Options, settings.options)

    @classmethod
    def facts(cls, settings: JudgeSettings) -> JudgeFacts:
        """What it needs of an engine, the range of its scores, and what else others want to know of it."""
        return JudgeFacts()

    @classmethod
    def check(cls, settings: JudgeSettings) -> None:
        """Refuses settings, as soon as the recipe is read.

        Raises:
            ValueError: settings that this judge can't work with.
        """

    @classmethod
    def requests(cls, settings: JudgeSettings, num: int) -> list[Requests]:
        """The requests behind the judgements of ``num`` responses to one prompt, at most."""
        return [Requests(num * settings.votes, settings.max_tokens, num, answers=1, instructions=1)]

    async def judge(self, engine: Sampler, prompt: Prompt, responses: Sequence[Response], seed: int) -> list[Judgement]:
        """All judgements of the responses to one prompt.

        Args:
            engine: serves the judging model.
            prompt: the prompt.
            responses: its responses.
            seed: every choice derives from it.
        """
        raise NotImplementedError

    def scores(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """The score by response id, from all judgements of an iteration; unscored responses are left out."""
        return mean_scores(judgements)

    def examples(self, graded: Sequence[Graded]) -> list[Example]:
        """How judging data is trained with; empty where no model is to learn this judge's prompt."""
        return []


def mean_scores(judgements: Iterable[Judgement]) -> dict[str, float]:
    """The mean of the parsed votes by response id; a response without any is left out."""
    votes: defaultdict[str, list[float]] = defaultdict(list)
    for judgement in judgements:
        if judgement.score is not None:
            votes[judgement.subject_ids[0]].append(judgement.score)
    return {subject: sum(scores) / len(scores) for subject, scores in votes.items()}


def make_judgement(
    judge: str,
    subjects: Sequence[Response | Judgement],
    vote: int,
    seed: int,
    completion: Completion,
    model: str,
    **verdict: Any,
) -> Judgement:
    """The record of one call.

    Args:
        judge: the judge's name.
        subjects: the response that was scored, or the two that were compared, in the order in which they stood.
        vote: the number of the call, among those on the same subjects.
        seed: the request's own.
        completion: what the judge wrote.
        model: the judging model.
        verdict: ``score``, ``preference`` or ``error``; ``aspect``, ``figures`` and ``reference`` where there are any.
    """
    ids, aspect = [subject.id for subject in subjects], verdict.get("aspect")
    if completion.finish_reason == "prompt_too_long":
        verdict |= {"score": None, "preference": None, "error": "prompt_too_long"}
    return Judgement(
        id=content_id("judgement", *ids, vote, seed, completion.text, *([aspect] if aspect else [])),
        prompt_id=subjects[0].prompt_id,
        subject_ids=ids,
        judge=judge,
        vote=vote,
        raw_text=completion.text,
        num_tokens=completion.num_tokens,
        seed=seed,
        model=model,
        **{"score": None, "error": None, **verdict},
    )
