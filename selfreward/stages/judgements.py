"""Judgements of each response, from the model that gave the responses or from other judges."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from selfreward.engines.concurrency import gather
from selfreward.engines.journaled import JournaledEngine, total
from selfreward.engines.replica_pool import Pool
from selfreward.judges import Seat, panel_of
from selfreward.judges.verdicts import position_figures
from selfreward.records import Judgement, Prompt, Response, by_prompt, derive_seed
from selfreward.run.journal import Journal
from selfreward.run.run import Run
from selfreward.run.stages import Summary
from selfreward.serving.engines import Engines
from selfreward.stages.responses import anchors

# Judgements before a low parse rate stops the stage in its middle.
ENOUGH = 200


@dataclass(frozen=True)
class Job:
    """Responses to one prompt that are to be judged, and the seed that every choice derives from."""

    prompt: Prompt
    responses: Sequence[Response]
    seed: int


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the judgements in the order of prompts, judges, responses and votes.

    Raises:
        ValueError: the parse rate is below ``judge.min_parse_rate``.
    """
    return judge_with(run, iteration, engines, run.model_path(iteration), "judgements")


def judge_with(run: Run, iteration: int, engines: Engines, model: str, stage: str) -> Summary:
    """Writes the judgements of an iteration's responses by the panel, whose own model is ``model``."""
    folder, voting = run.stage(stage, iteration), Voting(run, iteration)
    with folder.journal() as journal:
        judgements, summary = voting.judge_all(engines, model, journal, voting.jobs(), stage)
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
        return derive_seed(self._run.recipe.seed, self._iteration, "judge", prompt.id)

    def judge_all(
        self, engines: Engines, model: str, journal: Journal, jobs: Sequence[Job], name: str
    ) -> tuple[list[Judgement], Summary]:
        """The judgements of all jobs in their order, one engine after the other, and the speed."""
        found: defaultdict[tuple[int, str], list[Judgement]] = defaultdict(list)
        asked: list[JournaledEngine] = []
        for seats in self.panel.groups():
            serving = engine_of(seats[0], engines, model)
            engine = JournaledEngine(serving, journal, role(seats[0]))
            asked.append(engine)

            async def vote(number: int, seats: list[Seat] = seats, engine: JournaledEngine = engine) -> list[Judgement]:
                for seat in seats:
                    found[number, seat.name] = await self.vote(seat, engine, jobs[number])
                return [judgement for seat in seats for judgement in found[number, seat.name]]

            _, seconds = gather(name, range(len(jobs)), vote, lambda judgement: judgement.num_tokens, engines.in_flight)
        generated = asked[-1].summary(seconds) | total(asked)
        names = [seat.name for seat in self.panel.seats]
        return [j for number in range(len(jobs)) for seat in names for j in found[number, seat]], generated

    async def votes(self, engine: JournaledEngine, job: Job) -> list[Judgement]:
        """The judgements of one job by all judges, which share an engine."""
        return [j for seat in self.panel.seats for j in await self.vote(seat, engine, job)]

    async def vote(self, seat: Seat, engine: JournaledEngine, job: Job) -> list[Judgement]:
        """The judgements of one job by one judge."""
        judgements = await seat.vote(engine, job.prompt, job.responses, self.panel.seed(seat, job.seed))
        seen = self._seen[seat.name]
        if len(seen) < ENOUGH and not self._lenient:
            seen += judgements
            if len(seen) >= ENOUGH:
                self._require_parse_rate(seat, seen)
        return [replace(judgement, model=self._run.model_name(judgement.model)) for judgement in judgements]

    def require_parse_rates(self, judgements: Iterable[Judgement]) -> None:
        """Raises ValueError, with examples, if too few judgements of a judge can be read."""
        by_judge: defaultdict[str, list[Judgement]] = defaultdict(list)
        for judgement in judgements:
            by_judge[judgement.judge].append(judgement)
        for seat in self.panel.seats:
            self._require_parse_rate(seat, by_judge[seat.name])

    def _require_parse_rate(self, seat: Seat, judgements: Sequence[Judgement]) -> None:
        floor = seat.settings.min_parse_rate
        unread = [judgement for judgement in judgements if judgement.error is not None]
        rate = 1 - len(unread) / max(1, len(judgements))
        if rate < floor:
            examples = "\n".join(f"  {j.error}: {j.raw_text[-200:]!r}" for j in unread[:3])
            raise ValueError(
                f"iteration {self._iteration}: {rate:.1%} of {len(judgements)} judgements by {seat.name} can be read, "
                f"less than judge.min_parse_rate, {floor:.1%}. What the judge wrote, for example:\n{examples}\n"
                "Train it with seed_data.eft, change judge.template, raise judge.max_tokens, judge with another "
                "engine (judge.engine), or lower judge.min_parse_rate. What was judged is kept"
            )


def engine_of(seat: Seat, engines: Engines, model: str) -> Pool:
    """What a judge asks: the engine of the policy, whose model is ``model``, or the one that the recipe names."""
    if seat.is_policy:
        return engines.policy(model)
    return engines.other(seat.settings.model, seat.settings.engine)


def role(seat: Seat) -> str:
    """What tells requests apart that go to different engines."""
    return "judge" if seat.is_policy else f"judge {seat.served_by}"


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
