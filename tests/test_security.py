"""Bait in models, recipes and data runs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfreward.preflight import preflight
from selfreward.recipe import registry
from selfreward.recipe.engine_settings import EngineSettings
from selfreward.recipe.loader import RecipeError
from selfreward.recipe.recipe import Recipe, load_recipe
from selfreward.runs.run import Run

MESSAGES = [{"role": "user", "content": "Name a colour."}]


def write_recipe(folder: Path, model: Path, more: str = "") -> Path:
    (folder / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    path = folder / "run.yaml"
    text = f"name: bait\nrun_dir: {folder}/runs\nmodel: {{path: {model}, dtype: float32}}\n"
    path.write_text(f"{text}prompts: {{path: prompts.jsonl}}\n{more}")
    return path


@pytest.fixture
def bait_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``bait`` that leaves a file behind when it is imported; returns that file."""
    canary = tmp_path / "imported"
    code = """
import functools, pickle, subprocess
from os import system
loads, run, number, harmless = pickle.loads, subprocess.run, 5, lambda prompt, response: 1.0
part = functools.partial(subprocess.run)

@functools.cache
def cached(prompt, response): return 1.0

class Judge: pass
"""
    (tmp_path / "bait.py").write_text(f"open({str(canary)!r}, 'w').close()\n{code}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bait", raising=False)
    return canary


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:run",
        "builtins:eval",
        "builtins:exec",
        "pickle:loads",
        "runpy:run_path",
        "posix:system",
        "importlib:import_module",
        "os.path:join",
        "multiprocessing.util:spawnv_passfds",
        "_pickle:loads",
    ],
)
def test_the_standard_library_is_no_extension(name: str) -> None:
    with pytest.raises(ValueError, match=r"the module is Python's own\. Give a class or function"):
        registry.load(name, {}, "scorer")


@pytest.mark.parametrize(
    "name",
    [
        "bait",
        "bait:",
        ":harmless",
        "bait:harmless:more",
        "bait.:harmless",
        ".bait:harmless",
        "bait..x:harmless",
        "bait:Judge.__init__",
        "bait:harmless()",
        "bait:__builtins__",
        "bait:__import__",
        "bait.__main__:harmless",
        "bait :harmless",
        "bait:harmless\n",
        "bait\n:harmless",
        "./bait:harmless",
        "../bait:harmless",
        "bait.py:harmless ",
        "/tmp/bait:harmless",
        "bait;os:system",
        "bаit:harmless",
        "ｂait:harmless",
        "bait:hаrmless",
        "ba it:harmless",
        "bait\0:harmless",
        "bait-x:harmless",
        "1bait:harmless",
        "${bait}:harmless",
    ],
)
def test_nothing_is_imported_for_a_name_that_is_no_import_path(bait_module: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"no scorer is called .* MODULE:OBJECT"):
        registry.load(name, {}, "scorer")
    assert not bait_module.exists()


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("bait:system", "it is Python's own posix.system"),
        ("bait:loads", "it is Python's own _pickle.loads"),
        ("bait:run", "it is Python's own subprocess.run"),
        ("bait:part", "it is a partial"),
        ("bait:number", "it is a int"),
        ("bait:pickle", "it is a module"),
    ],
)
def test_an_object_that_is_no_extension(bait_module: Path, name: str, fact: str) -> None:
    with pytest.raises(ValueError, match=f"scorer '{name}': {fact}. Give a class or function that was written for"):
        registry.load(name, {}, "scorer")


@pytest.mark.parametrize("name", ["harmless", "cached", "Judge"])
def test_a_class_or_function_of_ones_own_is_an_extension(bait_module: Path, name: str) -> None:
    assert registry.load(f"bait:{name}", {}, "scorer").__module__ == "bait"


def test_a_recipe_can_name_no_command_to_run(tmp_path: Path, tiny_random_model: Path) -> None:
    for block in (
        "evaluation: {prompts: prompts.jsonl, scorer: 'os:system'}",
        "judge: {name: 'os:system'}",
        "selection: {name: 'subprocess:run'}",
        "engine: {name: 'builtins:exec'}",
    ):
        path = write_recipe(tmp_path, tiny_random_model, block)
        with pytest.raises(ValueError, match="the module is Python's own"):
            preflight(load_recipe(path))


@pytest.mark.parametrize(
    "option",
    [
        "worker_cls: bait.Worker",
        "worker_extension_cls: bait.Worker",
        "logits_processors: ['bait:Judge']",
        "load_format: pt",
        "distributed_executor_backend: bait.Judge",
        "compilation_config: {backend: bait.harmless}",
        "compilation_config: {inductor_passes: {x: bait.harmless}}",
        "speculative_config: {method: custom_class, model: bait.Judge}",
        "reasoning_parser_plugin: bait.py",
        "kv_transfer_config: {kv_connector_module_path: bait}",
    ],
)
def test_an_engine_option_that_names_code(
    bait_module: Path, tmp_path: Path, tiny_random_model: Path, option: str
) -> None:
    with pytest.raises(RecipeError, match=rf"engine.vllm.{option.partition(':')[0]}: set by the loop"):
        load_recipe(write_recipe(tmp_path, tiny_random_model, f"engine: {{vllm: {{{option}}}}}"))
    assert not bait_module.exists()


@pytest.mark.parametrize(
    ("bait", "message"),
    [
        ("seed: !!python/object/apply:os.system ['touch {}']", r"a tag \(!\) is not read"),
        ("seed: !!python/name:os.system", r"a tag \(!\) is not read"),
        ("engine: {{vllm: {{seed: !!python/object/new:os.system ['touch {}']}}}}", r"a tag \(!\) is not read"),
        ("_target_: os.system\n_args_: ['touch {}']", "_target_: unknown key"),
        ("judge: {{_target_: os.system, _args_: ['touch {}']}}", "judge._target_: unknown key"),
        ("training: {{dpo: {{_target_: os.system}}}}", "training.dpo._target_: the installed trl has no such field"),
        ("engine: {{vllm: {{_target_: os.system}}}}", "engine.vllm._target_: the installed vllm has no such field"),
        ("tracking: {{project: '${{oc.env:HOME}}'}}", "only keys of the recipe itself can be interpolated"),
        ("tracking: {{project: '${{oc.decode:{}}}'}}", "only keys of the recipe itself can be interpolated"),
        (
            "tracking: {{project: '${{oc.create:${{oc.env:HOME}}}}'}}",
            "only keys of the recipe itself can be interpolated",
        ),
        ("tracking: {{project: '\\${{oc.env:HOME}}'}}", "only keys of the recipe itself can be interpolated"),
        ("tracking: {{project: '${{.project}}'}}", "only keys of the recipe itself can be interpolated"),
        ("tracking: {{project: '${{tracking.project}}'}}", "what stands there repeats another key itself"),
    ],
)
def test_bait_in_a_recipe(tmp_path: Path, tiny_random_model: Path, bait: str, message: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path, tiny_random_model, bait.format(canary)))
    assert not canary.exists()


def test_what_looks_like_a_call_is_data_where_any_key_may_stand(tmp_path: Path, tiny_random_model: Path) -> None:
    canary = tmp_path / "canary"
    block = {"_target_": "os.system", "_args_": [f"touch {canary}"], "__reduce__": ["os.system", [f"touch {canary}"]]}
    recipe = load_recipe(
        write_recipe(tmp_path, tiny_random_model, f"training: {{lora: {{rank_pattern: {json.dumps(block)}}}}}")
    )
    Run.create(recipe)
    assert recipe.training.lora == {"rank_pattern": block}
    assert not canary.exists()


BOMBS = """
import resource, sys
from pathlib import Path
from selfreward.recipe.recipe import RecipeError, load_recipe

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
chain = ["b0: ha"] + [f"b{n}: '${{b{n - 1}}}${{b{n - 1}}}'" for n in range(1, 60)]
bombs = {
    "an alias (*) is not read": ["\\n".join(lines), "a: &a [*a]", "a: &a {b: *a}", "<<: &a {<<: *a}"],
    "more than 32 blocks within each other": ["a: " + "[" * 100_000, "{a: " * 50_000, "- " * 100_000],
    "more than 10000 values": ["a: [" + "1," * 100_000 + "]", "\\n".join(f"k{n}: 1" for n in range(20_000))],
    "repeats another key itself": ["\\n".join(chain), "a: ${b}\\nb: ${a}", "a: {b: '${a}'}"],
    "the repeated keys make more than": [f"a: [{'x, ' * 1000}]\\n" + "\\n".join(f"k{n}: ${{a}}" for n in range(1000))],
    "characters, more than 10000": ["a: " + "x" * 200_000, "a: " + "9" * 200_000, "a: " + "1:" * 100_000 + "1"],
    "a number that is too large": ["a: " + "9" * 9000, "a: " + "1:" * 4900 + "1.5", "a: 0x_"],
    "bytes, so this is no recipe": ["# " + "x" * 300_000],
    "only keys of the recipe itself": ["a: " + "${" * 2000 + "}" * 2000],
}
path = Path(sys.argv[1])
count = 0
for expected, texts in bombs.items():
    for text in texts:
        path.write_text(text)
        for where, overrides in ((path, []), (Path(sys.argv[2]), [f"seed={text}"])):
            try:
                load_recipe(where, overrides)
                message = "no error"
            except RecipeError as error:
                message = str(error)
            # As a value of the command line, keys are within it, and repeat nothing.
            assert expected in message or overrides, (text[:50], message[:300])
            assert len(message) < 3000, (text[:50], message[:300])
            count += 1
try:
    load_recipe("/dev/zero")
    message = "no error"
except RecipeError as error:
    message = str(error)
assert "bytes, so this is no recipe" in message, message
print(count, "bombs")
"""


def test_a_bomb_is_an_error_in_bounded_memory(tmp_path: Path, tiny_random_model: Path) -> None:
    good = write_recipe(tmp_path, tiny_random_model)
    command = [sys.executable, "-c", BOMBS, str(tmp_path / "bomb.yaml"), str(good)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "42 bombs\n"


Bend = Callable[[Path, Path], None]


class Bait:
    """Unpickling it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def edit_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def with_code(folder: Path, canary: Path) -> None:
    """Python files of the model's own, beside an architecture and a tokenizer that transformers knows."""
    code = f"import os\nos.system('touch {canary}')\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n"
    (folder / "bait.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(*args, **kwargs): pass\n")
    auto_map = {"AutoConfig": "bait.Config", "AutoModel": "bait.Model", "AutoModelForCausalLM": "bait.Model"}
    edit_json(folder / "config.json", auto_map=auto_map)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["bait.Tokenizer", "bait.Tokenizer"]})


def with_foreign_tokenizer(folder: Path, canary: Path) -> None:
    with_code(folder, canary)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Tokenizer")


def with_foreign_architecture(folder: Path, canary: Path) -> None:
    with_code(folder, canary)
    edit_json(folder / "config.json", model_type="bait", architectures=["Model"])
    edit_json(folder / "tokenizer_config.json", auto_map={})


def with_pickle_only(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bait(canary)))


def with_pickle_beside(folder: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "consolidated.pth"):
        (folder / name).write_bytes(pickle.dumps(Bait(canary)))


def with_false_safetensors(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bait(canary)))


def with_pickled_adapter(folder: Path, canary: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter | {"auto_mapping": {"parent_library": "bait"}}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bait(canary)))


def with_template_code(folder: Path, canary: Path) -> None:
    (folder / "chat_template.jinja").write_text(template(canary))


def template(canary: Path) -> str:
    # Jinja's own `cycler` leads to the module that it was made in, and that to `os`.
    return f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}{{{{ messages[0].content }}}}"


def through_check(recipe: Recipe) -> None:
    preflight(recipe)


def through_the_tokenizer(recipe: Recipe) -> None:
    from selfreward.text.chat import ChatEncoder, load_tokenizer

    ChatEncoder(load_tokenizer(recipe.model.path, recipe.model)).encode(MESSAGES)


def through_training(recipe: Recipe) -> None:
    from selfreward.training.common import load_model

    load_model(recipe.model.path, Run(recipe.run_dir / recipe.name, recipe))


def through_transformers(recipe: Recipe) -> None:
    sample_with("transformers", recipe, {})


def through_vllm(recipe: Recipe) -> None:
    sample_with("vllm", recipe, {"max_model_len": 64})


def sample_with(name: str, recipe: Recipe, options: dict[str, Any]) -> None:
    from selfreward.engines import SamplingParams

    settings = EngineSettings(name=name, vllm=options)
    engine = registry.load(name, registry.ENGINES, "engine")(recipe.model.path, recipe.model, settings)
    try:
        asyncio.run(engine.generate(MESSAGES, SamplingParams(0.0, 1.0, 2), [0]))
    finally:
        engine.close()


THROUGH = {
    "check": through_check,
    "tokenizer": through_the_tokenizer,
    "training": through_training,
    "transformers": through_transformers,
    "vllm": through_vllm,
}
# What each way of loading says to each bait. None: the model loads, and the bait stays where it is.
ANSWERS: list[tuple[Bend, dict[str, str | None]]] = [
    (with_code, dict.fromkeys(THROUGH)),
    (
        with_foreign_tokenizer,
        {"check": None, "tokenizer": "custom code", "training": None, "transformers": "custom code"},
    ),
    (with_foreign_architecture, {"check": None, "training": "custom code", "vllm": "custom code"}),
    (with_pickle_only, {"check": "no \\*.safetensors", "training": "safetensors", "transformers": "safetensors"}),
    (with_pickle_only, {"vllm": "Cannot find any model weights"}),
    (with_pickle_beside, {"check": None, "training": None, "transformers": None}),
    (with_false_safetensors, dict.fromkeys(["training", "transformers", "vllm"], "(?i)header|safetensors")),
    (with_pickled_adapter, dict.fromkeys(["training", "transformers"], "adapter_model.safetensors")),
    (with_template_code, dict.fromkeys(["tokenizer", "transformers"], "is unsafe")),
]
CASES = [(bend, through, answer) for bend, answers in ANSWERS for through, answer in answers.items()]


@pytest.mark.parametrize(("bend", "through", "answer"), CASES)
def test_bait_in_a_model_runs_nothing(
    tmp_path: Path, tiny_random_model: Path, bend: Bend, through: str, answer: str | None
) -> None:
    canary = tmp_path / "canary"
    folder = shutil.copytree(tiny_random_model, tmp_path / "model")
    bend(folder, canary)
    recipe = load_recipe(write_recipe(tmp_path, folder))
    if answer is None:
        THROUGH[through](recipe)
    else:
        # Some of these errors are the libraries' own.
        with pytest.raises(Exception, match=answer):
            THROUGH[through](recipe)
    assert not canary.exists()


CONTROL = """
import pickle, sys
from jinja2 import Environment
from selfreward.text.chat import load_tokenizer
from selfreward.recipe.engine_settings import ModelSettings

kind, path = sys.argv[1:]
if kind == "code":
    try:
        load_tokenizer(path, ModelSettings(path=path, trust_remote_code=True))
    except Exception as error:
        print(error)
elif kind == "template":
    Environment().from_string(open(path + "/chat_template.jinja").read()).render(messages=[{}])
else:
    pickle.load(open(path + "/pytorch_model.bin", "rb"))
"""


@pytest.mark.parametrize(
    ("kind", "bend"),
    [
        ("code", with_foreign_tokenizer),
        ("template", with_template_code),
        ("pickle", with_pickle_only),
    ],
)
def test_the_bait_would_bite(tmp_path: Path, tiny_random_model: Path, kind: str, bend: Bend) -> None:
    folder = shutil.copytree(tiny_random_model, tmp_path / "model")
    bend(folder, tmp_path / "canary")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CONTROL, kind, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (tmp_path / "canary").exists(), result.stdout + result.stderr


def test_bait_in_data_is_text(tmp_path: Path, tiny_random_model: Path) -> None:
    from datasets import Dataset

    from selfreward.prompts.dataset import read_tasks

    canary = tmp_path / "canary"
    call = {"__reduce__": ["os.system", [f"touch {canary}"]], "__class__": "os.system", "_target_": "os.system"}
    rows = [{"prompt": f"__import__('os').system('touch {canary}')", **call}]
    rows += [{"messages": [{"role": "user", "content": template(canary), **call}]}]
    recipe = load_recipe(write_recipe(tmp_path, tiny_random_model))
    recipe.prompts.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks, _ = read_tasks(recipe.prompts)
    prompts = [task.prompt for task in tasks]
    assert [prompt.text for prompt in prompts] == [rows[0]["prompt"], template(canary)]
    assert Dataset.from_list([json.loads(prompt.to_json()) for prompt in prompts]).num_rows == 2
    assert not canary.exists()
