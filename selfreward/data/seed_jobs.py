"""Instruction and judging data from ranked human answers, as jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from selfreward.data.eft import make_eft
from selfreward.data.ift import make_ift
from selfreward.data.job import JobContext
from selfreward.data.made import Made, Row
from selfreward.data.prompt_jobs import rows
from selfreward.data.ranked import read_ranked
from selfreward.prompts.row_files import name_of
from selfreward.prompts.seed_data import read_graded
from selfreward.recipe.data_settings import EFTJob, IFTJob
from selfreward.records import Graded


def ift(job: IFTJob, context: JobContext) -> Made:
    """The best answers. Raises ValueError for bad rows, or if none is left."""
    ranked, skipped = read_ranked(job.ranked, job.lang)
    held_out = [row.prompt for row in read_graded(job.without)] if job.without is not None else []
    tasks, removed = make_ift(ranked, name_of(job.ranked), held_out)
    if not tasks:
        raise ValueError(f"none of {len(ranked)} prompts has an answer of rank 0 and is not held out")
    reasons = Counter(removal.filter for removal in removed)
    figures = {
        "prompts": len(ranked),
        "rows": len(tasks),
        **{f"removed_{reason}": count for reason, count in reasons.items()},
        **_skipped(skipped),
    }
    return Made({"train": rows(tasks)}, figures, removed)


def eft(job: EFTJob, context: JobContext) -> Made:
    """Judgements that agree with people. Raises ValueError for bad rows, or a judge that can't be read."""
    ranked, skipped = read_ranked(job.ranked, job.lang)
    made = make_eft(ranked, job.eft, context.engine(), context.run_concurrently, job.seed)
    licences = {each.prompt: each.license for each in ranked}
    splits = {"train": _rows(made.train, licences)}
    if made.held_out:
        splits["held_out"] = _rows(made.held_out, licences)
    return Made(splits, {**made.figures, **_skipped(skipped)}, made.dropped)


def _rows(graded: Iterable[Graded], licences: Mapping[str, str | None]) -> list[Row]:
    """As ``seed_data.eft`` and ``evaluation.judging`` read them."""
    every = [{**asdict(each), "license": licences[each.prompt]} for each in graded]
    return [{name: value for name, value in row.items() if value is not None} for row in every]


def _skipped(counts: dict[str, int]) -> dict[str, int]:
    return {f"skipped_{reason}": count for reason, count in counts.items()}
