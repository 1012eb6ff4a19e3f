"""What pip installs from a wheel has all that the commands need."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_estimates import PUBLISHED, write_config

ROOT = Path(__file__).parents[1]
# Where an 8B model is served in eight parts, and a training of one example at a time has no room unless it is sharded.
SMALL_GPUS = ["--gpus", "8", "--gpu-memory", "17GiB", "engine.vllm.tensor_parallel_size=8"]
SMALL_BATCH = ["training.dpo.per_device_train_batch_size=1", "training.dpo.gradient_accumulation_steps=16"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as a wheel brings it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("selfreward", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def command(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    start = [sys.executable, "-m", "selfreward", *arguments]
    return subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_file_of_the_package_is_in_it(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        every = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {str(path) for path in every if "__pycache__" not in path.parts}

    assert files(installed / "selfreward") == files(ROOT / "selfreward")


def test_the_plan_names_a_configuration_that_is_there(installed: Path, tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", PUBLISHED["Llama-3.1-8B"])
    recipe = ROOT / "recipes" / "llama-3.1-8b-instruct" / "run.yaml"
    done = command(installed, tmp_path, "plan", str(recipe), *SMALL_GPUS, *SMALL_BATCH, f"model.path={model.path}")
    assert done.returncode == 0, done.stderr
    [named] = re.findall(r"launch\.accelerate_config=(\S+)", done.stdout)
    assert Path(named).is_relative_to(installed)
    assert Path(named).is_file()
