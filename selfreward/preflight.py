"""What can be known before a model is loaded: files, names, data lines, and the plan. No torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from selfreward import registry, upstream
from selfreward.config import ModelSettings, Recipe
from selfreward.judges.load import load_judge
from selfreward.plan import Step, plan
from selfreward.prompts.dataset import read_demonstrations, read_graded, read_held_out, read_prompts


def preflight(recipe: Recipe) -> None:
    """Checks everything that would otherwise fail hours into a run.

    Raises:
        ValueError: a name that nothing is registered under, a template without its places, a bad line in a
            data file, or a local model without config, weights or chat template.
    """
    for engine in (recipe.engine, recipe.judge.engine):
        if engine is not None:
            registry.locate(engine.name, registry.ENGINES, "engine")
    registry.load(recipe.selection.name, registry.SELECTORS, "selector")
    if recipe.evaluation.scorer is not None:
        registry.load(recipe.evaluation.scorer, {}, "scorer")
    load_judge(recipe)
    registry.load(recipe.prompts.source, registry.PROMPT_SOURCES, "prompt source")(recipe.prompts).prompts(1)
    if recipe.seed_data is not None:
        read_demonstrations(recipe.seed_data.ift)
        read_graded(recipe.seed_data.eft)
    if recipe.evaluation.prompts is not None:
        read_held_out(recipe)
    if recipe.evaluation.judging is not None:
        read_graded(recipe.evaluation.judging)
    _check_model("model", recipe.model)
    if recipe.judge.model is not None:
        _check_model("judge.model", recipe.judge.model)


def require_engine(recipe: Recipe) -> None:
    """Refuses to start a run whose engine is not installed, which would come out after the seed stage only."""
    names = {engine.name for engine in (recipe.engine, recipe.judge.engine) if engine is not None}
    if "vllm" in names and importlib.util.find_spec("vllm") is None:
        raise ValueError(
            'engine.name is vllm, which is not installed. Install it (pip install "selfreward[vllm]"), '
            "or set engine.name to transformers"
        )


def _check_model(key: str, settings: ModelSettings) -> None:
    folder = Path(settings.path)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{key}.path: {folder} has no config.json, so it is not a model folder")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"{key}.path: {folder} has no *.safetensors. Other formats can run code when they are loaded: "
            "convert the weights with save_pretrained"
        )
    for path in folder.glob("*.safetensors"):
        _check_weights(key, path)
    if settings.chat_template is None and not _has_template(folder):
        raise ValueError(
            f"{key}.path: the tokenizer in {folder} has no chat template. Set {key}.chat_template to a Jinja file: "
            "the template that the model was tuned with"
        )


def _check_weights(key: str, path: Path) -> None:
    """Safetensors start with the length of a JSON header; a pickle, whatever its name, doesn't."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = file.read(1)
    if start != b"{" or length > path.stat().st_size:
        raise ValueError(f"{key}.path: {path} is not in the safetensors format, whatever its name says")


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def describe(recipe: Recipe) -> str:
    """The plan of a run in words: models, stages, reference, and what each trains with."""
    model = f"{recipe.model.path} ({recipe.model.dtype})"
    if recipe.model.trust_remote_code:
        model += ", RUNNING THE CODE THAT COMES WITH IT (model.trust_remote_code)"
    lines = [f"run        {recipe.name}, in {recipe.run_dir / recipe.name}", f"model      M0 = {model}"]
    if recipe.seed_data is None:
        lines.append("seed       none: M1 = M0")
    else:
        lines.append(f"seed       SFT on {recipe.seed_data.ift.name} and {recipe.seed_data.eft.name} makes M1")
    responses, judge = recipe.responses, recipe.judge
    num = recipe.prompts.num or len(read_prompts(recipe.prompts)[0])
    own = judge.engine is None and judge.model is None
    lines += [
        f"loop       {recipe.iterations} iterations: M1 to M{recipe.iterations + 1}",
        f"prompts    {num} an iteration, from {recipe.prompts.source}",
        f"responses  {responses.n} a prompt by M_t on {recipe.engine.name}, temperature {responses.temperature}, "
        f"top_p {responses.top_p}: {num * responses.n} an iteration",
        f"judge      {judge.name}, {judge.votes} votes by {'M_t itself' if own else 'another model'}: "
        f"{num * responses.n * judge.votes} judgements an iteration",
        f"pairs      {recipe.selection.name}",
        f"train      DPO with a fresh LoRA on M_t; the reference is M_t (previous model); "
        f"{_options(recipe.training.dpo)}",
        "merge      in float32, one cast to the model's dtype: M_{t+1}",
        f"steps      {_steps(plan(recipe))}",
    ]
    missing = upstream.not_installed()
    if missing:
        lines.append(f"not checked: the options of {', '.join(missing)}, which is not installed here")
    return "\n".join(lines)


def _options(options: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "the paper's settings"


def _steps(steps: Sequence[Step]) -> str:
    iterations = sorted({step.iteration for step in steps})
    words = [
        f"{'seed' if t == 0 else f'iter_{t}'}: {' '.join(step.stage for step in steps if step.iteration == t)}"
        for t in iterations
    ]
    return "; ".join(words)
