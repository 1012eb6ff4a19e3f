"""The prompts of an iteration."""

from __future__ import annotations

from selfreward import registry
from selfreward.rundir import Run
from selfreward.serving import Engines
from selfreward.stages import Summary


def stage(run: Run, iteration: int, engines: Engines) -> Summary:
    """Asks the recipe's prompt source. Raises ValueError for bad lines of its file."""
    settings = run.recipe.prompts
    source = registry.load(settings.source, registry.PROMPT_SOURCES, "prompt source")(settings)
    prompts, skipped = source.prompts(iteration)
    run.stage("prompts", iteration).write("records.jsonl", prompts)
    return {"prompts": len(prompts), **{f"skipped_{reason}": count for reason, count in skipped.items()}}
