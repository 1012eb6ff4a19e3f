"""Judgements of each response, from the model that gave the responses or from other judges."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from selfreward.engines.concurrency import run_concurrently
from selfreward.engines.journaled import JournaledEngine, total
from selfreward.engines.replica_pool import ReplicaPool
from selfreward.judges import BoundJudge, panel_of
from selfreward.judges.verdicts import position_figures
from selfreward.records import Judgement, Prompt, Response, by_prompt, derive_seed
from selfreward.runs.journal import Journal
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.runs.stored import JUDGE, SEED_OF_JUDGE
from selfreward.serving.engines import Engines
from selfreward.stages.responses import anchors

# Judgements before a low parse rate stops the stage in its middle.
CHECK_AFTER_JUDGEMENTS = 200


@dataclass(frozen=True)
class Job:
    """Responses to one prompt that are to be judged, and the seed that every choice derives from."""

    prompt: Prompt
    responses: Sequence[Response]
    seed: int


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes the judgements in the order of prompts, judges, responses and votes.

    Raises:
        ValueError: the parse rate is below ``judge.min_parse_rate``.
    """
    folder, voting = run.folder(step), Voting(run, step.iteration)
    [model] = run.models(step)
    with folder.journal() as journal:
        judgements, summary = voting.judge_all(engines, model, journal, voting.jobs(), step.stage)
    voting.require_parse_rates(judgements)
    folder.write("records.jsonl", judgements)
    return summarize(judgements) | summary


class Voting:
    """The panel of one iteration, stopping where a judge can't be understood.

    Held-out measurements are ``lenient``: there what a judge can't answer is a figure.
    """

    def __init__(self, run: Run, iteration: int, lenient: bool = False) -> None:
        self._run, self._iteration, self._lenient = run, iteration, lenient
        self.panel = panel_of(run.recipe)
        self._seen: defaultdict[str, list[Judgement]] = defaultdict(list)

    def jobs(self) -> list[Job]:
        """The responses of the iteration, with those of the anchor model where there are any."""
        responses = by_prompt(subjects(self._run, self._iteration))
        prompts = self._run.records("prompts", self._iteration, Prompt)
        return [Job(prompt, responses[prompt.id], self.seed(prompt)) for prompt in prompts]

    def seed(self, prompt: Prompt) -> int:
        """What every choice of the judges derives from, for one prompt."""
        return derive_seed(self._run.recipe.seed, self._iteration, SEED_OF_JUDGE, prompt.id)

    def judge_all(
        self, engines: Engines, model: str, journal: Journal, jobs: Sequence[Job], name: str
    ) -> tuple[list[Judgement], Summary]:
        """The judgements of all jobs in their order, one engine after the other, and the speed."""
        found: defaultdict[tuple[int, str], list[Judgement]] = defaultdict(list)
        asked: list[JournaledEngine] = []
        for judges in self.panel.groups():
            serving = engine_of(judges[0], engines, model)
            engine = JournaledEngine(serving, journal, role(judges[0]))
            asked.append(engine)

            async def vote(
                number: int, judges: list[BoundJudge] = judges, engine: JournaledEngine = engine
            ) -> list[Judgement]:
                for bound in judges:
                    found[number, bound.name] = await self.vote(bound, engine, jobs[number])
                return [judgement for bound in judges for judgement in found[number, bound.name]]

            _, seconds = run_concurrently(
                name, range(len(jobs)), vote, lambda judgement: judgement.num_tokens, engines.in_flight
            )
        generated = asked[-1].summary(seconds) | total(asked)
        names = [bound.name for bound in self.panel.judges]
        return [j for number in range(len(jobs)) for bound in names for j in found[number, bound]], generated

    async def votes(self, engine: JournaledEngine, job: Job) -> list[Judgement]:
        """The judgements of one job by all judges, which share an engine."""
        return [j for bound in self.panel.judges for j in await self.vote(bound, engine, job)]

    async def vote(self, bound: BoundJudge, engine: JournaledEngine, job: Job) -> list[Judgement]:
        """The judgements of one job by one judge."""
        judgements = await bound.vote(engine, job.prompt, job.responses, self.panel.seed(bound, job.seed))
        seen = self._seen[bound.name]
        if len(seen) < CHECK_AFTER_JUDGEMENTS and not self._lenient:
            seen += judgements
            if len(seen) >= CHECK_AFTER_JUDGEMENTS:
                self._require_parse_rate(bound, seen)
        return [replace(judgement, model=self._run.model_name(judgement.model)) for judgement in judgements]

    def require_parse_rates(self, judgements: Iterable[Judgement]) -> None:
        """Raises ValueError, with examples, if too few judgements of a judge can be read."""
        by_judge: defaultdict[str, list[Judgement]] = defaultdict(list)
        for judgement in judgements:
            by_judge[judgement.judge].append(judgement)
        for bound in self.panel.judges:
            self._require_parse_rate(bound, by_judge[bound.name])

    def _require_parse_rate(self, bound: BoundJudge, judgements: Sequence[Judgement]) -> None:
        floor = bound.settings.min_parse_rate
        unread = [judgement for judgement in judgements if judgement.error is not None]
        rate = 1 - len(unread) / max(1, len(judgements))
        if rate < floor:
            examples = "\n".join(f"  {j.error}: {j.raw_text[-200:]!r}" for j in unread[:3])
            raise ValueError(
                f"iteration {self._iteration}: {rate:.1%} of {len(judgements)} judgements by {bound.name} can be read, "
                f"less than judge.min_parse_rate, {floor:.1%}. What the judge wrote, for example:\n{examples}\n"
                "Train it with seed_data.eft, change judge.template, raise judge.max_tokens, judge with another "
                "engine (judge.engine), or lower judge.min_parse_rate. What was judged is kept"
            )


def engine_of(bound: BoundJudge, engines: Engines, model: str) -> ReplicaPool:
    """What a judge asks: the engine of the policy, whose model is ``model``, or the one that the recipe names."""
    if bound.is_policy:
        return engines.policy(model)
    return engines.other(bound.settings.model, bound.settings.engine)


def role(bound: BoundJudge) -> str:
    """What tells requests apart that go to different engines."""
    return JUDGE if bound.is_policy else f"{JUDGE} {bound.served_by}"


def subjects(run: Run, iteration: int) -> list[Response]:
    """Every response that an iteration judges: M_t's, and the anchor model's."""
    return run.records("responses", iteration, Response) + anchors(run, iteration)


def summarize(judgements: Sequence[Judgement]) -> Summary:
    """Counts and the mean score of an iteration's judgements."""
    errors = Counter(judgement.error for judgement in judgements if judgement.error is not None)
    scores = [judgement.score for judgement in judgements if judgement.score is not None]
    return {
        "judgements": len(judgements),
        "parse_rate": 1 - errors.total() / max(1, len(judgements)),
        "mean_score": sum(scores) / len(scores) if scores else None,
        **_figures(judgements),
        **position_figures(judgements),
        **{f"error_{name}": count for name, count in sorted(errors.items())},
    }


def _figures(judgements: Sequence[Judgement]) -> dict[str, float]:
    """The mean of each figure that the judges measured besides."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for judgement in judgements:
        for name, value in judgement.figures.items():
            values[name].append(value)
    return {f"mean_{name}": sum(each) / len(each) for name, each in sorted(values.items())}
