"""Instructions that evolve: harder ones and rarer ones out of those there are (Evol-Instruct, arXiv 2304.12244)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

from selfreward.engines import Sampler, SamplingParams
from selfreward.prompts.base import CardText, DataCommand, PromptSource, SourceContext
from selfreward.prompts.dataset import counted, read_tasks
from selfreward.prompts.eliminator import Eliminator, Failed, look_at_answer
from selfreward.prompts.filters.base import KINDS, Kind
from selfreward.prompts.replies import failure, in_turn, read_prompt, template
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Message, Task
from selfreward.runs.stored import ANSWER, COMPARE, SEED_OF_BREADTH, SEED_OF_EVOLUTION, SEED_OF_OPERATOR, WRITE

# In depth: add a constraint, deepen, concretise, more reasoning steps, complicate the input.
DEPTH = ("constraint", "deepen", "concretise", "reasoning", "input")
BREADTH = "breadth"


class EvolInstructSource(PromptSource):
    """Each iteration evolves the next rows, ``rounds`` times each; every success is a task.

    So many rows are begun with that ``num`` tasks come out if no evolution fails. As long as tasks are missing, further
    rows follow, each once an iteration; the next iteration may begin with some of these again.
    """

    reads_rows: ClassVar[bool] = True
    writes: ClassVar[bool] = False
    command: ClassVar[DataCommand | None] = DataCommand(
        "evolve", "Instructions made harder or rarer, round by round (Evol-Instruct, arXiv 2304.12244)."
    )
    card: ClassVar[CardText | None] = CardText(
        "Instructions that a language model made harder or rarer, round by round; `parent_id` is what each came from.",
        "2304.12244",
        "The outputs are the model's and nobody checked them. Harder is what the model took for harder.",
    )

    @classmethod
    def filtered(cls, settings: SourceSettings) -> tuple[Kind, ...]:
        return KINDS

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._evolver = Evolver(settings)

    def check(self) -> None:
        read_tasks(self._settings)

    def tasks(self, context: SourceContext) -> list[Task]:
        """The tasks of an iteration, in the order of rounds and parents; fewer than wanted where rows run out.

        Raises:
            ValueError: bad rows.
        """
        rows = counted(context, read_tasks(self._settings))
        rounds = self._settings.evol_instruct.rounds
        queue = in_turn(rows, sum(ceil(num / rounds) for num in context.before))
        made: list[Task] = []
        while queue and len(made) < context.wanted:
            num = ceil((context.wanted - len(made)) / rounds)
            parents, queue = queue[:num], queue[num:]
            context.count("parents", len(parents))
            for number in range(1, rounds + 1):
                parents = parents[: context.wanted - len(made)]
                if not parents:
                    break
                children = self._evolver.evolve(context, parents, number)
                made += [child for child in children if child is not None]
                parents = [child or parent for child, parent in zip(children, parents, strict=True)]
        return made


@dataclass(frozen=True)
class _Evolution:
    """What became of a parent: a task, unless nothing was written.

    ``failed`` is the rule that the task breaks, and ``useless`` what is wrong with a reply, if anything.
    """

    operator: str
    task: Task | None = None
    failed: Failed | None = None
    useless: str | None = None


class Evolver:
    """Makes one new task of each parent, and keeps what neither the eliminator nor a filter takes out."""

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._params = SamplingParams.of(settings.generation)
        self._eliminator = Eliminator(settings)
        self._templates = {name: template(f"evol_{name}", "prompt") for name in (*DEPTH, BREADTH)}

    def evolve(self, context: SourceContext, parents: Sequence[Task], number: int) -> list[Task | None]:
        """One round: by parent, what it became, or None where it stays.

        Args:
            context: its filters see each task, in the order of the parents.
            parents: what to evolve.
            number: of the round, from 1 on.
        """
        engine = context.engine_of(self._settings)
        evolutions = context.run_concurrently(
            f"evolve {number}", parents, lambda parent: self._evolve(context, engine, parent, number)
        )
        tasks = [self._sound(context, evolution) for evolution in evolutions]
        # By identity: two parents may have become the same, of which the first alone is admitted.
        admitted = {id(task) for task in context.filters.filter([task for task in tasks if task is not None])}
        children = [task if id(task) in admitted else None for task in tasks]
        for evolution, child in zip(evolutions, children, strict=True):
            if child is not None:
                context.count("evolved")
                context.count(f"evolved_{evolution.operator}")
        return children

    async def _evolve(self, context: SourceContext, engine: Sampler, parent: Task, number: int) -> _Evolution:
        seeds = [context.derive(SEED_OF_EVOLUTION, step, parent.id, number) for step in (WRITE, COMPARE, ANSWER)]
        operator = self._operator(context, parent, number)
        written, *_ = await engine.generate(self._messages(operator, parent), self._params, seeds[:1])
        instruction, useless = read_prompt(written)
        if useless is not None:
            return _Evolution(operator, useless=useless)
        task = Task.make(
            instruction,
            "evol_instruct",
            context=parent.context,
            parent_id=parent.id,
            license=parent.license,
            figures={"round": number},
        )
        eliminates = self._settings.evol_instruct.eliminate
        if eliminates and (failed := await self._eliminator.look_at_prompt(engine, parent, task, seeds[1])):
            return _Evolution(operator, task, failed)
        [answer] = await engine.generate(task.messages, self._params, seeds[2:])
        if (fault := failure(answer)) is not None:
            return _Evolution(operator, task, useless=f"answer_{fault}")
        task = replace(task, output=answer.text.strip())
        return _Evolution(operator, task, look_at_answer(answer.text) if eliminates else None)

    def _sound(self, context: SourceContext, evolution: _Evolution) -> Task | None:
        """The task of an evolution that did not fail; one that did is counted, and its task recorded."""
        context.count("evolutions")
        task, failed = evolution.task, evolution.failed
        if evolution.useless is not None:
            context.count(f"failed_{evolution.useless}")
            if task is not None:
                context.filters.record(task, "unanswered", evolution.useless)
            return None
        if task is not None and failed is not None:
            context.count(f"eliminated_{failed.rule}")
            context.filters.record(task, "eliminator", f"{failed.rule}: {failed.detail}")
            return None
        return task

    def _operator(self, context: SourceContext, parent: Task, number: int) -> str:
        draw = context.derive(SEED_OF_BREADTH, parent.id, number) / 2**32
        if draw < self._settings.evol_instruct.breadth:
            return BREADTH
        return DEPTH[context.derive(SEED_OF_OPERATOR, parent.id, number) % len(DEPTH)]

    def _messages(self, operator: str, parent: Task) -> list[Message]:
        """The request, behind the turns that the parent goes on from; a system message is for answers."""
        turns = [message for message in parent.context if message["role"] != "system"]
        return [*turns, *self._templates[operator].fill(prompt=parent.messages[-1]["content"])]
