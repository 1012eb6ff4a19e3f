"""A data set as a folder: journaled while it is made, committed by a marker, never overwritten.

::

    OUT/
      README.md      the card
      settings.json  lock
      data/train.jsonl  [data/held_out.jsonl]  data/removed.jsonl  data/stage.json
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from selfreward.data.card import card
from selfreward.data.made import Made
from selfreward.engines.concurrency import map_concurrently
from selfreward.engines.journaled import JournaledEngine
from selfreward.engines.replica_pool import ReplicaPool
from selfreward.recipe.data_settings import JobSettings
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.records import json_line
from selfreward.runs.fingerprint import changes, settings_of
from selfreward.runs.folders import StageFolder
from selfreward.runs.journal import Journal
from selfreward.runs.stages import Summary
from selfreward.runs.stored import JOURNAL, WRITER
from selfreward.runtime.atomic import write_bytes, write_sealed
from selfreward.runtime.lock import LOCK_FILE as LOCK
from selfreward.runtime.lock import RunLock
from selfreward.runtime.progress import console, in_words

FOLDER, SETTINGS, CARD = "data", "settings.json", "README.md"
Item = TypeVar("Item")
Result = TypeVar("Result")


class JobContext:
    """What a job works with: the model, started when it is first asked, behind the journal."""

    def __init__(self, settings: JobSettings, journal: Journal) -> None:
        self._settings, self._journal = settings, journal
        self._engine: ReplicaPool | None = None
        self._asked: JournaledEngine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            self._engine.close()

    def engine(self) -> JournaledEngine:
        """The model that writes. Raises ValueError where none was named."""
        if self._asked is None:
            self._engine = _start(self._settings)
            self._asked = JournaledEngine(self._engine, self._journal, WRITER)
        return self._asked

    def run_concurrently(
        self, name: str, items: Sequence[Item], work: Callable[[Item], Coroutine[Any, Any, Result]]
    ) -> list[Result]:
        """As :meth:`selfreward.prompts.base.SourceContext.run_concurrently`."""
        return map_concurrently(name, items, work, self._settings.engine.max_in_flight)

    def figures(self) -> Summary:
        """How many requests an earlier attempt had finished and how many failed, if any."""
        return {} if self._asked is None else {**self._asked.figures()}


def rows_of(path: Path, split: str = "train") -> Path:
    """The file of rows: of a folder that a job made, the one of a split; else the path as it is.

    Raises:
        ValueError: there is no such file.
    """
    file = path / FOLDER / f"{split}.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no such file: {file}. Give a file of rows, or a folder that `selfreward data` made")
    return file


def make(settings: JobSettings, title: str, out: Path, work: Callable[[JobContext], Made]) -> Path:
    """Makes a data set, or goes on with one that was begun with the same settings.

    Args:
        settings: all that decides the result.
        title: what is made, for the card, such as ``self_instruct``.
        out: the folder; it is made if it is not there.
        work: makes it.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else, or other bytes than were written, or the work can't be done.
    """
    out = out.absolute()
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out):
        folder, reads = StageFolder(out.resolve(), FOLDER), {"settings": settings_of(settings), "stages": {}}
        _refuse_other(folder, reads)
        if not folder.done:
            write_sealed(out / SETTINGS, settings.model_dump(mode="json"))
            folder.begin(reads)
            with folder.journal() as journal, JobContext(settings, journal) as context:
                made = work(context)
                asked = context.figures()
            _write(folder, made)
            write_bytes(folder.path / CARD, [card(title, settings, made).encode()])
            folder.commit(reads, {**made.figures, **asked})
        # The card is one of the files that the marker vouches for; this copy is where readers look for it.
        write_bytes(out / CARD, [(folder.path / CARD).read_bytes()])
    console.print(f"  {in_words(folder.summary)}", soft_wrap=True)
    return out


def _write(folder: StageFolder, made: Made) -> None:
    for name, rows in made.splits.items():
        write_bytes(folder.path / f"{name}.jsonl", (json_line(row) for row in rows))
    folder.write("removed.jsonl", made.removed)


def _refuse_foreign(out: Path) -> None:
    """A folder that is none of ours would be mixed with what is made."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and (not out.is_dir() or names - {LOCK, FOLDER, SETTINGS, CARD, f"{CARD}.tmp", f"{SETTINGS}.tmp"}):
        raise ValueError(f"{out} holds something else. Give --out a folder that is new or empty")


def _refuse_other(folder: StageFolder, reads: Mapping[str, Any]) -> None:
    before = folder.marker["reads"] if folder.done else folder.started
    if not folder.done and not _has_begun(folder):
        return
    found = changes(dict(before), dict(reads)) if before is not None else []
    if found:
        state = "was made" if folder.done else "was begun"
        lines = "\n".join(f"  {change}" for change in found)
        raise ValueError(
            f"{folder.root} {state} with other settings, and is never overwritten:\n{lines}\nGive another --out, or "
            "the same settings to go on"
        )
    damaged = folder.damaged() if folder.done else []
    if damaged:
        raise ValueError(f"{folder.root / damaged[0]} is not what was written. Remove {folder.root}, and make it anew")


def _has_begun(folder: StageFolder) -> bool:
    """Whether an attempt got as far as an answer."""
    journal = folder.path / JOURNAL
    return journal.is_file() and journal.stat().st_size > 0


def _start(settings: JobSettings) -> ReplicaPool:
    if settings.model is not None:
        return ReplicaPool.single(settings.model.path, settings.model, settings.engine)
    if settings.engine.openai is None:
        raise ValueError("there is no model to write with. Name a folder, a hub model or a server: --model")
    # What a server serves, it has loaded by its own settings.
    return ReplicaPool.single(
        settings.engine.openai.model, ModelSettings.model_construct(path=settings.engine.openai.model), settings.engine
    )
