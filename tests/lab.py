"""Runs that met a fault beside one that did not: small recipes, and what is compared."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from forge import EVERY_KIND, TESTS, Attempt, Fault, Forge

from selfreward.report.verify import verify
from selfreward.runs.folders import StageFolder
from selfreward.runs.plan import plan
from selfreward.runs.run import Run
from selfreward.runs.stored import JOURNAL, MARKER, RECIPE, STARTED

DATA = TESTS.parent / "selfreward" / "tiny" / "data"
QUICKSTART = TESTS.parent / "recipes" / "quickstart" / "run.yaml"
# The quick start's world and engine with the least work that goes through all of it.
SMALL_QUICKSTART = (
    "prompts.num=12",
    "responses.n=4",
    "responses.on_truncated=keep",
    "judge.votes=1",
    "training.sft.max_steps=6",
    "training.sft.save_steps=2",
    "training.sft.per_device_train_batch_size=32",
    "training.dpo.max_steps=4",
    "training.dpo.save_steps=1",
    "evaluation.n=1",
)
SCRIPTED = """
name: chaos
iterations: 3
model: {path: model, dtype: float32}
seed_data: {ift: graded.jsonl, eft: graded.jsonl}
prompts: {path: prompts.jsonl}
responses: {n: 4}
judge: {template: judge.txt, votes: 2}
training:
  sft: {max_steps: 4, save_steps: 1, gradient_checkpointing: false}
  dpo: {max_steps: 4, save_steps: 1, learning_rate: 1e-3, per_device_train_batch_size: 4, gradient_checkpointing: false}
engine: {name: "scripts:Numbers", max_in_flight: 3}
evaluation: {prompts: prompts.jsonl, judging: graded.jsonl}
"""
SLOW = "engine.name=scripts:Slow"
# Names the folder of the model before it, so that it differs from one run's folder to another's.
PLACE = "adapter_config.json"


@dataclass
class Figures:
    """What was done to runs, and what became of them."""

    name: str
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    equal: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def good(self) -> bool:
        return not self.problems and self.equal == self.runs and self.lost == self.doubled == self.changed == 0

    def __str__(self) -> str:
        rows = {
            "faults": self.faults.total(),
            **{f"  {name}": number for name, number in sorted(self.faults.items())},
            **{f"ended: {name}": number for name, number in sorted(self.ends.items())},
            "runs completed": self.runs,
            "hashes equal": f"{self.equal} of {self.runs}",
            "lost": self.lost,
            "duplicate": self.doubled,
            "changed": self.changed,
            "seconds": round(time.monotonic() - self.started),
        }
        lines = [f"  {name:<36}{value:>12}" for name, value in rows.items()]
        return "\n".join([self.name, *lines, *(f"  ! {problem}" for problem in self.problems)])


class Lab:
    """A recipe in a folder of its own, an undisturbed run of it, and other runs that are to equal it."""

    def __init__(self, folder: Path, forge: Forge, recipe: Path, overrides: Iterable[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._forge = folder.resolve(), forge
        self._recipe, self._overrides = recipe, [*overrides, f"run_dir={self.folder / 'runs'}"]
        self.reference = self.run("reference")
        undisturbed = self.start("reference", fault=Fault(kinds=EVERY_KIND))
        status = undisturbed.wait()
        assert status == 0, undisturbed.output
        self.operations = undisturbed.operations

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def start(self, name: str, *overrides: str, fault: Fault | None = None) -> Attempt:
        """Starts or resumes a run."""
        words = ["run", str(self._recipe), f"name={name}", *self._overrides]
        if (self.run(name) / RECIPE).is_file():
            words = ["resume", str(self.run(name))]
        return self._forge.start(self.folder, self.folder / f"{name}.log", [*words, *overrides], fault)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """How long each stage of the undisturbed run took, by its folder. Judging goes along with sampling."""
        run = Run.open(self.reference)
        folders = [run.stage(step.stage, step.iteration) for step in plan(run.recipe)]
        return {folder.name: float(folder.summary["seconds"]) for folder in folders}

    def finish(self, name: str, figures: Figures, witness: Witness, *overrides: str) -> None:
        """Lets a run end by itself and looks at it; removes it if there is nothing wrong with it."""
        attempt = self.start(name, *overrides)
        status = attempt.wait()
        problems = figures.problems
        if status:
            problems.append(f"{name}: a plain start ended with {status}:\n{attempt.output[-3000:]}")
        witness.look()
        problems += [f"{name}: {problem}" for problem in verify(self.run(name)).problems]
        differing = witness.compare()
        problems += [f"{name}: {file} differs from the undisturbed run's" for file in differing]
        figures.runs += 1
        figures.equal += not differing
        if not any(problem.startswith(f"{name}:") for problem in problems):
            shutil.rmtree(self.run(name))


class Witness:
    """Sees a run after each fault, and counts what was lost, doubled or changed since."""

    def __init__(self, run: Path, reference: Path, figures: Figures) -> None:
        self._run, self._reference, self._figures = run, reference, figures
        self._expected = results(reference)
        self._seen: dict[str, str] = {}
        self._journals: dict[str, list[bytes]] = {}

    def look(self) -> None:
        """Committed files stay as they are, and as the undisturbed run's; journals only grow, by new requests."""
        now = results(self._run)
        self._count("lost", set(self._seen) - set(now))
        self._count("changed", {name for name in now if self._seen.get(name, now[name]) != now[name]})
        self._count("changed", {name for name in now if not _is_own(name) and now[name] != self._expected.get(name)})
        self._seen = now
        for name, before in self._journals.items():
            self._count("lost", self._lost(StageFolder(self._run, str(Path(name).parent)), before))
        left = [path for path in self._run.rglob(JOURNAL) if not path.with_name(MARKER).exists()]
        self._journals = {str(path.relative_to(self._run)): whole_lines(path) for path in left}
        for name, lines in self._journals.items():
            keys = Counter(line.split()[1].decode() for line in lines)
            self._count("doubled", {f"{name} {key}" for key, number in keys.items() if number > 1})

    def compare(self) -> list[str]:
        """The files of the result that are not the undisturbed run's, whose records are counted."""
        now = {name: digest for name, digest in results(self._run).items() if not _is_own(name)}
        expected = {name: digest for name, digest in self._expected.items() if not _is_own(name)}
        for name in {n for n in {**now, **expected} if n.endswith(".jsonl")}:
            ours, theirs = (Counter(whole_lines(run / name)) for run in (self._run, self._reference))
            self._figures.lost += (theirs - ours).total()
            self._figures.doubled += sum(number for line, number in (ours - theirs).items() if line in theirs)
            self._figures.changed += sum(number for line, number in (ours - theirs).items() if line not in theirs)
        return sorted(name for name in {**now, **expected} if now.get(name) != expected.get(name))

    def _lost(self, folder: StageFolder, before: list[bytes]) -> list[object]:
        """Lines of a journal that are gone, or were asked for again before the stage was committed."""
        if not folder.done:
            return list(set(before) - set(whole_lines(folder.path / JOURNAL)))
        asked = folder.path.name != "evaluate" and len(before) > folder.summary.get("resumed", 0)
        return [f"{folder.name}: {len(before)} requests were finished, and not all were found"] if asked else []

    def _count(self, what: str, names: Iterable[object]) -> None:
        for name in names:
            setattr(self._figures, what, getattr(self._figures, what) + 1)
            self._figures.problems.append(f"{self._run.name}: {what}: {name!r}")


def results(run: Path) -> dict[str, str]:
    """The SHA-256 of each file of each committed stage, and of its marker, by name within the run."""
    files: dict[str, str] = {}
    for marker in run.glob(f"*/*/{MARKER}"):
        folder = StageFolder(run, str(marker.parent.relative_to(run)))
        for name in [*folder.marker["wrote"], f"{folder.name}/{MARKER}"]:
            path = run / name
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
    return files


def _is_own(name: str) -> bool:
    """Whether a file has something of its own run, such as seconds."""
    return Path(name).name in (MARKER, PLACE)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that end, or none where it is missing."""
    return [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")] if path.is_file() else []


def started(folder: Path, since: float) -> bool:
    """Whether a stage was begun at or after a time."""
    try:
        return (folder / STARTED).stat().st_mtime >= since
    except FileNotFoundError:
        return False


def under_way(run: Path, since: float) -> str:
    """The stage that an attempt is at, by what it has begun; the seed's training is SFT."""
    folders = [path.parent for path in run.glob(f"*/*/{STARTED}") if started(path.parent, since)]
    left = [folder for folder in folders if not (folder / MARKER).exists()]
    names = sorted("SFT" if f.parent.name == "seed" and f.name == "train" else f.name for f in left)
    if not names and not any(path.stat().st_mtime >= since for path in run.glob(f"*/*/{MARKER}")):
        return "start"
    return " and ".join(reversed(names)) or "between stages"


def kept(folder: Path) -> bool:
    """Whether a stage is done, or has something to go on from."""
    saved = (folder / MARKER).is_file() or any(folder.glob("checkpoints/*/complete.json"))
    return saved or bool(whole_lines(folder / JOURNAL))


def processes(run: Path) -> list[int]:
    """The processes whose command names a run: those that its attempts have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


def scripted(folder: Path, forge: Forge, *overrides: str, num_prompts: int = 8) -> Lab:
    """A run of a random model, a scripted engine and the real trainers: all stages, in seconds."""
    from conftest import make_random_model

    folder.mkdir(parents=True, exist_ok=True)
    make_random_model(folder / "model", seed=0)
    tasks = [f"Name {number} animals." for number in range(num_prompts)]
    rows = [{"prompt": task, "response": "fox owl", "judgement": "count two yes\nScore: 2"} for task in tasks]
    for name, lines in (("prompts", [{"prompt": task} for task in tasks]), ("graded", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (folder / "run.yaml").write_text(SCRIPTED)
    return Lab(folder, forge, folder / "run.yaml", overrides)


def smallest(folder: Path, forge: Forge) -> Lab:
    """The fewest operations on files that a run with all its stages has."""
    steps = ("training.sft.max_steps=2", "training.dpo.max_steps=2")
    return scripted(folder, forge, "iterations=1", "responses.n=2", "judge.votes=1", *steps, num_prompts=3)


def lasting(folder: Path, forge: Forge) -> Lab:
    """Stages that last long enough to be stopped in their middle."""
    steps = ("training.sft.max_steps=12", "training.dpo.max_steps=12")
    return scripted(folder, forge, "iterations=1", SLOW, *steps)


def one_training(folder: Path, forge: Forge) -> Lab:
    """A single training, of some seconds."""
    return scripted(folder, forge, "iterations=1", "seed_data=null", "training.dpo.max_steps=60")


def quickstart(folder: Path, forge: Forge, *overrides: str) -> Lab:
    """The quick start in small: the real vLLM, and a model that writes and judges."""
    return Lab(folder, forge, QUICKSTART, [*SMALL_QUICKSTART, *held_out(folder), *overrides])


def held_out(folder: Path) -> list[str]:
    """Settings for an evaluation on the first 16 of the quick start's held-out rows, which are written to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("prompts", "judging"):
        lines = (DATA / f"heldout_{key}.jsonl").read_text().splitlines(True)
        (folder / f"heldout_{key}.jsonl").write_text("".join(lines[:16]))
    return [f"evaluation.{key}={folder}/heldout_{key}.jsonl" for key in ("prompts", "judging")]
