"""What can be told of a task by its own text: the filters of Self-Instruct (arXiv 2212.10560), and refusals.

The rules of the paper are those of its own code, which sees an instruction with its white space evened out.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from selfreward.prompts.filters.base import BuiltInFilter, Finding, Kind
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.records import Task, content_id
from selfreward.text.refusals import find_refusal
from selfreward.text.words import phrase_finder


class _OfInstructions(BuiltInFilter):
    of: ClassVar[Kind] = "instruction"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        self._settings = settings


class _OfInstances(BuiltInFilter):
    of: ClassVar[Kind] = "instance"


class Length(_OfInstructions):
    """Instructions of at most 3 or over 150 words, by default. Words are what white space divides.

    Chinese and other scripts without spaces have too few words for any lower limit: set ``min_words: 0`` for them.
    """

    block: ClassVar[str | None] = "length"

    def look(self, task: Task) -> Finding | None:
        limits, count = self._settings.length, len(task.instruction.split())
        if count < limits.min_words:
            return Finding(f"{_words(count)}, fewer than {limits.min_words}")
        if count > limits.max_words:
            return Finding(f"{_words(count)}, more than {limits.max_words}")
        return None


def _words(count: int) -> str:
    return "1 word" if count == 1 else f"{count} words"


class Keywords(_OfInstructions):
    """Instructions about images, files and the like, told by whole words in any case."""

    block: ClassVar[str | None] = "keywords"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        super().__init__(settings, held_out)
        self._find = phrase_finder(settings.keywords.words)

    def look(self, task: Task) -> Finding | None:
        found = self._find(task.instruction)
        return None if found is None else Finding(f'has "{found}"')


class FirstCharacter(_OfInstructions):
    """Instructions that begin with "Write a program", ASCII punctuation, or a character that is not ASCII.

    The paper added the first as its model wrote it too often. The last keeps to English by rule of thumb: for other
    languages, leave this filter out.
    """

    def look(self, task: Task) -> Finding | None:
        text = " ".join(task.instruction.split())
        if text.lower().startswith("write a program"):
            return Finding('begins with "Write a program"')
        first = text[:1]
        if first and first in string.punctuation:
            return Finding(f"begins with the punctuation mark {first}")
        return None if first.isascii() else Finding(f"begins with {first}, which is not ASCII")


class EmptyOutput(_OfInstances):
    """Instances whose output is empty or white space."""

    def look(self, task: Task) -> Finding | None:
        return Finding("the output is empty") if task.output is not None and not task.output.strip() else None


class InputEqualsOutput(_OfInstances):
    """Instances whose output is their input; white space around them does not count."""

    def look(self, task: Task) -> Finding | None:
        same = task.output is not None and task.input.strip() == task.output.strip()
        return Finding("the output is the input") if same else None


class TrailingColon(_OfInstances):
    """Instances whose input or output ends with a colon, as what is cut off does."""

    def look(self, task: Task) -> Finding | None:
        for name, text in (("input", task.input), ("output", task.output or "")):
            if text.rstrip().endswith(":"):
                return Finding(f"the {name} ends with a colon")
        return None


class Contradiction(_OfInstances):
    """All instances of a task where one input that is not empty has different outputs.

    A task is an instruction with the messages before it. Compared is what comes together, and only what is an answer:
    an output that is empty, equal to its input or cut off at a colon contradicts nothing, as in the paper's code.
    """

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        self._others = [kind(settings, held_out) for kind in (EmptyOutput, InputEqualsOutput, TrailingColon)]
        self._inputs: dict[str, str] = {}

    def prepare(self, tasks: Sequence[Task]) -> None:
        outputs: dict[tuple[str, str], str] = {}
        self._inputs = {}
        for task in tasks:
            text = task.input.strip()
            if not text or task.output is None or any(other.look(task) for other in self._others):
                continue
            if outputs.setdefault((_key(task), text), task.output.strip()) != task.output.strip():
                self._inputs.setdefault(_key(task), text)

    def look(self, task: Task) -> Finding | None:
        found = self._inputs.get(_key(task))
        return None if found is None else Finding(f'the input "{_shortened(found)}" has different outputs')


def _key(task: Task) -> str:
    return content_id(task.context, task.instruction.strip())


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."


class Refusal(_OfInstances):
    """Instances whose output begins with a refusal, or with "As an AI language model", or is but an apology.

    Told by English phrases, after a greeting or an apology: what an assistant can't or won't do with a request, that
    it lacks access or opinions, that it is a machine. "Sorry" alone is none, unless it is all there is, and what
    stands later in an output is not looked at. A refusal in other words stays; an answer in the role of a machine
    ("Who are you?") that begins with "As an AI" goes.
    """

    def look(self, task: Task) -> Finding | None:
        found = find_refusal(task.output or "")
        return None if found is None else Finding(f'the output begins with "{_shortened(found)}"')
