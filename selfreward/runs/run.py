"""A run is a folder of records; what is on disk decides what is left to do. No torch.

::

    runs/NAME/
      resolved.json  environment.json  metrics.jsonl  lock  [origin.json]
      seed/{train,model,evaluate}          seed/model is M1
      iter_1/{prompts,responses,judgements,pairs,train,model,evaluate}    iter_1/model is M2
      set_aside/1/...

Each stage has a folder of its own, and its marker ``stage.json`` is written last: a stage whose marker
is missing is not finished, and goes on from its journal or checkpoint.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward.recipe.recipe import Recipe, stored_recipe
from selfreward.records import R, read_records
from selfreward.runs.fingerprint import begins_with, changes, settings_of_step
from selfreward.runs.folders import StageFolder, iteration_folder, make_folder
from selfreward.runs.plan import inputs, makes_model, models_of
from selfreward.runs.stages import Step, records_named
from selfreward.runs.stored import METRICS, ORIGIN, RECIPE, SET_ASIDE
from selfreward.runtime.atomic import append_line, is_whole_line, read_sealed, sync, write_bytes, write_sealed
from selfreward.runtime.progress import console

if TYPE_CHECKING:
    from datasets import Dataset


class Run:
    """A run folder and the recipe that it was made with.

    Iteration 0 is the seed stage; the model that iteration t samples from is M_t.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe
        # What a stage keeps in memory for the next iteration's, by its name; all of it can be read again.
        self.kept: dict[str, Any] = {}

    @classmethod
    def create(cls, recipe: Recipe) -> Run:
        """Opens the recipe's run folder, making it if it is not there, and stores the recipe.

        What is finished there is not compared with the recipe: see :func:`selfreward.runs.history.start`.

        Raises:
            ValueError: the folder is a link.
        """
        path = make_folder(recipe)
        run = cls(path, recipe)
        stored = path / RECIPE
        resolved = recipe.model_dump(mode="json")
        if not stored.is_file() or read_sealed(stored) != resolved:
            write_sealed(stored, resolved)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Opens an existing run folder.

        Raises:
            ValueError: there is no run in it.
            Damaged: its recipe is not what the run wrote.
        """
        stored = Path(path) / RECIPE
        if not stored.is_file():
            raise ValueError(f"no run in {path}: {stored} is missing. Start one with: selfreward run RECIPE")
        return cls(Path(path).resolve(), stored_recipe(read_sealed(stored)))

    @property
    def origin(self) -> dict[str, Any]:
        """``settled``: stages of earlier iterations belong to an earlier recipe; ``forked_from``, if it is a fork."""
        path = self.path / ORIGIN
        return read_sealed(path) if path.is_file() else {"settled": 0, "forked_from": None}

    @property
    def first_iteration(self) -> int:
        """The first iteration that the recipe holds for; 0 unless it was edited in mid-run, or the run is a fork."""
        return int(self.origin["settled"])

    def stage(self, name: str, iteration: int) -> StageFolder:
        """The folder of a stage; iteration 0 is the seed."""
        return StageFolder(self.path, f"{iteration_folder(iteration)}/{name}")

    def folder(self, step: Step) -> StageFolder:
        """The folder of a step."""
        return self.stage(step.stage, step.iteration)

    def model_folder(self, step: Step) -> Path:
        """Where the model is that a training makes."""
        folder = self.folder(step).model
        assert folder is not None, f"{step} trains nothing"
        return folder

    def models(self, step: Step) -> list[str]:
        """Where each M_t is that a step loads, the earliest first."""
        return [self.model_path(t) for t in models_of(self.recipe, step)]

    def reads(self, step: Step) -> dict[str, Any]:
        """What decides a step's result.

        Returns:
            ``settings``: values by dotted name, a file's or model's being the hash of its bytes.
            ``stages``: the digest of each stage that it reads, by folder, or None while that is not finished.
        """
        folders = [self.folder(before) for before in inputs(self.recipe, step)]
        return {
            "settings": settings_of_step(self.recipe, step),
            "stages": {folder.name: folder.digest for folder in folders},
        }

    def begin(self, step: Step) -> None:
        """Makes a stage's folder ready to be filled, with what an interrupted attempt finished.

        An attempt under other settings is set aside.

        Raises:
            Damaged: a file that the stage is to read is not what the run wrote.
        """
        for before in inputs(self.recipe, step):
            folder = self.folder(before)
            if folder.done:
                folder.check()
        folder, now = self.folder(step), begins_with(step, self.reads(step))
        started = folder.started
        if started is not None and changes(started, now):
            aside = self.set_aside([folder.name], f"{step} was begun with other settings")
            console.print(f"{step} was begun with other settings. What it had finished is in {aside}", style="yellow")
        folder.begin(now)

    def commit(self, step: Step, summary: Mapping[str, Any]) -> None:
        """Marks a stage as done, with what it read and wrote."""
        folder = self.folder(step)
        started = folder.started
        assert started is not None, f"{folder.path} was not begun"
        if not self.recipe.launch.private:
            # Upstream makes weights readable by their owner alone.
            for path in folder.files():
                path.chmod(path.stat().st_mode | stat.S_IMODE(self.path.stat().st_mode) & 0o444)
        # The settings are those of the beginning: a file may have been edited since.
        folder.commit({**started, "stages": self.reads(step)["stages"]}, summary)

    def set_aside(self, names: Iterable[str], reason: str) -> Path:
        """Moves folders of the run into a numbered one.

        Args:
            names: the last one of the run first, so that what is left is a whole past at any moment.
            reason: for the log.

        Returns:
            The numbered folder, which also has the run's recipe as it is stored.
        """
        numbers = [int(path.name) for path in (self.path / SET_ASIDE).glob("*") if path.name.isdecimal()]
        aside = self.path / SET_ASIDE / str(max(numbers, default=0) + 1)
        aside.mkdir(parents=True)
        write_bytes(aside / RECIPE, [(self.path / RECIPE).read_bytes()])
        for name in names:
            target = aside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path / name, target)
            sync(target.parent)
            sync((self.path / name).parent)
        self.log({"stage": "set_aside", "folder": str(aside.relative_to(self.path)), "reason": reason})
        return aside

    def model_path(self, t: int) -> str:
        """Where M_t is: M1 is the seed stage's model, or the recipe's where it has no seed data."""
        maker = makes_model(self.recipe, t)
        if maker is None:
            return self.recipe.model.path
        return str(self.model_folder(maker))

    def model_name(self, path: str) -> str:
        """A model's name in records, which don't depend on where models and runs are.

        A model of the run is its folder within it, the recipe's own is M0, and any other one its last name.
        """
        folder = Path(path)
        if folder.is_relative_to(self.path):
            return str(folder.relative_to(self.path))
        return "M0" if path == self.recipe.model.path else folder.name

    def records(self, name: str, iteration: int, kind: type[R]) -> list[R]:
        """The records of a finished stage, such as ``records("pairs", 1, PreferencePair)``."""
        stage, file, expected = records_named(name)
        assert kind is expected
        return list(read_records(self.stage(stage, iteration).path / file, kind))

    def dataset(self, name: str, iteration: int) -> Dataset:
        """The records of a finished stage as a ``datasets.Dataset``.

        Args:
            name: which of the records that stages write, such as responses, judgements or pairs.
            iteration: 0 is the seed.

        Raises:
            ValueError: no such records, or the stage is not finished.
        """
        from datasets import Dataset

        stage, file, _ = records_named(name)
        folder = self.stage(stage, iteration)
        if not folder.done:
            raise ValueError(f"stage {stage} of iteration {iteration} is not finished in {self.path}")
        with (folder.path / file).open(encoding="utf-8") as lines:
            return Dataset.from_list([json.loads(line) for line in lines])

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``, with its checksum."""
        append_line(self.path / METRICS, {"time": round(time.time(), 3), **metrics})

    def logged(self) -> set[tuple[int, str]]:
        """The iteration and name of each stage whose summary is in ``metrics.jsonl``."""
        path = self.path / METRICS
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        entries = [json.loads(line) for line in lines if is_whole_line(line)]
        return {(entry["iteration"], entry["stage"]) for entry in entries if "seconds" in entry}
