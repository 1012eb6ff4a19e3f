"""``selfreward data``: data sets that are journaled, committed, described, and trained as they are."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest
import yaml

from scripts import Numbers
from selfreward.data.job import JobContext, Made, make, rows_of
from selfreward.data.prompt_jobs import rows as rows_of_tasks
from selfreward.data.push import push
from selfreward.engines import Completion, SamplingParams
from selfreward.errors import Damaged
from selfreward.prompts.seed_data import read_graded
from selfreward.recipe.data_settings import DataJob
from selfreward.recipe.loader import RecipeError, edit
from selfreward.records import Removal, Task

ROOT = Path(__file__).parents[1]
PARAMS = SamplingParams(1.0, 1.0, 8)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    every = [
        {"instruction": "Name a bird.", "input": "", "output": "An owl."},
        {"instruction": "Add up the two numbers.", "input": "2 and 3", "output": "5"},
        {"instruction": "Translate the word into German.", "input": "tree", "output": "Baum"},
        {"instruction": "Translate the word into German.", "input": "house", "output": "Haus"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in every))
    return path


def job(rows: Path, *overrides: str) -> DataJob:
    data = {"prompts": {"path": str(rows)}, "model": {"path": "owner/name"}, "license": "cc0-1.0"}
    return edit(DataJob, data, ["engine.name=scripts:Numbers", *overrides])


class Stop(Exception):
    pass


def answers(bench: JobContext, stop_after: int = 1000) -> Made:
    """Twelve answers of the model, asked in turn."""
    tasks = []
    for number in range(12):
        if number == stop_after:
            raise Stop

        async def ask(number: int) -> list[Completion]:
            return await bench.engine().generate([{"role": "user", "content": f"{number}"}], PARAMS, [number])

        [[completion]] = bench.run_concurrently("answers", [number], ask)
        tasks.append(Task.make(f"Task {number}", "test", output=completion.text))
    removed = [Removal("x", "Task x", "", None, "test", "length", "too short")]
    rows = [{"id": task.id, "instruction": task.instruction, "output": task.output} for task in tasks]
    return Made({"train": rows[:10], "held_out": rows[10:]}, {"rows": 12, "removed_length": 1}, removed)


def test_a_data_set_is_a_folder_that_says_what_it_is(rows: Path, tmp_path: Path) -> None:
    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    assert {path.name for path in out.iterdir()} == {"README.md", "settings.json", "lock", "data"}
    assert {path.name for path in (out / "data").iterdir()} == {
        *("train.jsonl", "held_out.jsonl", "removed.jsonl", "stage.json", "README.md")
    }
    _, header, body = (out / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["license"] == "cc0-1.0"
    assert card["size_categories"] == "n<1K"
    assert "synthetic" in card["tags"]
    assert [f["path"] for f in card["configs"][0]["data_files"]] == ["data/train.jsonl", "data/held_out.jsonl"]
    for fact in ("2212.10560", "`name`", "10 rows", "2 rows", "46 %", "The model's licence (not stated)"):
        assert fact in body


def test_the_libraries_load_it_as_it_is(rows: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 10, "held_out": 2}
    assert loaded["train"][0]["instruction"] == "Task 0"


def test_what_was_finished_is_not_asked_again(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(self: Numbers, messages: list[dict[str, str]], seed: int) -> Completion:
        asked.append(messages[-1]["content"])
        return Completion(f"answer {seed}", "stop", 2)

    monkeypatch.setattr(Numbers, "_answer", count)
    whole = make(job(rows), "self_instruct", tmp_path / "whole", answers)
    asked.clear()
    with pytest.raises(Stop):
        make(job(rows), "self_instruct", tmp_path / "out", partial(answers, stop_after=7))
    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    assert asked == [str(number) for number in range(12)]
    for name in ("train.jsonl", "held_out.jsonl", "removed.jsonl", "README.md"):
        assert (out / "data" / name).read_bytes() == (whole / "data" / name).read_bytes()
    # A third time there is nothing to do.
    assert make(job(rows), "self_instruct", tmp_path / "out", answers) == out
    assert len(asked) == 12


def test_nothing_is_overwritten(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds something else"):
        make(job(rows), "self_instruct", tmp_path, answers)
    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    with pytest.raises(ValueError, match=r"was made with other settings(.|\n)*seed: 0 -> 1"):
        make(job(rows, "seed=1"), "self_instruct", tmp_path / "out", answers)
    before = rows.read_text()
    rows.write_text(before + "\n")
    with pytest.raises(ValueError, match=r"prompts\.path: the bytes differ"):
        make(job(rows), "self_instruct", tmp_path / "out", answers)
    rows.write_text(before)
    (out / "data" / "train.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="is not what was written"):
        make(job(rows), "self_instruct", tmp_path / "out", answers)
    with pytest.raises(Damaged):
        push(out, "owner/name", public=False)


def test_settings_that_do_not_touch_the_result_may_change(rows: Path, tmp_path: Path) -> None:
    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    assert make(job(rows, "engine.max_in_flight=3"), "self_instruct", tmp_path / "out", answers) == out


def test_a_card_is_written_again_if_it_is_lost(rows: Path, tmp_path: Path) -> None:
    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    before = (out / "README.md").read_bytes()
    (out / "README.md").unlink()
    make(job(rows), "self_instruct", tmp_path / "out", answers)
    assert (out / "README.md").read_bytes() == before


def test_what_is_pushed_is_what_the_card_names(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset

    asked: list[dict[str, object]] = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, name, **options: asked.append(options))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: asked.append(options))
    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    push(out, "owner/name", public=False)
    assert asked[0]["private"] is True
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    allowed, ignored = asked[1]["allow_patterns"], asked[1]["ignore_patterns"]
    sent = {name for name in files if any(fnmatch(name, p) for p in allowed) and name not in ignored}
    assert sent == {"README.md", "data/train.jsonl", "data/held_out.jsonl", "data/stage.json"}
    for name in sent:
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes((out / name).read_bytes())
    assert len(load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))["held_out"]) == 2


def test_a_column_may_be_empty_for_a_long_while(rows: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    tasks = [Task.make(f"Task {number}", "test", output="word " * 250) for number in range(12_000)]
    tasks[-1] = replace(tasks[-1], license="cc0-1.0", is_classification=True, figures={"score": 5})
    out = make(
        job(rows), "filtered", tmp_path / "out", lambda bench: Made({"train": rows_of_tasks(tasks)}, {"rows": 12_000})
    )
    assert (out / "data" / "train.jsonl").stat().st_size > 20 << 20
    last = load_dataset(str(out), cache_dir=str(tmp_path / "cache"), split="train")[-1]
    assert (last["license"], last["is_classification"], last["score"]) == ("cc0-1.0", True, 5.0)
    assert "parent_id" not in last


def test_an_attempt_that_made_nothing_may_be_corrected(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        make(job(rows, "seed=1"), "self_instruct", tmp_path / "out", partial(answers, stop_after=0))
    make(job(rows), "self_instruct", tmp_path / "out", answers)
    with pytest.raises(Stop):
        make(job(rows, "seed=1"), "self_instruct", tmp_path / "two", partial(answers, stop_after=1))
    with pytest.raises(ValueError, match="was begun with other settings"):
        make(job(rows), "self_instruct", tmp_path / "two", answers)


def test_a_push_that_fails_costs_nothing_and_says_so(rows: Path, tmp_path: Path) -> None:
    out = make(job(rows), "self_instruct", tmp_path / "out", answers)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(ValueError, match=r"owner/name was not pushed: (.|\n)*The data set is whole in"):
        push(out, "owner/name", public=False)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts.source=curriculum", "prompts.num=3"], "asks how a loop's models did"),
        (["engine.name=classifier"], "engine.name is classifier, which generates nothing"),
        (["prompts.source=self_instruct"], "num is missing"),
        (["engine.name=openai"], "needs engine.openai"),
        (["prompts.by=seed"], "by is seed, and a data set has one model"),
        (["tasks=3"], "tasks: unknown key"),
    ],
)
def test_what_can_not_be_made_is_refused(rows: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        job(rows, *overrides)


def selfreward(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "selfreward", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_filter_and_dedup_keep_a_record_of_what_they_take_out(rows: Path, tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write('{"instruction": "Name a bird!", "input": "", "output": "A wren."}\n')
        file.write("not json\n")
        file.write('{"instruction": "Name a bird.", "output": "A wren."}\n')
    done = selfreward("data", "dedup", "--rows", str(rows), "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in (tmp_path / "out" / "data" / "train.jsonl").open()]
    assert [row["instruction"] for row in kept] == [
        *("Name a bird.", "Add up the two numbers."),
        *["Translate the word into German."] * 2,
    ]
    assert kept[1]["prompt"] == [{"role": "user", "content": "Add up the two numbers.\n\n2 and 3"}]
    assert kept[1]["completion"] == [{"role": "assistant", "content": "5"}]
    removed = [json.loads(line) for line in (tmp_path / "out" / "data" / "removed.jsonl").open()]
    assert [(row["filter"], row["output"]) for row in removed] == [("rouge_l", "A wren."), ("duplicate", "A wren.")]
    assert {(row["neighbour"], row["similarity"]) for row in removed} == {("Name a bird.", 1.0)}
    assert "skipped_malformed 1" in done.stderr
    assert "| rouge_l | threshold 0.7, tokens unicode | 1 |" in (tmp_path / "out" / "README.md").read_text()


def test_stats_tell_several_data_sets_beside_each_other(rows: Path, tmp_path: Path) -> None:
    done = selfreward("data", "stats", str(rows), str(rows), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)[str(rows)]
    assert figures["rows"] == figures["with_output"] == 4
    assert figures["instructions"] == figures["with_input"] == 3
    assert figures["output_words_median"] == 1
    assert figures["sources"] == {"rows.jsonl": 4}
    assert figures["frequent_roots"]["translate word"] == 2
    assert "| rows | 4 |" in selfreward("data", "stats", str(rows), cwd=tmp_path).stdout


def test_a_student_is_trained_on_what_was_made(rows: Path, tmp_path: Path, tiny_random_model: Path) -> None:
    small = ["model.dtype=float32", "training.sft.max_steps=2", "training.sft.per_device_train_batch_size=2"]
    selfreward(
        "data",
        "filter",
        "--use",
        "length",
        "--rows",
        str(rows),
        "--out",
        "data",
        "filters.length.min_words=1",
        cwd=tmp_path,
    )
    done = selfreward(
        "train", "sft", "data", "--model", str(tiny_random_model), "--out", "runs/student", *small, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "student"
    assert (run / "seed" / "model" / "model.safetensors").is_file()
    summary = json.loads((run / "seed" / "train" / "stage.json").read_text())["summary"]
    assert summary["examples"] == 4
    again = selfreward(
        "train", "sft", "data", "--model", str(tiny_random_model), "--out", "runs/student", *small, cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert rows_of(tmp_path / "data").name == "train.jsonl"
    verified = selfreward("verify", "runs/student", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout


def test_seed_data_comes_from_ranked_answers_and_starts_a_loop(tmp_path: Path, tiny_random_model: Path) -> None:
    with (tmp_path / "ranked.jsonl").open("w") as file:
        for number in range(40):
            for rank, words in enumerate((5, 3, 1)):
                answer = " ".join(["owl"] * words)
                file.write(
                    json.dumps(
                        {"prompt": f"Name bird {number}.", "response": answer, "rank": rank, "license": "cc0-1.0"}
                    )
                    + "\n"
                )
    (tmp_path / "judge.txt").write_text("Review this answer.\nTask: {prompt}\nAnswer: {response}")
    judged = ("--model", str(tiny_random_model), "engine.name=scripts:Numbers", "eft.judge.template=judge.txt")
    settings = ("eft.judge.votes=1", "eft.max_modal_share=0.4", "eft.held_out=10")
    done = selfreward("data", "eft", "--ranked", "ranked.jsonl", "--out", "eft", *judged, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train, held_out = (read_graded(tmp_path / "eft" / "data" / f"{name}.jsonl") for name in ("train", "held_out"))
    assert len({row.prompt for row in held_out}) == 10
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert {row.judgement[-1] for row in train} == {"1", "3", "5"}
    done = selfreward("data", "ift", "--ranked", "ranked.jsonl", "--without", "eft", "--out", "ift", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "ift" / "data" / "train.jsonl").open()]
    assert {row["output"] for row in rows} == {"owl owl owl owl owl"}
    assert {row["instruction"] for row in rows} == {row.prompt for row in train}
    assert {row["license"] for row in rows} == {"cc0-1.0"}
    left_out = [json.loads(line) for line in (tmp_path / "ift" / "data" / "removed.jsonl").open()]
    assert len(rows) + len(left_out) == 40
    assert {row["filter"] for row in left_out} == {"held_out"}
    assert "license: cc0-1.0" in (tmp_path / "ift" / "README.md").read_text()
    assert "Agreement with a ranking" in (tmp_path / "eft" / "README.md").read_text()
