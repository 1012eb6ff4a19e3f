"""Signs that a loop collapses: told at the end of the stage in which they show. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime.progress import console

# Prompts of which the shares of distinct n-grams and roots are noise, and from which on their number has no influence.
MIN_PROMPTS, MIN_JUDGEMENTS = 20, 100


def watch(run: Run, step: Step, summary: Mapping[str, Any]) -> None:
    """Says what is wrong with a stage that was just finished, on the console and in ``metrics.jsonl``.

    Raises:
        ValueError: there is a sign of collapse, and ``health.action`` is halt.
    """
    for sign in signs(run, step, summary):
        run.log({"iteration": step.iteration, "stage": "health", "sign": sign})
        console.print(f"  {sign}", style="yellow", soft_wrap=True)
    require(run, step, summary)


def require(run: Run, step: Step, summary: Mapping[str, Any]) -> None:
    """Raises ValueError if a finished stage shows a sign of collapse and the recipe halts then."""
    found = list(signs(run, step, summary))
    if found and run.recipe.health.action == "halt":
        raise ValueError(
            f"{step}: {'; '.join(found)}. The stage is kept. Look at its records in "
            f"{run.stage(step.stage, step.iteration).path}, then go back (--from-iteration {step.iteration}) with "
            "other settings, or go on with health.action=warn"
        )


def signs(run: Run, step: Step, summary: Mapping[str, Any]) -> Iterator[str]:
    """Each limit of ``health`` that a stage's figures are beyond, in words."""
    limits = run.recipe.health
    if step.stage == "prompts":
        yield from _plateau(run, summary, limits.min_accepted)
        yield from _narrower(run, summary, limits.max_diversity_drop)
    elif step.stage == "responses":
        yield from _long(run, summary, limits.max_length_ratio)
        yield from _beyond(summary, "distinct", limits.min_distinct, "health.min_distinct", "mode collapse", below=True)
    elif step.stage == "pairs":
        yield from _beyond(summary, "tied", limits.max_tied, "health.max_tied", "the scores are constant")
    elif step.stage == "evaluate":
        what = "empty phrases fool the judge"
        yield from _beyond(summary, "canary_accepted", limits.max_canary_rate, "health.max_canary_rate", what)


def _long(run: Run, summary: Mapping[str, Any], limit: float | None) -> Iterator[str]:
    first = run.stage("responses", 1)
    if limit is None or not first.done:
        return
    now, then = float(summary["mean_tokens"]), float(first.summary["mean_tokens"])
    if now > limit * then:
        yield (
            f"responses grow: {now:.1f} tokens, {now / then:.2f} times those of iteration 1, more than "
            f"health.max_length_ratio {limit:g}"
        )


def _plateau(run: Run, summary: Mapping[str, Any], limit: float | None) -> Iterator[str]:
    yield from _beyond(summary, "accepted", limit, "health.min_accepted", "hardly anything new is made", below=True)
    if limit is not None and summary.get("gave_up"):
        yield f"nothing new is made any more: {summary['prompts']} prompts, and prompts.num is {run.recipe.prompts.num}"


def _narrower(run: Run, summary: Mapping[str, Any], limit: float | None) -> Iterator[str]:
    first = run.stage("prompts", 1)
    if limit is None or not first.done or not _comparable(summary["prompts"], first.summary["prompts"]):
        return
    for name in ("distinct_2", "distinct_roots"):
        now, then = summary.get(name), first.summary.get(name)
        if now is not None and then is not None and now < (1.0 - limit) * then:
            yield (
                f"prompts lose diversity: {name} {now:.3g}, {1.0 - now / then:.0%} below {then:.3g} of iteration 1, "
                f"more than health.max_diversity_drop {limit:g}"
            )


def _comparable(now: int, then: int) -> bool:
    """Whether shares of what is distinct compare: of few prompts they say little, and many more repeat more."""
    return then >= MIN_PROMPTS and (now <= 1.5 * then or then >= MIN_JUDGEMENTS)


def _beyond(
    summary: Mapping[str, Any], name: str, limit: float | None, setting: str, what: str, below: bool = False
) -> Iterator[str]:
    value = summary.get(name)
    if limit is not None and value is not None and (value < limit if below else value > limit):
        yield f"{what}: {name} {value:.3g}, {'less' if below else 'more'} than {setting} {limit:g}"
