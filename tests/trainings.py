"""Trainings without a loop: a run that has its data already, and ways to interrupt it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import selfreward
from selfreward.rundir import Run

WORDS = "bear camel deer eagle fox goat".split()


def make_run(
    folder: Path, model: Path, dtype: str = "float32", seeded: bool = False, **training: dict[str, Any]
) -> Run:
    """A run with nine pairs and, if it is seeded, nine rows of seed data; three steps of three are an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [f"Name {word}s of {place}." for word in WORDS[:3] for place in "xyz"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": task}) + "\n" for task in tasks))
    rows = [{"prompt": t, "response": " ".join(WORDS[: 1 + n % 5])} for n, t in enumerate(tasks)]
    (folder / "ift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    graded = [{**row, "judgement": "I count.\nScore: 3"} for row in rows[4:]]
    (folder / "eft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    own = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "logging_steps": 1, "gradient_checkpointing": False}
    recipe = {
        "name": "test",
        "run_dir": str(folder / "runs"),
        "iterations": 1,
        "model": {"path": str(model), "dtype": dtype},
        "prompts": {"path": "prompts.jsonl"},
        "judge": {"template": "judge.txt"},
        "seed_data": {"ift": "ift.jsonl", "eft": "eft.jsonl"} if seeded else None,
        "training": {
            "lora": {"r": 4, "lora_dropout": 0.1},
            # Dropout, and noise on the embeddings: what is drawn at random must go on where it was.
            "dpo": {"learning_rate": 1e-3, "disable_dropout": False, **own, **training.get("dpo", {})},
            "sft": {"learning_rate": 1e-3, "neftune_noise_alpha": 5.0, **own, **training.get("sft", {})},
        },
        "tracking": training.get("tracking", {}),
        "engine": {"name": "scripts:Numbers"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe))
    run = Run.create(selfreward.load_recipe(folder / "run.yaml"))
    for name in ("pairs", "train"):
        for iteration in (0, 1):
            run.stage(name, iteration).path.mkdir(parents=True, exist_ok=True)
    pairs = [_pair(number, task) for number, task in enumerate(tasks)]
    (run.stage("pairs", 1).path / "records.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return run


def _pair(number: int, task: str) -> dict[str, Any]:
    sides = {"chosen": " ".join(WORDS[: 2 + number % 3]), "rejected": " ".join(WORDS[number % 4 :])}
    scores = {"score_chosen": 4.0, "score_rejected": 1.0, "chosen_id": f"c{number}", "rejected_id": f"r{number}"}
    messages = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    prompt = [{"role": "user", "content": task}]
    return {"id": f"pair{number}", "prompt_id": f"prompt{number}", "prompt": prompt, **messages, **scores}


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
