"""Prompts that ask for tasks evolve too: the model proposes variants, and the one that does best is used.

This is Self-Instruct (arXiv 2212.10560) one level up. A prompt is worth the product of three measures, each from 0 to
1, on a few requests with the same examples and seeds for all of them:

- yield: tasks that the filters let pass over a pool of their own, for each one asked for, at most 1;
- novelty: 1 minus the greatest ROUGE-L F measure with the seeds and earlier tasks, on the average of those;
- quality: the model's own scores of some of those, 1 to 5, on the average, divided by 5.

Variants replace the current prompt only where they are worth more. One whose tasks all stay unscored is worth nothing
that could be compared, and is not used.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from selfreward.engines import Sampler, SamplingParams
from selfreward.prompts.base import SourceContext
from selfreward.prompts.instruction_writer import InstructionWriter, Reply
from selfreward.prompts.replies import failure, greedy, template, unwrap
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Task, TemplateTrial, content_id
from selfreward.runs.stored import (
    ID_OF_TEMPLATE,
    SEED_OF_JUDGED_TRIALS,
    SEED_OF_QUALITY,
    SEED_OF_TRIAL,
    SEED_OF_TRIAL_EXAMPLES,
    SEED_OF_VARIANT,
)
from selfreward.text.prompt_template import Template
from selfreward.text.scores import read_score

BEST_SCORE = 5
_PLACE = re.compile(r"\{\w+\}")
_FENCED = re.compile(r"<([A-Za-z][\w-]*)>\s*\{examples\}\s*</\1>")
_PROMPT = re.compile(r"<prompt(?:-\d+)?>(?P<inside>.*?)</prompt(?:-\d+)?>", re.DOTALL)


class TemplateSearch:
    """Chooses the prompt of one iteration."""

    def __init__(
        self, settings: SourceSettings, writer: InstructionWriter, context: SourceContext, engine: Sampler
    ) -> None:
        self._settings = settings.self_instruct
        self._writer, self._context, self._engine = writer, context, engine
        self._writing = SamplingParams.of(settings.generation)
        self._judging = greedy(settings)
        self._ask = template("template_variant", "prompt", "places")
        self._quality = template("instruction_quality", "instruction")

    def best(self, seeds: Sequence[Task], human: Sequence[Task], machine: Sequence[Task]) -> Template:
        """The prompt that is worth most; all that were measured are put into the context's ``trials``.

        Args:
            seeds: what the filters know of them.
            human: seeds that can be examples.
            machine: tasks of earlier iterations that can be examples.
        """
        # Parts of a mixture may have prompts of their own, each with its descendants.
        origin = content_id(ID_OF_TEMPLATE, self._writer.template.text)
        used = [each.text for each in self._context.templates if each.used and each.origin == origin]
        current = self._template(used[-1]) if used else self._writer.template
        templates = [current, *self._variants(current)]
        trials = self._measure(templates, origin, [*seeds, *self._context.earlier], self._drawn(human, machine))
        # A prompt that is not known to be better than the current one does not take its place.
        worth = [trial.worth or 0.0 for trial in trials]
        place = worth.index(max(worth)) if trials[0].worth is not None else 0
        trials[place] = replace(trials[place], used=True)
        self._context.trials.extend(trials)
        for name in ("accepted", "novelty", "quality", "worth"):
            self._context.figures[f"template_{name}"] = getattr(trials[place], name)
        self._context.figures["template_worth_before"] = trials[0].worth
        self._context.figures["template_changed"] = int(place > 0)
        return templates[place]

    def _variants(self, current: Template) -> list[Template]:
        """Prompts that the model proposes in place of the current one, no two alike."""
        context, places = self._context, sorted(_PLACE.findall(current.text))
        messages = self._ask.fill(prompt=current.text, places=" and ".join(dict.fromkeys(places)))

        async def propose(number: int) -> str | None:
            [completion] = await self._engine.generate(
                messages, self._writing, [context.derive(SEED_OF_VARIANT, number)]
            )
            if failure(completion):
                return None
            tagged = _PROMPT.search(completion.text)
            return tagged["inside"].strip() if tagged else unwrap(completion.text)

        seen, found = {_words(current.text)}, []
        for text in context.run_concurrently(
            "variants of the prompt", range(self._settings.template_variants), propose
        ):
            if text is None or sorted(_PLACE.findall(text)) != places or _is_fenced(text) < _is_fenced(current.text):
                context.count("template_invalid")
            elif _words(text) in seen:
                context.count("template_repeated")
            else:
                seen.add(_words(text))
                found.append(self._template(text))
        context.count("template_variants", len(found))
        return found

    def _drawn(self, human: Sequence[Task], machine: Sequence[Task]) -> list[tuple[list[Task], int]]:
        """The examples and the seed of each request, the same for all prompts."""
        context, writer = self._context, self._writer
        return [
            (
                writer.draw(human, machine, context.derive(SEED_OF_TRIAL_EXAMPLES, place)),
                context.derive(SEED_OF_TRIAL, place),
            )
            for place in range(self._settings.template_budget)
        ]

    def _measure(
        self,
        templates: Sequence[Template],
        origin: str,
        pool: Sequence[Task],
        drawn: Sequence[tuple[list[Task], int]],
    ) -> list[TemplateTrial]:
        """One trial a prompt, none of them used yet."""
        asked = [(each, *request) for each in templates for request in drawn]
        replies = self._context.run_concurrently(
            "trials of the prompt", asked, lambda each: self._writer.ask(self._engine, *each)
        )
        admitted = [
            self._admitted(replies[start : start + len(drawn)], pool) for start in range(0, len(asked), len(drawn))
        ]
        chosen = [self._drawn_of(tasks) for tasks in admitted]
        novelties = _novelties(chosen, pool)
        qualities = self._qualities(chosen)
        self._context.count("template_requests", len(asked))
        wanted = len(drawn) * self._settings.tasks
        return [
            _trial(each.text, origin, min(1.0, len(tasks) / wanted), novelty, quality)
            for each, tasks, novelty, quality in zip(templates, admitted, novelties, qualities, strict=True)
        ]

    def _admitted(self, replies: Sequence[Reply], pool: Sequence[Task]) -> list[Task]:
        filters = self._context.filters.fresh()
        filters.add_known(pool)
        return filters.filter([task for reply in replies for task in reply.tasks])

    def _drawn_of(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of a prompt's tasks that are looked at closely."""
        rng = random.Random(self._context.derive(SEED_OF_JUDGED_TRIALS))
        return rng.sample(tasks, min(self._settings.template_budget, len(tasks)))

    def _qualities(self, chosen: Sequence[Sequence[Task]]) -> list[float | None]:
        """The mean score of the tasks of each prompt, over the best score; None where none was scored."""

        async def score(task: Task) -> float | None:
            messages = self._quality.fill(instruction=task.messages[-1]["content"])
            [completion] = await self._engine.generate(messages, self._judging, [self._context.derive(SEED_OF_QUALITY)])
            return read_score(completion.text, 1, BEST_SCORE, cut=completion.finish_reason == "length")[0]

        every = iter(self._context.run_concurrently("quality", [task for tasks in chosen for task in tasks], score))
        scores = [[next(every) for _ in tasks] for tasks in chosen]
        known = [[each for each in of_prompt if each is not None] for of_prompt in scores]
        self._context.count("template_unscored", sum(map(len, scores)) - sum(map(len, known)))
        return [mean(of_prompt) / BEST_SCORE if of_prompt else None for of_prompt in known]

    def _template(self, text: str) -> Template:
        return Template("variant", text, ("examples",))


def _novelties(admitted: Sequence[Sequence[Task]], pool: Sequence[Task]) -> list[float | None]:
    """How far the tasks of each prompt are from the nearest of the pool, on the average; None where there are none."""
    # It brings NumPy, and commands ask sources of themselves before anything is made.
    from selfreward.prompts.filters.rouge import RougeIndex

    index = RougeIndex(0.0, "unicode")
    for task in pool:
        index.add(task.instruction_id, task.instruction)
    found: list[float | None] = []
    for tasks in admitted:
        near = [index.nearest(task.instruction) for task in tasks]
        found.append(mean(1 - (each.f_measure if each else 0.0) for each in near) if near else None)
    return found


def _trial(text: str, origin: str, accepted: float, novelty: float | None, quality: float | None) -> TemplateTrial:
    worth = None if novelty is None or quality is None else accepted * novelty * quality
    return TemplateTrial(text, origin, accepted, novelty, quality, 0.0 if accepted == 0 else worth)


def _is_fenced(text: str) -> bool:
    """Whether the examples stand between tags, which no example can end."""
    return _FENCED.search(text) is not None


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
