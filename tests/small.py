"""A run in small whose engine follows a script, for the many ways of starting one, and what it leaves to compare."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

import selfreward
from selfreward.runs.run import Run

TINY = Path(selfreward.__file__).parent / "tiny" / "model"
STAGES = ("prompts", "responses", "judgements", "pairs")


def small_recipe(folder: Path, num: int, dpo: Mapping[str, Any], model: Path = TINY, **blocks: Any) -> Path:
    """The file of a recipe with so many prompts and one iteration; ``blocks`` are keys of it that it has besides."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Name {n} owls."}) + "\n" for n in range(num)))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    recipe = {
        "name": "test",
        "run_dir": str(folder / "runs"),
        "iterations": 1,
        "model": {"path": str(model), "dtype": "float32"},
        "prompts": {"path": "prompts.jsonl"},
        "responses": {"n": 3, "max_tokens": 24},
        "judge": {"template": "judge.txt", "votes": 2, "min_parse_rate": 0.0},
        "training": {"dpo": {"learning_rate": 1e-3, "gradient_checkpointing": False, **dpo}},
        "engine": {"name": "scripts:Slow", "max_in_flight": 2},
        **blocks,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "run.yaml"


def inline(recipe: Path) -> Run:
    """What one process makes of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "tests")
        return selfreward.run(selfreward.load_recipe(recipe, ["name=inline", "launch.launcher=inline"]))


def digests(run: Run) -> dict[str, str]:
    """Of the records of its first iteration, by stage."""
    return {stage: sha256((run.stage(stage, 1).path / "records.jsonl").read_bytes()).hexdigest() for stage in STAGES}


def num_lines(path: Path) -> int:
    """How many whole lines a file has, none if it is not there yet."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0
