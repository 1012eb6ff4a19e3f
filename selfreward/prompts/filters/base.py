"""Filters in their order, the pool that they compare with, and a record of everything that they take out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from selfreward.recipe import registry
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.records import Removal, Task

# What a filter looks at.
Kind = Literal["instruction", "instance", "text"]
KINDS: tuple[Kind, ...] = ("instruction", "instance", "text")


@dataclass(frozen=True)
class Finding:
    """Why a filter takes a task out; ``neighbour_id`` is the ``instruction_id`` of what it is too near to, if any."""

    detail: str
    neighbour_id: str | None = None
    similarity: float | None = None


class Filter:
    """Looks at one task at a time.

    A class of a user's needs no parent, only ``of``, ``prepare``, ``look`` and ``add``. All else is what other code
    asks of a filter.

    - ``of``: what it looks at: an instruction, once for all of its instances and maybe before there are any; an
      instance, which has an output; or text, which is all that a task has when it is looked at.
    - ``block``: its block of ``prompts.filters``, which a data set's card shows.
    """

    required: ClassVar[tuple[str, ...]] = ("of", "prepare", "look", "add")

    kinds: ClassVar[tuple[Kind, ...]] = KINDS

    of: ClassVar[Kind]
    block: ClassVar[str | None] = None

    @classmethod
    def check_settings(cls, settings: FilterSettings) -> None:
        """Looks at the settings when the recipe is read. Raises ValueError for those that it can't work with."""

    @classmethod
    def reads_held_out(cls, settings: FilterSettings) -> bool:
        """Whether the recipe's evaluation data decides what it takes out; a class that does not say is taken to."""
        return True

    @classmethod
    def model(cls, settings: FilterSettings) -> ModelSettings | None:
        """A hub model that it loads, which is brought to this machine before a run begins."""
        return None

    @classmethod
    def describe(cls, settings: FilterSettings) -> str | None:
        """What ``selfreward check`` has to warn of, such as a function that is run on each text."""
        return None

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        """Reads its block of the settings; ``held_out`` is the recipe's evaluation data.

        Raises:
            ValueError: a file or library that it needs is missing.
        """

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Sees tasks together before they are looked at one by one, for what is done faster or only together."""

    def look(self, task: Task) -> Finding | None:
        """Why the task is taken out, or None."""
        raise NotImplementedError

    def add(self, task: Task) -> None:
        """Adds an instruction that is new to the pool, if this is ``of`` instructions.

        ``Task.instruction_id`` is its id there.
        """


class BuiltInFilter(Filter):
    """One that reads no held-out data, and of which nothing has to be seen together or added to a pool."""

    @classmethod
    def reads_held_out(cls, settings: FilterSettings) -> bool:
        return False

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Each task is looked at by itself."""

    def add(self, task: Task) -> None:
        """What else there is does not matter."""


def filter_class(name: str) -> type[Filter]:
    """The class of a filter, by its name or ``MODULE:CLASS``. Raises ValueError for none, or one that is no filter."""
    found: type[Filter] = registry.load_class(name, registry.FILTERS, "filter")
    return found


class Filters:
    """The filters of a recipe over one growing pool of instructions.

    An instruction passes or fails once: a further instance of it, with another input, is not compared with the first.
    The very same task is taken out as a ``duplicate``, whatever filters there are. Filters of instructions look first,
    then the others, in the order of the recipe among themselves.
    """

    def __init__(self, settings: FilterSettings, names: Sequence[str], held_out: Path | None = None) -> None:
        """Raises ValueError for a name that nothing is registered under, or what a filter lacks."""
        self.names = list(names)
        self._settings, self._held_out = settings, held_out
        every = [(name, filter_class(name)(settings, held_out)) for name in names]
        self._of_instructions = [(name, each) for name, each in every if each.of == "instruction"]
        self._of_text = [(name, each) for name, each in every if each.of == "text"]
        self._of_instances = [(name, each) for name, each in every if each.of != "instruction"]
        self._pool: dict[str, str] = {}  # instructions by the id that each has alone
        self._tasks: set[str] = set()
        self._verdicts: dict[str, Removal | None] = {}
        self._fresh: list[Task] = []
        self.removed: list[Removal] = []
        self.passed = 0  # of what was settled last, how many tasks had been looked at

    def fresh(self) -> Filters:
        """The same filters over an empty pool."""
        return Filters(self._settings, self.names, self._held_out)

    def add_known(self, tasks: Iterable[Task]) -> None:
        """Adds tasks to the pool without looking at them: seeds, and what earlier iterations made."""
        every = list(tasks)
        self._prepare(every)
        for task in every:
            self._add(task)

    def restore(self, removed: Iterable[Removal]) -> None:
        """Adds to the pool what had passed the filters in an earlier iteration, and nothing was made of."""
        self.add_known(Task(each.id, each.instruction, each.source, each.input) for each in removed if each.known)

    def filter(self, tasks: Sequence[Task], most: int | None = None) -> list[Task]:
        """The tasks that pass, each compared with the pool and with those before it; they join the pool.

        A task without an output is not looked at by the filters of instances.

        Args:
            tasks: in their order.
            most: after so many no more are looked at.
        """
        self._prepare(tasks)
        admitted: list[Task] = []
        for task in tasks:
            if len(admitted) == most:
                break
            if self._is_admitted(task):
                admitted.append(task)
        self._fresh += admitted
        return admitted

    def filter_instances(self, tasks: Sequence[Task]) -> list[Task]:
        """Those instances of one instruction, admitted before, which pass the filters of instances and of text."""
        for _, each in self._of_instances:
            each.prepare(tasks)
        passed: dict[str, Task] = {}
        for task in tasks:
            finding = _first(task, self._of_instances)
            if finding is None and task.id in passed:
                finding = "duplicate", Finding("the same task was made before", task.instruction_id, 1.0)
            if finding is None:
                passed[task.id] = task
            else:
                self._remove(task, *finding)
        return [*passed.values()]

    def record(self, task: Task, name: str, detail: str) -> None:
        """Records a task that its own source takes out, under the name of what it did not pass."""
        self._remove(task, name, Finding(detail))

    def merge(self, removed: Iterable[Removal], passed: Iterable[Task]) -> None:
        """What other filters decided, whose pool was another one."""
        self.removed += removed
        self._fresh += passed

    def finish(self, kept: Sequence[Task], reason: str = "unused") -> None:
        """Says which tasks became of those that were admitted; the others are recorded, and stay in the pool."""
        looked = {task.id for task in self._fresh} | {task.instruction for task in self._fresh}
        self.passed = sum(task.id in looked or task.instruction in looked for task in kept)
        ids, instructions = {task.id for task in kept}, {task.instruction for task in kept}
        for task in self._fresh:
            if task.id in ids:
                continue
            if task.instruction in instructions:
                self._tasks.discard(task.id)
            else:
                self._remove(task, reason, Finding("it had passed the filters, and nothing was made of it"), known=True)
        self._fresh.clear()
        # A pool that is read from the records knows of none, and has to decide the same.
        self._verdicts.clear()
        self.add_known(task for task in kept if task.id not in self._tasks)

    def counts(self) -> dict[str, int]:
        """How many tasks each filter took out, in the order of the filters."""
        taken = Counter(removal.filter for removal in self.removed)
        return {f"removed_{name}": taken[name] for name in dict.fromkeys([*self.names, *taken]) if taken[name]}

    def _is_admitted(self, task: Task) -> bool:
        if task.id in self._tasks:
            self._remove(task, "duplicate", Finding("the same task was there before", task.instruction_id, 1.0))
            return False
        further = bool(task.input) and task.instruction in self._verdicts
        before = self._verdicts[task.instruction] if further else None
        if before is not None:
            self._remove(task, before.filter, Finding(before.detail, before.neighbour_id, before.similarity))
            return False
        finding = None if further else _first(task, self._of_instructions)
        if finding is not None:
            self._verdicts[task.instruction] = self._remove(task, *finding)
            return False
        finding = _first(task, self._of_text if task.output is None else self._of_instances)
        if finding is not None:
            self._remove(task, *finding)
            return False
        self._verdicts[task.instruction] = None
        self._add(task)
        return True

    def _remove(self, task: Task, name: str, finding: Finding, known: bool = False) -> Removal:
        removal = Removal(
            id=task.id,
            instruction=task.instruction,
            input=task.input,
            output=task.output,
            source=task.source,
            filter=name,
            detail=finding.detail,
            neighbour_id=finding.neighbour_id,
            neighbour=self._pool.get(finding.neighbour_id) if finding.neighbour_id else None,
            similarity=finding.similarity,
            known=known,
        )
        self.removed.append(removal)
        return removal

    def _add(self, task: Task) -> None:
        self._tasks.add(task.id)
        if task.instruction_id not in self._pool:
            self._pool[task.instruction_id] = task.instruction
            for _, each in self._of_instructions:
                each.add(task)

    def _prepare(self, tasks: Sequence[Task]) -> None:
        for _, each in (*self._of_instructions, *self._of_instances):
            each.prepare(tasks)


def _first(task: Task, filters: Sequence[tuple[str, Filter]]) -> tuple[str, Finding] | None:
    """The first filter that takes the task out, and why."""
    for name, each in filters:
        finding = each.look(task)
        if finding is not None:
            return name, finding
    return None
