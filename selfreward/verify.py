"""Proves that a run's files and records are what the run wrote: every hash, every link. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward.durable import is_whole_line, read_sealed
from selfreward.errors import Damaged
from selfreward.judges import mean_scores
from selfreward.records import Judgement, PreferencePair, Prompt, Rejection, Response, content_id, derive_seed
from selfreward.rundir import MARKER, METRICS, ORIGIN, RECIPE, Run, StageFolder, iteration_folder, iteration_of

LINKED = ("prompts", "responses", "judgements", "pairs")


@dataclass
class Report:
    """What was checked, and what is not right."""

    problems: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0
    stages: int = 0
    pairs: int = 0

    @property
    def summary(self) -> str:
        state = f"{len(self.problems)} problems" if self.problems else "all as the run wrote it"
        return f"{self.stages} stages, {self.files} files ({self.size:,} bytes), {self.pairs} pairs: {state}"


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
        if all(f"{iteration_folder(iteration)}/{stage}" in names for stage in LINKED):
            report.problems += _links(run, iteration, report)
    return report


def _loose_files(root: Path) -> Iterator[str]:
    for name in (RECIPE, "environment.json", ORIGIN):
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


def _links(run: Run, iteration: int, report: Report) -> Iterator[str]:
    """Follows every record of an iteration back to what it was made from."""
    where = f"iteration {iteration}"
    prompts = {p.id: p for p in run.records("prompts", iteration, Prompt)}
    responses = {r.id: r for r in run.records("responses", iteration, Response)}
    judgements = run.records("judgements", iteration, Judgement)
    pairs = run.records("pairs", iteration, PreferencePair)
    report.pairs += len(pairs)
    model = run.model_name(run.model_path(iteration))
    seed = run.stage("responses", iteration).marker["reads"]["settings"]["seed"]
    for prompt in prompts.values():
        if prompt.id != content_id("prompt", prompt.messages):
            yield f"{where}: prompt {prompt.id} has another id than its messages"
    for r in responses.values():
        if r.id != content_id("response", r.prompt_id, r.k, r.seed, r.text) or r.prompt_id not in prompts:
            yield f"{where}: response {r.id} does not belong to its text and prompt"
        if r.seed != derive_seed(seed, iteration, r.prompt_id, r.k) or r.model != model:
            yield f"{where}: response {r.id} has another seed or model than the run's"
    for j in judgements:
        if j.prompt_id not in prompts or not set(j.subject_ids) <= set(responses):
            yield f"{where}: judgement {j.id} judges nothing of this iteration"
    scores = mean_scores(judgements)
    for pair in pairs:
        if not _is_linked(pair, prompts, responses, scores):
            yield f"{where}: pair {pair.id} does not follow from its prompt, responses and judgements"
    ended = {pair.prompt_id for pair in pairs} | {x.prompt_id for x in run.records("rejections", iteration, Rejection)}
    if ended != set(prompts):
        yield f"{where}: {len(ended ^ set(prompts))} prompts are neither a pair nor a rejection"


def _is_linked(
    pair: PreferencePair, prompts: dict[str, Prompt], responses: dict[str, Response], scores: dict[str, float]
) -> bool:
    chosen, rejected = responses.get(pair.chosen_id), responses.get(pair.rejected_id)
    return (
        pair.id == content_id("pair", pair.chosen_id, pair.rejected_id)
        and pair.prompt_id in prompts
        and pair.prompt == prompts[pair.prompt_id].messages
        and chosen is not None
        and rejected is not None
        and chosen.prompt_id == rejected.prompt_id == pair.prompt_id
        and [pair.chosen[-1]["content"], pair.rejected[-1]["content"]] == [chosen.text, rejected.text]
        and [pair.score_chosen, pair.score_rejected] == [scores.get(chosen.id), scores.get(rejected.id)]
    )
