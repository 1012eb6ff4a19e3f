"""The prompts of an iteration, from rows or from a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev

from selfreward.engines.journaled import JournaledEngine, total
from selfreward.engines.replica_pool import ReplicaPool
from selfreward.evaluation.diversity import diversity
from selfreward.judges import panel_of
from selfreward.prompts.base import PromptSource, SourceContext
from selfreward.prompts.filters.base import Filters
from selfreward.recipe import registry
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.records import Difficulty, Judgement, Prompt, R, Removal, Response, Task, TemplateTrial, by_prompt
from selfreward.runs.journal import Journal
from selfreward.runs.run import Run
from selfreward.runs.stages import (
    Step,
    Summary,
    keeps_tasks,
    reads_difficulty,
    reads_past,
    records_named,
    searches_templates,
)
from selfreward.runtime.progress import console
from selfreward.serving.engines import Engines


@dataclass
class PromptPool:
    """What earlier iterations made: the tasks, and filters that know them."""

    iteration: int  # the last one that is in it
    filters: Filters
    tasks: list[Task]


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes the prompts; where a model made them or filters saw them, also the tasks and what was taken out.

    Raises:
        ValueError: bad rows, or no prompt at all.
    """
    settings, folder, iteration = run.recipe.prompts, run.folder(step), step.iteration
    source, pool = load_source(settings), _prompt_pool(run, iteration)
    filters = pool.filters
    with folder.journal() as journal:
        source_engines = SourceEngines(run, iteration, engines, journal)
        context = SourceContext(
            iteration=iteration,
            num=settings.num,
            seed=run.recipe.seed,
            filters=filters,
            engine_of=source_engines,
            limit=settings.in_flight(engines.in_flight),
            earlier=pool.tasks,
            tried=_write_difficulty(run, iteration),
            templates=_template_trials(run, iteration),
        )
        tasks = source.tasks(context)
    if not tasks:
        raise ValueError(f"iteration {iteration}: {settings.source} gave no prompt. {explain(filters)}")
    fall_short(context, len(tasks))
    filters.finish(tasks)
    folder.write("records.jsonl", (task.prompt for task in tasks))
    if keeps_tasks(run.recipe):
        folder.write("tasks.jsonl", tasks)
        folder.write("removed.jsonl", filters.removed)
        if searches_templates(run.recipe):
            folder.write("templates.jsonl", context.trials)
    if reads_past(run.recipe):
        pool.tasks.extend(tasks)
        # So that the next iteration reads no more than this one.
        run.kept["prompts"] = PromptPool(iteration, filters, pool.tasks)
    first = _asked(run.records("prompts", 1, Prompt)) if iteration > 1 else ()
    figures = {
        "prompts": len(tasks),
        **context.figures,
        **filters.counts(),
        **acceptance(filters),
        **diversity(_asked(task.prompt for task in tasks), run.recipe.seed, settings.filters.embedding, first),
    }
    return figures | source_engines.summary()


class SourceEngines:
    """Which engine a source's settings mean, each asked through the stage's journal."""

    def __init__(self, run: Run, iteration: int, engines: Engines, journal: Journal) -> None:
        self._run, self._iteration, self._engines, self._journal = run, iteration, engines, journal
        self._asked: dict[tuple[ReplicaPool, str], JournaledEngine] = {}

    def __call__(self, settings: SourceSettings) -> JournaledEngine:
        if settings.by == "teacher":
            served = self._engines.other(settings.model, settings.engine)
        else:
            served = self._engines.policy(self._run.model_path(self._iteration if settings.by == "current" else 1))
        # Two parts of a mixture may ask one engine, whose failures are counted once.
        return self._asked.setdefault((served, settings.by), JournaledEngine(served, self._journal, settings.by))

    def summary(self) -> Summary:
        """How many requests an earlier attempt had finished and how many failed, if any."""
        return dict(total(self._asked.values()))


def load_source(settings: SourceSettings) -> PromptSource:
    """The source that the settings name. Raises ValueError for a name that nothing is registered under."""
    source: PromptSource = registry.load(settings.source, registry.PROMPT_SOURCES, "prompt source")(settings)
    return source


def explain(filters: Filters) -> str:
    """What was taken out, in words."""
    counts = ", ".join(f"{count} {name.removeprefix('removed_')}" for name, count in filters.counts().items())
    if counts:
        return f"Taken out: {counts}. Loosen prompts.filters, or change the source"
    return "Nothing was taken out: either rows are used up, or a model wrote nothing that can be read. Add rows"


def fall_short(context: SourceContext, num: int) -> None:
    """Counts and says it where a source makes fewer tasks than are wanted."""
    if context.num is not None and num < context.num and "gave_up" not in context.figures:
        context.count("gave_up")
        console.print(
            f"  prompts: {num} of {context.num}, as rows or documents are used up, or what they became was not kept"
        )


def acceptance(filters: Filters) -> Summary:
    """The share of what filters looked at that stayed."""
    looked = filters.passed + len(filters.removed)
    return {"accepted": filters.passed / looked} if filters.names and looked else {}


def _prompt_pool(run: Run, iteration: int) -> PromptPool:
    """What the iterations before this one made."""
    kept: PromptPool | None = run.kept.pop("prompts", None)
    if kept is not None and kept.iteration == iteration - 1:
        kept.filters.removed.clear()
        return kept
    settings = run.recipe.prompts
    filters = Filters(settings.filters, settings.filter_names, run.recipe.evaluation.prompts)
    past = range(1, iteration) if reads_past(run.recipe) else ()
    tasks = [task for t in past for task in _tasks(run, t)]
    filters.add_known(tasks)
    for t in past:
        filters.restore(_kept(run, "removed_prompts", t, Removal))
    return PromptPool(iteration - 1, filters, tasks)


def _tasks(run: Run, t: int) -> list[Task]:
    """The tasks of an earlier iteration, whose prompts may have been rows alone, before the recipe was edited."""
    return _kept(run, "tasks", t, Task) or [Task.of(prompt) for prompt in run.records("prompts", t, Prompt)]


def _kept(run: Run, name: str, t: int, kind: type[R]) -> list[R]:
    """Records that an earlier iteration has if its recipe was like this one's."""
    stage, file, _ = records_named(name)
    return run.records(name, t, kind) if (run.stage(stage, t).path / file).is_file() else []


def _template_trials(run: Run, iteration: int) -> list[TemplateTrial]:
    past = range(1, iteration) if searches_templates(run.recipe) else ()
    return [trial for t in past for trial in _kept(run, "template_trials", t, TemplateTrial)]


def _asked(prompts: Iterable[Prompt]) -> list[str]:
    """What the user says last in each."""
    return [prompt.messages[-1]["content"] for prompt in prompts]


def _write_difficulty(run: Run, iteration: int) -> list[Difficulty]:
    """How each model so far did on its prompts; the newest iteration's part is written, the others are read."""
    if not reads_difficulty(run.recipe):
        return []
    tried = [record for t in range(1, iteration - 1) for record in _kept(run, "difficulty", t + 1, Difficulty)]
    new = difficulty(run, iteration - 1) if iteration > 1 else []
    run.stage("prompts", iteration).write("difficulty.jsonl", new)
    return tried + new


def difficulty(run: Run, iteration: int) -> list[Difficulty]:
    """How M_t did on the prompts of an iteration, in their order, by the scores that its responses got."""
    panel, settings = panel_of(run.recipe), run.recipe.prompts
    scores = panel.scores(run.records("judgements", iteration, Judgement))
    responses = by_prompt(run.records("responses", iteration, Response))
    limits = [source.curriculum.solved for source in settings.sources if source.source == "curriculum"]
    solved = next((limit for limit in limits if limit is not None), panel.best)
    of_prompt: defaultdict[str, list[float]] = defaultdict(list)
    for prompt_id, those in responses.items():
        of_prompt[prompt_id] = [scores[response.id] for response in those if response.id in scores]
    return [
        _difficulty(prompt.id, iteration, of_prompt[prompt.id], solved)
        for prompt in run.records("prompts", iteration, Prompt)
    ]


def _difficulty(prompt_id: str, iteration: int, scores: list[float], solved: float | None) -> Difficulty:
    if not scores:
        return Difficulty(prompt_id, iteration, 0, None, None, None)
    share = None if solved is None else fmean(score >= solved for score in scores)
    return Difficulty(prompt_id, iteration, len(scores), fmean(scores), pstdev(scores), share)
