"""New instructions after examples, with instances: Self-Instruct (arXiv 2212.10560) and Alpaca's variant of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import ClassVar

from selfreward.engines import Sampler
from selfreward.prompts.base import CardText, DataCommand, PromptSource, SourceContext
from selfreward.prompts.dataset import counted, read_tasks
from selfreward.prompts.filters.base import KINDS, Kind
from selfreward.prompts.instances import InstanceWriter
from selfreward.prompts.instruction_writer import SOURCE, InstructionWriter
from selfreward.prompts.template_search import TemplateSearch
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Task
from selfreward.runs.stored import SEED_OF_EXAMPLES, SEED_OF_ROUND
from selfreward.runtime.progress import console
from selfreward.text.prompt_template import Template


class SelfInstructSource(PromptSource):
    """Rounds of requests, until there are as many tasks as an iteration wants; each round sees what the others made."""

    reads_rows: ClassVar[bool] = True
    command: ClassVar[DataCommand | None] = DataCommand(
        "self-instruct",
        "New instructions with inputs and outputs after seed tasks (Self-Instruct, arXiv 2212.10560; or Alpaca's way).",
    )
    card: ClassVar[CardText | None] = CardText(
        "Instructions that a language model wrote after seed examples, with inputs and outputs of its own.",
        "2212.10560",
        "The outputs are the model's and nobody checked them: of 200 tasks that the method's authors looked at, 46 % "
        "had some problem.",
    )

    @classmethod
    def searches_templates(cls, settings: SourceSettings) -> bool:
        return settings.self_instruct.template_variants > 0

    @classmethod
    def filtered(cls, settings: SourceSettings) -> tuple[Kind, ...]:
        # An instruction alone has no output that filters of instances could look at.
        return KINDS if settings.self_instruct.instances else ("instruction", "text")

    def __init__(self, settings: SourceSettings) -> None:
        """Raises ValueError for a template that lacks a place."""
        self._settings = settings
        self._writer = InstructionWriter(settings)

    def check(self) -> None:
        """Raises ValueError where the rows are bad, or too few of them can be examples."""
        self._read_seeds()

    def seeds(self) -> list[Task]:
        """What the filters are to know of the seeds."""
        return self._read_seeds()[0]

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration in the order in which they were made; fewer where nothing new comes any more.

        Raises:
            ValueError: bad rows, or too few of them can be examples.
        """
        seeds, human = self._read_seeds(context)
        context.filters.add_known(seeds)
        engine = context.engine_of(self._settings)
        machine = self._writer.examples_of(task for task in context.earlier if task.source == SOURCE)
        template = self._writer.template
        if self._settings.self_instruct.template_variants:
            search = TemplateSearch(self._settings, self._writer, context, engine)
            template = search.best(seeds, human, machine)
        return _Rounds(self._settings, self._writer, context, engine, template, seeds).run(human, machine)

    def _read_seeds(self, context: SourceContext | None = None) -> tuple[list[Task], list[Task]]:
        """What the filters are to know of the seeds, and those that can be examples."""
        read = read_tasks(self._settings)
        rows = read[0] if context is None else counted(context, read)
        human, wanted = self._writer.examples_of(rows), self._settings.self_instruct.human
        if len(human) < wanted:
            raise ValueError(
                f"self_instruct.human is {wanted}, and {len(human)} of the {len(rows)} seeds can be examples: their "
                "instructions differ, need no earlier turns and, for the alpaca variant, have an output. Lower human, "
                "or add seeds"
            )
        # A seed's instruction without its input is no new task either.
        alone = [Task.make(row.instruction, row.source) for row in rows if row.input and not row.context]
        return [*rows, *alone], human


class _Rounds:
    """The requests of one iteration."""

    def __init__(
        self,
        settings: SourceSettings,
        writer: InstructionWriter,
        context: SourceContext,
        engine: Sampler,
        template: Template,
        seeds: Sequence[Task],
    ) -> None:
        self._settings = settings.self_instruct
        self._writer, self._context, self._engine, self._template = writer, context, engine, template
        asks = self._settings.variant == "paper" and self._settings.instances > 0
        self._instance_writer = InstanceWriter(settings, context, engine, seeds) if asks else None

    def run(self, human: Sequence[Task], machine: Sequence[Task]) -> list[Task]:
        """The tasks, at most as many as are wanted."""
        context, examples = self._context, {task.instruction: task for task in machine}
        made: dict[str, Task] = {}
        number = idle = 0
        while len(made) < context.wanted and idle < self._settings.patience:
            before = len(made)
            number += 1
            queue = self._propose(number, human, [*examples.values()])
            while queue and len(made) < context.wanted:
                admitted, queue = self._admit(queue, context.wanted - len(made))
                examples.update((task.instruction, task) for task in admitted)
                made.update((task.id, task) for task in self._complete(admitted))
            if queue:
                context.count("candidates_not_needed", len(queue))
            idle = 0 if len(made) > before else idle + 1
        context.count("rounds", number)
        if len(made) < context.wanted:
            context.count("gave_up")
            console.print(
                f"  prompts: {len(made)} of {context.wanted} tasks, as {idle} rounds of {self._settings.requests} "
                "requests brought none that the filters let pass",
                soft_wrap=True,
            )
        if len(made) > context.wanted:
            context.count("instances_not_needed", len(made) - context.wanted)
        return [*made.values()][: context.wanted]

    def _propose(self, number: int, human: Sequence[Task], machine: Sequence[Task]) -> list[Task]:
        """What the requests of a round bring, in the order of the requests."""
        context, writer = self._context, self._writer
        drawn = [
            (
                writer.draw(human, machine, context.derive(SEED_OF_EXAMPLES, number, place)),
                context.derive(SEED_OF_ROUND, number, place),
            )
            for place in range(self._settings.requests)
        ]
        replies = context.run_concurrently(
            f"round {number}", drawn, lambda each: writer.ask(self._engine, self._template, *each)
        )
        candidates = [task for reply in replies for task in reply.tasks]
        context.count("requests", len(replies))
        context.count("candidates", len(candidates))
        self._count(error for reply in replies for error in reply.errors)
        return candidates

    def _admit(self, queue: list[Task], missing: int) -> tuple[list[Task], list[Task]]:
        """Those that may bring the tasks that are missing, and the candidates that were not looked at."""
        most = ceil(missing / self._settings.instances) if self._instance_writer else missing
        admitted = self._context.filters.filter(queue, most)
        if len(admitted) < most:
            return admitted, []
        last = next(place for place, task in enumerate(queue) if task is admitted[-1])
        return admitted, queue[last + 1 :]

    def _complete(self, admitted: Sequence[Task]) -> list[Task]:
        """Instructions with their instances, each of which is a task; an instruction without a good one is none."""
        if self._instance_writer is None:
            return [*admitted]
        context, tasks = self._context, []
        for written in context.run_concurrently("instances", admitted, self._instance_writer.write):
            self._count(written.errors)
            usable = context.filters.filter_instances(written.instances)
            if not usable:
                context.count("without_instance")
            tasks += usable
        return tasks

    def _count(self, names: Iterable[str]) -> None:
        for name in names:
            self._context.count(name)
