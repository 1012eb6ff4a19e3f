"""Held-out measurements of M_{t+1}, the model that iteration t made (t = 0: M1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from selfreward.engines import Completion, Sampler, SamplingParams
from selfreward.engines.concurrency import run_concurrently
from selfreward.engines.journaled import JournaledEngine
from selfreward.evaluation.agreement import agreement
from selfreward.evaluation.canaries import canaries, canary_figures
from selfreward.evaluation.held_out import gain, summarize
from selfreward.judges import Panel
from selfreward.judges.expected_score import labels
from selfreward.prompts.dataset import read_held_out
from selfreward.prompts.seed_data import read_graded
from selfreward.recipe import registry
from selfreward.records import Agreement, Graded, Judgement, Measurement, Prompt, Response, content_id, derive_seed
from selfreward.runs.journal import Journal
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.runs.stored import ID_OF_HELD_OUT, POLICY, SEED_OF_EVALUATION, SEED_OF_HELD_OUT_JUDGE
from selfreward.serving.engines import Engines
from selfreward.stages.judgements import Job, Voting

Scorer = Callable[[str, str], float]


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes measurements of responses and of judging, as far as the recipe names held-out data."""
    with run.folder(step).journal() as journal:
        return {"model": f"M{step.iteration + 1}"} | Evaluation(run, step, engines, journal).all()


class Evaluation:
    """What is measured of one model."""

    def __init__(self, run: Run, step: Step, engines: Engines, journal: Journal) -> None:
        self._run, self._iteration, self._engines, self._journal = run, step.iteration, engines, journal
        self._settings = run.recipe.evaluation
        [self._model] = run.models(step)
        self._folder = run.folder(step)
        self._voting = Voting(run, step.iteration, lenient=True)

    def all(self) -> Summary:
        """Every measurement that the recipe has data for."""
        summary: Summary = {}
        if self._settings.prompts is not None:
            summary |= self._respond(read_held_out(self._run.recipe))
        if self._settings.judging is not None:
            agreements = self._agree(read_graded(self._settings.judging))
            self._folder.write("agreement.jsonl", agreements)
            summary |= agreement(agreements, self._voting.panel.best)
        return summary

    def _respond(self, prompts: Sequence[Prompt]) -> Summary:
        policy = JournaledEngine(self._engines.policy(self._model), self._journal, POLICY)
        measurements = measure(self._run, policy, prompts, self._engines.in_flight)
        self._folder.write("records.jsonl", measurements)
        summary: Summary = dict(summarize(measurements, self._settings.pass_score))
        if self._iteration:
            before = self._run.records("measurements", 0, Measurement)
            summary |= gain(before, measurements, self._run.recipe.seed) or {}
        greedy = {m.prompt_id: m.text for m in measurements if m.k is None}
        if self._settings.scorer is None:
            summary |= self._own_score(prompts, greedy)
        if self._settings.canaries:
            summary |= self._canaries(prompts[: self._settings.canaries], greedy)
        return summary

    def _own_score(self, prompts: Sequence[Prompt], greedy: dict[str, str]) -> Summary:
        """The judge's mean score of the greedy responses: without a scorer, all there is, and no outside view."""
        jobs = [self._job(prompt, [greedy[prompt.id]]) for prompt in prompts]
        scores = self._voting.panel.scores(self._judge("own scores", jobs))
        return {"own_score": sum(scores.values()) / len(scores) if scores else None}

    def _canaries(self, prompts: Sequence[Prompt], greedy: dict[str, str]) -> Summary:
        """How often an empty phrase scores no lower than the model's own answer (arXiv 2507.08794)."""
        panel = self._voting.panel
        jobs = [self._job(prompt, [greedy[prompt.id], *canaries()]) for prompt in prompts]
        if not panel.pointwise:
            # Each against the model's own answer alone, as a judge that compares would compare them all.
            jobs = [replace(job, responses=[job.responses[0], key]) for job in jobs for key in job.responses[1:]]
        judgements = self._judge("canaries", jobs)
        self._folder.write("canaries.jsonl", judgements)
        if panel.pointwise:
            scores = panel.scores(judgements)
            rows = [[scores.get(r.id) for r in job.responses] for job in jobs]
        else:
            rows = [_scores_of(panel, job, judgements) for job in jobs]
        return dict(canary_figures(rows, panel.worst))

    def _agree(self, graded: Sequence[Graded]) -> list[Agreement]:
        """The judge's score of each held-out graded response beside the label in its judgement."""
        wanted = labels(graded, self._run.recipe.judge)
        groups: dict[tuple[str, str | None], list[str]] = {}
        for example in graded:
            groups.setdefault((example.prompt, example.reference), []).append(example.response)
        jobs = {
            key: self._job(Prompt.make([{"role": "user", "content": key[0]}], "evaluation", key[1]), texts)
            for key, texts in groups.items()
        }
        judgements = self._judge("held-out judgements", list(jobs.values()))
        scores = self._voting.panel.scores(judgements)
        errors: dict[str, list[str]] = {}
        for judgement in judgements:
            for subject in judgement.subject_ids if judgement.error else ():
                errors.setdefault(subject, []).append(str(judgement.error))
        records = []
        for example, label in zip(graded, wanted, strict=True):
            job = jobs[example.prompt, example.reference]
            subject = _held_out(job.prompt, example.response).id
            found = errors.get(subject, [])
            records.append(Agreement(example.prompt, example.response, label, scores.get(subject), found))
        return records

    def _judge(self, name: str, jobs: Sequence[Job]) -> list[Judgement]:
        return self._voting.judge_all(self._engines, self._model, self._journal, jobs, name)[0]

    def _job(self, prompt: Prompt, texts: Sequence[str]) -> Job:
        """Held-out responses to one prompt, judged with the same seeds for every model."""
        responses = [_held_out(prompt, text) for text in dict.fromkeys(texts)]
        return Job(prompt, responses, derive_seed(self._run.recipe.seed, SEED_OF_HELD_OUT_JUDGE, prompt.id))


def _scores_of(panel: Panel, job: Job, judgements: Sequence[Judgement]) -> list[float | None]:
    """The scores of two responses, by what was said of these two alone."""
    two = {response.id for response in job.responses}
    scores = panel.scores([judgement for judgement in judgements if set(judgement.subject_ids) <= two])
    return [scores.get(response.id) for response in job.responses]


def _held_out(prompt: Prompt, text: str) -> Response:
    return Response(content_id(ID_OF_HELD_OUT, prompt.id, text), prompt.id, 0, text, "stop", 0, 0, "")


def measure(run: Run, engine: Sampler, prompts: Sequence[Prompt], limit: int) -> list[Measurement]:
    """Sampled as for training and once greedily, with the same seeds for every model."""
    settings = run.recipe.evaluation
    score: Scorer | None = registry.load(settings.scorer, {}, "scorer") if settings.scorer else None
    sampled = SamplingParams.of(run.recipe.responses)
    greedy = SamplingParams(0.0, 1.0, sampled.max_tokens)

    async def one(prompt: Prompt) -> list[Measurement]:
        seeds = [derive_seed(run.recipe.seed, SEED_OF_EVALUATION, prompt.id, k) for k in range(settings.n)]
        many, single = await asyncio.gather(
            engine.generate(prompt.messages, sampled, seeds), engine.generate(prompt.messages, greedy, [0])
        )
        ks: list[int | None] = [*range(settings.n), None]
        return [_measurement(prompt, k, c, score) for k, c in zip(ks, [*many, *single], strict=True)]

    return run_concurrently("held-out responses", prompts, one, lambda m: m.num_tokens, limit)[0]


def _measurement(prompt: Prompt, k: int | None, completion: Completion, score: Scorer | None) -> Measurement:
    gold = None if score is None else float(score(prompt.text, completion.text))
    return Measurement(prompt.id, k, completion.text, completion.finish_reason, completion.num_tokens, gold)
