"""The command line: help that reads well, no torch before it is needed, errors without tracebacks."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from selfreward import __version__
from selfreward.cli import app
from selfreward.errors import DiskFull, disk_error

RECIPE = "recipes/quickstart/run.yaml"
HEAVY = ("torch", "vllm", "trl", "transformers", "peft", "datasets", "accelerate", "openai", "scipy")


def selfreward(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "selfreward", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["check", "run", "stage", "status"])
def test_every_verb_explains_itself(verb):
    assert verb in CliRunner().invoke(app, ["--help"]).output
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_version():
    result = selfreward("--version")
    assert (result.returncode, result.stdout) == (0, f"selfreward {__version__}\n")


@pytest.mark.parametrize(
    "statement",
    [
        "import selfreward",
        "from selfreward import records\nfrom selfreward.recipe import recipe, registry, upstream\n"
        "from selfreward.runs import run\nfrom selfreward.selection import pair_selectors\n"
        "from selfreward.text import chat",
        "from selfreward.cli import app; from typer.testing import CliRunner; CliRunner().invoke(app, ['--help'])",
        "from selfreward.cli import app; from typer.testing import CliRunner; "
        f"r = CliRunner().invoke(app, ['check', '{RECIPE}']); assert r.exit_code == 0, r.output",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement):
    code = f"{statement}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_is_for_programs_is_json() -> None:
    """Also behind the redaction of what is printed, which takes some names for those of keys."""
    result = selfreward("plan", RECIPE, "--json")
    assert json.loads(result.stdout)["serving"]["bytes_per_token"] > 0


def test_check_prints_the_plan():
    result = selfreward("check", RECIPE, "iterations=2")
    assert result.returncode == 0
    assert "2 iterations: M1 to M3" in result.stdout
    assert "the reference is M_t" in result.stdout
    assert "iter_2: prompts responses judgements pairs train evaluate" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere.yaml"], "nowhere.yaml: No such file or directory"),
        (["check", RECIPE, "judge.vote=3"], "judge.vote: unknown key. Did you mean votes?"),
        (["check", RECIPE, "model.path=nowhere"], "no such folder"),
        (["check", RECIPE, "engine.name=vlm"], "no engine is called 'vlm'. Did you mean vllm?"),
        (["check", RECIPE, "selection.name=best_wort"], "no selector is called 'best_wort'. Did you mean best_worst?"),
        (["check", RECIPE, "evaluation.scorer=nowhere:f"], "there is no module 'nowhere'"),
        (["check", RECIPE, "prompts.num=100000"], "prompts.num asks for 100000 prompts of"),
        (["status", "nowhere"], "no run in nowhere"),
        (["stage", "pairs", "nowhere", "--iteration", "1"], "no run in nowhere"),
    ],
)
def test_a_mistake_is_a_message_and_no_traceback(arguments, message):
    result = selfreward(*arguments)
    assert result.returncode == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template. Set model.chat_template"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), "has no *.safetensors"),
    ],
)
def test_a_model_folder_that_cannot_work_is_found_before_it_is_loaded(tmp_path, tiny_random_model, damage, message):
    import shutil

    folder = shutil.copytree(tiny_random_model, tmp_path / "model")
    damage(folder)
    result = selfreward("check", RECIPE, f"model.path={folder}")
    assert result.returncode == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_status_of_a_run_that_has_not_begun(tmp_path):
    from selfreward import load_recipe
    from selfreward.runs.run import Run

    run = Run.create(load_recipe(RECIPE, [f"run_dir={tmp_path}"]))
    state = json.loads(selfreward("status", str(run.path), "--json").stdout)
    assert [entry["iteration"] for entry in state["iterations"]] == [0, 1, 2, 3]
    assert not any(stage["done"] for entry in state["iterations"] for stage in entry["stages"].values())
    assert "left to do: 0/train, 0/evaluate, 1/prompts" in selfreward("status", str(run.path)).stdout


def test_shell_completion_is_offered():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(5, "Input/output error"),
        Exception("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_an_error_of_the_disk_has_one_name_whichever_library_met_it(error: Exception) -> None:
    named = disk_error(error)
    assert isinstance(named, DiskFull)
    assert named.exit_status == 74


@pytest.mark.parametrize("error", [OSError(2, "No such file or directory"), ValueError("28"), RuntimeError("os error")])
def test_another_error_is_none_of_the_disk(error: Exception) -> None:
    assert disk_error(error) is None
