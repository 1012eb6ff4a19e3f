"""What decides a stage's result: its settings, the bytes of its files and weights, the stages it reads. No torch.

A finished stage keeps this in its marker. A recipe that differs in it would have made something else of that
stage, and of every stage that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfreward.recipe.engine_settings import ModelSettings
from selfreward.recipe.loader import submodel
from selfreward.recipe.recipe import Recipe
from selfreward.runs.model_files import MISSING, _folder_hash, _snapshot, model_hash
from selfreward.runs.plan import makes_model, models_of
from selfreward.runs.stages import STAGES, Step
from selfreward.runtime.atomic import hash_of

_ENGINES = ("engine", "judge.engine", "prompts.engine")
# Settings that touch no result: where and how a run works, not what it makes.
NO_RESULT = (
    "name",
    "run_dir",
    "iterations",
    "launch",
    "tracking",
    "health",
    # They decide which stages there are, and which models and records a training reads: that is compared itself.
    "training.reference",
    "training.consistency",
    "meta.iterations",
    # Whatever it names, the bytes tell.
    "model.revision",
    "judge.model.revision",
    "prompts.model.revision",
    "prompts.filters.embedding.revision",
    "prompts.filters.embedding.device",
    "judge.min_parse_rate",
    *(f"{block}.{name}" for block in _ENGINES for name in ("max_in_flight", "max_restarts")),
    *(f"{block}.{name}" for block in _ENGINES for name in ("stall_timeout", "transformers")),
    *(
        f"{block}.openai.{name}"
        for block in _ENGINES
        for name in ("api_key_env", "max_concurrency", "max_retries", "timeout")
    ),
)
# The same among the options that are handed to a library: memory, batching in sampling, logs and checkpoints.
NO_RESULT_OPTIONS = frozenset(
    "disable_log_stats use_tqdm_on_load gpu_memory_utilization kv_cache_memory_bytes max_num_seqs "
    "max_num_batched_tokens "
    "save_steps logging_steps logging_strategy logging_first_step disable_tqdm log_level "
    "log_level_replica log_on_each_node dataloader_num_workers dataloader_pin_memory "
    "dataloader_persistent_workers dataloader_prefetch_factor dataset_num_proc skip_memory_metrics "
    "include_num_input_tokens_seen ddp_timeout".split()
)


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
    without = (*NO_RESULT, *stage.without)
    settings = {
        key: _value(key, value, recipe)
        for key, value in _leaves(recipe)
        if _within(key, names) and not _within(key, without) and not (key == "model.path" and _is_made(recipe, step))
    }
    return settings | stage.derived(recipe, step.iteration)


def settings_of(settings: BaseModel) -> dict[str, Any]:
    """All settings that decide a result, by dotted name, a file's or model's being the hash of its bytes."""
    every = ((key, value) for key, value in _leaves(settings) if not _within(key, NO_RESULT))
    return {key: _value(key, value, settings) for key, value in every}


def begins_with(step: Step, read: dict[str, Any]) -> dict[str, Any]:
    """The part of :meth:`Run.reads` that an interrupted attempt must share for its requests to count.

    A request is found again by its whole text, so the records that it was made from are not part of it: they may
    still be on their way when judging begins. A training's checkpoints do depend on its pairs.
    """
    if STAGES[step.stage].trains:
        return read
    return {
        **read,
        "stages": {name: digest for name, digest in read["stages"].items() if STAGES[name.rpartition("/")[2]].trains},
    }


def _is_made(recipe: Recipe, step: Step) -> bool:
    """Whether the models that the step loads, if any, are made by the run rather than named in its recipe."""
    return all(makes_model(recipe, t) is not None for t in models_of(recipe, step))


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """What differs between two results of :meth:`Run.reads`.

    A setting that an older version did not have, and a file that is no longer there, count as unchanged.
    """
    found = []
    for key, new in now["settings"].items():
        old = before["settings"].get(key, new)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [Change(f"{key}.{name}", old.get(name), new.get(name)) for name in {**old, **new}]
        elif MISSING not in (old, new):
            found.append(Change(key, old, new))
    old_stages, new_stages = before["stages"], now["stages"]
    # A stage that is read in one of the two alone is a change, even if it is not made yet.
    found += [Change(n, old_stages.get(n, False), new_stages.get(n, False)) for n in {**old_stages, **new_stages}]
    return [change for change in found if change.before != change.after]


def _leaves(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its dotted name; a block that may be missing is also a setting: whether it is there."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, list) and submodel(field) is not None:
            yield f"{prefix}{name}.count", len(value)
            for place, item in enumerate(value):
                yield from _leaves(item, f"{prefix}{name}.{place}.")
            continue
        if submodel(field) is None:
            yield prefix + name, value
            continue
        yield prefix + name, value is not None
        if value is not None:
            yield from _leaves(value, f"{prefix}{name}.")


def _within(key: str, names: tuple[str, ...]) -> bool:
    # The settings of an ensemble's member are those of a judge.
    names = names if "members" not in key else (*names, *(n.replace("judge.", "judge.members.") for n in names))
    key = re.sub(r"\.members\.[0-9]+\.", ".members.", key)
    key = re.sub(r"\.parts\.[0-9]+\.", ".", key)
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _value(key: str, value: Any, recipe: BaseModel) -> Any:
    """What a setting comes to: of what it names, the bytes tell."""
    if key == "model.path" or key.endswith(".model.path"):
        return model_hash(_at(recipe, key.removesuffix(".path")))
    if key.endswith("filters.embedding.model") and value is not None:
        revision = _at(recipe, key.removesuffix(".model")).revision
        folder = Path(value) if Path(value).is_dir() else _snapshot(ModelSettings(path=value, revision=revision))
        return _folder_hash(folder) if folder.is_dir() else MISSING
    if isinstance(value, Path):
        return f"sha256:{hash_of(value)}" if value.is_file() else MISSING
    if key.endswith(".hub") and value is not None and Path(value).is_dir():
        return _folder_hash(Path(value))
    if isinstance(value, dict):
        value = {name: option for name, option in value.items() if name not in NO_RESULT_OPTIONS}
    return value


def _at(settings: BaseModel, key: str) -> Any:
    """The block or value under a dotted name."""
    found: Any = settings
    for name in key.split("."):
        found = found[int(name)] if name.isdecimal() else getattr(found, name)
    return found
