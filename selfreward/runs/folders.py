"""Where the stages of a run are, and when one of them is finished. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward.errors import Damaged
from selfreward.recipe.recipe import Recipe
from selfreward.records import Record
from selfreward.runs.journal import Journal
from selfreward.runs.stages import STAGES
from selfreward.runs.stored import CHECKPOINTS, ITERATION_FOLDER, JOURNAL, MARKER, SEED_FOLDER, STARTED
from selfreward.runtime.atomic import hash_of, json_hash, read_sealed, write_bytes, write_sealed
from selfreward.runtime.versions import versions
from selfreward.runtime.whole_folder import discard, mark, remove

UNFINISHED_ONLY = (JOURNAL, CHECKPOINTS, STARTED)

FORMAT = 1


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage of one iteration; ``name`` is its path within the run."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def model(self) -> Path | None:
        """The folder of the model that the stage trains, beside its own."""
        stage = STAGES.get(self.path.name)
        return self.path.with_name(stage.model) if stage is not None and stage.trains else None

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
    def started(self) -> dict[str, Any] | None:
        """What a stage that was begun and not finished reads, or None."""
        path = self.path / STARTED
        return None if self.done or not path.is_file() else read_sealed(path)["reads"]

    def begin(self, reads: Mapping[str, Any]) -> None:
        """Makes the folder ready, with the journal and checkpoints of an attempt that is in it.

        Raises:
            ValueError: a link leads out of the run.
        """
        assert not self.done, f"{self.path} is finished"
        if not self.path.resolve().is_relative_to(self.root):
            raise ValueError(f"{self.path} leads out of the run through a link. Remove the link")
        if self.started is None:
            discard(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if path.name not in UNFINISHED_ONLY:
                remove(path)
        write_sealed(self.path / STARTED, {"reads": reads})

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
        mark(self.path, content, MARKER)
        self.sweep()

    def sweep(self) -> None:
        """Removes what only an unfinished stage needs; a kill behind the marker may have left it."""
        for name in UNFINISHED_ONLY:
            if (self.path / name).exists():
                remove(self.path / name)

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
        folders = [self.path] if self.model is None else [self.path, self.model]
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return sorted(path for path in found if not self._is_passing(path))

    def _is_passing(self, path: Path) -> bool:
        """Whether a file is needed by an unfinished stage alone."""
        return path.is_relative_to(self.path) and path.relative_to(self.path).parts[0] in UNFINISHED_ONLY


def iteration_of(name: str) -> int:
    """The iteration of a folder within a run, such as ``iter_2/pairs``; -1 for what is none."""
    found = re.fullmatch(rf"{SEED_FOLDER}|{ITERATION_FOLDER}([1-9][0-9]*)", Path(name).parts[0])
    return -1 if found is None else int(found[1] or 0)


def iteration_folder(iteration: int) -> str:
    """Where the stages of an iteration are, within the run."""
    return f"{ITERATION_FOLDER}{iteration}" if iteration else SEED_FOLDER


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
