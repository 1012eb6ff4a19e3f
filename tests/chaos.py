"""A run that was killed, stopped, or met a failing disk, again and again, equals one that never was.

python tests/chaos.py                                    everything
python tests/chaos.py --kills 100 --engine scripted      kills at random moments alone
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from forge import ERRORS, EVERY_KIND, HUNG, Attempt, Fault, Forge
from lab import (
    SLOW,
    Figures,
    Lab,
    Witness,
    kept,
    lasting,
    one_training,
    processes,
    quickstart,
    scripted,
    smallest,
    started,
    under_way,
)

from selfreward.runs.stored import MARKER

STOPPED_IN = ("seed/train", "seed/evaluate", "iter_1/responses", "iter_1/train", "iter_1/evaluate")
GRACE = 60.0  # seconds: the recipe's launch.grace
ORPHAN = 5.0  # seconds that a training may outlive its parent


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
        if attempt.wait() not in (0, -signal.SIGKILL):
            figures.problems.append(f"{name}: an attempt ended with {attempt.wait()}:\n{attempt.output[-3000:]}")
        lab.finish(name, figures, witness)
    return figures


def _wait_for_moment(lab: Lab, name: str, attempt: Attempt, rng: random.Random) -> None:
    """Waits until a random moment of one of the next stages, each as likely as the others, or of the start."""
    moment = rng.random()
    left = [folder for folder in lab.seconds if not (lab.run(name) / folder / MARKER).is_file()]
    targets = [folder for folder in left if not folder.endswith("judgements")][:6]
    if not targets or rng.random() < 0.1:
        time.sleep(moment)
        return
    target = rng.choice(targets)
    wait_for_stage(lab.run(name) / target, attempt)
    time.sleep(max(lab.seconds[target], 0.01) * moment)


def wait_for_stage(folder: Path, attempt: Attempt) -> None:
    """Waits until an attempt has begun a stage, or is over."""
    while not attempt.over and not started(folder, attempt.started):
        _look_again(folder, attempt)


def wait_for_middle(folder: Path, attempt: Attempt) -> None:
    """Waits until something of a stage is finished, or the attempt is over."""
    wait_for_stage(folder, attempt)
    while not attempt.over and not kept(folder):
        _look_again(folder, attempt)


def _look_again(folder: Path, attempt: Attempt) -> None:
    if time.time() > attempt.started + HUNG:
        attempt.kill()
        raise TimeoutError(f"{folder} was not reached within {HUNG:g} s:\n{attempt.output[-3000:]}")
    time.sleep(0.001)


def commit_boundaries(lab: Lab, chosen: Iterable[int], figures: Figures) -> Figures:
    """Kills a run right before and right after its N-th rename, for each N, and resumes it."""
    for number in chosen:
        for side in ("before", "after"):
            name = f"boundary-{number}-{side}"
            witness = Witness(lab.run(name), lab.reference, figures)
            attempt = lab.start(name, fault=Fault(number, side))
            if attempt.wait() != -signal.SIGKILL:
                figures.problems.append(f"{name}: not killed, but {attempt.wait()}:\n{attempt.output[-3000:]}")
            figures.faults[f"{side} {Path(attempt.operations[number - 1]).name}"] += 1
            witness.look()
            lab.finish(name, figures, witness)
    return figures


def boundaries(lab: Lab) -> range:
    """The numbers of all renames of a run."""
    return range(1, 1 + sum(operation.startswith("replace ") for operation in lab.operations))


def failing_operations(lab: Lab, chosen: Iterable[int], seed: int, figures: Figures) -> Figures:
    """Lets the N-th operation on files fail, for each N, once or for good, and starts the run again."""
    for number in chosen:
        error, lasts = (number + seed) % 2, (number + seed) // 2 % 2
        fault = Fault(number, ERRORS[error], bool(lasts), EVERY_KIND)
        name = f"failing-{number}"
        witness = Witness(lab.run(name), lab.reference, figures)
        attempt = lab.start(name, fault=fault)
        status = attempt.wait()
        failed = attempt.operations[number - 1 : number] or ["none"]
        figures.faults[failed[0].partition(" ")[0]] += 1
        figures.ends[f"exit status {status}" if status else f"went on after {failed[0].partition(' ')[0]}"] += 1
        if status not in (0, 74) or "Traceback" in attempt.output:
            figures.problems.append(f"{name}: {failed[0]}, {fault}: ended with {status}:\n{attempt.output[-3000:]}")
        witness.look()
        lab.finish(name, figures, witness)
    return figures


def stops(lab: Lab, folders: Iterable[str], numbers: Iterable[signal.Signals], figures: Figures) -> Figures:
    """Asks runs to stop in the middle of a stage, and resumes them."""
    for folder, number in [(folder, number) for folder in folders for number in numbers]:
        name = f"stopped-{folder.replace('/', '-')}-{number.name}"
        witness = Witness(lab.run(name), lab.reference, figures)
        attempt = lab.start(name)
        wait_for_middle(lab.run(name) / folder, attempt)
        attempt.signal(number)
        asked = time.monotonic()
        status, took = attempt.wait(), time.monotonic() - asked
        figures.faults[f"{number.name} in {folder}"] += 1
        figures.ends[f"exit status {status}"] += 1
        if status != 75 or took > GRACE or not kept(lab.run(name) / folder):
            figures.problems.append(f"{name}: ended with {status} after {took:.1f} s:\n{attempt.output[-3000:]}")
        witness.look()
        lab.finish(name, figures, witness)
    return figures


def orphans(lab: Lab, numbers: Iterable[signal.Signals], figures: Figures) -> Figures:
    """Ends the process that waits for a training in a process of its own: by SIGTERM, or unprepared by SIGKILL."""
    for number in numbers:
        name = f"orphaned-{number.name}"
        run = lab.run(name)
        witness = Witness(run, lab.reference, figures)
        attempt = lab.start(name, "launch.train=process")
        wait_for_middle(run / "iter_1/train", attempt)
        assert processes(run), attempt.output
        attempt.signal(number)
        status, ended = attempt.wait(), time.monotonic()
        figures.faults[f"{number.name} to the parent"] += 1
        figures.ends[f"exit status {status}"] += 1
        expected = 75 if number == signal.SIGTERM else -number
        if status != expected or (number == signal.SIGTERM and processes(run)):
            left = processes(run)
            figures.problems.append(f"{name}: ended with {status}, left {left}:\n{attempt.output[-3000:]}")
        # Resumed at once, and in this process: that of the training may still be there.
        lab.finish(name, figures, witness, "launch.train=inline")
        while processes(run) and time.monotonic() < ended + ORPHAN:
            time.sleep(0.1)
        if left := processes(run):
            figures.problems.append(f"{name}: {left} live {ORPHAN:g} s after their parent")
    return figures


def kills_alone(folder: Path, forge: Forge, engine: str, kills: int, seed: int) -> Figures:
    """Kills at random moments, with a scripted engine or the real vLLM."""
    lab = quickstart(folder / engine, forge) if engine == "vllm" else scripted(folder / engine, forge, SLOW)
    return random_kills(lab, kills, seed, Figures(f"kills at random moments, {engine} engine, seed {seed}"))


def everything(folder: Path, forge: Forge, seed: int) -> Iterator[Figures]:
    """Every experiment at its full length."""
    yield kills_alone(folder, forge, "scripted", 100, seed)
    lab = scripted(folder / "boundaries", forge)
    yield commit_boundaries(lab, boundaries(lab), Figures("kills at every commit boundary"))
    lab = smallest(folder / "failing", forge)
    every = range(1, 1 + len(lab.operations))
    yield failing_operations(lab, every, seed, Figures("each operation on files fails"))
    both = (signal.SIGTERM, signal.SIGINT)
    yield stops(lasting(folder / "stops", forge), STOPPED_IN, both, Figures("asked to stop"))
    both = (signal.SIGTERM, signal.SIGKILL)
    yield orphans(one_training(folder / "orphans", forge), both, Figures("trainings whose parent ends"))
    yield kills_alone(folder, forge, "vllm", 20, seed)


def main() -> None:
    """Prints the figures of each experiment; exit status 1 if anything differs, and then the runs are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("scripted", "vllm"), help="kills at random moments alone, with this")
    parser.add_argument("--kills", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    folder, forge = Path(tempfile.mkdtemp(prefix="chaos-")), Forge()
    found: Iterable[Figures] = everything(folder, forge, chosen.seed)
    if chosen.engine:
        found = [kills_alone(folder, forge, chosen.engine, chosen.kills, chosen.seed)]
    good = True
    for figures in found:
        print(figures, flush=True)
        good = good and figures.good
    if good:
        shutil.rmtree(folder)
    else:
        print(f"Runs with something wrong, and the output of every attempt, are in {folder}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
