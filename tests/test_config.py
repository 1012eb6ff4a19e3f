"""Recipes that can't be run, each with the message that it gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfreward.recipe.loader import RecipeError
from selfreward.recipe.recipe import Recipe, load_recipe

BASE = """\
name: demo
model:
  path: model
prompts:
  path: prompts.jsonl
"""
Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads BASE with further lines, from a folder that has what BASE names."""
    (tmp_path / "model").mkdir()
    for name in ("prompts.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"prompt": "Why?"}\n', encoding="utf-8")

    def load(more: str | bytes = "", *overrides: str, base: str = BASE) -> Recipe:
        text = more if isinstance(more, bytes) else (base + more).encode()
        (tmp_path / "run.yaml").write_bytes(text)
        return load_recipe(tmp_path / "run.yaml", overrides)

    return load


def message(load: Load, *arguments: str | bytes, base: str = BASE) -> str:
    with pytest.raises(RecipeError) as caught:
        load(*arguments, base=base)
    return str(caught.value)


def test_the_shortest_recipe(load: Load, tmp_path: Path) -> None:
    recipe = load()
    assert recipe.model.path == str(tmp_path / "model")
    assert recipe.prompts.path == tmp_path / "prompts.jsonl"
    assert (recipe.iterations, recipe.responses.n, recipe.judge.votes) == (3, 4, 3)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("iteration: 2\n", "run.yaml:6: iteration: unknown key. Did you mean iterations"),
        ("responses:\n  temprature: 0.5\n", "run.yaml:7: responses.temprature: unknown key. Did you mean temperature?"),
        ("judge:\n  engine:\n    nam: vllm\n", "run.yaml:8: judge.engine.nam: unknown key. Did you mean name?"),
        (
            "responses:\n  zzz: 1\n",
            "unknown key. Known: max_tokens, n, on_duplicate, on_empty, on_truncated, pri",
        ),
        ("iterations: three\n", "run.yaml:6: iterations: input should be a valid integer, and the value is 'three'"),
        ('iterations: "3"\n', "the value is '3'"),
        ("responses: 4\n", "run.yaml:6: responses: input should be a valid dictionary"),
        ("responses:\n  n: 1\n", "run.yaml:7: responses.n: input should be greater than or equal to 2"),
        ("responses:\n  temperature: .nan\n", "and the value is nan"),
        ("seed: -1\n", "greater than or equal to 0, and the value is -1"),
        ("judge:\n  min_score: 5\n", "min_score is 5 and max_score is 5: no score lies between them"),
        ("judge:\n  template: none.txt\n", "judge.template: no such file: "),
        ("judge:\n  engine:\n    name: openai\n", "the openai engine needs engine.openai with base_url and model"),
        (
            "engine:\n  name: openai\n  openai:\n    base_url: http://localhost\n    model: m\n",
            "run.yaml:6: engine: engine.name is openai, and the weights of a server can't be replaced",
        ),
        ("training:\n  rehearsal: 1.0\n  dpo:\n    loss_type: [sft]\n", "there is no seed_data.eft to rehearse"),
        ("judge:\n  engine:\n    name: vllm\n", "engine.name is vllm, and model is missing"),
        ("evaluation:\n  scorer: a:b\n", "a scorer needs evaluation.prompts"),
        ("launch:\n  train: process\n  accelerate_config: prompts.jsonl\n", "launch.train is 'process' and accel"),
        ("launch:\n  launcher: inline\n  replicas: 2\n", "launcher is inline and replicas is 2"),
        ("training:\n  rehearsal: 0.5\n", "loss_type is 'sigmoid', which has no NLL term"),
        ("tracking:\n  project: ${oc.env:HOME}\n", "only keys of the recipe itself can be interpolated"),
        (
            "judge:\n  name: oc\ntracking:\n  project: ${${judge.name}.env:HOME}\n",
            "only keys of the recipe itself can be interpolated",
        ),
        ("responses:\n  temperature: 0.0\n", "all 4 responses to a prompt would be the same"),
        ("judge:\n  temperature: 0.0\n", "all 3 votes would be the same"),
        ("evaluation:\n  pass_score: 5.0\n", "there is no scorer whose scores could pass"),
        ("tracking:\n  project: ${nothing}\n", "Interpolation key 'nothing' not found"),
    ],
)
def test_a_setting_that_cannot_be(load: Load, more: str, expected: str) -> None:
    assert expected in message(load, more)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("dpo:\n    learnin_rate: 1.0e-6\n", "trl has no such field in DPOConfig. Did you mean learning_rate?"),
        ("dpo:\n    max_prompt_length: 8\n", "trl has no such field in DPOConfig. Did you mean max_length?"),
        ("sft:\n    epochs: 2\n", "training.sft.epochs: the installed trl has no such field in SFTConfig."),
        ("lora:\n    rank: 8\n", "training.lora.rank: the installed peft has no such field in LoraConfig."),
        ("dpo:\n    output_dir: out\n", "training.dpo.output_dir: set by the loop: it is the stage's folder"),
        ("sft:\n    report_to: wandb\n", "training.sft.report_to: set by the loop: use tracking.report_to"),
        ("lora:\n    task_type: CAUSAL_LM\n", "training.lora.task_type: set by the loop"),
        ("dpo:\n    beta: high\n", "training.dpo.beta: the value is 'high', and trl's DPOConfig takes float"),
        ("lora:\n    r: 8.5\n", "training.lora.r: the value is 8.5, and peft's LoraConfig takes int"),
    ],
)
def test_a_training_option_that_cannot_be(load: Load, more: str, expected: str) -> None:
    assert expected in message(load, f"training:\n  {more}")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("max_model_length: 8", "the installed vllm has no such field in EngineArgs. Did you mean max_model_len"),
        ("model: other", "engine.vllm.model: set by the loop: use model.path"),
        ("seed: 1", "engine.vllm.seed: set by the loop: each request has a seed of its own"),
        (
            "gpu_memory_utilization: most",
            "gpu_memory_utilization: the value is 'most', and vllm's EngineArgs takes float",
        ),
    ],
)
def test_an_engine_option_that_cannot_be(load: Load, option: str, expected: str) -> None:
    assert expected in message(load, f"engine:\n  vllm:\n    {option}\n")


def test_an_upstream_option_is_named_with_its_own_line(load: Load) -> None:
    text = message(load, "training:\n  lora:\n    r: 8\n  dpo:\n    beta: 0.1\n    learnin_rate: 1.0e-6\n")
    assert text.startswith(text.partition("run.yaml")[0] + "run.yaml:11: training.dpo.learnin_rate: ")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (
            "name: demo\nmodel:\n  path: model\n",
            "run.yaml:1: prompts: path is missing: dataset reads rows. Name a file",
        ),
        (BASE.replace("path: prompts.jsonl", "num: 3"), "run.yaml:4: prompts: path is missing"),
        (BASE.replace("prompts.jsonl", "nowhere.jsonl"), "run.yaml:5: prompts.path: no such file: "),
        (BASE.replace("path: model", "path: nowhere"), "run.yaml:3: model.path: no such folder: nowhere, nor is it"),
    ],
)
def test_what_is_missing(load: Load, base: str, expected: str) -> None:
    assert expected in message(load, base=base)


@pytest.mark.parametrize("name", ["../up", "/abs", "a b", "", ".hidden", "..", "x" * 101, "naïve"])
def test_a_run_name_that_is_no_folder_name(load: Load, name: str) -> None:
    assert "is not a run name: use letters" in message(load, base=BASE.replace("demo", f'"{name}"'))


def test_every_fault_has_a_line_of_its_own(load: Load) -> None:
    lines = message(load, "responses:\n  n: 1\n  temprature: 2\n").splitlines()
    assert [line.partition(": ")[0].rpartition(":")[2] for line in lines] == ["7", "8"]


@pytest.mark.parametrize(("more", "line"), [("seed: 1\nseed: 2\n", 7), ("responses:\n  n: 2\n  n: 4\n", 8)])
def test_a_key_that_stands_twice(load: Load, more: str, line: int) -> None:
    assert f"run.yaml:{line}: the key " in message(load, more)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"- a\n- b\n", "a recipe is a mapping of settings"),
        (b"5\n", "a recipe is a mapping of settings"),
        (b"name: [a\n", "not YAML"),
        (b"name: a\x00b\n", "not YAML"),
        (b"name: caf\xe9\n", "UTF-8"),
        (b"? [a, b]\n: 2\n", "a key is a plain word"),
        (b"name: a\n---\nname: b\n", "expected a single document"),
    ],
)
def test_a_file_that_is_no_recipe(load: Load, text: bytes, expected: str) -> None:
    found = message(load, text)
    assert "run.yaml" in found
    assert expected in found


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(RecipeError, match=f"{path}: {reason}.*Give the path of a recipe"):
            load_recipe(path)


def test_yaml_runs_no_code(load: Load, tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    text = message(load, f"seed: !!python/object/apply:os.system ['touch {bait}']\n")
    assert "a tag (!) is not read" in text
    assert not bait.exists()


@pytest.mark.parametrize("written", ["5e-7", "5.0e-7", "0.0000005"])
def test_a_number_is_a_number_however_it_is_written(load: Load, written: str) -> None:
    assert load(f"training:\n  dpo:\n    learning_rate: {written}\n").training.dpo == {"learning_rate": 5e-7}
    assert load("", f"training.dpo.learning_rate={written}").training.dpo == {"learning_rate": 5e-7}


def test_overrides_win_and_leave_the_rest(load: Load) -> None:
    recipe = load("training:\n  dpo:\n    beta: 0.1\n    max_length: 64\n", "training.dpo.beta=0.2", "name=other")
    assert recipe.training.dpo == {"beta": 0.2, "max_length": 64}
    assert recipe.name == "other"
    losses = load("", "training.dpo.loss_type=[sigmoid,sft]", "prompts.num=null").training.dpo
    assert losses == {"loss_type": ["sigmoid", "sft"]}


def test_paths_start_from_the_recipe_or_the_working_directory(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.jsonl").touch()
    monkeypatch.chdir(here)
    assert load().prompts.path == tmp_path / "prompts.jsonl"
    assert load("", "prompts.path=mine.jsonl").prompts.path == here / "mine.jsonl"
    assert load("", "prompts.path=../other.jsonl").prompts.path == tmp_path / "other.jsonl"
    assert "command line: prompts.path: no such file: " in message(load, "", "prompts.path=prompts.jsonl")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("iterations", "override 'iterations' has no '='. Write it as key=value, such as iterations=1"),
        ("iteratons=2", "command line: iteratons: unknown key. Did you mean iterations?"),
        ("iterations=two", "command line: iterations: input should be a valid integer, and the value is 'two'"),
        ("responses.n.x=2", "command line: responses.n: input should be a valid integer"),
        ("responses=3", "command line: responses: input should be a valid dictionary"),
        ("training.dpo.output_dir=x", "training.dpo.output_dir: set by the loop"),
        ("name=[a", "command line: "),
    ],
)
def test_an_override_that_cannot_be(load: Load, override: str, expected: str) -> None:
    assert expected in message(load, "", override)


def test_a_key_of_the_recipe_can_be_repeated(load: Load) -> None:
    assert load("tracking:\n  project: ${name}\n").tracking.project == "demo"


def test_rehearsal_needs_the_judging_data_that_it_rehearses(load: Load) -> None:
    text = message(load, "training:\n  rehearsal: 0.5\n  dpo:\n    loss_type: [sigmoid, sft]\n")
    assert "rehearsal" in text
    assert "seed_data" in text


def test_a_recipe_is_frozen(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 1
