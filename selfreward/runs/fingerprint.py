"""What decides a stage's result: its settings, the bytes of its files and weights, the stages it reads. No torch.

A finished stage keeps this in its marker. A recipe that differs in it would have made something else of that
stage, and of every stage that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfreward.recipe.base import deciding_part, effect_of
from selfreward.recipe.data_settings import JOBS
from selfreward.recipe.effects import Effect
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.recipe.filter_settings import EmbeddingSettings
from selfreward.recipe.loader import submodel
from selfreward.recipe.recipe import Recipe
from selfreward.runs.model_files import MISSING, embedder_hash, folder_hash, model_hash
from selfreward.runs.plan import makes_model, models_of
from selfreward.runs.stages import STAGES, Step
from selfreward.runtime.atomic import hash_of


@dataclass(frozen=True)
class Change:
    """A setting, file or stage that is not what a finished stage was made with."""

    key: str
    before: Any
    after: Any

    @property
    def is_stage(self) -> bool:
        return "/" in self.key

    @property
    def is_file(self) -> bool:
        return str(self.before).startswith("sha256:")

    def __str__(self) -> str:
        if self.is_stage:
            return f"{self.key}: it is not the one that was read"
        if self.is_file:
            return f"{self.key}: the bytes differ"
        return f"{self.key}: {self.before!r} -> {self.after!r}"


def settings_of_step(recipe: Recipe, step: Step) -> dict[str, Any]:
    """The settings that decide a step's result, by dotted name, a file's or model's being the hash of its bytes."""
    stage = STAGES[step.stage]
    names = stage.settings(recipe, step.iteration)
    settings = {
        leaf.key: _value(leaf)
        for leaf in _leaves(recipe)
        if _within(leaf.key, names)
        and not _within(leaf.key, stage.without)
        and not (leaf.key == "model.path" and _is_made(recipe, step))
    }
    return settings | stage.derived(recipe, step.iteration)


def settings_of(settings: BaseModel) -> dict[str, Any]:
    """All settings that decide a result, by dotted name, a file's or model's being the hash of its bytes."""
    return {leaf.key: _value(leaf) for leaf in _leaves(settings)}


def begins_with(step: Step, read: dict[str, Any]) -> dict[str, Any]:
    """The part of :meth:`Run.reads` that an interrupted attempt must share for its requests to count.

    A request is found again by its whole text, so the records that it was made from are not part of it: they may
    still be on their way when judging begins. A training's checkpoints do depend on its pairs.
    """
    if STAGES[step.stage].trains:
        return read
    trained = {name: d for name, d in read["stages"].items() if STAGES[name.rpartition("/")[2]].trains}
    return {**read, "stages": trained}


def _is_made(recipe: Recipe, step: Step) -> bool:
    """Whether the models that the step loads, if any, are made by the run rather than named in its recipe."""
    return all(makes_model(recipe, t) is not None for t in models_of(recipe, step))


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """What differs between two results of :meth:`Run.reads`.

    A setting that an older version did not have, and a file that is no longer there, count as unchanged.
    """
    found = []
    for key, old, new in _compared(before["settings"], now["settings"]):
        if isinstance(old, dict) and isinstance(new, dict):
            found += [Change(f"{key}.{name}", old.get(name), new.get(name)) for name in {**old, **new}]
        elif MISSING not in (old, new):
            found.append(Change(key, old, new))
    old_stages, new_stages = before["stages"], now["stages"]
    # A stage that is read in one of the two alone is a change, even if it is not made yet.
    found += [Change(n, old_stages.get(n, False), new_stages.get(n, False)) for n in {**old_stages, **new_stages}]
    return [change for change in found if change.before != change.after]


def _compared(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each setting with what it was and what it is; None where it was left out, as it was not given."""
    for key, new in now.items():
        yield key, before.get(key, None if _can_be_left_out(key) else new), new
    for key, old in before.items():
        if key not in now and _can_be_left_out(key):
            yield key, old, None


def _can_be_left_out(key: str) -> bool:
    return re.sub(r"\.[0-9]+\.", ".", key) in _keys_left_out()


@cache
def _keys_left_out() -> frozenset[str]:
    """The settings that are left out where they are not given, by dotted name, without places in lists."""
    roots: tuple[type[BaseModel], ...] = (Recipe, *JOBS)
    return frozenset(key for root in roots for key in _with_exclude_if(root))


def _with_exclude_if(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in settings.model_fields.items():
        block = submodel(field)
        if field.exclude_if is not None:
            yield prefix + name
        elif block is not None:
            yield from _with_exclude_if(block, f"{prefix}{name}.")


@dataclass(frozen=True)
class _Leaf:
    """A setting that decides results, by its dotted name, with the block that it is a setting of."""

    key: str
    value: Any
    effect: Effect
    block: BaseModel


def _leaves(settings: BaseModel, prefix: str = "") -> Iterator[_Leaf]:
    """Each setting that decides results; a block that may be missing is also one: whether it is there."""
    for name, field in type(settings).model_fields.items():
        key, value, effect = f"{prefix}{name}", getattr(settings, name), effect_of(type(settings), name)
        # Older runs have no such setting, and what they hashed must stay the same.
        left_out = field.exclude_if is not None and field.exclude_if(value)
        if left_out or not effect.touches_results:
            continue
        if submodel(field) is None:
            yield _Leaf(key, deciding_part(field, value), effect, settings)
        elif isinstance(value, list):
            yield _Leaf(f"{key}.count", len(value), effect, settings)
            for place, item in enumerate(value):
                yield from _leaves(item, f"{key}.{place}.")
        else:
            yield _Leaf(key, value is not None, effect, settings)
            if value is not None:
                yield from _leaves(value, f"{key}.")


def _within(key: str, names: tuple[str, ...]) -> bool:
    # The settings of an ensemble's member are those of a judge.
    names = names if "members" not in key else (*names, *(n.replace("judge.", "judge.members.") for n in names))
    key = re.sub(r"\.members\.[0-9]+\.", ".members.", key)
    key = re.sub(r"\.parts\.[0-9]+\.", ".", key)
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _value(leaf: _Leaf) -> Any:
    """What a setting comes to: of what it names, the bytes tell."""
    value, block = leaf.value, leaf.block
    if value is None:
        return None
    if leaf.effect is Effect.FILE:
        return f"sha256:{hash_of(value)}" if value.is_file() else MISSING
    if leaf.effect is Effect.FOLDER:
        return folder_hash(Path(value)) if Path(value).is_dir() else value
    if leaf.effect is Effect.MODEL:
        assert isinstance(block, ModelSettings)
        return model_hash(block)
    if leaf.effect is Effect.EMBEDDER:
        assert isinstance(block, EmbeddingSettings)
        return embedder_hash(block)
    return value
