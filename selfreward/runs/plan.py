"""The steps of a run in their order, and what each reads. Names are those of arXiv 2401.10020.

M0 is the base model and M1 the seed model. Iteration t samples and judges with M_t and trains M_{t+1};
its evaluation measures M_{t+1}, so the one of iteration 0 measures M1.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfreward.recipe.recipe import Recipe
from selfreward.runs.stages import NAMES, TRAINING


@dataclass(frozen=True)
class Step:
    """One stage of one iteration; iteration 0 is the seed."""

    stage: str
    iteration: int

    def __str__(self) -> str:
        return f"{f'iteration {self.iteration}' if self.iteration else 'seed'}: {self.stage}"


def plan(recipe: Recipe) -> list[Step]:
    """Every step of a run in its order."""
    steps = [Step("train", 0)] if recipe.seed_data is not None else []
    steps += [Step("evaluate", 0)] if _is_evaluated(recipe) else []
    for iteration in range(1, recipe.iterations + 1):
        steps += [Step(name, iteration) for name in names(recipe, iteration)]
    return steps


def names(recipe: Recipe, iteration: int) -> list[str]:
    """The stages of an iteration from 1 on, in their order.

    What compares M_t with a model of the loop before it begins with iteration 2: M0 may never have seen a chat.
    """
    selection, meta, later = recipe.selection, recipe.meta, iteration > 1
    wanted = {
        "anchors": selection.anchored and later,
        "previous_judgements": recipe.training.consistency != "none" and later,
        "implicit": selection.implicit_agreement and later,
        "draft_pairs": selection.lookahead,
        "draft_train": selection.lookahead,
        "lookahead": selection.lookahead,
        "meta": meta is not None and iteration in meta.iterations,
        "evaluate": _is_evaluated(recipe),
    }
    return [name for name in NAMES if wanted.get(name, True)]


def _is_evaluated(recipe: Recipe) -> bool:
    return recipe.evaluation.prompts is not None or recipe.evaluation.judging is not None


def find_step(recipe: Recipe, stage: str, iteration: int) -> Step:
    """The step of the plan with that name. Raises ValueError if the plan has none."""
    steps = plan(recipe)
    step = Step(stage, iteration)
    if step not in steps:
        known = ", ".join(f"{s.stage} --iteration {s.iteration}" for s in steps)
        raise ValueError(f"the plan has no stage {stage} in iteration {iteration}. It has: {known}")
    return step


def makes_model(recipe: Recipe, t: int) -> Step | None:
    """The step that makes M_t, or None where M_t is the recipe's own model."""
    return None if t == 0 or (t == 1 and recipe.seed_data is None) else Step("train", t - 1)


def reference_of(recipe: Recipe, iteration: int) -> int:
    """The t of the M_t that is the reference model of an iteration's DPO."""
    kind, _, number = recipe.training.reference.partition(":")
    if kind == "seed":
        return min(1, iteration)  # the seed stage itself trains from M0
    return int(number) + 1 if number and int(number) < iteration else iteration


def reads_past(recipe: Recipe) -> bool:
    """Whether the prompts of an iteration depend on those of earlier ones: on all but rows as they are."""
    return any(source.asks_a_model for source in recipe.prompts.sources)


def keeps_tasks(recipe: Recipe) -> bool:
    """Whether there is more to keep of prompts than what is asked: a model made them, or filters looked at them."""
    return reads_past(recipe) or bool(recipe.prompts.filter_names)


def reads_difficulty(recipe: Recipe) -> bool:
    """Whether prompts are chosen by how earlier models did on theirs."""
    return any(source.source == "curriculum" for source in recipe.prompts.sources)


def searches_templates(recipe: Recipe) -> bool:
    """Whether the prompts that ask for prompts evolve: each iteration improves on what the one before it used."""
    sources = recipe.prompts.sources
    return any(each.source == "self_instruct" and each.self_instruct.template_variants for each in sources)


def _prompt_models(recipe: Recipe, t: int) -> list[int]:
    """The t of each M_t that makes prompts in an iteration."""
    makers = {source.by for source in recipe.prompts.sources if source.needs_model}
    return sorted({t if by == "current" else 1 for by in makers if by != "teacher"})


_JUDGED = ("prompts", "anchors", "responses")
_SELECTS = (*_JUDGED, "judgements", "previous_judgements", "implicit")
# The stages of the same iteration whose records a stage reads, as far as the recipe has them.
_READS = {
    "prompts": (),
    "anchors": ("prompts",),
    "responses": ("prompts",),
    "judgements": _JUDGED,
    "previous_judgements": _JUDGED,
    "implicit": ("prompts", "responses"),
    "draft_pairs": _SELECTS,
    "draft_train": ("draft_pairs",),
    "lookahead": ("prompts", "draft_train"),
    "pairs": (*_SELECTS, "lookahead"),
    "meta": ("prompts", "responses", "judgements"),
    "train": ("pairs", "meta"),
    "evaluate": (),
}


def reads_models(recipe: Recipe, step: Step) -> list[int]:
    """The t of each M_t that a step loads."""
    t = step.iteration
    return {
        "prompts": _prompt_models(recipe, t),
        "anchors": [1],
        "previous_judgements": [t - 1],
        "implicit": [t - 1, t],
        "evaluate": [t + 1],
        **dict.fromkeys(TRAINING, sorted({reference_of(recipe, t), t})),
    }.get(step.stage, [t])


def inputs(recipe: Recipe, step: Step) -> list[Step]:
    """The steps whose results a step reads itself, the training of its models among them."""
    t = step.iteration
    found = [Step(n, t) for n in names(recipe, t) if n in _READS[step.stage]] if t else []
    found += [maker for m in reads_models(recipe, step) if (maker := makes_model(recipe, m)) is not None]
    if step.stage in TRAINING and recipe.training.replay:
        found += [Step("pairs", earlier) for earlier in range(1, t)]
    if step.stage == "prompts" and reads_past(recipe):
        found += [Step("prompts", earlier) for earlier in range(1, t)]
    if step.stage == "prompts" and reads_difficulty(recipe) and t > 1:
        found += [Step("responses", t - 1), Step("judgements", t - 1)]
    if step.stage == "evaluate" and t:
        found.append(Step("evaluate", 0))
    return found
