"""A run is a folder of records; what is on disk decides what is left to do. No torch.

::

    runs/NAME/
      resolved.json  environment.json  metrics.jsonl
      seed/{train,model,evaluate}          seed/model is M1
      iter_1/{prompts,responses,judgements,pairs,train,model,evaluate}    iter_1/model is M2

Each stage has a folder of its own, and its marker ``stage.json`` is written last: a stage whose marker
is missing did not happen and starts again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward.config import Recipe, stored_recipe
from selfreward.records import (
    Agreement,
    Judgement,
    Measurement,
    PreferencePair,
    Prompt,
    R,
    Record,
    Rejection,
    Response,
    read_records,
    write_records,
)

if TYPE_CHECKING:
    from datasets import Dataset

MARKER = "stage.json"
RECORDS: dict[str, tuple[str, str, type[Record]]] = {
    "prompts": ("prompts", "records.jsonl", Prompt),
    "responses": ("responses", "records.jsonl", Response),
    "judgements": ("judgements", "records.jsonl", Judgement),
    "pairs": ("pairs", "records.jsonl", PreferencePair),
    "rejections": ("pairs", "rejections.jsonl", Rejection),
    "measurements": ("evaluate", "records.jsonl", Measurement),
    "agreement": ("evaluate", "agreement.jsonl", Agreement),
}


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage of one iteration."""

    path: Path

    @property
    def done(self) -> bool:
        return (self.path / MARKER).is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """The marker's content: counts, figures and seconds."""
        content: dict[str, Any] = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        return content

    def begin(self) -> None:
        """Clears what an interrupted attempt left; a training's model stands beside it."""
        assert not self.done, f"{self.path} is finished"
        for folder in (self.path, self.path.with_name("model")) if self.path.name == "train" else (self.path,):
            shutil.rmtree(folder, ignore_errors=True)
        self.path.mkdir(parents=True)

    def write(self, name: str, records: Iterable[Record]) -> int:
        """Writes a records file whole or not at all, and returns the number of records."""
        temporary = self.path / f"{name}.tmp"
        count = write_records(temporary, records)
        _replace(temporary, self.path / name)
        return count

    def commit(self, summary: Mapping[str, Any]) -> None:
        """Writes the marker: from here on the stage is done."""
        write_json(self.path / MARKER, summary)


class Run:
    """A run folder and the recipe that it was made with.

    Iteration 0 is the seed stage; the model that iteration t samples from is M_t.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe

    @classmethod
    def create(cls, recipe: Recipe) -> Run:
        """Opens the recipe's run folder, making it if it is not there.

        Raises:
            ValueError: the folder holds a run of a different recipe.
        """
        run = cls((recipe.run_dir / recipe.name).resolve(), recipe)
        resolved = recipe.model_dump(mode="json")
        stored = run.path / "resolved.json"
        if stored.is_file():
            _refuse_changes(json.loads(stored.read_text(encoding="utf-8")), resolved, run.path)
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(stored, resolved)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Opens an existing run folder.

        Raises:
            ValueError: there is no run in it.
        """
        stored = Path(path) / "resolved.json"
        if not stored.is_file():
            raise ValueError(f"no run in {path}: {stored} is missing. Start one with: selfreward run RECIPE")
        return cls(Path(path).resolve(), stored_recipe(stored))

    def stage(self, name: str, iteration: int) -> StageFolder:
        """The folder of a stage; iteration 0 is the seed."""
        return StageFolder(self.path / (f"iter_{iteration}" if iteration else "seed") / name)

    def model_path(self, t: int) -> str:
        """Where M_t is: M1 is the seed stage's model, or the recipe's where it has no seed data."""
        if t == 0 or (t == 1 and self.recipe.seed_data is None):
            return self.recipe.model.path
        return str(self.stage("model", t - 1).path)

    def model_name(self, path: str) -> str:
        """A model's name in records: its folder within the run, so that records don't depend on where the run is."""
        folder = Path(path)
        return str(folder.relative_to(self.path)) if folder.is_relative_to(self.path) else path

    def records(self, name: str, iteration: int, kind: type[R]) -> list[R]:
        """The records of a finished stage, such as ``records("pairs", 1, PreferencePair)``."""
        stage, file, expected = RECORDS[name]
        assert kind is expected
        return list(read_records(self.stage(stage, iteration).path / file, kind))

    def dataset(self, name: str, iteration: int) -> Dataset:
        """The records of a finished stage as a ``datasets.Dataset``.

        Args:
            name: prompts, responses, judgements, pairs, rejections, measurements or agreement.
            iteration: 0 is the seed.

        Raises:
            ValueError: no such records, or the stage is not finished.
        """
        from datasets import Dataset

        if name not in RECORDS:
            raise ValueError(f"no records are called {name!r}. Known: {', '.join(RECORDS)}")
        stage, file, _ = RECORDS[name]
        folder = self.stage(stage, iteration)
        if not folder.done:
            raise ValueError(f"stage {stage} of iteration {iteration} is not finished in {self.path}")
        with (folder.path / file).open(encoding="utf-8") as lines:
            return Dataset.from_list([json.loads(line) for line in lines])

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **metrics}) + "\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _replace(temporary, path)


def _replace(temporary: Path, path: Path) -> None:
    """Renames onto ``path`` after the bytes are on the disk, so that a power cut leaves the old or the new."""
    for target in (temporary, temporary.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if target is temporary:
            temporary.replace(path)


# Settings that touch no finished stage, so that a run may go on with other values.
MAY_CHANGE = ("iterations", "run_dir", "launch", "tracking")


def _refuse_changes(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    changes = [
        f"{key}: {before!r} -> {after!r}"
        for key, before, after in _differences(old, new)
        if key.split(".")[0] not in MAY_CHANGE
    ]
    if changes:
        listed = "\n  ".join(changes)
        raise ValueError(
            f"{path} holds a run of another recipe, and a run is never overwritten. What differs:\n  {listed}\n"
            "Give the new run a name of its own (name=...), or take the changes back"
        )


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        prefix = f"{key}." if key else ""
        return [d for name in names for d in _differences(old.get(name), new.get(name), f"{prefix}{name}")]
    return [] if old == new else [(key, old, new)]
