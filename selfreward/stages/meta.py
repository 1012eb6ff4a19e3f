"""Judge pairs: the best against the worst of several judgements of one response, to train judging with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from selfreward.engines.concurrency import run_concurrently
from selfreward.engines.journaled import JournaledEngine
from selfreward.judges.additive import AdditiveJudge
from selfreward.judges.meta_judge import (
    Dispute,
    MetaJudge,
    higher_score_preferred,
    judge_pair,
    judgement_strengths,
    place_weights,
)
from selfreward.judges.verdicts import position_figures
from selfreward.recipe.judge_settings import MetaSettings
from selfreward.records import Judgement, Prompt, Rejection, Response, by_prompt, derive_seed
from selfreward.runs.run import Run
from selfreward.runs.stages import Step, Summary
from selfreward.runs.stored import META_JUDGE, SEED_OF_META_JUDGE
from selfreward.selection.pair_selectors import Outcome
from selfreward.serving.engines import Engines
from selfreward.stages.pairs import trainable
from selfreward.text.chat import ChatEncoder, load_tokenizer


def stage(run: Run, step: Step, engines: Engines) -> Summary:
    """Writes M_t's comparisons of judgements, and the judge pairs that they make; there may be none."""
    folder, iteration = run.folder(step), step.iteration
    judgements = run.records("judgements", iteration, Judgement)
    disputes = _disputes(run, iteration, judgements)
    compared = most_varied(disputes, _settings(run).num)
    verdicts, speed = _compare(run, step, engines, compared)
    outcomes = _outcomes(run, iteration, disputes, compared, verdicts)
    pairs = [pair for outcome in outcomes if isinstance(outcome, list) for pair in outcome]
    folder.write("records.jsonl", verdicts)
    folder.write("pairs.jsonl", pairs)
    reasons = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Rejection))
    assert len(pairs) + reasons.total() == len(disputes), "every prompt has a judge pair or a reason"
    errors = Counter(verdict.error for verdict in verdicts if verdict.error is not None)
    scores = {judgement.id: judgement.score for judgement in judgements if judgement.score is not None}
    return {
        "judge_pairs": len(pairs),
        "prompts_rejected": reasons.total(),
        **{f"rejected_{reason}": count for reason, count in sorted(reasons.items())},
        "comparisons": len(verdicts),
        **{f"error_{name}": count for name, count in sorted(errors.items())},
        "higher_score_preferred": higher_score_preferred(verdicts, scores),
        **position_figures(verdicts),
        **speed,
    }


def most_varied(disputes: Sequence[Dispute], num: int | None) -> list[Dispute]:
    """The ``num`` open disputes of greatest variance, in their own order; of equals, the first. None: all of them."""
    is_open = [place for place, dispute in enumerate(disputes) if dispute.is_open]
    chosen = sorted(is_open, key=lambda place: -disputes[place].variance)[:num]
    return [disputes[place] for place in sorted(chosen)]


def _settings(run: Run) -> MetaSettings:
    assert run.recipe.meta is not None, "the plan has this stage where the recipe has the block"
    return run.recipe.meta


def _disputes(run: Run, iteration: int, judgements: Sequence[Judgement]) -> list[Dispute]:
    votes: defaultdict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        votes[judgement.subject_ids[0]].append(judgement)
    responses = by_prompt(run.records("responses", iteration, Response))
    prompts = run.records("prompts", iteration, Prompt)
    return [Dispute.of(prompt, responses[prompt.id], votes) for prompt in prompts]


def _compare(run: Run, step: Step, engines: Engines, disputes: Sequence[Dispute]) -> tuple[list[Judgement], Summary]:
    """The verdicts in the order of the disputes, and the speed."""
    if not disputes:
        return [], {}
    meta_judge = MetaJudge(_settings(run), run.recipe.judge)
    policy = engines.policy(*run.models(step))
    with run.folder(step).journal() as journal:
        engine = JournaledEngine(policy, journal, META_JUDGE)

        async def compare(dispute: Dispute) -> list[Judgement]:
            seed = derive_seed(run.recipe.seed, step.iteration, SEED_OF_META_JUDGE, dispute.prompt.id)
            return await meta_judge.compare(engine, dispute, seed, run.model_name(engine.model))

        verdicts, seconds = run_concurrently(
            "meta", disputes, compare, lambda verdict: verdict.num_tokens, engines.in_flight
        )
    return verdicts, engine.summary(seconds)


def _outcomes(
    run: Run, iteration: int, disputes: Sequence[Dispute], compared: Sequence[Dispute], verdicts: Sequence[Judgement]
) -> list[Outcome]:
    """Each prompt's judge pair, or why it has none; ``beyond_num`` where it was not among the first ``meta.num``."""
    options = run.recipe.training.dpo_options(iteration)
    judge, weights = AdditiveJudge(run.recipe.judge), place_weights(verdicts)
    chat = ChatEncoder(load_tokenizer(run.model_path(iteration), run.recipe.model))
    by_dispute: defaultdict[str, list[Judgement]] = defaultdict(list)
    for verdict in verdicts:
        by_dispute[verdict.prompt_id].append(verdict)
    within = {dispute.prompt.id for dispute in compared}

    def outcome(dispute: Dispute) -> Outcome:
        if dispute.is_open and dispute.prompt.id not in within:
            return Rejection(dispute.prompt.id, "beyond_num")
        strengths = judgement_strengths(by_dispute[dispute.prompt.id], weights)
        return trainable(judge_pair(dispute, strengths, judge, _settings(run)), chat, options)

    return [outcome(dispute) for dispute in disputes]
