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
import re
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward.config import Recipe, stored_recipe
from selfreward.durable import (
    append_line,
    hash_of,
    is_whole_line,
    json_hash,
    read_sealed,
    sync,
    write_bytes,
    write_sealed,
)
from selfreward.environment import versions
from selfreward.errors import Damaged
from selfreward.fingerprint import begins_with, changes, fetch_all, reads
from selfreward.journal import Journal
from selfreward.plan import Step, inputs, makes_model
from selfreward.progress import console
from selfreward.records import (
    Agreement,
    Difficulty,
    ImplicitReward,
    Judgement,
    Measurement,
    PreferencePair,
    Prompt,
    R,
    Record,
    Rejection,
    Removal,
    Response,
    Task,
    TemplateTrial,
    read_records,
)
from selfreward.stages import TRAINING

if TYPE_CHECKING:
    from datasets import Dataset

MARKER = "stage.json"
RECIPE, ORIGIN, METRICS, SET_ASIDE = "resolved.json", "origin.json", "metrics.jsonl", "set_aside"
# Of a stage that was begun: what it reads, and the requests that are finished. Trainers keep checkpoints beside them.
BEGUN, JOURNAL = "begun.json", "journal.jsonl"
PASSING = (JOURNAL, "checkpoints", BEGUN)
FORMAT = 1
RECORDS: dict[str, tuple[str, str, type[Record]]] = {
    "prompts": ("prompts", "records.jsonl", Prompt),
    "tasks": ("prompts", "tasks.jsonl", Task),
    "removed_prompts": ("prompts", "removed.jsonl", Removal),
    "difficulty": ("prompts", "difficulty.jsonl", Difficulty),
    "template_trials": ("prompts", "templates.jsonl", TemplateTrial),
    "responses": ("responses", "records.jsonl", Response),
    "judgements": ("judgements", "records.jsonl", Judgement),
    "anchors": ("anchors", "records.jsonl", Response),
    "previous_judgements": ("previous_judgements", "records.jsonl", Judgement),
    "implicit": ("implicit", "records.jsonl", ImplicitReward),
    "lookahead": ("lookahead", "responses.jsonl", Response),
    "lookahead_judgements": ("lookahead", "judgements.jsonl", Judgement),
    "meta": ("meta", "records.jsonl", Judgement),
    "judge_pairs": ("meta", "pairs.jsonl", PreferencePair),
    "pairs": ("pairs", "records.jsonl", PreferencePair),
    "rejections": ("pairs", "rejections.jsonl", Rejection),
    "measurements": ("evaluate", "records.jsonl", Measurement),
    "agreement": ("evaluate", "agreement.jsonl", Agreement),
}


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage of one iteration; ``name`` is its path within the run."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def done(self) -> bool:
        return (self.path / MARKER).is_file()

    @property
    def marker(self) -> dict[str, Any]:
        """What was read, written and counted. Raises Damaged if a byte of it is not what the run wrote."""
        content = read_sealed(self.path / MARKER)
        if content["format"] > FORMAT:
            raise ValueError(
                f"{self.path / MARKER} has format {content['format']}, and this version of selfreward reads "
                f"up to {FORMAT}. Update selfreward"
            )
        return content

    @property
    def summary(self) -> dict[str, Any]:
        """Counts, figures and seconds of a finished stage."""
        summary: dict[str, Any] = self.marker["summary"]
        return summary

    @property
    def digest(self) -> str | None:
        """A hash of all that a finished stage read and wrote, on which the next ones build."""
        if not self.done:
            return None
        marker = self.marker
        return json_hash([marker["reads"], marker["wrote"]])

    @property
    def begun(self) -> dict[str, Any] | None:
        """What a stage that was begun and not finished reads, or None."""
        path = self.path / BEGUN
        return None if self.done or not path.is_file() else read_sealed(path)["reads"]

    def begin(self, reads: Mapping[str, Any]) -> None:
        """Makes the folder ready, with the journal and checkpoints of an attempt that is in it.

        Raises:
            ValueError: a link leads out of the run.
        """
        assert not self.done, f"{self.path} is finished"
        if not self.path.resolve().is_relative_to(self.root):
            raise ValueError(f"{self.path} leads out of the run through a link. Remove the link")
        if self.path.is_dir() and self.begun is None:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if path.name not in PASSING:
                _remove(path)
        write_sealed(self.path / BEGUN, {"reads": reads})

    def journal(self) -> Journal:
        """The finished requests of this stage; use it in a ``with``."""
        return Journal(self.path / JOURNAL)

    def write(self, name: str, records: Iterable[Record]) -> None:
        """Writes a records file whole or not at all."""
        write_bytes(self.path / name, (f"{record.to_json()}\n".encode() for record in records))

    def commit(self, reads: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Writes the marker, with the hash of every file: from here on the stage is done."""
        wrote = {
            str(path.relative_to(self.root)): {"sha256": hash_of(path), "bytes": path.stat().st_size}
            for path in self.files()
        }
        content = {
            "format": FORMAT,
            "reads": dict(reads),
            "wrote": wrote,
            "versions": versions(),
            "summary": dict(summary),
        }
        write_sealed(self.path / MARKER, content)
        self.sweep()

    def sweep(self) -> None:
        """Removes what only an unfinished stage needs; a kill behind the marker may have left it."""
        for name in PASSING:
            if (self.path / name).exists():
                _remove(self.path / name)

    def check(self) -> None:
        """Raises Damaged if a file of a finished stage is not what the stage wrote."""
        damaged = self.damaged()
        if damaged:
            raise Damaged(
                f"{damaged[0]} of {self.root} is not what the run wrote. Bring it back from a copy, or make it anew: "
                f"selfreward resume {self.root} --from-iteration {iteration_of(self.name)}"
            )

    def damaged(self) -> list[str]:
        """The files of a finished stage, within the run, that are missing or have other bytes."""
        wrote = self.marker["wrote"]
        return [
            n for n, file in wrote.items() if not (self.root / n).is_file() or hash_of(self.root / n) != file["sha256"]
        ]

    def files(self) -> list[Path]:
        """All files of the stage's result; a training's model stands beside its own folder."""
        model = self.path.with_name(self.path.name.replace("train", "model"))
        folders = [self.path, model] if self.path.name in TRAINING else [self.path]
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return sorted(path for path in found if not self._is_passing(path))

    def _is_passing(self, path: Path) -> bool:
        """Whether a file is needed by an unfinished stage alone."""
        return path.is_relative_to(self.path) and path.relative_to(self.path).parts[0] in PASSING


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def iteration_of(name: str) -> int:
    """The iteration of a folder within a run, such as ``iter_2/pairs``; -1 for what is none."""
    found = re.fullmatch(r"seed|iter_([1-9][0-9]*)", Path(name).parts[0])
    return -1 if found is None else int(found[1] or 0)


class Run:
    """A run folder and the recipe that it was made with.

    Iteration 0 is the seed stage; the model that iteration t samples from is M_t.
    """

    def __init__(self, path: Path, recipe: Recipe, draft: bool = False) -> None:
        self.path = path
        self.recipe = recipe
        self.draft = draft

    def drafting(self) -> Run:
        """The same run, whose pairs, training and model are those of the draft of M_{t+1}."""
        return Run(self.path, self.recipe, draft=True)

    @classmethod
    def create(cls, recipe: Recipe) -> Run:
        """Opens the recipe's run folder, making it if it is not there.

        Raises:
            ValueError: the folder is a link, or holds finished stages that this recipe would make otherwise.
        """
        from selfreward.history import refuse_stale

        fetch_all(recipe.prompts, recipe.model, *(judge.model for judge in (recipe.judge, *recipe.judge.members)))
        path = make_folder(recipe)
        run = cls(path, recipe)
        stored = path / RECIPE
        resolved = recipe.model_dump(mode="json")
        refuse_stale(run)
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
    def settled(self) -> int:
        """The first iteration that the recipe holds for; 0 unless it was edited in mid-run, or the run is a fork."""
        return int(self.origin["settled"])

    def stage(self, name: str, iteration: int) -> StageFolder:
        """The folder of a stage; iteration 0 is the seed."""
        if self.draft and name in ("pairs", "train", "model"):
            name = f"draft_{name}"
        return StageFolder(self.path, f"{iteration_folder(iteration)}/{name}")

    def begin(self, step: Step) -> None:
        """Makes a stage's folder ready to be filled, with what an interrupted attempt finished.

        An attempt under other settings is set aside.

        Raises:
            Damaged: a file that the stage is to read is not what the run wrote.
        """
        for before in inputs(self.recipe, step):
            folder = self.stage(before.stage, before.iteration)
            if folder.done:
                folder.check()
        folder, now = self.stage(step.stage, step.iteration), begins_with(step, reads(self, step))
        begun = folder.begun
        if begun is not None and changes(begun, now):
            aside = self.set_aside([folder.name], f"{step} was begun with other settings")
            console.print(f"{step} was begun with other settings. What it had finished is in {aside}", style="yellow")
        folder.begin(now)

    def commit(self, step: Step, summary: Mapping[str, Any]) -> None:
        """Marks a stage as done, with what it read and wrote."""
        folder = self.stage(step.stage, step.iteration)
        begun = folder.begun
        assert begun is not None, f"{folder.path} was not begun"
        if not self.recipe.launch.private:
            # Upstream makes weights readable by their owner alone.
            for path in folder.files():
                path.chmod(path.stat().st_mode | stat.S_IMODE(self.path.stat().st_mode) & 0o444)
        # The settings are those of the beginning: a file may have been edited since.
        folder.commit({**begun, "stages": reads(self, step)["stages"]}, summary)

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
        return str(self.path / iteration_folder(maker.iteration) / "model")

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
        stage, file, expected = RECORDS[name]
        assert kind is expected
        return list(read_records(self.stage(stage, iteration).path / file, kind))

    def dataset(self, name: str, iteration: int) -> Dataset:
        """The records of a finished stage as a ``datasets.Dataset``.

        Args:
            name: one of ``RECORDS``, such as responses, judgements or pairs.
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
        """Appends a line to ``metrics.jsonl``, with its checksum."""
        append_line(self.path / METRICS, {"time": round(time.time(), 3), **metrics})

    def logged(self) -> set[tuple[int, str]]:
        """The iteration and name of each stage whose summary is in ``metrics.jsonl``."""
        path = self.path / METRICS
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        entries = [json.loads(line) for line in lines if is_whole_line(line)]
        return {(entry["iteration"], entry["stage"]) for entry in entries if "seconds" in entry}


def iteration_folder(iteration: int) -> str:
    """Where the stages of an iteration are, within the run."""
    return f"iter_{iteration}" if iteration else "seed"


def make_folder(recipe: Recipe) -> Path:
    """The recipe's run folder, made for its owner's eyes alone unless the recipe shares it.

    Raises:
        ValueError: it is a link, through which a run would write elsewhere.
    """
    path = recipe.run_dir / recipe.name
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and a run stays inside its folder. Remove it, or choose another name=...")
    path.mkdir(mode=0o700 if recipe.launch.private else 0o777, parents=True, exist_ok=True)
    return path.resolve()
