"""K votes on each response, from the model that gave the responses (or another judge)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from selfreward.journal import JournaledEngine
from selfreward.judges import Judge
from selfreward.judges.load import load_judge
from selfreward.records import Judgement, Prompt, Response, by_prompt, derive_seed
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary
from selfreward.stages.gather import gather

# Judgements before a low parse rate stops the stage in its middle.
ENOUGH = 200


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Writes the judgements in the order of prompts, responses and votes.

    Raises:
        ValueError: the parse rate is below ``judge.min_parse_rate``.
    """
    folder = run.stage("judgements", iteration)
    responses = by_prompt(run.records("responses", iteration, Response))
    prompts = run.records("prompts", iteration, Prompt)
    voting = Voting(run, iteration)
    serving = engines.judge(run.model_path(iteration))
    with folder.journal() as journal:
        engine = JournaledEngine(serving, journal, "judge")

        async def vote(prompt: Prompt) -> list[Judgement]:
            return await voting.vote(engine, prompt, responses[prompt.id])

        limit = run.recipe.engine.max_in_flight
        judgements, seconds = gather("judgements", prompts, vote, lambda judgement: judgement.num_tokens, limit)
    voting.require_parse_rate(judgements)
    folder.write("records.jsonl", judgements)
    return summarize(judgements) | engine.summary(seconds)


class Voting:
    """The judge of one iteration, stopping where it can't be understood."""

    def __init__(self, run: Run, iteration: int) -> None:
        self._run, self._iteration = run, iteration
        self.judge: Judge = load_judge(run.recipe)
        self._seen: list[Judgement] = []

    async def vote(self, engine: JournaledEngine, prompt: Prompt, responses: Sequence[Response]) -> list[Judgement]:
        """The judgements of some responses to one prompt."""
        seed = derive_seed(self._run.recipe.seed, self._iteration, "judge", prompt.id)
        judgements = await self.judge.judge(engine, prompt, responses, seed)
        if len(self._seen) < ENOUGH:
            self._seen += judgements
            if len(self._seen) >= ENOUGH:
                self.require_parse_rate(self._seen)
        return [replace(judgement, model=self._run.model_name(judgement.model)) for judgement in judgements]

    def require_parse_rate(self, judgements: Sequence[Judgement]) -> None:
        """Raises ValueError, with examples, if too few judgements have a score."""
        floor = self._run.recipe.judge.min_parse_rate
        unread = [judgement for judgement in judgements if judgement.error is not None]
        rate = 1 - len(unread) / len(judgements)
        if rate < floor:
            examples = "\n".join(f"  {j.error}: {j.raw_text[-200:]!r}" for j in unread[:3])
            raise ValueError(
                f"iteration {self._iteration}: {rate:.1%} of {len(judgements)} judgements have a readable score, "
                f"less than judge.min_parse_rate, {floor:.1%}. What the judge wrote, for example:\n{examples}\n"
                "Train it with seed_data.eft, change judge.template, raise judge.max_tokens, judge with another "
                "engine (judge.engine), or lower judge.min_parse_rate. What was judged is kept"
            )


def summarize(judgements: Sequence[Judgement]) -> Summary:
    """Counts and the mean score of an iteration's judgements."""
    errors = Counter(judgement.error for judgement in judgements if judgement.error is not None)
    scores = [judgement.score for judgement in judgements if judgement.score is not None]
    return {
        "judgements": len(judgements),
        "parse_rate": len(scores) / len(judgements),
        "mean_score": sum(scores) / len(scores) if scores else None,
        **{f"error_{name}": count for name, count in sorted(errors.items())},
    }
