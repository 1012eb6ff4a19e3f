"""A run that was killed, stopped, or met a failing disk, again and again, equals one that never was.

    python tests/chaos.py                                    everything
    python tests/chaos.py --kills 100 --engine scripted      kills at random moments alone
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from forge import ERRORS, EVERY_KIND, TESTS, Attempt, Disk, Fault, Forge, operations  # noqa: E402

from selfreward.plan import Step, plan  # noqa: E402
from selfreward.rundir import BEGUN, JOURNAL, MARKER, RECIPE, Run, StageFolder  # noqa: E402
from selfreward.verify import verify  # noqa: E402

QUICKSTART = TESTS.parent / "recipes" / "quickstart" / "run.yaml"
# The quick start's world and engine with the least work that goes through all of it.
SMALL_QUICKSTART = (
    "iterations=2",
    "prompts.num=12",
    "responses.n=4",
    "judge.votes=1",
    "training.sft.max_steps=30",
    "training.dpo.max_steps=4",
    "training.dpo.save_steps=1",
    "evaluation.n=1",
)
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
        lines = [f"  {name:<32}{value:>12}" for name, value in rows.items()]
        return "\n".join([self.name, *lines, *(f"  ! {problem}" for problem in self.problems)])


class Lab:
    """A recipe in a folder of its own, an undisturbed run of it, and other runs that are to equal it."""

    def __init__(self, folder: Path, forge: Forge, recipe: Path, overrides: Iterable[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._forge = folder.resolve(), forge
        self._recipe, self._overrides = recipe, [*overrides, f"run_dir={self.folder / 'runs'}"]
        self.listed: list[str] = []
        self.reference = self.run("reference")

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def start(self, name: str, fault: Fault | None = None) -> Attempt:
        """Starts or resumes a run."""
        begun = (self.run(name) / RECIPE).is_file()
        words = ["resume", str(self.run(name))] if begun else ["run", str(self._recipe), f"name={name}"]
        log = self.folder / f"{name}.log"
        return self._forge.start(self.folder, log, words if begun else [*words, *self._overrides], fault)

    def finish(self, name: str) -> str | None:
        """Starts a run and lets it end; returns what was wrong with that, if anything."""
        attempt = self.start(name)
        status = attempt.wait()
        return None if status == 0 else f"{name}: a plain start ended with {status}:\n{attempt.output[-2000:]}"

    def make_reference(self) -> None:
        """The undisturbed run, with a list of its operations on files."""
        attempt = self.start("reference", Fault(kinds=EVERY_KIND))
        status = attempt.wait()
        assert status == 0, attempt.output
        self.listed = operations(self.folder / "reference.log")

    def seconds(self) -> dict[str, float]:
        """How long each stage of the undisturbed run took, by its folder. Judging goes along with sampling."""
        run = Run.open(self.reference)
        folders = [run.stage(step.stage, step.iteration) for step in plan(run.recipe)]
        return {folder.name: float(folder.summary["seconds"]) for folder in folders}

    def close(self, name: str, figures: Figures, witness: Witness) -> None:
        """Looks at a finished run, and removes it if there is nothing wrong with it."""
        witness.look()
        before = len(figures.problems)
        figures.problems += [f"{name}: {problem}" for problem in verify(self.run(name)).problems]
        differing = witness.compare()
        figures.problems += [f"{name}: {file} differs from the undisturbed run's" for file in differing]
        figures.runs += 1
        figures.equal += not differing
        if len(figures.problems) == before:
            shutil.rmtree(self.run(name))


class Witness:
    """Sees a run after each fault, and tells what was lost, doubled or changed since."""

    def __init__(self, run: Path, reference: Path, figures: Figures) -> None:
        self._run, self._reference, self._figures = run, reference, figures
        self._expected = results(reference)
        self._seen: dict[str, str] = {}
        self._journals: dict[str, list[bytes]] = {}

    def look(self) -> None:
        """Committed files stay as they are and as the undisturbed run's, and journals only grow."""
        now = results(self._run)
        self._count("lost", set(self._seen) - set(now))
        self._count("changed", {name for name, digest in now.items() if self._seen.get(name, digest) != digest})
        self._count("changed", {n for n, digest in now.items() if not _is_own(n) and self._expected.get(n) != digest})
        self._seen = now
        for name, before in self._journals.items():
            if not (self._run / name).with_name(MARKER).is_file():
                self._count("lost", set(before) - set(_whole_lines(self._run / name)))
        self._journals = {str(path.relative_to(self._run)): _whole_lines(path) for path in self._run.rglob(JOURNAL)}
        for name, lines in self._journals.items():
            keys = Counter(line.split()[1] for line in lines)
            self._count("doubled", {f"{name} {key.decode()}" for key, number in keys.items() if number > 1})

    def compare(self) -> list[str]:
        """The files of the result that are not the undisturbed run's, whose records are counted."""
        now = {name: digest for name, digest in results(self._run).items() if not _is_own(name)}
        expected = {name: digest for name, digest in self._expected.items() if not _is_own(name)}
        for name in {n for n in {**now, **expected} if n.endswith(".jsonl")}:
            ours, theirs = (Counter(_whole_lines(run / name)) for run in (self._run, self._reference))
            self._figures.lost += (theirs - ours).total()
            self._figures.doubled += sum(number for line, number in (ours - theirs).items() if line in theirs)
            self._figures.changed += sum(number for line, number in (ours - theirs).items() if line not in theirs)
        return sorted(name for name in {**now, **expected} if now.get(name) != expected.get(name))

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


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")] if path.is_file() else []


def under_way(run: Path, since: float) -> str:
    """The stage that an attempt was at, by what it had begun."""
    begun = [p.parent for p in run.glob(f"*/*/{BEGUN}") if p.stat().st_mtime >= since and not (p.parent / MARKER).exists()]
    names = sorted(("SFT" if f.parent.name == "seed" and f.name == "train" else f.name) for f in begun)
    return " and ".join(reversed(names)) or "between stages"


def random_kills(lab: Lab, kills: int, seed: int, figures: Figures) -> Figures:
    """Kills runs at random moments, each run until it finishes, ``kills`` times in all."""
    rng, number = random.Random(seed), 0
    while figures.faults.total() < kills:
        name, number = f"killed-{number}", number + 1
        witness = Witness(lab.run(name), lab.reference, figures)
        while figures.faults.total() < kills:
            attempt = lab.start(name)
            _wait_for_moment(lab, name, attempt, rng)
            if attempt.over:
                break
            figures.faults[under_way(lab.run(name), attempt.started)] += 1
            attempt.kill()
            witness.look()
        status = attempt.wait()
        problem = lab.finish(name) if status == -signal.SIGKILL else None
        if status not in (0, -signal.SIGKILL):
            problem = f"{name}: an attempt ended with {status}:\n{attempt.output[-2000:]}"
        figures.problems += [problem] if problem else []
        lab.close(name, figures, witness)
    return figures


def _wait_for_moment(lab: Lab, name: str, attempt: Attempt, rng: random.Random) -> None:
    """Waits until a random moment of one of the next three stages, or of the start."""
    run, seconds = lab.run(name), lab.seconds()
    left = [folder for folder in seconds if not (run / folder / MARKER).is_file() and not folder.endswith("judgements")]
    moment = rng.random()
    if rng.random() < 0.1:
        time.sleep(moment)
        return
    target = rng.choice(left[:3])
    wait_for_stage(run / target, attempt)
    time.sleep(max(seconds[target], 0.01) * moment)


def wait_for_stage(folder: Path, attempt: Attempt) -> None:
    """Waits until an attempt has begun a stage, or is over."""
    begun = folder / BEGUN
    while not attempt.over:
        try:
            if begun.stat().st_mtime >= attempt.started:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.001)


def commit_boundaries(lab: Lab, chosen: Iterable[int] | None, figures: Figures) -> Figures:
    """Kills a run right before and right after its N-th rename, for each N, and resumes it."""
    renames = [line for line in lab.listed if line.startswith("replace ")]
    for number in chosen or range(1, len(renames) + 1):
        for side in ("before", "after"):
            name = f"boundary-{number}-{side}"
            witness = Witness(lab.run(name), lab.reference, figures)
            attempt = lab.start(name, Fault(number, side))
            status = attempt.wait()
            if status != -signal.SIGKILL:
                figures.problems.append(f"{name}: the attempt ended with {status}:\n{attempt.output[-2000:]}")
            figures.faults[f"{side} {Path(renames[number - 1]).name}"] += 1
            witness.look()
            figures.problems += filter(None, [lab.finish(name)])
            lab.close(name, figures, witness)
    return figures


def failing_operations(lab: Lab, chosen: Iterable[int] | None, seed: int, figures: Figures) -> Figures:
    """Lets the N-th operation on files fail, for each N, once or for good, and starts the run again."""
    for number in chosen or range(1, len(lab.listed) + 1):
        choice = number + seed
        fault = Fault(number, ERRORS[choice % 2], bool(choice // 2 % 2), EVERY_KIND)
        name = f"failing-{number}"
        witness = Witness(lab.run(name), lab.reference, figures)
        attempt = lab.start(name, fault)
        try:
            status = attempt.wait()
        except TimeoutError as error:
            figures.problems.append(f"{name}: {error}")
            status = -signal.SIGKILL
        operation = lab.listed[number - 1]
        figures.faults[operation.partition(" ")[0]] += 1
        figures.ends[f"exit status {status}"] += 1
        if status not in (0, 74) or "Traceback" in attempt.output:
            figures.problems.append(f"{name}: {fault} at {operation}: ended with {status}:\n{attempt.output[-3000:]}")
        witness.look()
        figures.problems += filter(None, [lab.finish(name)])
        lab.close(name, figures, witness)
    return figures


STOPPED_IN = ("seed/train", "seed/evaluate", "iter_1/responses", "iter_1/train", "iter_1/evaluate")


def stops(lab: Lab, folders: Iterable[str], figures: Figures) -> Figures:
    """Asks runs to stop in the middle of a stage, and resumes them."""
    for folder in folders:
        for number in (signal.SIGTERM, signal.SIGINT):
            name = f"stopped-{folder.replace('/', '-')}-{number.name}"
            witness = Witness(lab.run(name), lab.reference, figures)
            attempt = lab.start(name)
            wait_for_middle(lab.run(name) / folder, attempt)
            attempt.signal(number)
            asked = time.monotonic()
            status = attempt.wait()
            took = time.monotonic() - asked
            figures.faults[f"{number.name} in {folder}"] += 1
            figures.ends[f"exit status {status}"] += 1
            kept = is_kept(lab.run(name) / folder)
            if status != 75 or not kept or took > GRACE:
                what = f"ended with {status} after {took:.1f} s, kept what was finished: {kept}"
                figures.problems.append(f"{name}: {what}:\n{attempt.output[-2000:]}")
            witness.look()
            figures.problems += filter(None, [lab.finish(name)])
            lab.close(name, figures, witness)
    return figures


GRACE = 60.0


def wait_for_middle(folder: Path, attempt: Attempt) -> None:
    """Waits until something of a stage is finished, or the attempt is over."""
    wait_for_stage(folder, attempt)
    while not attempt.over and not is_kept(folder):
        time.sleep(0.001)


def is_kept(folder: Path) -> bool:
    """Whether a stage that is under way has something to go on from."""
    done = (folder / MARKER).is_file() or any(folder.glob("checkpoints/*/complete.json"))
    return done or bool(_whole_lines(folder / JOURNAL))


def prepare(folder: Path, forge: Forge, num_prompts: int, *overrides: str) -> Lab:
    """A run of a random model, a scripted engine and the real trainers: all stages, in seconds."""
    from conftest import make_random_model

    folder.mkdir(parents=True, exist_ok=True)
    make_random_model(folder / "model", seed=0)
    tasks = [f"Name {number} animals." for number in range(num_prompts)]
    rows = [{"prompt": task, "response": "fox owl", "judgement": "count two yes\nScore: 2"} for task in tasks]
    for name, lines in (("prompts", [{"prompt": task} for task in tasks]), ("graded", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (folder / "run.yaml").write_text(RECIPE_TEXT)
    return Lab(folder, forge, folder / "run.yaml", overrides)


RECIPE_TEXT = """
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
