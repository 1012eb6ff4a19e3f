"""What can be known before a model is loaded: files, names, data lines, and the plan. No torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from selfreward.judges import BoundJudge, panel_of
from selfreward.judges.expected_score import labels
from selfreward.prompts.base import source_of
from selfreward.prompts.dataset import read_held_out, read_tasks
from selfreward.prompts.filters.base import Filters
from selfreward.prompts.seed_data import read_demonstrations, read_graded
from selfreward.recipe import registry, upstream
from selfreward.recipe.engine_facts import engine_facts
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.recipe.judge_settings import SelectionSettings
from selfreward.recipe.prompt_settings import PromptSettings
from selfreward.recipe.recipe import Recipe
from selfreward.runs.plan import plan
from selfreward.runs.stages import STAGES, Step
from selfreward.stages.revision import Constitution
from selfreward.training.quantized import require_quantization


def preflight(recipe: Recipe) -> None:
    """Checks everything that would otherwise fail hours into a run.

    Raises:
        ValueError: a name that nothing is registered under, a template without its places, a bad line in a
            data file, or a local model without config, weights or chat template.
    """
    judges = (recipe.judge, *recipe.judge.members)
    for engine in (recipe.engine, *(judge.engine for judge in judges)):
        if engine is not None:
            registry.locate(engine.name, registry.ENGINES, "engine")
    panel = panel_of(recipe)
    if recipe.meta is not None:
        from selfreward.judges.meta_judge import MetaJudge

        MetaJudge(recipe.meta, recipe.judge)
    if recipe.responses.principles is not None:
        Constitution(recipe.responses)
    if recipe.iterations:
        check_prompts(recipe.prompts, recipe.evaluation.prompts)
    if recipe.seed_data is not None:
        read_demonstrations(recipe.seed_data.ift)
    if recipe.seed_data is not None and recipe.seed_data.eft is not None:
        panel.examples(read_graded(recipe.seed_data.eft))
    if recipe.evaluation.prompts is not None:
        read_held_out(recipe.evaluation, recipe.prompts)
    if recipe.evaluation.judging is not None:
        labels(read_graded(recipe.evaluation.judging), recipe.judge)
    _check_models(recipe)


def _check_models(recipe: Recipe) -> None:
    judges = (recipe.judge, *recipe.judge.members)
    every = [
        ("model", recipe.model),
        *(("judge.model", judge.model) for judge in judges),
        *(("prompts.model", source.model) for source in recipe.prompts.sources),
    ]
    for key, model in every:
        if model is not None:
            check_model(key, model)


def check_prompts(settings: PromptSettings, held_out: Path | None) -> None:
    """Reads the rows that prompts come from, and makes the filters, as the stage will.

    Raises:
        ValueError: bad rows, an unknown name, or a file or library that a filter lacks.
    """
    source_of(settings).check()
    for source in settings.sources:
        if source.engine is not None:
            registry.locate(source.engine.name, registry.ENGINES, "engine")
    Filters(settings.filters, settings.filter_names, held_out)


def require_engine(recipe: Recipe) -> None:
    """Refuses to start a run whose engine, or library for four bits, is missing: the seed stage would come first."""
    require_quantization(recipe)
    if all(STAGES[step.stage].trains for step in plan(recipe)):
        return
    for name in dict.fromkeys(engine.name for engine in recipe.engines):
        library = engine_facts(name).library
        if library is not None and importlib.util.find_spec(library) is None:
            raise ValueError(
                f'engine.name is {name}, which is not installed. Install it (pip install "selfreward[{library}]"), '
                "or set engine.name to transformers"
            )


def check_model(key: str, settings: ModelSettings) -> None:
    """Raises ValueError, which begins with ``key``, for a local folder that is no model with a chat template."""
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
        eft = recipe.seed_data.eft
        lines.append(f"seed       SFT on {recipe.seed_data.ift.name}{f' and {eft.name}' if eft else ''} makes M1")
    responses, judge = recipe.responses, recipe.judge
    code = [f"code       {line}" for line in _foreign(recipe)]
    if not recipe.iterations:
        return "\n".join([*lines, f"steps      {_steps(plan(recipe))}", *code])
    num = recipe.prompts.num or len(read_tasks(recipe.prompts)[0])
    lines += [
        f"loop       {recipe.iterations} iterations: M1 to M{recipe.iterations + 1}",
        f"prompts    {num} an iteration, from {_sources(recipe.prompts)}",
        f"responses  {responses.n} a prompt by M_t on {recipe.engine.name}, temperature {responses.temperature}, "
        f"top_p {responses.top_p}: {num * responses.n} an iteration",
        *(f"judge      {_judge(bound, num, responses.n)}" for bound in panel_of(recipe).judges),
        *([f"combined   by {judge.combine}"] if judge.members else []),
        f"pairs      {_selection(recipe.selection)}",
        f"train      {'; '.join(_training(recipe))}",
        "merge      in float32, one cast to the model's dtype: M_{t+1}",
        f"steps      {_steps(plan(recipe))}",
        *code,
    ]
    missing = upstream.not_installed()
    if missing:
        lines.append(f"not checked: the options of {', '.join(missing)}, which is not installed here")
    return "\n".join(lines)


def _sources(settings: PromptSettings) -> str:
    """Who makes prompts of what, and which filters look at them."""
    described = [(source.source_class.describe(source), settings.filters_of(source)) for source in settings.sources]
    alike = len({tuple(names) for _, names in described}) == 1
    words = [f"{words}{'' if alike else _filtered(names)}" for words, names in described]
    if any(source.model is not None and source.model.trust_remote_code for source in settings.sources):
        words.append("RUNNING THE CODE THAT COMES WITH THE TEACHER (prompts.model.trust_remote_code)")
    words += [told for each in settings.filter_classes if (told := each.describe(settings.filters)) is not None]
    return ", ".join(words) + (_filtered(described[0][1]) if alike else "")


def _filtered(names: Sequence[str]) -> str:
    return f", filtered by {', '.join(names)}" if names else ""


def _judge(bound: BoundJudge, prompts: int, n: int) -> str:
    """Who judges and how; ``n`` responses to each of so many prompts are judged in an iteration."""
    settings, facts = bound.settings, bound.facts
    if not facts.needs:
        return f"{bound.name}{f', RUNNING {facts.runs}' if facts.runs else ''} on what the model writes, in no sandbox"
    by = "M_t itself" if bound.is_policy else settings.model.path if settings.model else "another engine"
    beside = {"none": "", "answer": ", beside an answer of its own", "prompt": ", beside the prompt's reference"}
    asked = ""
    if facts.writes:
        requests = settings.judge_class.requests(settings, n)
        num = prompts * sum(each.num for each in requests)
        asked = f", {settings.votes} votes: {num} judgements an iteration"
    return f"{bound.name} by {by}{beside[settings.reference]}{asked}"


def _foreign(recipe: Recipe) -> Iterator[str]:
    """Each class or function of the user's own that a run calls in this process, with the key that names it."""
    judges, prompts = recipe.judge.judges, recipe.prompts
    engines = (("judge.engine.name", judge.engine) for judge in judges)
    teachers = (("prompts.engine.name", source.engine) for source in prompts.sources)
    named = [
        ("engine.name", recipe.engine.name),
        *((key, engine.name) for key, engine in (*engines, *teachers) if engine is not None),
        *(("judge.name", judge.name) for judge in judges),
        *(("judge.verifier.function", judge.facts.runs) for judge in judges),
        *(("prompts.source", source.source) for source in prompts.sources),
        *(("prompts.filters.use", name) for name in prompts.filter_names),
        ("prompts.filters.toxicity.function", prompts.filters.toxicity.function),
        ("selection.name", recipe.selection.name),
        ("evaluation.scorer", recipe.evaluation.scorer),
    ]
    for key, name in dict.fromkeys(named):
        if name is not None and ":" in name:
            yield f"RUNNING {name} ({key}), in no sandbox"


def _selection(settings: SelectionSettings) -> str:
    extras = {
        "from iteration 2 on rejected from M1 where that is worse": settings.anchored,
        "chosen from a draft of M_{t+1} where that is better": settings.lookahead,
        "only where the implicit reward agrees": settings.implicit_agreement,
        f"margin {settings.min_margin:g} at least": settings.min_margin,
    }
    return ", ".join([settings.name, *(words for words, on in extras.items() if on)])


def _training(recipe: Recipe) -> Iterator[str]:
    """What an iteration trains on, and how."""
    training = recipe.training
    yield "DPO with a fresh LoRA on M_t"
    yield f"the reference is {_reference(recipe)}"
    yield _options(training.dpo)
    for name, values in training.schedule.items():
        yield f"{name} by iteration {', '.join(map(str, values))}"
    if training.consistency != "none":
        yield f"from iteration 2 on a {training.consistency} counts as far as M_{{t-1}} agrees"
    if training.replay:
        yield f"{training.replay:g} earlier pairs for each new one"
    if training.rehearsal:
        yield f"{training.rehearsal:g} judging examples for each pair"


def _reference(recipe: Recipe) -> str:
    kind, _, number = recipe.training.reference.partition(":")
    if kind == "previous":
        return "M_t (previous model)"
    name = "M1 (seed)" if kind == "seed" else f"M{int(number) + 1} from iteration {int(number) + 1} on, M_t before"
    first = recipe.training.dpo.get("precompute_ref_log_probs")
    return f"{name}, a second model in memory{' before the first step' if first else ''}"


def _options(options: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "the paper's settings"


def _steps(steps: Sequence[Step]) -> str:
    iterations = sorted({step.iteration for step in steps})
    words = [
        f"{'seed' if t == 0 else f'iter_{t}'}: {' '.join(step.stage for step in steps if step.iteration == t)}"
        for t in iterations
    ]
    return "; ".join(words)
