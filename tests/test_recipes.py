"""Every YAML that is shipped is one that the installed libraries accept."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfreward.recipe import upstream
from selfreward.recipe.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/**/run.yaml"))
ACCELERATE = sorted(ROOT.glob("configs/**/*.yaml"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def upstream_class(source: upstream.Source) -> Any:
    if source is upstream.VLLM:
        return pytest.importorskip("vllm").EngineArgs
    import peft
    import trl

    return {upstream.SFT: trl.SFTConfig, upstream.DPO: trl.DPOConfig, upstream.LORA: peft.LoraConfig}[source]


def test_there_are_recipes_and_accelerate_files() -> None:
    assert {"llama-3.1-8b-instruct", "qwen2.5-7b-instruct", "qwen2.5-0.5b-instruct"} <= {p.parent.name for p in RECIPES}
    assert {"ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "cpu_2_processes"} <= {p.stem for p in ACCELERATE}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_loads_and_is_named_as_its_folder(path: Path) -> None:
    assert load_recipe(path).name == path.parent.name


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_the_files_of_a_recipe_have_no_bad_line(path: Path) -> None:
    from selfreward.prompts.dataset import read_held_out, read_tasks

    recipe = load_recipe(path)
    prompts, _ = read_tasks(recipe.prompts)
    assert recipe.evaluation.prompts is not None
    heldout = read_held_out(recipe.evaluation, recipe.prompts)
    assert len(prompts) >= 200
    assert len(heldout) >= 50
    assert not {prompt.id for prompt in prompts} & {prompt.id for prompt in heldout}


def test_loading_recipes_imports_no_heavy_library() -> None:
    code = (
        "import json, sys; from selfreward.recipe.recipe import load_recipe; "
        "[load_recipe(path) for path in sys.argv[1:]]; "
        "print(json.dumps(sorted({'torch', 'transformers', 'trl', 'peft', 'vllm'} & set(sys.modules))))"
    )
    command = [sys.executable, "-c", code, *map(str, RECIPES)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == []


@pytest.mark.parametrize(
    "source", [upstream.SFT, upstream.DPO, upstream.LORA, upstream.VLLM], ids=lambda source: source[-1][2]
)
def test_the_names_read_from_the_source_are_the_fields_of_the_class(source: upstream.Source) -> None:
    fields = upstream.fields(source)
    assert fields is not None
    assert set(fields) == {field.name for field in dataclasses.fields(upstream_class(source))}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_upstream_takes_the_options_of_a_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    for source, options in ((upstream.SFT, recipe.training.sft), (upstream.DPO, recipe.training.dpo)):
        # Trainer arguments look for the device; bfloat16 is the model's, and no matter of the recipe's options.
        arguments = upstream_class(source)(**options, output_dir=str(tmp_path), use_cpu=True, bf16=False)
        assert all(getattr(arguments, key) == value for key, value in options.items())
    upstream_class(upstream.LORA)(**recipe.training.lora, task_type="CAUSAL_LM")
    # A folder in the model's place: for a hub name the class looks the model up.
    upstream_class(upstream.VLLM)(model=str(tmp_path), **recipe.engine.vllm)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_transformers_can_build_the_learning_rate_schedule(path: Path) -> None:
    import torch
    from transformers import get_scheduler

    for options in (load_recipe(path).training.sft, load_recipe(path).training.dpo):
        if "lr_scheduler_type" in options:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=options["learning_rate"])
            extra = options.get("lr_scheduler_kwargs", {})
            get_scheduler(options["lr_scheduler_type"], optimizer, 10, 100, scheduler_specific_kwargs=extra)


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_accelerate_takes_its_files(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    assert config.num_machines == 1


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_accelerate_knows_each_plugin_option(path: Path) -> None:
    """Unknown keys of `fsdp_config` and `deepspeed_config` are otherwise dropped in silence."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    config = load_config_from_file(str(path))
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= known
