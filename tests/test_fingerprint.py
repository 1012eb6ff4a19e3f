"""What a change of the recipe, the data or the weights touches: the right stages, and no other."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_random_model
from safetensors.torch import load_file, save_file

import selfreward
from selfreward.recipe import upstream
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.recipe.loader import submodel
from selfreward.recipe.recipe import Recipe
from selfreward.runs.fingerprint import NO_RESULT, NO_RESULT_OPTIONS
from selfreward.runs.history import stale
from selfreward.runs.model_files import fetch, model_hash
from selfreward.runs.run import Run
from selfreward.runs.stages import STAGES, Step

JUDGE_READERS = {"judgements/1", "pairs/1", "evaluate/0"}
ALL_READERS = {"train/0", *JUDGE_READERS}
SCORE_READERS = JUDGE_READERS - {"judgements/1"}
SEED = ["train/0"]
MADE = [f"{stage}/{t}" for t in (1, 2) for stage in ("responses", "judgements", "pairs", "train")]
EVALUATED = [f"evaluate/{t}" for t in (0, 1, 2)]
PROMPTS = ["prompts/1", "prompts/2"]
FIRST = [f"{stage}/1" for stage in ("responses", "judgements", "pairs", "train")]
ALL_BUT_PROMPTS = {*SEED, *MADE, *EVALUATED}


def after(stage: str) -> set[str]:
    """A stage of each iteration, with all that reads it."""
    first = FIRST[FIRST.index(f"{stage}/1") :]
    return {*first, *MADE[4:], *EVALUATED[1:]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a finished run of two iterations that reads every kind of file."""
    folder = tmp_path_factory.mktemp("made")
    model = make_random_model(folder / "model", seed=0)
    tasks = [f"Name {n} animals." for n in ("one", "two", "three", "four")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in tasks))
    (folder / "heldout.jsonl").write_text("".join(json.dumps({"prompt": t + "!"}) + "\n" for t in tasks))
    rows = [{"prompt": t, "response": "fox owl", "judgement": f"two\nScore: {n}"} for n, t in enumerate(tasks)]
    for name in ("ift", "eft", "judging"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    template = (model / "chat_template.jinja").read_text()
    (folder / "chat.jinja").write_text(template)
    path = folder / "run.yaml"
    path.write_text(f"""
name: test
run_dir: {folder}/runs
iterations: 2
model: {{path: model, dtype: float32, chat_template: chat.jinja}}
seed_data: {{ift: ift.jsonl, eft: eft.jsonl}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 4}}
judge: {{template: judge.txt, votes: 1}}
training:
  sft: {{max_steps: 1, learning_rate: 1e-3}}
  dpo: {{max_steps: 1, learning_rate: 1e-3, per_device_train_batch_size: 4, gradient_checkpointing: false}}
engine: {{name: "scripts:Numbers"}}
evaluation: {{prompts: heldout.jsonl, judging: judging.jsonl}}
""")
    selfreward.run(selfreward.load_recipe(path))
    return path


def touched(made: Path, *overrides: str) -> set[str]:
    """The finished stages that the recipe with these edits would make otherwise."""
    recipe = selfreward.load_recipe(made, list(overrides))
    return {f"{step.stage}/{step.iteration}" for step in stale(Run(made.parent / "runs" / "test", recipe))}


def test_nothing_is_stale_in_a_run_that_just_finished(made: Path) -> None:
    assert touched(made) == set()


# Settings of prompts alone. All of them touch prompts, also those of a source that is not the recipe's.
OF_PROMPTS = {
    "num": "2",
    "split": "test",
    "license": "cc0-1.0",
    "by": "seed",
    "generation.temperature": "0.5",
    "generation.top_p": "0.9",
    "generation.max_tokens": "8",
    "self_instruct.presence_penalty": "0.5",
    "self_instruct.variant": "alpaca",
    "self_instruct.human": "3",
    "self_instruct.machine": "3",
    "self_instruct.tasks": "3",
    "self_instruct.instances": "3",
    "self_instruct.numbered": "false",
    "self_instruct.requests": "3",
    "self_instruct.patience": "3",
    "self_instruct.template": "{folder}/judge.txt",
    "self_instruct.template_variants": "3",
    "self_instruct.template_budget": "3",
    "evol_instruct.rounds": "3",
    "evol_instruct.breadth": "0.5",
    "evol_instruct.eliminate": "false",
    "backtranslation.min_score": "3",
    "backtranslation.max_characters": "100",
    "explain.messages": "{folder}/judge.txt",
    "curriculum.again": "0.1",
    "curriculum.evolve": "true",
    "curriculum.min_spread": "0.5",
    "curriculum.solved": "3.0",
    "filters.use": "[length]",
    "filters.length.min_words": "2",
    "filters.length.max_words": "90",
    "filters.keywords.words": "[graph]",
    "filters.language.allowed": "[de]",
    "filters.language.min_probability": "0.9",
    "filters.rouge_l.threshold": "0.9",
    "filters.rouge_l.tokens": "unicode",
    "filters.minhash.threshold": "0.9",
    "filters.minhash.ngram": "2",
    "filters.minhash.num_perm": "256",
    "filters.embedding.model": "{folder}/model",
    "filters.embedding.threshold": "0.9",
    "filters.novelty.ngram": "1",
    "filters.novelty.min_new": "0.5",
    "filters.decontamination.path": "{folder}/heldout.jsonl",
    "filters.decontamination.columns": "{{prompt: question}}",
    "filters.decontamination.ngram": "8",
    "filters.toxicity.words": "{folder}/judge.txt",
    "filters.toxicity.function": "selfreward.tiny.world:gold",
    "filters.toxicity.threshold": "0.9",
    "filters.personal_data.kinds": "[iban]",
    "filters.personal_data.region": "US",
}
# Each setting with another value, and the stages that it touches.
EDITS: dict[str, tuple[str, set[str]]] = {
    "name": ("other", set()),
    "run_dir": ("elsewhere", set()),
    "iterations": ("7", set()),
    "seed": ("1", ALL_BUT_PROMPTS),
    "model.revision": ("main", set()),
    "model.dtype": ("bfloat16", ALL_BUT_PROMPTS),
    "model.chat_template": ("null", ALL_BUT_PROMPTS),
    "model.trust_remote_code": ("true", ALL_BUT_PROMPTS),
    **{f"prompts.{name}": (value, {*PROMPTS, *after("responses")}) for name, value in OF_PROMPTS.items()},
    "prompts.filters.embedding.revision": ("main", set()),
    "prompts.filters.embedding.device": ("cuda", set()),
    "prompts.columns": ("{{prompt: question}}", {*PROMPTS, *MADE, *EVALUATED}),
    "prompts.max_characters": ("100", {*PROMPTS, *MADE, *EVALUATED}),
    "prompts.on_bad_line": ("skip", {*PROMPTS, *MADE, *EVALUATED}),
    "responses.temperature": ("0.5", {*after("responses"), *EVALUATED}),
    "responses.top_p": ("0.5", {*after("responses"), *EVALUATED}),
    "responses.max_tokens": ("8", {*after("responses"), *EVALUATED}),
    "responses.n": ("5", after("responses")),
    "responses.on_empty": ("keep", after("pairs")),
    "responses.on_truncated": ("keep", after("pairs")),
    "responses.on_duplicate": ("drop", after("pairs")),
    "judge.name": ("scripts:AnyText", {*SEED, *MADE, *EVALUATED}),
    "judge.votes": ("2", {*after("judgements"), *EVALUATED}),
    "judge.template": ("null", {*SEED, *MADE, *EVALUATED}),
    "judge.min_score": ("1", {*SEED, *MADE, *EVALUATED}),
    "judge.max_score": ("9", {*SEED, *MADE, *EVALUATED}),
    "judge.temperature": ("0.5", {*after("judgements"), *EVALUATED}),
    "judge.top_p": ("0.5", {*after("judgements"), *EVALUATED}),
    "judge.max_tokens": ("8", {*after("judgements"), *EVALUATED}),
    "judge.min_parse_rate": ("0.1", set()),
    "judge.reference": ("answer", {*SEED, *MADE, *EVALUATED}),
    "selection.name": ("selfreward.selection:best_worst", after("pairs")),
    "selection.min_margin": ("0.5", after("pairs")),
    "selection.top": ("3", after("pairs")),
    "selection.bottom": ("3", after("pairs")),
    "selection.length_rho": ("[0.0, 0.2]", {"pairs/2", "train/2", "evaluate/2"}),
    "selection.max_per_prompt": ("1", after("pairs")),
    "selection.max_per_source": ("1", after("pairs")),
    # What begins with iteration 2 leaves iteration 1 as it was, but for settings that decide what a pair is.
    "selection.anchored": ("true", after("pairs")),
    "selection.implicit_agreement": ("true", after("pairs")),
    "selection.lookahead": ("true", after("pairs")),
    "training.reference": ("seed", {"train/2", "evaluate/2"}),
    "training.consistency": ("pair", {"pairs/2", "train/2", "evaluate/2"}),
    "training.replay": ("0.5", after("train")),
    "training.load_in_4bit": ("true", after("train")),
    "training.rehearsal": ("0.5", after("train")),
    "engine.name": ("transformers", {*after("responses"), *EVALUATED}),
    "engine.max_in_flight": ("7", set()),
    "engine.max_restarts": ("7", set()),
    "engine.stall_timeout": ("7.5", set()),
    "engine.transformers.batch_size": ("7", set()),
    "evaluation.n": ("3", set(EVALUATED)),
    "evaluation.scorer": ("selfreward.tiny.world:gold", set(EVALUATED)),
    "evaluation.canaries": ("2", set(EVALUATED)),
    "health.action": ("halt", set()),
    "health.max_length_ratio": ("7.5", set()),
    "health.min_distinct": ("0.3", set()),
    "health.max_tied": ("0.3", set()),
    "health.max_canary_rate": ("0.3", set()),
    "health.min_accepted": ("0.3", set()),
    "health.max_diversity_drop": ("0.3", set()),
    "launch.train": ("process", set()),
    "launch.launcher": ("local", set()),
    "launch.replicas": ("2", set()),
    "launch.processes": ("2", set()),
    "launch.max_restarts": ("7", set()),
    "launch.keep_engine": ("false", set()),
    "launch.grace": ("7", set()),
    "launch.private": ("false", set()),
    "tracking.report_to": ("[tensorboard]", set()),
    "tracking.project": ("other", set()),
}
# Settings that can only be changed with others, each with all that is typed.
TOGETHER: dict[str, tuple[list[str], set[str]]] = {
    **{
        f"prompts.{name}": ([f"prompts.{override}" for override in overrides], {*PROMPTS, *after("responses")})
        for name, overrides in {
            "source": ["source=selfreward.prompts.dataset:DatasetSource", "num=4"],
            "hub": ["path=null", "hub={folder}/model"],
            "subset": ["path=null", "hub={folder}/model", "subset=other"],
            "revision": ["path=null", "hub=owner/name", "revision=0123abc"],
            "streaming": ["streaming=true", "num=2"],
            "parts": ["path=null", "source=mixture", "num=2", "parts=[{{path: {folder}/prompts.jsonl}}]"],
            "model": ["by=teacher", "model={{path: {folder}/model}}"],
            "engine": ["by=teacher", "engine={{name: openai, openai: {{base_url: http://a/v1, model: m}}}}"],
        }.items()
    },
    "evaluation.pass_score": (
        ["evaluation.scorer=selfreward.tiny.world:gold", "evaluation.pass_score=4"],
        set(EVALUATED),
    ),
    "launch.accelerate_config": (
        ["launch.train=accelerate", "launch.accelerate_config=configs/accelerate/ddp.yaml"],
        set(),
    ),
    "judge.engine": (
        ["judge.engine.name=openai", "judge.engine.openai.base_url=http://localhost/v1", "judge.engine.openai.model=m"],
        {*after("judgements"), *EVALUATED},
    ),
    "responses.principles": (
        ["responses.principles={folder}/judge.txt"],
        after("responses"),
    ),
    "responses.revisions": (
        ["responses.principles={folder}/judge.txt", "responses.revisions=2"],
        after("responses"),
    ),
    "selection.pass_score": (
        ["selection.name=correct_incorrect", "selection.pass_score=4"],
        after("pairs"),
    ),
    "training.schedule": (
        ["training.schedule={{beta: [0.1, 0.2]}}"],
        after("train"),
    ),
    "meta": (
        ["judge.votes=2", "meta={{max_tokens: 8}}"],
        {*after("judgements"), *EVALUATED},
    ),
    "judge.model": (
        ["judge.model.path={folder}/model"],
        {*after("judgements"), *EVALUATED},
    ),
    "training.rehearsal": (
        ["training.rehearsal=0.5", "training.dpo.loss_type=[sigmoid,sft]"],
        after("train"),
    ),
}
ENSEMBLE = ["judge.name=ensemble", "judge.template=null", "judge.members=[{{name: yes_no}}]"]
# Settings of one judge: the recipe that has it, an edit, and the stages that read something else then.
OF_A_JUDGE: dict[str, tuple[list[str], str, set[str]]] = {
    "judge.criteria": (["judge.name=rubric", "judge.criteria={folder}/judge.txt"], "{folder}/chat.jinja", ALL_READERS),
    "judge.expected.think": (["judge.name=expected_score"], "false", ALL_READERS),
    "judge.pairwise.matches": (["judge.name=pairwise"], "swiss", JUDGE_READERS),
    "judge.pairwise.rounds": (["judge.name=pairwise"], "7", JUDGE_READERS),
    "judge.pairwise.disagreement": (["judge.name=pairwise"], "drop", JUDGE_READERS),
    "judge.pairwise.think": (["judge.name=pairwise"], "false", ALL_READERS),
    "judge.pairwise.labels": (["judge.name=pairwise"], "[one, two]", ALL_READERS),
    "judge.rubric.together": (["judge.name=rubric", "judge.criteria={folder}/judge.txt"], "true", ALL_READERS),
    "judge.verifier.function": (["judge.name=verifier"], "regex", JUDGE_READERS),
    "judge.verifier.options": (["judge.name=verifier"], "{{pattern: a}}", JUDGE_READERS),
    "judge.combine": (
        ENSEMBLE,
        "rank",
        SCORE_READERS,
    ),
    "judge.members": (
        ENSEMBLE,
        "[{{name: pairwise}}]",
        ALL_READERS,
    ),
    # Of a member: how it is asked, and where.
    "judge.members.votes": (
        ["judge.name=ensemble", "judge.template=null", "judge.members=[{{name: additive}}]"],
        "[{{name: additive, votes: 2}}]",
        JUDGE_READERS,
    ),
    "judge.members.weight": (
        ENSEMBLE,
        "[{{name: yes_no, weight: 2.0}}]",
        SCORE_READERS,
    ),
    "judge.members.parse_rate": (
        ["judge.name=ensemble", "judge.template=null", "judge.members=[{{name: additive}}]"],
        "[{{name: additive, min_parse_rate: 0.1}}]",
        set(),
    ),
}
# Files and options have tests of their own below.
ELSEWHERE = {
    *("model.path", "prompts.path", "seed_data.ift", "seed_data.eft", "evaluation.prompts", "evaluation.judging"),
    *("training.sft", "training.dpo", "training.lora", "engine.vllm", "engine.openai", "seed_data"),
}


WHOLE = (
    *("engine.openai", "judge.engine", "judge.model", "judge.members", "meta"),
    *("prompts.engine", "prompts.model", "prompts.parts"),
)


def names(model: type = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = submodel(field)
        whole_block = inner is None or prefix + name in (*WHOLE, "seed_data")
        if whole_block:
            yield prefix + name
        if inner is not None and prefix + name not in WHOLE:
            yield from names(inner, f"{prefix}{name}.")


def test_every_setting_of_the_recipe_is_edited_here() -> None:
    of_a_judge = {name for name in OF_A_JUDGE if not name.startswith("judge.members.")}
    assert set(names()) == {*EDITS, *TOGETHER, *ELSEWHERE, *of_a_judge}


@pytest.mark.parametrize("setting", [name for name in EDITS if name not in TOGETHER])
def test_an_edit_touches_the_right_stages(made: Path, setting: str) -> None:
    value, expected = EDITS[setting]
    assert touched(made, f"{setting}={value.format(folder=made.parent)}") == expected


@pytest.mark.parametrize("setting", sorted(TOGETHER))
def test_edits_that_go_together_touch_the_right_stages(made: Path, setting: str) -> None:
    edits, expected = TOGETHER[setting]
    assert touched(made, *(edit.format(folder=made.parent) for edit in edits)) == expected


@pytest.mark.parametrize("setting", sorted(OF_A_JUDGE))
def test_a_setting_of_one_judge_is_read_by_the_right_stages(made: Path, setting: str) -> None:
    base, value, expected = OF_A_JUDGE[setting]
    edit = ".".join(setting.split(".")[:2]) if setting.startswith("judge.members") else setting
    before = [override.format(folder=made.parent) for override in base]
    after = [*before, f"{edit}={value.format(folder=made.parent)}"]
    steps = [Step(*each) for each in (("train", 0), ("evaluate", 0), ("judgements", 1), ("pairs", 1), ("train", 1))]

    def settings(overrides: list[str]) -> dict[str, dict[str, object]]:
        run = Run(made.parent / "runs" / "test", selfreward.load_recipe(made, overrides))
        return {f"{step.stage}/{step.iteration}": run.reads(step)["settings"] for step in steps}

    one, other = settings(before), settings(after)
    assert {name for name in one if one[name] != other[name]} == expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("training.sft.learning_rate=2e-3", {*SEED, *MADE, *EVALUATED}),
        ("training.dpo.beta=0.2", after("train")),
        ("training.dpo.max_length=512", after("pairs")),
        ("training.lora.r=4", after("train")),
        ("engine.vllm.max_model_len=64", {*after("responses"), *EVALUATED}),
        ("training.dpo.logging_steps=7", set()),
        ("training.dpo.save_steps=7", set()),
        ("training.sft.dataloader_num_workers=1", set()),
        ("engine.vllm.max_num_seqs=7", set()),
        ("engine.vllm.gpu_memory_utilization=0.5", set()),
    ],
)
def test_an_option_of_a_library_touches_the_right_stages(made: Path, option: str, expected: set[str]) -> None:
    assert touched(made, option) == expected


def _edit_text(path: Path) -> None:
    path.write_text(path.read_text().replace("two", "2", 1) + " ")


def _edit_weights(path: Path) -> None:
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name][0] += 1
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("prompts.jsonl", {*PROMPTS, *MADE, *EVALUATED} - {"evaluate/0"}),
        ("ift.jsonl", ALL_BUT_PROMPTS),
        ("eft.jsonl", ALL_BUT_PROMPTS),
        ("judge.txt", ALL_BUT_PROMPTS),
        ("chat.jinja", ALL_BUT_PROMPTS),
        ("heldout.jsonl", set(EVALUATED)),
        ("judging.jsonl", set(EVALUATED)),
        ("model/model.safetensors", ALL_BUT_PROMPTS),
        ("model/tokenizer.json", ALL_BUT_PROMPTS),
        ("model/chat_template.jinja", ALL_BUT_PROMPTS),
        ("model/config.json", ALL_BUT_PROMPTS),
    ],
)
def test_changed_bytes_under_the_same_path_are_seen(made: Path, file: str, expected: set[str]) -> None:
    path = made.parent / file
    before, times = path.read_bytes(), path.stat()
    try:
        (_edit_weights if path.suffix == ".safetensors" else _edit_text)(path)
        # The time of modification can be set back; the bytes tell nevertheless.
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert touched(made) == expected
    finally:
        path.write_bytes(before)
    assert touched(made) == set()


def test_a_setting_is_read_by_a_stage_or_declared_to_touch_no_result() -> None:
    recipe = selfreward.load_recipe("recipes/quickstart/run.yaml")
    declared = {name for stage in STAGES.values() for t in (0, 1) for name in stage.settings(recipe, t)} | set(
        NO_RESULT
    )
    unknown = {
        n for n in names() if not any(n == d or n.startswith(f"{d}.") or d.startswith(f"{n}.") for d in declared)
    }
    assert unknown == set()


def test_options_that_touch_no_result_are_options() -> None:
    known = {name for source in (upstream.SFT, upstream.DPO, upstream.VLLM) for name in upstream.fields(source) or {}}
    assert set(NO_RESULT_OPTIONS) <= known


def test_a_change_that_touches_a_finished_stage_is_refused_with_the_ways_out(made: Path) -> None:
    with pytest.raises(ValueError, match="would make otherwise") as refused:
        selfreward.run(selfreward.load_recipe(made, ["training.dpo.beta=0.2"]))
    run = made.parent / "runs" / "test"
    assert str(refused.value).splitlines() == [
        f"{run} has finished stages that this recipe would make otherwise, and a run is never overwritten.",
        "What differs:",
        "  training.dpo.beta: None -> 0.2",
        "Stages it touches: iteration 1: train, iteration 1: evaluate, iteration 2: responses, "
        "iteration 2: judgements, iteration 2: pairs, iteration 2: train, iteration 2: evaluate",
        "Go on with one of:",
        "  the same command with --remake",
        "      sets these stages aside, and makes them anew",
        "  the same command with --from-iteration 1",
        "      sets aside all of iteration 1 and what follows, and makes them anew",
        f"  selfreward fork {run} --iteration 1 --to NAME training.dpo.beta=0.2",
        "      makes a new run, which shares what is before",
        f"  selfreward resume {run}",
        "      goes on with the recipe that the run has",
    ]


def test_a_hub_models_bytes_are_those_of_its_local_copy(made: Path, tmp_path: Path, monkeypatch) -> None:
    """The cache of the hub, as its client lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(made.parent / "model", cached / "snapshots" / ("0" * 40))
    here, there = ModelSettings(path=str(made.parent / "model")), ModelSettings.model_construct(path="someone/model")
    assert model_hash(there) == model_hash(here) != "missing"
    fetch(there)
    _edit_weights(cached / "snapshots" / ("0" * 40) / "model.safetensors")
    assert model_hash(there) != model_hash(here)
    with pytest.raises(ValueError, match="someone/other is no folder here, nor a hub model that can be loaded"):
        fetch(ModelSettings.model_construct(path="someone/other"))
