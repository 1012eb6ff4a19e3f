"""A prompt source as a maker of instruction data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfreward.data.job import JobContext
from selfreward.data.made import Made, Row
from selfreward.evaluation.diversity import diversity
from selfreward.preflight import check_model, check_prompts
from selfreward.prompts.base import PromptSource, SourceContext, source_of
from selfreward.prompts.filters.base import Filters
from selfreward.recipe.data_settings import DataJob
from selfreward.records import Task
from selfreward.stages.prompts import acceptance, explain, fall_short


def check(job: DataJob) -> None:
    """Reads the rows, makes the filters, looks at the model. Raises ValueError for what can't be worked with."""
    check_prompts(job.prompts, None)
    if job.model is not None:
        check_model("model", job.model)


def work(job: DataJob, job_context: JobContext) -> Made:
    """The tasks of the job's source as rows.

    Raises:
        ValueError: bad rows, or nothing was made.
    """
    settings = job.prompts
    filters = Filters(settings.filters, settings.filter_names, None)
    context = SourceContext(
        iteration=1,
        num=settings.num,
        seed=job.seed,
        filters=filters,
        engine_of=lambda _: job_context.engine(),
        limit=job.engine.max_in_flight,
    )
    source = source_of(settings)
    tasks = source.tasks(context)
    if not tasks:
        raise ValueError(f"{settings.source} made nothing. {explain(filters)}")
    fall_short(context, len(tasks))
    filters.finish(tasks)
    figures = {
        "rows": len(tasks),
        **context.figures,
        **filters.counts(),
        **acceptance(filters),
        **diversity([task.instruction for task in tasks], job.seed, settings.filters.embedding),
    }
    return Made({"train": rows(tasks)}, figures, filters.removed, _licences(source))


def _licences(source: PromptSource) -> list[tuple[str, str]]:
    """The licences of seeds, which rows that were written after them do not carry."""
    counts = Counter(task.license or "not stated" for task in source.seeds())
    if not counts:
        return []
    return [("seeds' licences", ", ".join(f"{name} ({count})" for name, count in counts.most_common()))]


def rows(tasks: Sequence[Task]) -> list[Row]:
    """The tasks as Alpaca's columns, and as TRL's ``prompt`` and ``completion``, which it trains as they are.

    A column that no row has a value for is left out, such as ``output`` where no task has one.
    """
    every = [_row(task) for task in tasks]
    empty = {name for name in every[0] if all(row[name] is None for row in every)} if every else set()
    names = list(dict.fromkeys(name for row in every for name in row if name not in empty))
    return [{name: row.get(name) for name in names} for row in every]


def _row(task: Task) -> Row:
    return {
        "id": task.id,
        "instruction": task.instruction,
        "input": task.input,
        "output": task.output,
        "prompt": task.messages,
        "completion": None if task.output is None else [{"role": "assistant", "content": task.output}],
        "reference": task.reference,
        "is_classification": task.is_classification,
        "source": task.source,
        "parent_id": task.parent_id,
        "license": task.license,
        **task.figures,
    }
