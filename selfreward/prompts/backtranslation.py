"""The instructions that documents answer, kept where the model finds both fitting (backtranslation, 2308.06259)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from selfreward.engines import Sampler, SamplingParams
from selfreward.prompts.base import CardText, DataCommand, PromptSource, SourceContext
from selfreward.prompts.dataset import Document, counted, read_documents
from selfreward.prompts.filters.base import KINDS, Kind
from selfreward.prompts.replies import failure, greedy, read_prompt, template
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Task
from selfreward.runs.stored import RATE, SEED_OF_BACKTRANSLATION, WRITE
from selfreward.text.scores import read_score

LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True)
class _Pair:
    """A document with its instruction, unless the reply was useless; its score, or why there is none."""

    task: Task | None = None
    useless: str | None = None
    score: float | None = None
    error: str | None = None


class BacktranslationSource(PromptSource):
    """Each iteration goes on behind the last document that an earlier one kept, and never starts over.

    It takes as many documents as tasks are missing, again and again, until there are enough or no document is left:
    so none is asked for in vain.
    """

    reads_rows: ClassVar[bool] = True
    command: ClassVar[DataCommand | None] = DataCommand(
        "backtranslate",
        "The instructions that documents answer, kept where the model finds them fitting (arXiv 2308.06259).",
    )
    card: ClassVar[CardText | None] = CardText(
        "Documents as outputs, each with the instruction that a language model thought it answers.",
        "2308.06259",
        "The model also judged how well instruction and document fit. It shares its own blind spots.",
    )

    @classmethod
    def filtered(cls, settings: SourceSettings) -> tuple[Kind, ...]:
        return KINDS

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._params, self._greedy = SamplingParams.of(settings.generation), greedy(settings)
        self._predict = template("backtranslation_instruction", "document")
        self._rate = template("backtranslation_score", "instruction", "document")

    def check(self) -> None:
        if not any(map(self._fits, read_documents(self._settings)[0])):
            raise ValueError(
                f"backtranslation.max_characters is {self._settings.backtranslation.max_characters}, and every "
                "document is longer. Raise it, or divide the documents"
            )

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration in the order of their documents, which are their outputs and references.

        Raises:
            ValueError: bad rows.
        """
        documents = counted(context, read_documents(self._settings))
        queue = [document for document in documents if self._fits(document)]
        if over_long := len(documents) - len(queue):
            context.count("skipped_over_long", over_long)
        kept = {task.parent_id for task in context.earlier}
        queue = queue[max((place for place, each in enumerate(queue, start=1) if each.id in kept), default=0) :]
        engine = context.engine_of(self._settings)
        made: list[Task] = []
        while queue and len(made) < context.wanted:
            num = context.wanted - len(made)
            documents, queue = queue[:num], queue[num:]
            pairs = context.run_concurrently("documents", documents, lambda each: self._pair(context, engine, each))
            made += context.filters.filter(self._curated(context, pairs))
        return made

    def _fits(self, document: Document) -> bool:
        return len(document.text) <= self._settings.backtranslation.max_characters

    async def _pair(self, context: SourceContext, engine: Sampler, document: Document) -> _Pair:
        seeds = [context.derive(SEED_OF_BACKTRANSLATION, step, document.id) for step in (WRITE, RATE)]
        [written] = await engine.generate(self._predict.fill(document=document.text), self._params, seeds[:1])
        instruction, useless = read_prompt(written)
        if useless is not None:
            return _Pair(useless=useless)
        task = Task.make(
            instruction,
            "backtranslation",
            output=document.text,
            parent_id=document.id,
            reference=document.text,
            license=document.license,
        )
        request = self._rate.fill(instruction=instruction, document=document.text)
        [rating] = await engine.generate(request, self._greedy, seeds[1:])
        score, error = read_score(rating.text, LOWEST, HIGHEST, cut=rating.finish_reason == "length")
        return _Pair(task, score=score, error=failure(rating) or error)

    def _curated(self, context: SourceContext, pairs: Sequence[_Pair]) -> list[Task]:
        """The tasks of the pairs that the model scores high enough; the others are counted and recorded."""
        least, stay = self._settings.backtranslation.min_score, []
        for pair in pairs:
            context.count("documents")
            if pair.task is None:
                context.count(f"failed_{pair.useless}")
            elif pair.score is None:
                context.count("unreadable_scores")
                context.filters.record(pair.task, "curation", f"the model's score can't be read: {pair.error}")
            elif pair.score < least:
                context.count("low_scores")
                context.filters.record(pair.task, "curation", f"the model's score is {pair.score:g}, below {least}")
            else:
                stay.append(replace(pair.task, figures={"score": pair.score}))
        return stay
