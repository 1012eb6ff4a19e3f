"""Rows answered by a teacher that is asked to explain (Orca, arXiv 2306.02707)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from selfreward.engines import SamplingParams
from selfreward.prompts.base import CardText, DataCommand, PromptSource, SourceContext
from selfreward.prompts.dataset import counted, read_tasks
from selfreward.prompts.filters.base import KINDS, Kind
from selfreward.prompts.replies import TEMPLATES, failure, in_turn
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Task
from selfreward.runs.stored import ANSWER, MESSAGE, SEED_OF_EXPLANATION


class ExplainSource(PromptSource):
    """Each iteration takes the rows behind the last one that was answered, each under one of several system messages.

    Answers that are empty or truncated are left out, and further rows follow in their place, each once an iteration.
    """

    reads_rows: ClassVar[bool] = True
    writes: ClassVar[bool] = False
    command: ClassVar[DataCommand | None] = DataCommand(
        "explain", "A teacher's answers under system messages that ask for explanations (Orca, arXiv 2306.02707)."
    )
    card: ClassVar[CardText | None] = CardText(
        "Instructions that a language model answered under system messages which ask for explanations.",
        "2306.02707",
        "An explanation that reads well can be wrong; nobody checked them.",
    )

    @classmethod
    def filtered(cls, settings: SourceSettings) -> tuple[Kind, ...]:
        return KINDS

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._params = SamplingParams.of(settings.generation)
        self._messages = read_system_messages(settings.explain.messages or TEMPLATES / "explain.txt")

    def check(self) -> None:
        read_tasks(self._settings)

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration in the order of the rows; fewer than wanted where rows run out.

        Raises:
            ValueError: bad rows.
        """
        rows = counted(context, read_tasks(self._settings))
        engine = context.engine_of(self._settings)
        queue = in_turn(rows, self._taken(rows, context.earlier))
        # A row that comes again after all others is no duplicate of itself.
        filters = context.filters.fresh()
        made: list[Task] = []

        async def answered(task: Task) -> tuple[Task, str | None]:
            [answer] = await engine.generate(
                task.messages, self._params, [context.derive(SEED_OF_EXPLANATION, ANSWER, task.id)]
            )
            return replace(task, output=answer.text.strip()), failure(answer)

        while queue and len(made) < context.wanted:
            num = context.wanted - len(made)
            taken, queue = queue[:num], queue[num:]
            tasks = [self._task(row, context.derive(SEED_OF_EXPLANATION, MESSAGE, row.id)) for row in taken]
            pairs = context.run_concurrently("explanations", tasks, answered)
            for task, useless in pairs:
                if useless is not None:
                    context.count(f"failed_{useless}")
                    context.filters.record(task, "unanswered", useless)
            made += filters.filter([task for task, useless in pairs if useless is None])
        context.filters.merge(filters.removed, made)
        return made

    def _taken(self, rows: Sequence[Task], earlier: Sequence[Task]) -> int:
        """The place behind the row that was answered last."""
        places = {row.id: place for place, row in enumerate(rows, start=1)}
        return next((places[task.parent_id] for task in reversed(earlier) if task.parent_id in places), 0)

    def _task(self, row: Task, seed: int) -> Task:
        """The row under a system message, in place of its own if it has one."""
        system = {"role": "system", "content": self._messages[seed % len(self._messages)]}
        return Task.make(
            row.instruction,
            "explain",
            row.input,
            context=[system, *(message for message in row.context if message["role"] != "system")],
            parent_id=row.id,
            reference=row.reference,
            license=row.license,
            is_classification=row.is_classification,
        )


def read_system_messages(path: Path) -> list[str]:
    """The messages of a text file, which have empty lines between them.

    Raises:
        ValueError: there is none, or the file is not UTF-8.
    """
    try:
        found = [part.strip() for part in re.split(r"\n\s*\n", path.read_text("utf-8")) if part.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}. Save the file as UTF-8") from None
    if not found:
        raise ValueError(f"{path} is empty. Write system messages with empty lines between them")
    return found
