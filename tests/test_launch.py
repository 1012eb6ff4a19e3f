"""Training in a process of its own and under ``accelerate launch``: the same stage, the same result."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
from safetensors.torch import load_file
from small import small_recipe

import selfreward


@pytest.fixture
def recipe_file(tmp_path, tiny_random_model):
    row = {"prompt": "Name two animals.", "response": "fox owl", "judgement": "count two yes\nScore: 5"}
    (tmp_path / "seed.jsonl").write_text((json.dumps(row) + "\n") * 4)
    dpo = {"max_steps": 2, "per_device_train_batch_size": 2}
    return small_recipe(tmp_path, 6, dpo, tiny_random_model, engine={"name": "scripts:Numbers"})


@pytest.fixture(autouse=True)
def _scripts_for_children(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "tests")


def test_a_process_of_its_own_trains_the_same_weights(recipe_file):
    """The draft of a model, too."""
    lookahead = ["selection.lookahead=true"]
    inline = selfreward.run(selfreward.load_recipe(recipe_file, lookahead))
    apart = selfreward.run(selfreward.load_recipe(recipe_file, [*lookahead, "name=apart", "launch.train=process"]))
    for model in ("model", "draft_model"):
        ours, theirs = (load_file(run.path / "iter_1" / model / "model.safetensors") for run in (inline, apart))
        assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.cluster
def test_two_ranks_under_accelerate_launch(recipe_file):
    seed = [f"seed_data.{kind}={recipe_file.parent}/seed.jsonl" for kind in ("ift", "eft")]
    seed += ["training.sft.max_steps=1"]
    launch = ["launch.train=accelerate", "launch.accelerate_config=configs/accelerate/cpu_2_processes.yaml"]
    run = selfreward.run(selfreward.load_recipe(recipe_file, [*seed, *launch]))
    assert run.stage("train", 1).summary["steps"] == 2
    weights = [load_file(f"{run.model_path(t)}/model.safetensors") for t in (0, 1, 2)]
    for before, after in pairwise(weights):
        assert any(not before[name].equal(after[name]) for name in before)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "seconds" in line] == [
        "train",
        "prompts",
        "responses",
        "judgements",
        "pairs",
        "train",
    ]


def test_a_stage_by_hand_does_what_the_loop_does(recipe_file):
    whole = selfreward.run(selfreward.load_recipe(recipe_file))
    by_hand = selfreward.Run.create(selfreward.load_recipe(recipe_file, ["name=by_hand"]))
    for stage in ("prompts", "responses", "judgements", "pairs", "train"):
        command = [sys.executable, "-m", "selfreward", "stage", stage, str(by_hand.path), "--iteration", "1"]
        subprocess.run(command, check=True, capture_output=True)
    for stage in ("responses", "judgements", "pairs"):
        ours, theirs = ((run.stage(stage, 1).path / "records.jsonl").read_bytes() for run in (whole, by_hand))
        assert ours == theirs
    ours, theirs = (load_file(f"{run.model_path(2)}/model.safetensors") for run in (whole, by_hand))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_training_that_fails_is_told_with_its_command(recipe_file):
    options = ["launch.train=process", "training.dpo.optim=no_such_optimizer"]
    with pytest.raises(ChildProcessError, match=r"exit code 1.*stage train .* --iteration 1"):
        selfreward.run(selfreward.load_recipe(recipe_file, options))
