"""Runs of words that stand elsewhere too: in earlier instructions, or in evaluation data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from selfreward.prompts.filters.base import BuiltInFilter, Finding, Kind
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.recipe.prompt_settings import RowSettings
from selfreward.records import Task
from selfreward.text.words import ngrams, words


class Novelty(BuiltInFilter):
    """Instructions of which too few runs of words are new to the pool.

    The pool is all that was added so far: seeds, what earlier iterations asked or made, and what this one has
    admitted. Counted are different runs of ``ngram`` words, of a shorter instruction its words together. The pool is
    a set, so in which order it was filled does not matter. The larger it is the less is new: a higher share than the
    default asks too much of later iterations.
    """

    of: ClassVar[Kind] = "instruction"
    block: ClassVar[str | None] = "novelty"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        self._settings = settings.novelty
        self._known: set[str] = set()

    def look(self, task: Task) -> Finding | None:
        every = self._runs(task)
        new = len(every - self._known)
        if not every or new >= self._settings.min_new * len(every):
            return None
        return Finding(f"{new} of {len(every)} runs of {self._settings.ngram} words are new")

    def add(self, task: Task) -> None:
        self._known |= self._runs(task)

    def _runs(self, task: Task) -> set[str]:
        found = words(task.instruction)
        return set(ngrams(found, min(self._settings.ngram, len(found)))) if found else set()


class Decontamination(BuiltInFilter):
    """Tasks that share a run of words with evaluation data.

    Of the evaluation data, the user's messages, the outputs and the references are compared, of a task the user's
    messages, its instruction and input each by itself, and its output and reference. Words are compared in lower case
    and without punctuation. A question of fewer words than a run has to be the same from beginning to end; an output
    or reference of so few words, such as "Yes", is not compared. Rows that can't be read can't be evaluated with
    either, and are left out. What many share, such as "Choose the right answer from the following ...", is found too.
    """

    of: ClassVar[Kind] = "text"
    block: ClassVar[str | None] = "decontamination"

    @classmethod
    def reads_held_out(cls, settings: FilterSettings) -> bool:
        return settings.decontamination.path is None

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        path = settings.decontamination.path or held_out
        if path is None:
            raise ValueError(
                "the filter decontamination has nothing to compare with. Name the evaluation data in "
                "filters.decontamination.path or in the recipe's evaluation.prompts, or take the filter out of "
                "filters.use"
            )
        self._n = settings.decontamination.ngram
        self._file = path.name
        self._rows = _read(path, settings.decontamination.columns)
        self._runs: dict[str, int] = {}
        self._short: dict[str, int] = {}
        for row, task in enumerate(self._rows):
            self._index(task, row)

    def look(self, task: Task) -> Finding | None:
        for name, text in (*_questions(task), *_answers(task)):
            found = words(text)
            if len(found) < self._n:
                run = " ".join(found)
                row = self._short.get(run)
            else:
                run, row = next(
                    ((run, self._runs[run]) for run in ngrams(found, self._n) if run in self._runs), ("", None)
                )
            if row is not None:
                question = " ".join(self._rows[row].prompt.text.split())
                return Finding(f'the {name} has "{run}" of {self._file}, prompt {row + 1}: "{question[:60]}"')
        return None

    def _index(self, task: Task, row: int) -> None:
        for _, text in (*_questions(task), *_answers(task)):
            for run in ngrams(words(text), self._n):
                self._runs.setdefault(run, row)
        whole = words(task.messages[-1]["content"])
        if 0 < len(whole) < self._n:
            self._short.setdefault(" ".join(whole), row)


def _read(path: Path, columns: dict[str, str]) -> list[Task]:
    from selfreward.prompts.dataset import read_tasks

    # No row is too long to be found in what is trained on.
    settings = RowSettings(path=path, columns=columns, on_bad_line="skip", max_characters=2**62)
    return read_tasks(settings)[0]


def _questions(task: Task) -> Iterator[tuple[str, str]]:
    """What a user writes, the input below the instruction too, as a run can lie across both."""
    yield from (("earlier message", message["content"]) for message in task.context if message["role"] == "user")
    yield "instruction", task.instruction
    if task.input:
        yield "input", task.input
        yield "instruction with its input", task.messages[-1]["content"]


def _answers(task: Task) -> Iterator[tuple[str, str]]:
    yield from ((name, text) for name, text in (("output", task.output), ("reference", task.reference)) if text)
