"""Going back without losing anything: iterations set aside, forks, edits in mid-run; and what proves a run."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_random_model

import selfreward
from selfreward import loop
from selfreward.records import PreferencePair, Response
from selfreward.report.pair_trace import text, trace
from selfreward.report.status import lines, status
from selfreward.report.verify import verify
from selfreward.runs import history
from selfreward.runs.run import Run

ROOT = Path(__file__).parents[1]
FLIPS = int(os.environ.get("SELFREWARD_FLIPS", "10"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two iterations, which tests copy."""
    folder = tmp_path_factory.mktemp("history")
    model = make_random_model(folder / "model", seed=0)
    tasks = [f"Name {n} animals." for n in ("one", "two", "three", "four")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in tasks))
    (folder / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    (folder / "run.yaml").write_text(f"""
name: first
run_dir: {folder}/runs
iterations: 2
model: {{path: {model}, dtype: float32}}
prompts: {{path: prompts.jsonl}}
responses: {{n: 4}}
judge: {{template: judge.txt, votes: 2}}
training:
  dpo: {{max_steps: 2, learning_rate: 1e-3, per_device_train_batch_size: 4, gradient_checkpointing: false}}
engine: {{name: "scripts:Numbers"}}
""")
    return selfreward.run(selfreward.load_recipe(folder / "run.yaml"))


@pytest.fixture
def run(first: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, in another place."""
    subprocess.run(["cp", "-a", str(first.path), str(tmp_path / "copy")], check=True)
    return Run.open(tmp_path / "copy")


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    line = [sys.executable, "-m", "selfreward", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)


def hashes(run: Run, *iterations: int) -> dict[str, str]:
    markers = [run.path.glob(f"iter_{t}/*/stage.json") for t in iterations]
    return {
        name: file["sha256"]
        for found in markers
        for marker in found
        for name, file in json.loads(marker.read_text())["wrote"].items()
        if name.endswith(("jsonl", "safetensors"))
    }


def test_a_finished_run_that_was_moved_has_nothing_left_and_nothing_stale(run: Run) -> None:
    state = status(run)
    assert state["done"]
    assert lines(state) == ["finished"]


def test_from_an_iteration_on_everything_is_set_aside_and_made_anew(first: Run, run: Run) -> None:
    result = command("resume", run.path, "--from-iteration", "2")
    assert result.returncode == 0, result.stderr
    assert hashes(run, 1, 2) == hashes(first, 1, 2)
    aside = run.path / "set_aside" / "1"
    assert {path.name for path in aside.iterdir()} == {"iter_2", "resolved.json"}
    assert (aside / "iter_2" / "pairs" / "records.jsonl").is_file()
    assert "set aside: set_aside/1" in lines(status(run))
    assert verify(run.path).problems == []


def test_an_edited_recipe_goes_on_from_an_iteration_and_keeps_the_past(first: Run, run: Run) -> None:
    recipe = history.recipe_of(run.path, ["training.dpo.beta=0.5"])
    with pytest.raises(ValueError, match=r"--iteration 1 --to NAME training\.dpo\.beta=0\.5"):
        loop.run(recipe)
    history.go_back(recipe, 2)
    edited = loop.run(recipe)
    assert hashes(edited, 1) == hashes(first, 1)
    new, old = hashes(edited, 2), hashes(first, 2)
    assert new["iter_2/responses/records.jsonl"] == old["iter_2/responses/records.jsonl"]
    assert new["iter_2/model/model.safetensors"] != old["iter_2/model/model.safetensors"]
    assert status(edited)["done"]
    assert verify(edited.path).problems == []
    assert json.loads((run.path / "set_aside/1/resolved.json").read_text())["training"]["dpo"].get("beta") is None


def test_only_what_an_edit_touches_is_made_anew(first: Run, run: Run) -> None:
    result = command("resume", run.path, "--remake", "training.dpo.beta=0.5")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (run.path / "set_aside/1/iter_1").iterdir()} == {"train", "model"}
    new, old = hashes(run, 1, 2), hashes(first, 1, 2)
    assert {name for name in old if name.startswith("iter_1") and new[name] != old[name]} == {
        "iter_1/train/adapter/adapter_model.safetensors",
        "iter_1/model/model.safetensors",
    }
    assert status(Run.open(run.path))["done"]
    assert verify(run.path).problems == []


def test_an_evaluation_may_be_added_to_a_finished_run(run: Run, first: Run) -> None:
    held_out = f"evaluation.prompts={first.path.parents[1]}/prompts.jsonl"
    loop.run(history.recipe_of(run.path, [held_out]))
    result = command("resume", run.path, "evaluation.n=2")
    assert result.returncode == 1
    assert "fork" not in result.stderr
    assert command("resume", run.path, "evaluation.n=2", "--remake").returncode == 0
    assert {path.name for path in (run.path / "set_aside/1").rglob("*") if path.is_dir()} == {
        *("seed", "iter_1", "iter_2", "evaluate")
    }
    assert verify(run.path).problems == []


def test_seed_data_can_not_be_added_under_a_past_that_is_kept(run: Run, first: Run) -> None:
    data = first.path.parents[1] / "seed.jsonl"
    data.write_text('{"prompt": "Name one.", "response": "fox", "judgement": "Score: 1"}\n')
    edits = [f"seed_data.{kind}={data}" for kind in ("ift", "eft")]
    for words in (["resume", run.path], ["resume", run.path, "--from-iteration", "2"]):
        result = command(*words, *edits)
        assert result.returncode == 1
        assert "seed_data" in result.stderr
    assert command("fork", run.path, "--iteration", "2", "--to", "new", *edits).returncode == 1
    assert hashes(run, 1, 2) == hashes(first, 1, 2)


def test_an_edit_may_begin_where_a_run_has_stopped(first: Run, run: Run) -> None:
    history.go_back(history.recipe_of(run.path), 2)
    result = command("resume", run.path, "--from-iteration", "2", "training.dpo.beta=0.5")
    assert result.returncode == 0, result.stderr
    assert hashes(run, 1) == hashes(first, 1)
    assert hashes(run, 2) != hashes(first, 2)
    assert json.loads((run.path / "resolved.json").read_text())["training"]["dpo"]["beta"] == 0.5


def test_the_seed_can_be_set_aside_with_all_that_follows(run: Run) -> None:
    aside = history.go_back(history.recipe_of(run.path), 0)
    assert {path.name for path in aside.iterdir()} == {"iter_1", "iter_2", "resolved.json"}
    assert history.go_back(history.recipe_of(run.path), 1) is None
    with pytest.raises(ValueError, match="has nothing of iteration 1 or later to go on from"):
        history.go_back(history.recipe_of(run.path), 2)


def test_a_fork_shares_the_past_and_goes_its_own_way(first: Run, run: Run) -> None:
    result = command("fork", run.path, "--iteration", "2", "--to", "wide", "training.dpo.beta=0.5")
    assert result.returncode == 0, result.stderr
    wide = Run.open(run.path.parent / "wide")
    shared = "iter_1/model/model.safetensors"
    assert (wide.path / shared).stat().st_ino == (run.path / shared).stat().st_ino
    assert not (wide.path / "iter_2").exists()
    assert command("resume", wide.path).returncode == 0
    assert hashes(wide, 1) == hashes(first, 1)
    assert hashes(wide, 2)["iter_2/model/model.safetensors"] != hashes(first, 2)["iter_2/model/model.safetensors"]
    assert lines(status(wide))[0] == "fork of copy, from iteration 2 on"
    subprocess.run(["rm", "-r", str(run.path)], check=True)
    assert verify(wide.path).problems == []


def test_a_fork_never_writes_into_the_run_that_it_came_from(first: Run, run: Run) -> None:
    made = history.fork(run.path, 2, "other")
    loop.run(history.recipe_of(made.path))
    history.go_back(history.recipe_of(made.path), 1)
    assert hashes(run, 1, 2) == hashes(first, 1, 2)
    assert verify(run.path).problems == []


@pytest.mark.parametrize(
    ("iteration", "to", "message"),
    [
        (2, "copy", "exists, and a run is never overwritten"),
        (4, "new", "can be forked at iterations 1 to 3, and not at 4"),
        (0, "new", "can be forked at iterations 1 to 3, and not at 0"),
        (2, "not a name", "'not a name' is not a run name"),
    ],
)
def test_a_fork_that_can_not_be_is_refused(run: Run, iteration: int, to: str, message: str) -> None:
    before = set(run.path.parent.rglob("*"))
    with pytest.raises(ValueError, match=message):
        history.fork(run.path, iteration, to)
    assert set(run.path.parent.rglob("*")) == before


def test_verify_tells_a_clean_run_by_its_figures(run: Run) -> None:
    result = command("verify", run.path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 stages" in result.stdout
    assert "7 pairs: all as the run wrote it" in result.stdout


def test_verify_finds_every_flipped_byte_in_a_sample(run: Run) -> None:
    """One in each file that the run wrote, and others that are drawn over all bytes."""
    files = sorted(p for p in run.path.rglob("*") if p.is_file() and p.name != "lock" and p.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    draw = random.Random(0)
    for path in [*draw.choices(files, sizes, k=FLIPS), *files]:
        whole = path.read_bytes()
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
        assert verify(run.path).problems, f"{path} at {place}"
        path.write_bytes(whole)
    assert verify(run.path).problems == []


def test_verify_finds_what_is_missing_added_or_relinked(run: Run) -> None:
    adapter = run.path / "iter_1/train/adapter/adapter_model.safetensors"
    adapter.rename(adapter.with_name("moved.safetensors"))
    problems = verify(run.path).problems
    assert any("adapter_model.safetensors is missing" in problem for problem in problems)
    assert any("moved.safetensors was not written by the run" in problem for problem in problems)
    adapter.with_name("moved.safetensors").rename(adapter)
    (run.path / "iter_1/pairs").rename(run.path / "iter_1/kept")
    assert any("made from another iter_1/pairs" in problem for problem in verify(run.path).problems)


def test_records_whose_hashes_were_forged_along_are_found_by_their_links(run: Run) -> None:
    """Whoever rewrites records and markers alike must still make the ids, seeds and scores fit each other."""
    from selfreward.runtime.atomic import hash_of, write_sealed

    folder = run.stage("pairs", 2)
    path = folder.path / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["chosen"], rows[0]["rejected"] = rows[0]["rejected"], rows[0]["chosen"]
    path.write_text("".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows))
    marker = folder.marker
    marker["wrote"]["iter_2/pairs/records.jsonl"] = {"sha256": hash_of(path), "bytes": path.stat().st_size}
    write_sealed(folder.path / "stage.json", marker)
    problems = verify(run.path).problems
    assert any(f"pair {rows[0]['id']} does not follow from" in problem for problem in problems)
    assert any("iter_2/train was made from another iter_2/pairs" in problem for problem in problems)


def test_a_pair_is_traced_to_all_that_is_behind_it(run: Run) -> None:
    pair = run.records("pairs", 2, PreferencePair)[0]
    found = trace(run, pair.id[:12])
    assert found["iteration"] == 2
    assert found["pair"]["id"] == pair.id
    assert found["prompt"]["id"] == pair.prompt_id
    assert [r["k"] for r in found["responses"]] == [0, 1, 2, 3]
    assert all(len(r["votes"]) == 2 and r["votes"][0]["raw_text"].startswith("I count.") for r in found["responses"])
    assert {r["seed"] for r in found["responses"]} == {
        r.seed for r in run.records("responses", 2, Response) if r.prompt_id == pair.prompt_id
    }
    assert set(found["model"]["files"]) >= {"iter_1/model/model.safetensors", "iter_1/model/tokenizer.json"}
    assert found["versions"]["responses"]["torch"]
    shown = text(found)
    assert "CHOSEN" in shown
    assert pair.chosen[0]["content"] in shown
    assert json.loads(command("trace", run.path, pair.id, "--json").stdout) == json.loads(json.dumps(found))


def test_a_pair_that_is_not_there_is_told(run: Run) -> None:
    with pytest.raises(ValueError, match="no pair begins with 'nothing'"):
        trace(run, "nothing")
    with pytest.raises(ValueError, match="7 pairs begin with ''"):
        trace(run, "")
