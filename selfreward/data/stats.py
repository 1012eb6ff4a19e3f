"""What is in instruction data: sizes, lengths, licences, and how different its instructions are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from selfreward.data.job import rows_of
from selfreward.evaluation.diversity import diversity
from selfreward.prompts.dataset import read_tasks
from selfreward.recipe.filter_settings import EmbeddingSettings
from selfreward.recipe.prompt_settings import RowSettings
from selfreward.records import Task

SEED = 0  # of the samples that diversity is measured on
NUM_FREQUENT = 10


def stats(path: Path, embedding: str | None = None) -> dict[str, Any]:
    """The figures of a file, or of a folder that ``selfreward data`` made.

    Bad and duplicate rows are skipped and counted.

    Raises:
        ValueError: no row that can be read.
    """
    settings = RowSettings(path=rows_of(path), on_bad_line="skip", max_characters=1 << 20)
    tasks, skipped = read_tasks(settings)
    instructions = [task.instruction for task in tasks]
    return {
        "rows": len(tasks),
        **{f"skipped_{reason}": count for reason, count in skipped.items()},
        "instructions": len(set(instructions)),
        "with_input": sum(bool(task.input) for task in tasks),
        "with_output": sum(task.output is not None for task in tasks),
        "with_context": sum(bool(task.context) for task in tasks),
        **_words("instruction", instructions),
        **_words("output", [task.output for task in tasks if task.output is not None]),
        "sources": _counts(task.source for task in tasks),
        "licenses": _counts(task.license or "not stated" for task in tasks),
        **diversity(instructions, SEED, EmbeddingSettings(model=embedding)),
        "frequent_roots": _frequent(tasks),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of several data sets beside each other, as Markdown."""
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    lines = [["", *found], ["---"] * (len(found) + 1)]
    lines += [[name, *(_cell(figures.get(name)) for figures in found.values())] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _words(of: str, texts: Sequence[str]) -> dict[str, float]:
    lengths = sorted(len(text.split()) for text in texts)
    if not lengths:
        return {}
    return {
        f"{of}_words_mean": mean(lengths),
        f"{of}_words_median": median(lengths),
        f"{of}_words_95th": lengths[int(0.95 * (len(lengths) - 1))],
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common(NUM_FREQUENT))


def _frequent(tasks: Sequence[Task]) -> dict[str, int]:
    from selfreward.evaluation.diversity import frequent_roots

    return {
        f"{verb} {noun}": count for (verb, noun), count in frequent_roots([t.instruction for t in tasks], NUM_FREQUENT)
    }


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
