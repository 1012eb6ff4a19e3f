"""Proves that a run's files and records are what the run wrote: every hash, every link. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward.errors import Damaged
from selfreward.report.iteration_records import IterationRecords
from selfreward.report.provenance import Provenance
from selfreward.runs.folders import StageFolder, iteration_of
from selfreward.runs.run import Run
from selfreward.runs.stored import ENVIRONMENT, MARKER, METRICS, ORIGIN, RECIPE
from selfreward.runtime.atomic import is_whole_line, read_sealed


@dataclass
class Report:
    """What was checked, what is not right, and of which iterations the scores could not be counted again."""

    problems: list[str] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0
    stages: int = 0
    pairs: int = 0

    @property
    def summary(self) -> str:
        state = f"{len(self.problems)} problems" if self.problems else "all as the run wrote it"
        notes = [f"the scores of {text}" for text in self.unproved]
        figures = f"{self.stages} stages, {self.files} files ({self.size:,} bytes), {self.pairs} pairs"
        return "; ".join([f"{figures}: {state}", *notes])


def verify(path: Path) -> Report:
    """Checks a run folder.

    Hashes of all files, the chain from each stage to those it read, and the links from each pair to its judgements,
    responses, prompt, model and seeds. What is set aside, unfinished or a tracker's is not part of the run's result.

    Raises:
        ValueError: there is no run.
    """
    report = Report()
    try:
        run = Run.open(path)
    except Damaged as error:
        return Report([str(error)])
    report.problems += _loose_files(run.path)
    folders = sorted(marker.parent for marker in run.path.glob(f"*/*/{MARKER}"))
    folders = [folder for folder in folders if iteration_of(folder.parent.name) >= 0]
    whole = [folder for folder in folders if _check_stage(run, folder, report)]
    names = {str(folder.relative_to(run.path)) for folder in whole}
    for iteration in sorted({iteration_of(name) for name in names}):
        _check_links(run, iteration, names, report)
    return report


def _check_links(run: Run, iteration: int, whole: set[str], report: Report) -> None:
    """Adds which records of an iteration don't follow from others, if all that they come from is whole."""
    records = IterationRecords(run, iteration)
    if not records.are_among(whole):
        return
    provenance = Provenance(records, whole)
    report.problems += provenance.problems()
    report.pairs += len(records.pairs)
    if provenance.unproved:
        report.unproved.append(f"iteration {iteration} were not counted again: {provenance.unproved}")


def _loose_files(root: Path) -> Iterator[str]:
    for name in (RECIPE, ENVIRONMENT, ORIGIN):
        path = root / name
        if path.is_file():
            try:
                read_sealed(path)
            except Damaged as error:
                yield str(error)
    if not (root / METRICS).is_file():
        return
    with (root / METRICS).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not is_whole_line(line):
                yield f"{root / METRICS}:{number}: not a line that the run wrote"


def _check_stage(run: Run, path: Path, report: Report) -> bool:
    """Adds what is wrong with a finished stage; False: its records can't be looked into."""
    folder = StageFolder(run.path, str(path.relative_to(run.path)))
    try:
        marker = folder.marker
    except Damaged as error:
        report.problems.append(str(error))
        return False
    report.stages += 1
    report.files += 1 + len(marker["wrote"])
    report.size += sum(file["bytes"] for file in marker["wrote"].values())
    damaged = folder.damaged()
    report.problems += [f"{run.path / name} is missing or has other bytes than the run wrote" for name in damaged]
    report.problems += [f"{run.path / name} was not written by the run" for name in _unknown(folder, marker)]
    report.problems += _broken_chain(folder, marker)
    return not damaged


def _unknown(folder: StageFolder, marker: dict[str, Any]) -> list[str]:
    files = {str(path.relative_to(folder.root)) for path in folder.files()}
    return sorted(files - set(marker["wrote"]) - {f"{folder.name}/{MARKER}"})


def _broken_chain(folder: StageFolder, marker: dict[str, Any]) -> Iterator[str]:
    for name, digest in marker["reads"]["stages"].items():
        try:
            same = StageFolder(folder.root, name).digest == digest
        except Damaged:
            continue  # told where that stage itself is checked
        if not same:
            yield f"{folder.path} was made from another {name} than the one that is there"
