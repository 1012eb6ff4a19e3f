"""The reference, and what else a recipe adds to DPO, against figures worked out by hand."""

import gc
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_random_model
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from test_training_resume import send
from torch.nn.functional import logsigmoid
from trainings import give_model, killed, logged, make_pairs, make_run, result, resumed_from, write_pairs, write_records
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

import selfreward
from selfreward.preflight import describe
from selfreward.recipe.loader import RecipeError
from selfreward.records import PreferencePair
from selfreward.runs.history import stale
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.serving.weight_check import read_probes
from selfreward.training.consistency import ConsistentDPOTrainer
from selfreward.training.dpo import train_iteration
from selfreward.training.examples import preference_rows, rows_by_source

SIDES = ("chosen", "rejected")
WHOLE = {"per_device_train_batch_size": 9, "max_steps": 1}
LOSSES = re.findall(r"'(\w+)'", next(f for f in fields(DPOConfig) if f.name == "loss_type").metadata["help"])


# One pair has no C, as where a model gave no scores.
CONSISTENCIES = (0.0, 0.2, None, 0.4, 0.5, 0.6, 0.7, 1.0, 0.3)
MEAN = sum(c for c in CONSISTENCIES if c is not None) / 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """M1, M2 and M3."""
    folder = tmp_path_factory.mktemp("models")
    return [make_random_model(folder / str(seed), seed) for seed in range(3)]


def third_iteration(folder: Path, models: list[Path], **settings: Any) -> Run:
    """A run whose third iteration is to be trained."""
    run = make_run(folder, models[0], iterations=3, **settings)
    for t in (2, 3):
        give_model(run, t, models[t - 1])
    return run


def trained(run: Run) -> dict[str, bytes]:
    """The bytes that the third iteration has made, but for a file that names the folder of M3."""
    return {name: content for name, content in result(run, 3).items() if not name.endswith("adapter_config.json")}


def log_probs(model: Path, pairs: Sequence[PreferencePair], side: str) -> torch.Tensor:
    """The log-probability of one side of each pair, by transformers alone."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    found = []
    for pair in pairs:
        start = tokenizer.apply_chat_template(pair.prompt, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*pair.prompt, *getattr(pair, side)], return_dict=False)
        assert ids[: len(start)] == start
        with torch.no_grad():
            every = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(sum(every[place - 1, ids[place]] for place in range(len(start), len(ids))))
    return torch.stack(found)


def rewards(policy: Path, reference: Path, pairs: Sequence[PreferencePair]) -> dict[str, torch.Tensor]:
    """With a beta of 0.1."""
    return {side: 0.1 * (log_probs(policy, pairs, side) - log_probs(reference, pairs, side)) for side in SIDES}


def margins_of(policy: Path, reference: Path, pairs: Sequence[PreferencePair]) -> torch.Tensor:
    expected = rewards(policy, reference, pairs)
    return expected["chosen"] - expected["rejected"]


def agreed_loss(margins: torch.Tensor, shares: Sequence[float | None]) -> float:
    """C of DPO's loss, and 1 - C of that of the pair turned around, in the mean of all pairs."""
    share = torch.tensor(shares)
    return float((share * -logsigmoid(margins) + (1 - share) * -logsigmoid(-margins)).mean())


REFERENCES = {"previous": 3, "seed": 1, "iteration:1": 2}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("reference", REFERENCES)
def test_dpo_is_taken_against_the_reference(tmp_path, models, reference, first) -> None:
    """The adapter changes nothing before the first step: the policy is M3."""
    run = third_iteration(tmp_path, models, reference=reference, dpo={**WHOLE, "precompute_ref_log_probs": first})
    train_iteration(run, Step("train", 3))
    expected = rewards(models[2], models[REFERENCES[reference] - 1], make_pairs(3))
    margins = expected["chosen"] - expected["rejected"]
    assert (reference == "previous") == (margins.abs().max() < 1e-5)
    for side in SIDES:
        assert logged(run, f"rewards/{side}")[1] == pytest.approx(expected[side].mean().item(), abs=1e-5)
    assert logged(run, "rewards/margins")[1] == pytest.approx(margins.mean().item(), abs=1e-5)
    assert logged(run, "loss")[1] == pytest.approx(-logsigmoid(margins).mean().item(), abs=1e-5)


def test_another_reference_leaves_the_memory_once_its_figures_are_known(tmp_path, models, monkeypatch) -> None:
    """The policy is one model; the frozen reference is another."""
    seen: list[tuple[int, int]] = []
    log = Run.log

    def count(run: Run, metrics: dict[str, Any]) -> None:
        gc.collect()
        loaded = [thing for thing in gc.get_objects() if isinstance(thing, LlamaForCausalLM)]
        trained = [model for model in loaded if any(weight.requires_grad for weight in model.parameters())]
        seen.append((len(loaded), len(trained)))
        log(run, metrics)

    monkeypatch.setattr(Run, "log", count)
    for first, loaded in ((False, 2), (True, 1)):
        dpo = {**WHOLE, "precompute_ref_log_probs": first}
        train_iteration(third_iteration(tmp_path / str(first), models, reference="seed", dpo=dpo), Step("train", 3))
        assert set(seen) == {(loaded, 1)}
        seen.clear()


@pytest.mark.parametrize(
    "settings",
    [
        {"reference": "seed"},
        {"reference": "seed", "dpo": {"precompute_ref_log_probs": True}, "consistency": "pair", "replay": 0.5},
        {"reference": "iteration:1", "dpo": {"loss_type": ["sigmoid", "sft"]}, "consistency": "set"},
    ],
)
def test_a_kill_changes_no_byte(tmp_path, models, monkeypatch, settings) -> None:
    runs = [third_iteration(tmp_path / name, models, **settings) for name in ("undisturbed", "killed")]
    for run in runs:
        write_pairs(run, 3, CONSISTENCIES)
    undisturbed, run = runs
    train_iteration(undisturbed, Step("train", 3))
    with monkeypatch.context() as patch:
        send(patch, signal.SIGKILL, step=3)
        killed(lambda: train_iteration(run, Step("train", 3)))
    train_iteration(run, Step("train", 3))
    assert resumed_from(run) == [2]
    assert trained(run) == trained(undisturbed)
    assert logged(run, "loss") == logged(undisturbed, "loss")


def test_another_reference_trains_the_iteration_anew_where_it_is_another_model(tmp_path, models) -> None:
    """In the first iteration M1 is the previous model."""
    make_run(tmp_path, models[0], iterations=2, dpo={"max_steps": 1})
    overrides = ["name=made", "prompts.num=4"]
    made = selfreward.run(selfreward.load_recipe(tmp_path / "run.yaml", overrides))

    def touched(*edits: str) -> set[str]:
        recipe = selfreward.load_recipe(tmp_path / "run.yaml", [*overrides, *edits])
        return {f"{step.stage}/{step.iteration}" for step in stale(Run(made.path, recipe))}

    assert touched() == touched("training.reference=iteration:1") == set()
    assert touched("training.reference=seed") == {"train/2"}


@pytest.mark.parametrize("batch", [(9, 1), (3, 3)])
@pytest.mark.parametrize("kind", ["set", "pair"])
def test_a_pair_counts_as_far_as_two_models_agree(tmp_path, models, kind, batch) -> None:
    """C of the loss, and 1 - C of that of the pair turned around."""
    dpo = {"max_steps": 1, "per_device_train_batch_size": batch[0], "gradient_accumulation_steps": batch[1]}
    run = third_iteration(tmp_path, models, consistency=kind, reference="seed", dpo=dpo)
    write_pairs(run, 3, CONSISTENCIES)
    train_iteration(run, Step("train", 3))
    margins = margins_of(models[2], models[0], make_pairs(3))
    shares = [MEAN if c is None or kind == "set" else c for c in CONSISTENCIES]
    assert logged(run, "loss")[1] == pytest.approx(agreed_loss(margins, shares), abs=1e-5)
    assert logged(run, "rewards/margins")[1] == pytest.approx(margins.mean().item(), abs=1e-5)


ON_TWO_RANKS = """
import sys
from selfreward.launchers.launch import leave_group
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.training.dpo import train_iteration

train_iteration(Run.open(sys.argv[1]), Step("train", 3))
leave_group()
"""


@pytest.mark.cluster
def test_two_ranks_share_pairs_reference_and_agreement(tmp_path, models) -> None:
    dpo = {"max_steps": 1, "per_device_train_batch_size": 8}
    run = third_iteration(tmp_path, models, consistency="pair", reference="seed", dpo=dpo)
    pairs = [pair for pair in make_pairs(3, CONSISTENCIES) if pair.consistency is not None]
    write_records(run.stage("pairs", 3).path / "records.jsonl", pairs)
    (tmp_path / "script.py").write_text(ON_TWO_RANKS)
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml"]
    command = [sys.executable, *launch, str(tmp_path / "script.py"), str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    margins = margins_of(models[2], models[0], pairs)
    assert logged(run, "loss")[1] == pytest.approx(agreed_loss(margins, [p.consistency for p in pairs]), abs=1e-5)


def test_nothing_is_turned_around_where_no_pair_is_doubted(tmp_path, models) -> None:
    """In the first iteration, and for pairs that others have made: replayed, of judgements, or rehearsed."""
    plain = third_iteration(tmp_path / "plain", models)
    asked = third_iteration(tmp_path / "asked", models, consistency="pair")
    for run in (plain, asked):
        train_iteration(run, Step("train", 3))
    assert trained(plain) == trained(asked)
    loss = {"loss_type": ["sigmoid", "sft"]}
    run = third_iteration(
        tmp_path / "run",
        models,
        seeded=True,
        consistency="set",
        replay=1.0,
        rehearsal=0.5,
        meta={"iterations": [3]},
        dpo=loss,
    )
    write_pairs(run, 2, CONSISTENCIES)
    write_pairs(run, 3, CONSISTENCIES)
    write_records(run.stage("meta", 3).path / "pairs.jsonl", make_pairs(1))
    shares = {
        source: {row["consistency"] for row in rows} for source, rows in rows_by_source(run, Step("train", 3)).items()
    }
    assert shares == {"pairs": {MEAN}, "replayed": {1.0}, "judge_pairs": {1.0}, "rehearsed": {1.0}}


USUAL = {
    **{"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"},
    **{"per_device_train_batch_size": 9, "logging_steps": 1, "max_grad_norm": 0.0, "learning_rate": 1e-3},
}
Log = dict[str, float]


def one_step(
    folder: Path, models: list[Path], share: float | None, turned: bool = False, steps: int = 1, **options: Any
) -> tuple[Log, dict[str, torch.Tensor]]:
    """TRL's log of the last of some steps, and the weights after it; where C is None, of TRL's own trainer."""
    sides = ("rejected", "chosen") if turned else ("chosen", "rejected")
    rows = [
        {"prompt": p.prompt, **dict(zip(sides, (p.chosen, p.rejected), strict=True)), "consistency": share or 0.0}
        for p in make_pairs(1)
    ]
    trainer = (DPOTrainer if share is None else ConsistentDPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(models[0]),
        ref_model=AutoModelForCausalLM.from_pretrained(models[1]),
        args=DPOConfig(str(folder), max_steps=steps, **{**USUAL, **options}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(models[0]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    trainer.train()
    weights = {name: weight.data for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return trainer.state.log_history[steps - 1], weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.5, "ld_alpha": 0.5},
        {"use_weighting": True},
        {"f_divergence_type": "forward_kl", "beta": 0.01},
        {"f_divergence_type": "alpha_divergence"},
        {"precompute_ref_log_probs": True, "loss_weights": [0.3]},
    ],
)
def test_the_loss_is_the_mix_of_two_of_trl(tmp_path, models, options) -> None:
    """With TRL's own losses of the pairs and of the pairs turned around; and so, as gradients are linear, theirs."""
    (as_it_is, _), (turned, _) = (one_step(tmp_path, models, None, turned, **options) for turned in (False, True))
    mixed, _ = one_step(tmp_path, models, 0.3, **options)
    assert as_it_is["loss"] != pytest.approx(turned["loss"], rel=1e-2)
    assert mixed["loss"] == pytest.approx(0.3 * as_it_is["loss"] + 0.7 * turned["loss"], rel=1e-5)


def test_a_trl_that_computes_its_loss_otherwise_ends_the_training(tmp_path, models, monkeypatch) -> None:
    """Rather than with pairs that count in full."""
    monkeypatch.setattr(torch.nn.functional, "logsigmoid", lambda x: -torch.nn.functional.softplus(-x))
    with pytest.raises(ValueError, match=r"calls logsigmoid 0 times for the sigmoid loss .* Install trl 1\.16\.0"):
        one_step(tmp_path, models, 0.3)


def test_a_c_of_one_is_the_loss_of_trl(tmp_path, models) -> None:
    ours, theirs = (one_step(tmp_path, models, share, steps=3) for share in (1.0, None))
    assert ours[0]["loss"] == theirs[0]["loss"]
    assert all(weight.equal(theirs[1][name]) for name, weight in ours[1].items())


def test_below_one_half_the_gradient_turns_around(tmp_path, models) -> None:
    """Where policy and reference are the same, it is (1/2 - C) times that of the margin."""
    models = [models[0], models[0]]
    norms = {share: one_step(tmp_path, models, share)[0]["grad_norm"] for share in (1.0, 0.75, 0.5)}
    assert norms[0.75] == pytest.approx(norms[1.0] / 2, rel=1e-4)
    assert norms[0.5] == pytest.approx(0, abs=norms[1.0] * 1e-4)
    agreed, doubted = (one_step(tmp_path, models, share, steps=3)[0]["rewards/margins"] for share in (0.9, 0.1))
    assert agreed > 0 > doubted


# At the first step, where policy and reference are the same: the loss of a margin of 0.
FIRST_LOSS = {
    **dict.fromkeys(["sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired"], math.log(2)),
    **dict.fromkeys(["nca_pair", "bco_pair"], 2 * math.log(2)),
    **dict.fromkeys(["hinge", "apo_zero", "apo_down"], 1.0),
    "exo_pair": -math.log(2) - (math.log(0.9) + math.log(0.1)) / 2,
    "ipo": (1 / 0.2) ** 2,
    "sppo_hard": 2 * (0.5 / 0.1) ** 2,
    "discopop": (math.log(2) + 1) / 2,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_of_trl_trains(tmp_path, models, loss) -> None:
    run = make_run(tmp_path, models[0], dpo={"loss_type": loss, "label_smoothing": 0.1, **WHOLE, "max_steps": 2})
    assert train_iteration(run, Step("train", 1))["steps"] == 2
    if loss in FIRST_LOSS:
        assert logged(run, "loss")[1] == pytest.approx(FIRST_LOSS[loss], rel=1e-4)
    else:
        assert logged(run, "loss")[1] > 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [2.0, 0.5]}, 2 * math.log(2) + 0.5),
        ({"ld_alpha": 0.5}, math.log(2)),
        ({"f_divergence_type": "js_divergence", "loss_type": ["hinge"]}, 1.0),
        ({"use_weighting": True, "loss_type": ["ipo"]}, None),
        ({"truncation_mode": "keep_start", "beta": 0.5, "loss_type": ["ipo"]}, 1.0),
    ],
)
def test_options_of_trl_reach_it(tmp_path, models, options, expected) -> None:
    run = make_run(tmp_path, models[0], dpo={**options, **WHOLE})
    train_iteration(run, Step("train", 1))
    loss = logged(run, "loss")[1]
    assert loss == pytest.approx(expected, rel=1e-4) if expected is not None else 0 < loss < 25


REFUSED = [
    *({"loss_type": loss, "f_divergence_type": "forward_kl", "label_smoothing": 0.1} for loss in LOSSES),
    *({"loss_type": loss, "use_weighting": True, "label_smoothing": 0.1} for loss in LOSSES),
    *({"loss_type": loss} for loss in LOSSES),
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    {"sync_ref_model": True},
    {"loss_type": "sigmoyd"},
    {"f_divergence_type": "kl"},
]


def test_what_trl_would_refuse_is_refused_before_a_run_begins(tmp_path, models) -> None:
    """And nothing else is."""
    make_run(tmp_path, models[0])
    for options in REFUSED:
        written = [f"training.dpo.{name}={value}" for name, value in options.items()]
        try:
            selfreward.load_recipe(tmp_path / "run.yaml", written)
            ours = True
        except RecipeError:
            ours = False
        try:
            one_step(tmp_path, models, None, **options)
            theirs = True
        except (ValueError, NotImplementedError, RuntimeError):
            theirs = False
        assert ours == theirs, options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("dpo.loss_type=sigmoyd", "loss_type is 'sigmoyd', which the installed trl has not. Did you mean sigmoid"),
        ("dpo.loss_type=exo_pair", "loss_type has exo_pair, which needs label_smoothing above 0"),
        ("schedule={loss_type: [sigmoid, [sigmoid, ipa]]}", "loss_type is 'ipa', which the installed trl has not"),
        ("schedule={max_length: [64, 128]}", "schedule.max_length: pairs are chosen by it"),
        ("schedule={beta: [0.1, high]}", "schedule.beta: the value is 'high', and trl's DPOConfig takes float"),
        ("schedule={seed: [1]}", "schedule.seed: set by the loop: use the recipe's seed"),
        ("dpo.sync_ref_model=true", "dpo.sync_ref_model: set by the loop: TRL does not move the reference"),
        ("dpo.loss_type=[sigmoid,ipo] training.consistency=set", "consistency is set, and loss_type is ['sigmoid', '"),
        ("dpo.loss_type=sft training.consistency=pair", "it weighs the sigmoid loss. Write sigmoid, alone or beside"),
        (
            "schedule={loss_type: [ipo, hinge]} training.consistency=set",
            "consistency is set, and loss_type is ['hinge']",
        ),
        ("dpo.f_divergence_type=js_divergence training.consistency=set", "in which TRL's sigmoid stands a second time"),
        ("reference=iteration:0", "reference: string should match pattern"),
    ],
)
def test_what_cannot_be_is_told_when_the_recipe_is_read(tmp_path, models, settings, message) -> None:
    make_run(tmp_path, models[0])
    with pytest.raises(RecipeError) as caught:
        selfreward.load_recipe(tmp_path / "run.yaml", re.split(r" (?=training)", f"training.{settings}"))
    assert message in str(caught.value)


def test_each_iteration_has_its_own_options(tmp_path, models) -> None:
    """The last value of a schedule stays; the IPO loss of a margin of 0 is (1 / (2 beta))^2."""
    run = third_iteration(tmp_path, models, schedule={"beta": [0.1, 0.5]}, dpo={**WHOLE, "loss_type": "ipo"})
    for iteration, loss in ((1, 25.0), (3, 1.0)):
        shutil.rmtree(run.stage("model", iteration).path, ignore_errors=True)
        (run.path / "metrics.jsonl").unlink(missing_ok=True)
        train_iteration(run, Step("train", iteration))
        assert logged(run, "loss")[1] == pytest.approx(loss, rel=1e-4)


def row(pair: PreferencePair) -> dict[str, Any]:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def test_earlier_pairs_are_replayed(tmp_path, models) -> None:
    """So many for each new one, of all earlier iterations, each once, and always the same."""
    run = third_iteration(tmp_path, models, replay=1.0, dpo=WHOLE)
    earlier = [row(pair) for t in (1, 2) for pair in make_pairs(t)]
    rows = rows_by_source(run, Step("train", 3))
    assert rows["pairs"] == [row(pair) for pair in make_pairs(3)]
    replayed = rows["replayed"]
    assert len(replayed) == 9
    assert len({json.dumps(each) for each in replayed}) == 9
    assert {earlier.index(each) < 9 for each in replayed} == {True, False}
    assert rows == rows_by_source(run, Step("train", 3))
    assert rows_by_source(run, Step("train", 1))["replayed"] == []
    summary = train_iteration(run, Step("train", 3))
    assert (summary["examples"], summary["replayed"], summary["too_long"]) == (18, 9, 0)
    run = make_run(tmp_path / "more", models[0], iterations=3, replay=9.0)
    assert sorted(map(str, rows_by_source(run, Step("train", 3))["replayed"])) == sorted(map(str, earlier))


def test_judge_pairs_are_trained_where_the_meta_judge_made_some(tmp_path, models) -> None:
    run = third_iteration(tmp_path, models, meta={"iterations": [3]}, selection={"lookahead": True}, dpo=WHOLE)
    judged = make_pairs(2)[:4]
    write_records(run.stage("meta", 3).path / "pairs.jsonl", judged)
    assert preference_rows(run, Step("train", 3)) == [row(pair) for pair in (*make_pairs(3), *judged)]
    assert set(rows_by_source(run, Step("train", 2))) == {"pairs"}
    write_records(run.stage("draft_pairs", 3).path / "records.jsonl", make_pairs(3))
    assert set(rows_by_source(run, Step("draft_train", 3))) == {"pairs"}
    summary = train_iteration(run, Step("train", 3))
    assert (summary["examples"], summary["judge_pairs"]) == (13, 4)


def test_what_trl_would_cut_is_left_out_and_counted(tmp_path, models) -> None:
    dpo = {**WHOLE, "max_length": 64}
    run = third_iteration(tmp_path, models, meta={"iterations": [3]}, dpo=dpo)
    long = [replace(pair, chosen=[{"role": "assistant", "content": "bear " * 64}]) for pair in make_pairs(1)[:2]]
    write_records(run.stage("meta", 3).path / "pairs.jsonl", long)
    summary = train_iteration(run, Step("train", 3))
    assert (summary["examples"], summary["too_long"]) == (9, 2)


def test_a_draft_is_trained_beside_what_it_is_a_draft_of(tmp_path, models) -> None:
    settings: dict[str, Any] = {"selection": {"lookahead": True}, "replay": 0.5, "dpo": {"max_steps": 2}}
    tracked = {**settings, "tracking": {"report_to": ["tensorboard"]}}
    drafted = third_iteration(tmp_path / "drafted", models, **tracked)
    for t in (1, 2):
        # What a draft replays are the iterations' own pairs, not those of drafts.
        assert not drafted.stage("draft_pairs", t).path.exists()
    write_records(drafted.stage("draft_pairs", 3).path / "records.jsonl", make_pairs(3)[::-1])
    drafted.stage("draft_train", 3).path.mkdir()
    assert train_iteration(drafted, Step("draft_train", 3))["replayed"] == round(0.5 * 9)
    folder = drafted.path / "iter_3"
    assert {"model.safetensors", "adapter"} <= {path.name for path in folder.glob("draft_*/*")}
    assert not (folder / "model").exists()
    assert list((folder / "train").iterdir()) == []
    probes = read_probes(str(folder / "draft_model"))
    assert probes is not None
    assert read_probes(str(folder / "model")) is None
    assert list((drafted.path / "tracking/iter_3/draft_train").glob("events.out.tfevents.*"))
    lines = [json.loads(line) for line in (drafted.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"draft_train"}

    plain = third_iteration(tmp_path / "plain", models, **settings)
    (drafted.path / "metrics.jsonl").unlink()
    for run in (drafted, plain):
        train_iteration(run, Step("train", 3))
    assert trained(drafted) == trained(plain)
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("model", "draft_model"))
    assert any(not weight.equal(theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "the reference is M_t (previous model); "),
        ({"reference": "seed"}, "the reference is M1 (seed), a second model in memory; "),
        (
            {"reference": "iteration:2", "dpo": {"precompute_ref_log_probs": True}},
            "the reference is M3 from iteration 3 on, M_t before, a second model in memory before the first step; ",
        ),
        ({"schedule": {"beta": [0.1, 0.2]}, "replay": 0.5}, "beta by iteration 0.1, 0.2; 0.5 earlier pairs for each"),
        ({"consistency": "set"}, "from iteration 2 on a set counts as far as M_{t-1} agrees"),
    ],
)
def test_check_tells_what_is_trained(tmp_path, models, settings, words) -> None:
    assert words in describe(make_run(tmp_path, models[0], **settings).recipe)
