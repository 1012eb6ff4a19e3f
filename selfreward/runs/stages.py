"""The table of stages: all that is known of each by its name, besides its function. No torch.

Names are those of arXiv 2401.10020: M0 is the base model, M1 the seed model, and iteration t samples and judges with
M_t and trains M_{t+1}. Iteration 0 is the seed stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from selfreward.recipe.recipe import Recipe
from selfreward.records import (
    Agreement,
    Difficulty,
    ImplicitReward,
    Judgement,
    Measurement,
    PreferencePair,
    Prompt,
    Record,
    Rejection,
    Removal,
    Response,
    Task,
    TemplateTrial,
)

# The counts and figures that a stage returns, for ``stage.json`` and ``metrics.jsonl``.
Summary = dict[str, Any]
# What a stage asks of engines.
Ask = Literal["responses", "revisions", "judgements", "meta", "logprobs", "prompts", "held_out"]
RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True)
class Step:
    """One stage of one iteration; iteration 0 is the seed."""

    stage: str
    iteration: int

    def __str__(self) -> str:
        return f"{f'iteration {self.iteration}' if self.iteration else 'seed'}: {self.stage}"


# What makes M1 from M0.
SEED_STEP = Step("train", 0)


@dataclass(frozen=True)
class Stage:
    """What is known of a stage. A function of a recipe and t says what depends on them.

    - ``function``: the module of ``stages/`` whose function performs it; empty: the one of its own name.
    - ``planned``: whether an iteration has it.
    - ``reads``: the stages of its iteration whose records it reads, as far as the recipe has them; ``earlier``: steps
      of other iterations; ``models``: the t of each M_t that it loads.
    - ``settings``: which settings decide its result, by name or by block; ``without``: those of them that don't;
      ``derived``: further values that decide it, as the recipe makes them for an iteration.
    - ``records``: file and class of each kind of records that it writes, by the name under which a run knows them.
    - ``asks``: what it asks of engines.
    - ``model``: the folder of the model that it trains; empty: it trains none. ``pairs``: the stage whose pairs those
      of an iteration are.
    """

    name: str
    settings: Callable[[Recipe, int], tuple[str, ...]]
    function: str = ""
    planned: Callable[[Recipe, int], bool] = lambda recipe, t: t > 0
    reads: tuple[str, ...] = ()
    earlier: Callable[[Recipe, int], Sequence[Step]] = lambda recipe, t: ()
    models: Callable[[Recipe, int], Sequence[int]] = lambda recipe, t: (t,)
    without: tuple[str, ...] = ()
    derived: Callable[[Recipe, int], dict[str, Any]] = lambda recipe, t: {}
    records: Mapping[str, tuple[str, type[Record]]] = field(default_factory=dict)
    asks: tuple[Ask, ...] = ()
    model: str = ""
    pairs: str = ""

    @property
    def trains(self) -> bool:
        """Whether it makes a model."""
        return bool(self.model)


def _fixed(*names: str) -> Callable[[Recipe, int], tuple[str, ...]]:
    return lambda recipe, t: names


def _later(wanted: Callable[[Recipe], bool]) -> Callable[[Recipe, int], bool]:
    # What compares M_t with a model of the loop before it begins with iteration 2: M0 may never have seen a chat.
    return lambda recipe, t: t > 1 and wanted(recipe)


def _looks_ahead(recipe: Recipe, t: int) -> bool:
    return t > 0 and recipe.selection.lookahead


_SAMPLING = ("responses.temperature", "responses.top_p", "responses.max_tokens")
# Settings of a judge that decide how judging data is shown and labelled; the others decide how it is asked.
EXAMPLE_SETTINGS = (
    *("name", "template", "min_score", "max_score", "reference", "criteria", "options", "members.count"),
    *("expected.think", "pairwise.think", "pairwise.labels", "rubric.together"),
)
_READING = ("prompts.max_characters", "prompts.on_bad_line", "prompts.columns")
_RULES = ("responses.on_empty", "responses.on_truncated", "responses.on_duplicate")
_VOTES = ("seed", "model", "engine", "judge")
# How judgements become a score, which their records know nothing of.
_COMBINING = ("judge.combine", "judge.weight")
# How judging data becomes judge prompts and labels.
_LABELS = ("seed_data", *(f"judge.{name}" for name in EXAMPLE_SETTINGS))
_TRAINED = ("dpo", "lora", "load_in_4bit", "rehearsal", "replay", "schedule")
_JUDGED = ("prompts", "anchors", "responses")
_SELECTS = (*_JUDGED, "judgements", "previous_judgements", "implicit")


def _settings_of_prompts(recipe: Recipe, t: int) -> tuple[str, ...]:
    """What sources and filters read, besides their own block."""
    prompts = recipe.prompts
    asked = [source for source in prompts.sources if source.needs_model]
    own = any(source.by != "teacher" for source in asked)
    names = ["prompts"]
    names += ["seed"] if asked or prompts.parts else []
    names += ["model"] if own else []
    names += ["engine"] if own or any(source.engine is None for source in asked) else []
    names += ["judge"] if recipe.prompts.reads_difficulty else []
    return (*names, *(["evaluation.prompts"] if prompts.reads_held_out else []))


def _models_of_prompts(recipe: Recipe, t: int) -> list[int]:
    makers = {source.by for source in recipe.prompts.sources if source.needs_model}
    return sorted({t if by == "current" else 1 for by in makers if by != "teacher"})


def _before_prompts(recipe: Recipe, t: int) -> list[Step]:
    past = [Step("prompts", earlier) for earlier in range(1, t)] if recipe.prompts.reads_past else []
    tried = [Step("responses", t - 1), Step("judgements", t - 1)] if recipe.prompts.reads_difficulty and t > 1 else []
    return past + tried


def _settings_of_training(recipe: Recipe, t: int) -> tuple[str, ...]:
    if t == 0:
        return ("seed", "model", "training.sft", *_LABELS)
    names = ("seed", "model", *(f"training.{name}" for name in _TRAINED))
    return (*names, *_LABELS) if recipe.training.rehearsal else names


def _models_of_training(recipe: Recipe, t: int) -> list[int]:
    return sorted({reference_of(recipe, t), t})


def _replayed(recipe: Recipe, t: int) -> list[Step]:
    return [Step("pairs", earlier) for earlier in range(1, t)] if recipe.training.replay else []


def _derived_of_training(recipe: Recipe, t: int) -> dict[str, Any]:
    compared = STAGES["previous_judgements"].planned(recipe, max(1, t))
    found: dict[str, Any] = {"training.consistency": recipe.training.consistency} if compared else {}
    if t:
        options = recipe.training.dpo_options(t)
        found["training.schedule"] = {name: options[name] for name in recipe.training.schedule}
        # Where M1 is the recipe's own model, no stage makes it that could be compared.
        found["training.reference"] = f"M{reference_of(recipe, t)}"
    return found


def _max_length(recipe: Recipe, t: int) -> dict[str, Any]:
    return {"training.dpo.max_length": recipe.training.dpo_options(t).get("max_length")}


def _derived_of_pairs(recipe: Recipe, t: int) -> dict[str, Any]:
    return {"selection.length_rho": recipe.selection.rho(t), **_max_length(recipe, t)}


def _is_evaluated(recipe: Recipe, t: int) -> bool:
    return recipe.evaluation.prompts is not None or recipe.evaluation.judging is not None


def _pairs(name: str, reads: tuple[str, ...], planned: Callable[[Recipe, int], bool]) -> Stage:
    """The pairs of an iteration, and those of its draft."""
    prefix = name.removesuffix("pairs")
    return Stage(
        name,
        _fixed("seed", "model", "judge", "selection", *_RULES),
        function="pairs",
        planned=planned,
        reads=reads,
        derived=_derived_of_pairs,
        records={name: (RECORDS_FILE, PreferencePair), f"{prefix}rejections": ("rejections.jsonl", Rejection)},
    )


def _training(name: str, reads: tuple[str, ...], planned: Callable[[Recipe, int], bool]) -> Stage:
    """The training of M_{t+1}, and that of its draft."""
    return Stage(
        name,
        _settings_of_training,
        function="train",
        planned=planned,
        reads=reads,
        earlier=_replayed,
        models=_models_of_training,
        derived=_derived_of_training,
        model=name.replace("train", "model"),
        pairs=reads[0],
    )


# In the order of an iteration.
_EVERY = (
    Stage(
        "prompts",
        _settings_of_prompts,
        earlier=_before_prompts,
        models=_models_of_prompts,
        records={
            "prompts": (RECORDS_FILE, Prompt),
            "tasks": ("tasks.jsonl", Task),
            "removed_prompts": ("removed.jsonl", Removal),
            "difficulty": ("difficulty.jsonl", Difficulty),
            "template_trials": ("templates.jsonl", TemplateTrial),
        },
        asks=("prompts",),
    ),
    Stage(
        # M1 answers too (Temporal Self-Rewarding, arXiv 2508.06026). The paper's anchor is M0, which may not chat yet.
        "anchors",
        _fixed("seed", "model", "engine", "responses.n", *_SAMPLING),
        function="responses",
        planned=_later(lambda recipe: recipe.selection.anchored),
        reads=("prompts",),
        models=lambda recipe, t: (1,),
        records={"anchors": (RECORDS_FILE, Response)},
        asks=("responses",),
    ),
    Stage(
        "responses",
        _fixed(*("seed", "model", "engine", "responses.n", "responses.principles", "responses.revisions"), *_SAMPLING),
        reads=("prompts",),
        records={"responses": (RECORDS_FILE, Response)},
        asks=("responses", "revisions"),
    ),
    Stage(
        "judgements",
        _fixed(*_VOTES),
        reads=_JUDGED,
        without=_COMBINING,
        records={"judgements": (RECORDS_FILE, Judgement)},
        asks=("judgements",),
    ),
    Stage(
        # M_{t-1} judges what M_t judges, with M_t's own seeds, to see how far the two rank alike (CREAM, arXiv
        # 2410.12735).
        "previous_judgements",
        _fixed(*_VOTES),
        function="judgements",
        planned=_later(lambda recipe: recipe.training.consistency != "none"),
        reads=_JUDGED,
        models=lambda recipe, t: (t - 1,),
        without=_COMBINING,
        records={"previous_judgements": (RECORDS_FILE, Judgement)},
        asks=("judgements",),
    ),
    Stage(
        "implicit",
        _fixed("model", "engine", "responses.max_tokens"),
        planned=_later(lambda recipe: recipe.selection.implicit_agreement),
        reads=("prompts", "responses"),
        models=lambda recipe, t: (t - 1, t),
        records={"implicit": (RECORDS_FILE, ImplicitReward)},
        asks=("logprobs",),
    ),
    _pairs("draft_pairs", _SELECTS, _looks_ahead),
    _training("draft_train", ("draft_pairs",), _looks_ahead),
    Stage(
        "lookahead",
        _fixed(*_VOTES, "responses.n", *_SAMPLING),
        planned=_looks_ahead,
        reads=("prompts", "draft_train"),
        records={
            "lookahead": ("responses.jsonl", Response),
            "lookahead_judgements": ("judgements.jsonl", Judgement),
        },
        asks=("responses", "judgements"),
    ),
    _pairs("pairs", (*_SELECTS, "lookahead"), lambda recipe, t: t > 0),
    Stage(
        "meta",
        _fixed(
            *("seed", "model", "engine", "meta"),
            *("judge.template", "judge.reference", "judge.min_score", "judge.max_score"),
        ),
        planned=lambda recipe, t: t > 0 and recipe.meta is not None and t in recipe.meta.iterations,
        reads=("prompts", "responses", "judgements"),
        derived=_max_length,
        records={"meta": (RECORDS_FILE, Judgement), "judge_pairs": ("pairs.jsonl", PreferencePair)},
        asks=("meta",),
    ),
    _training("train", ("pairs", "meta"), lambda recipe, t: t > 0 or recipe.seed_data is not None),
    Stage(
        "evaluate",
        _fixed("seed", "model", "engine", "judge", "evaluation", *_SAMPLING, *_READING),
        planned=_is_evaluated,
        earlier=lambda recipe, t: [Step("evaluate", 0)] if t else [],
        models=lambda recipe, t: (t + 1,),
        records={"measurements": (RECORDS_FILE, Measurement), "agreement": ("agreement.jsonl", Agreement)},
        asks=("held_out",),
    ),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _EVERY}


def records_named(name: str) -> tuple[str, str, type[Record]]:
    """The stage, file and class of records. Raises ValueError for an unknown name."""
    known = {each: (stage.name, *where) for stage in STAGES.values() for each, where in stage.records.items()}
    if name not in known:
        raise ValueError(f"no records are called {name!r}. Known: {', '.join(known)}")
    return known[name]


def model_folders() -> Iterator[tuple[str, str]]:
    """The folders of each training: its own, and that of the model that it makes."""
    return ((stage.name, stage.model) for stage in STAGES.values() if stage.trains)


def reference_of(recipe: Recipe, iteration: int) -> int:
    """The t of the M_t that is the reference model of an iteration's DPO."""
    kind, _, number = recipe.training.reference.partition(":")
    if kind == "seed":
        return min(1, iteration)  # the seed stage itself trains from M0
    return int(number) + 1 if number and int(number) < iteration else iteration
