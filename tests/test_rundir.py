"""The run folder: what is on disk decides what happened."""

import os
import stat

import pytest

from selfreward import load_recipe
from selfreward.errors import Damaged
from selfreward.records import Rejection
from selfreward.runs.run import Run
from selfreward.runs.stages import Step
from selfreward.runtime.atomic import append_line, is_whole_line, read_sealed, write_bytes, write_sealed

PROMPTS = Step("prompts", 1)


@pytest.fixture
def recipe_file(tmp_path, tiny_random_model):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    path = tmp_path / "run.yaml"
    blocks = f"model: {{path: {tiny_random_model}}}\nprompts: {{path: prompts.jsonl}}\n"
    path.write_text(f"name: test\nrun_dir: {tmp_path}/runs\n{blocks}")
    return path


@pytest.fixture
def recipe(recipe_file):
    return load_recipe(recipe_file)


def commit(run: Run, step: Step = PROMPTS) -> None:
    run.begin(step)
    run.stage(step.stage, step.iteration).write("records.jsonl", [Rejection("p", "tie")])
    run.commit(step, {"prompts": 1})


def test_a_run_opens_with_the_recipe_it_was_made_with(recipe):
    made = Run.create(recipe)
    opened = Run.open(made.path)
    assert opened.recipe.model_dump() == recipe.model_dump()
    assert opened.path == made.path


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"no run in .*resolved.json is missing. Start one with: selfreward run RECIPE"
    ):
        Run.open(tmp_path)


def test_a_stage_is_done_when_its_marker_is_there(recipe):
    run = Run.create(recipe)
    run.begin(PROMPTS)
    folder = run.stage("prompts", 1)
    folder.write("records.jsonl", [Rejection("p", "tie")])
    assert not folder.done
    run.commit(PROMPTS, {"prompts": 1})
    assert folder.done
    assert folder.summary == {"prompts": 1}
    assert {path.name for path in folder.path.iterdir()} == {"records.jsonl", "stage.json"}


def test_an_attempt_goes_on_with_its_journal_alone(recipe):
    run = Run.create(recipe)
    run.begin(PROMPTS)
    folder = run.stage("prompts", 1)
    with folder.journal() as journal:
        journal.add("00" * 16, "kept")
    (folder.path / "records.jsonl.tmp").write_text("torn")
    run.begin(PROMPTS)
    assert {path.name for path in folder.path.iterdir()} == {"begun.json", "journal.jsonl"}
    with folder.journal() as journal:
        assert journal.get("00" * 16) == "kept"


def test_an_attempt_under_other_settings_is_set_aside(recipe_file, recipe):
    first = Run.create(recipe)
    first.begin(PROMPTS)
    with first.stage("prompts", 1).journal() as journal:
        journal.add("00" * 16, "kept")
    second = Run.create(load_recipe(recipe_file, ["prompts.num=1"]))
    second.begin(PROMPTS)
    with second.stage("prompts", 1).journal() as journal:
        assert journal.get("00" * 16) is None
    assert "kept" in (first.path / "set_aside" / "1" / "iter_1" / "prompts" / "journal.jsonl").read_text()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, [b"old"])

    def failing():
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, failing())
    assert path.read_bytes() == b"old"


def test_models_are_counted_as_in_the_paper(recipe):
    run = Run.create(recipe)
    assert run.model_path(0) == run.model_path(1) == recipe.model.path
    assert run.model_path(2) == str(run.path / "iter_1" / "model")


def test_every_changed_byte_of_a_sealed_file_is_seen(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"a": 1, "text": "ä", "nested": {"b": [1.5, None]}})
    whole = path.read_bytes()
    assert read_sealed(path)["nested"] == {"b": [1.5, None]}
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Damaged, match="is not what the run wrote"):
            read_sealed(path)
        path.write_bytes(whole[:place])
        with pytest.raises(Damaged, match="is not what the run wrote"):
            read_sealed(path)


def test_every_changed_byte_of_a_log_line_is_seen(tmp_path):
    path = tmp_path / "x.jsonl"
    append_line(path, {"a": 1, "text": "ä"})
    whole = path.read_bytes()
    assert is_whole_line(whole)
    for place in range(len(whole)):
        assert not is_whole_line(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


@pytest.mark.parametrize(("private", "mode"), [("true", 0o700), ("false", 0o755)])
def test_a_run_folder_is_for_its_owner_unless_the_recipe_shares_it(recipe_file, private, mode):
    before = os.umask(0o022)
    try:
        run = Run.create(load_recipe(recipe_file, [f"launch.private={private}"]))
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.path.stat().st_mode) == mode


def test_a_link_leads_no_stage_out_of_the_run(recipe, tmp_path):
    run = Run.create(recipe)
    (tmp_path / "outside").mkdir()
    (run.path / "iter_1").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leads out of the run through a link"):
        run.begin(PROMPTS)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_marker_of_a_later_version_is_refused(recipe):
    run = Run.create(recipe)
    commit(run)
    folder = run.stage("prompts", 1)
    write_sealed(folder.path / "stage.json", {**folder.marker, "format": 2})
    with pytest.raises(ValueError, match=r"has format 2, .* up to 1\. Update selfreward"):
        _ = folder.marker


def test_records_that_were_changed_are_not_built_on(recipe):
    run = Run.create(recipe)
    commit(run)
    records = run.stage("prompts", 1).path / "records.jsonl"
    records.write_text(records.read_text().replace("tie", "lie"))
    with pytest.raises(Damaged, match=r"iter_1/prompts/records.jsonl .*resume .* --from-iteration 1"):
        run.begin(Step("responses", 1))


def test_a_line_is_never_appended_to_a_torn_one(tmp_path):
    path = tmp_path / "x.jsonl"
    append_line(path, {"a": 1})
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole + whole[:end])
        append_line(path, {"a": 2})
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines[0] == whole
        assert len(lines) == 2
        assert all(map(is_whole_line, lines))
