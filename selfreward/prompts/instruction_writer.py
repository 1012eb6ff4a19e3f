"""Requests for further tasks after examples, and reading what came of them (arXiv 2212.10560)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from selfreward.engines import Completion, Sampler, SamplingParams
from selfreward.prompts.replies import TEMPLATES, failure
from selfreward.recipe.prompt_settings import SelfInstructSettings, SourceSettings
from selfreward.records import Task
from selfreward.text.labelled import Labels, input_of
from selfreward.text.lists import clean, read_lines, read_list
from selfreward.text.prompt_template import Template
from selfreward.text.refusals import is_refusal

SOURCE = "self_instruct"


@dataclass(frozen=True)
class Reply:
    """The tasks that a request brought, in their order, and a name for each thing that was wrong with it."""

    tasks: list[Task]
    errors: list[str]


class TaskFormat(Protocol):
    """How tasks are shown to a model, and read from what it writes."""

    def fits(self, task: Task) -> bool:
        """Whether a task can be an example."""

    def show(self, examples: Sequence[Task]) -> str:
        """The examples as the template's ``{examples}``."""

    def read(self, text: str, begins: int) -> list[Task | str] | None:
        """The tasks in an output, or in place of each what is wrong with it; None where there is nothing of the kind.

        Args:
            text: the output.
            begins: the number that the first of them was to have.
        """


class Instructions:
    """Instructions alone: a numbered list, or one on each line. No example can pose as two: each is one line."""

    def __init__(self, settings: SelfInstructSettings) -> None:
        self._is_numbered = settings.numbered
        self._by_line = settings.tasks == 1 or not settings.numbered

    def fits(self, task: Task) -> bool:
        return _stands_alone(task)

    def show(self, examples: Sequence[Task]) -> str:
        lines = [_one_line(task.instruction) for task in examples]
        return (
            "\n".join(f"{n}. {line}" for n, line in enumerate(lines, start=1))
            if self._is_numbered
            else "\n".join(lines)
        )

    def read(self, text: str, begins: int) -> list[Task | str] | None:
        if is_refusal(text):
            return None
        items = read_lines(text) if self._by_line else read_list(text, begins)
        return None if items is None else [Task.make(item, SOURCE) if item else "items_empty" for item in items]


class WholeTasks:
    """Tasks with input and output, one after another, as Alpaca has them."""

    def __init__(self, settings: SelfInstructSettings) -> None:
        self._labels = Labels("Instruction", "Input", "Output")

    def fits(self, task: Task) -> bool:
        return _stands_alone(task) and bool(task.output)

    def show(self, examples: Sequence[Task]) -> str:
        return "\n".join(self._shown(number, task) for number, task in enumerate(examples, start=1)) + "\n###"

    def read(self, text: str, begins: int) -> list[Task | str] | None:
        return [self._task(fields) for fields in self._labels.read(text)] or None

    def _shown(self, number: int, task: Task) -> str:
        assert task.output is not None, "a task that fits has an output"
        input, output = (self._labels.guard(text.strip()) for text in (task.input or "<noinput>", task.output))
        lines = ("###", f"{number}. Instruction: {_one_line(task.instruction)}", f"{number}. Input:", input)
        return "\n".join((*lines, f"{number}. Output:", output))

    def _task(self, fields: dict[str, str]) -> Task | str:
        instruction = clean(fields.get("instruction", ""))
        if not instruction or "output" not in fields:
            return "items_malformed"
        return Task.make(instruction, SOURCE, input_of(fields.get("input", "")), output=fields["output"])


FORMATS: dict[str, Callable[[SelfInstructSettings], TaskFormat]] = {"paper": Instructions, "alpaca": WholeTasks}


class InstructionWriter:
    """Asks for tasks, with examples by people and by machine."""

    def __init__(self, settings: SourceSettings) -> None:
        """Raises ValueError for a template that lacks a place."""
        self._settings = settings.self_instruct
        self._params = SamplingParams.of(settings.generation, self._settings.presence_penalty)
        self.format: TaskFormat = FORMATS[self._settings.variant](self._settings)
        packaged = {"paper": "self_instruct", "alpaca": "alpaca"}[self._settings.variant]
        self.template = Template.read(self._settings.template or TEMPLATES / f"{packaged}.txt", ("examples",))

    def examples_of(self, tasks: Iterable[Task]) -> list[Task]:
        """Those that can be examples, one for each instruction, in their order."""
        found: dict[str, Task] = {}
        for task in tasks:
            if self.format.fits(task):
                found.setdefault(task.instruction, task)
        return [*found.values()]

    def draw(self, human: Sequence[Task], machine: Sequence[Task], seed: int) -> list[Task]:
        """Examples in a random order: so many by people as there are too few by machine."""
        rng = random.Random(seed)
        num = self._settings.human + self._settings.machine
        drawn = rng.sample(machine, min(self._settings.machine, len(machine)))
        drawn += rng.sample(human, min(num - len(drawn), len(human)))
        rng.shuffle(drawn)
        return drawn

    async def ask(self, engine: Sampler, template: Template, examples: Sequence[Task], seed: int) -> Reply:
        """One request."""
        number = len(examples) + 1
        places = {"examples": self.format.show(examples), "number": str(number), "num": str(self._settings.tasks)}
        [completion] = await engine.generate(template.fill(**places), self._params, [seed])
        return self._read(completion, number)

    def _read(self, completion: Completion, number: int) -> Reply:
        useless = failure(completion)
        if useless not in (None, "truncated"):
            return Reply([], [f"outputs_{useless}"])
        items = self.format.read(completion.text, number)
        if items is None:
            return Reply([], ["outputs_refused" if is_refusal(completion.text) else "outputs_unparsed"])
        errors = []
        if completion.finish_reason == "length":
            items, errors = items[:-1], ["items_truncated"]
        tasks = [item for item in items if isinstance(item, Task)]
        errors += [item for item in items if isinstance(item, str)]
        return Reply(tasks[:1] if self._settings.tasks == 1 else tasks, errors)


def _stands_alone(task: Task) -> bool:
    """Whether an instruction can be understood without earlier turns."""
    return all(message["role"] == "system" for message in task.context)


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(":")
