"""Trainings without a loop: a run that has its data already, and ways to interrupt it."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

import selfreward
from selfreward.records import PreferencePair, Record
from selfreward.runs.run import Run

WORDS = "bear camel deer eagle fox goat".split()
TASKS = [f"Name {word}s of {place}." for word in WORDS[:3] for place in "xyz"]


# Keys of the recipe; the others that a run is made with are of its block `training`.
BLOCKS = ("tracking", "meta", "selection")


def make_run(
    folder: Path, model: Path, dtype: str = "float32", seeded: bool = False, iterations: int = 1, **settings: Any
) -> Run:
    """A run with nine pairs an iteration and, if seeded, nine rows of seed data; three steps of three are an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": task}) + "\n" for task in TASKS))
    rows = [{"prompt": t, "response": " ".join(WORDS[: 1 + n % 5])} for n, t in enumerate(TASKS)]
    (folder / "ift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    graded = [{**row, "judgement": "I count.\nScore: 3"} for row in rows[4:]]
    (folder / "eft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    own = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "logging_steps": 1, "gradient_checkpointing": False}
    recipe = {
        "name": "test",
        "run_dir": str(folder / "runs"),
        "iterations": iterations,
        "model": {"path": str(model), "dtype": dtype},
        "prompts": {"path": "prompts.jsonl"},
        "judge": {"template": "judge.txt"},
        "seed_data": {"ift": "ift.jsonl", "eft": "eft.jsonl"} if seeded else None,
        "training": {
            "lora": {"r": 4, "lora_dropout": 0.1},
            **{name: value for name, value in settings.items() if name not in BLOCKS},
            # Dropout, and noise on the embeddings: what is drawn at random must go on where it was.
            "dpo": {"learning_rate": 1e-3, "disable_dropout": False, **own, **settings.get("dpo", {})},
            "sft": {"learning_rate": 1e-3, "neftune_noise_alpha": 5.0, **own, **settings.get("sft", {})},
        },
        **{name: settings[name] for name in BLOCKS if name in settings},
        "engine": {"name": "scripts:Numbers"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe))
    run = Run.create(selfreward.load_recipe(folder / "run.yaml"))
    for iteration in range(iterations + 1):
        run.stage("train", iteration).path.mkdir(parents=True, exist_ok=True)
    for iteration in range(1, iterations + 1):
        write_pairs(run, iteration)
    return run


def write_pairs(run: Run, iteration: int, consistencies: Sequence[float | None] = (None,) * 9) -> None:
    """Gives an iteration, or its draft, nine pairs of its own."""
    write_records(run.stage("pairs", iteration).path / "records.jsonl", make_pairs(iteration, consistencies))


def write_records(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(record.to_json() + "\n" for record in records))


def make_pairs(iteration: int, consistencies: Sequence[float | None] = (None,) * 9) -> list[PreferencePair]:
    return [_pair(number, iteration - 1, consistencies[number]) for number in range(9)]


def _pair(number: int, turn: int, consistency: float | None) -> PreferencePair:
    words = WORDS[turn:] + WORDS[:turn]
    chosen, rejected = " ".join(words[: 2 + number % 3]), " ".join(words[number % 4 :])
    prompt = [{"role": "user", "content": TASKS[number]}]
    sides = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    names = (f"c{number}", f"r{number}")
    return PreferencePair(f"pair{number}", f"prompt{number}", prompt, *sides, *names, 4.0, 1.0, consistency)


def give_model(run: Run, t: int, model: Path) -> None:
    """Makes a model M_t of a run, for t from 2 on."""
    shutil.copytree(model, run.model_path(t))


def result(run: Run, iteration: int) -> dict[str, bytes]:
    """The weights, settings and probes that a training has left, by name."""
    files = run.stage("train", iteration).files()
    assert any(path.name == "model.safetensors" for path in files)
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def logged(run: Run, name: str) -> dict[int, Any]:
    """A figure of the trainer's log by step; a step that was trained twice must have logged the same."""
    found: dict[int, Any] = {}
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if name in entry:
            step = entry.get("step", 0)
            assert found.setdefault(step, entry[name]) == entry[name]
    return found


def resumed_from(run: Run) -> list[int]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line["resumed_from_step"] for line in lines if "resumed_from_step" in line]


def killed(work: Callable[[], object]) -> None:
    """Does some work in a child process, which must kill itself on its way."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
