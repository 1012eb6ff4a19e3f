"""Rows of files and of data sets of the hub: every format is read, every bad row is named, none is lost silently."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from selfreward.data.prompt_jobs import rows as rows_of
from selfreward.prompts.dataset import DatasetSource, read_documents, read_tasks
from selfreward.prompts.seed_data import read_demonstrations, read_graded
from selfreward.recipe.prompt_settings import PromptSettings, RowSettings
from selfreward.records import Task


def lines_of(rows):
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def write(path, *rows):
    path.write_bytes(lines_of(rows))
    return path


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def tasks(path, **settings):
    return read_tasks(RowSettings(path=path, **settings))[0]


def task(tmp_path, row, **settings):
    """The one task of a row."""
    [found] = tasks(write(tmp_path / "p.jsonl", row), **settings)
    return found


def error_of(path, read=read_tasks, **settings):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(RowSettings(path=path, **settings))
    return str(caught.value)


def message(role, content):
    return {"role": role, "content": content}


def turn(who, text):
    return {"from": who, "value": text}


# Formats: what is asked (context, instruction, input) and the answer

SYSTEM, USER, ANSWER = message("system", "s"), message("user", "u"), message("assistant", "a")
LAST = message("user", "v")
FORMATS = {
    "prompt": ({"prompt": "u"}, ([], "u", "", None)),
    "prompt and response": ({"prompt": "u", "response": "a"}, ([], "u", "", "a")),
    "prompt and completion": ({"prompt": "u", "completion": "a"}, ([], "u", "", "a")),
    "prompt under a system message": ({"system": "s", "prompt": "u"}, ([SYSTEM], "u", "", None)),
    "TRL, conversational": ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, ([SYSTEM], "u", "", "a")),
    "messages": ({"messages": [SYSTEM, USER]}, ([SYSTEM], "u", "", None)),
    "messages with an answer": ({"messages": [SYSTEM, USER, ANSWER]}, ([SYSTEM], "u", "", "a")),
    "several turns": ({"messages": [USER, ANSWER, LAST, ANSWER]}, ([USER, ANSWER], "v", "", "a")),
    "several turns, unanswered": ({"messages": [USER, ANSWER, LAST]}, ([USER, ANSWER], "v", "", None)),
    "an answer in two messages": ({"messages": [USER, ANSWER, message("assistant", "b")]}, ([], "u", "", "a\n\nb")),
    "an empty system message": ({"messages": [message("system", ""), USER]}, ([], "u", "", None)),
    "ShareGPT": (
        {"conversations": [turn("system", "s"), turn("human", "u"), turn("gpt", "a"), turn("human", "v")]},
        ([SYSTEM, USER, ANSWER], "v", "", None),
    ),
    "ShareGPT, answered": ({"conversations": [turn("human", "u"), turn("gpt", "a")]}, ([], "u", "", "a")),
    "ShareGPT with a system column": (
        {"system": "s", "conversations": [turn("human", "u")]},
        ([SYSTEM], "u", "", None),
    ),
    "Alpaca": ({"instruction": "u", "input": "i", "output": "a"}, ([], "u", "i", "a")),
    "Alpaca without input": ({"instruction": "u", "input": "", "output": "a"}, ([], "u", "", "a")),
    "Alpaca, nulls": ({"instruction": "u", "input": None, "output": None}, ([], "u", "", None)),
    "an empty output": ({"instruction": "u", "output": ""}, ([], "u", "", "")),
    "nulls of other schemas": ({"prompt": "u", "messages": None, "instruction": None}, ([], "u", "", None)),
    "messages that Arrow has filled": (
        {"messages": [{**USER, "from": None, "value": None}, {**turn("gpt", "a"), "role": None, "content": None}]},
        ([], "u", "", "a"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_told_by_the_columns(tmp_path, name):
    row, (context, instruction, input, output) = FORMATS[name]
    found = task(tmp_path, row)
    assert (found.context, found.instruction, found.input, found.output) == (context, instruction, input, output)
    assert found.id == Task.make(instruction, "", input, context=context).id
    assert (found.source, found.reference) == ("p.jsonl", None)


def test_all_formats_in_one_file(tmp_path):
    rows = [{**row, "license": name} for name, (row, _) in FORMATS.items()]
    found = tasks(write(tmp_path / "p.jsonl", *rows, {"instruction": "w"}), on_bad_line="skip")
    ids = [Task.make(i, "", j, context=c).id for c, i, j, _ in (wanted for _, wanted in FORMATS.values())]
    assert [each.id for each in found] == [*dict.fromkeys(ids), Task.make("w", "").id]


def test_each_instance_of_a_seed_task_is_a_task(tmp_path):
    instances = [{"input": "x", "output": "1"}, {"input": "", "output": "2"}]
    row = {"id": "seed_task_0", "name": "n", "instruction": "u", "instances": instances, "is_classification": True}
    found = tasks(write(tmp_path / "p.jsonl", row))
    assert [(each.instruction, each.input, each.output) for each in found] == [("u", "x", "1"), ("u", "", "2")]
    assert [each.is_classification for each in found] == [True, True]
    assert found[0].instruction_id == found[1].instruction_id == found[1].id


def test_a_reference_is_what_the_row_calls_so(tmp_path):
    found = task(tmp_path, {"prompt": "u", "response": "a", "reference": "42"})
    assert (found.output, found.reference) == ("a", "42")


def test_a_licence_is_the_rows_or_the_settings(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a", "license": "mit"}, {"prompt": "b"})
    assert [each.license for each in tasks(path, license="cc0-1.0")] == ["mit", "cc0-1.0"]
    assert [each.prompt.license for each in tasks(path)] == ["mit", None]


def test_a_data_set_of_our_own_is_read_back_as_the_same_tasks(tmp_path):
    made = [
        Task.make("u", "self_instruct", "i", output="a", parent_id="0123", license="mit"),
        Task.make("u", "evol_instruct", output="", context=[SYSTEM]),
        Task.make("v", "explain", context=[SYSTEM, USER, ANSWER], output="b"),
        Task.make("Add.\n\n1 2", "dataset", output=None),
        Task.make("Add.", "dataset", "1 3"),
    ]
    assert tasks(write(tmp_path / "train.jsonl", *rows_of(made))) == made
    assert tasks(write_parquet(tmp_path / "train.parquet", rows_of(made))) == made


# Columns


@pytest.mark.parametrize(
    ("row", "columns", "wanted"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "question", "output": "answer"}, ("q", "", "a")),
        ({"question": "q", "messages": [USER]}, {"prompt": "question"}, ("q", "", None)),
        ({"task": "t", "context": "c", "input": "no"}, {"instruction": "task", "input": "context"}, ("t", "c", None)),
        ({"dialog": [turn("human", "u")]}, {"conversations": "dialog"}, ("u", "", None)),
        ({"input": "x", "output": "y"}, {"prompt": "input", "response": "output"}, ("x", "", "y")),
        (
            {"prompt": "swapped", "instruction": "u"},
            {"instruction": "prompt", "output": "instruction"},
            ("swapped", "", "u"),
        ),
    ],
)
def test_columns_have_the_names_that_the_recipe_gives_them(tmp_path, row, columns, wanted):
    found = task(tmp_path, row, columns=columns)
    assert (found.instruction, found.input, found.output) == wanted


def test_a_missing_column_is_named(tmp_path):
    path = write(tmp_path / "p.jsonl", {"question": "a"}, {"text": "b", "id": 1})
    assert error_of(path, columns={"prompt": "question"}).startswith(
        f"{path}:2: no column `question`, where `columns` has `prompt`: it has text, id\nMend these lines"
    )


def test_a_null_where_the_prompt_should_be_is_named(tmp_path):
    path = write(tmp_path / "p.jsonl", {"question": None, "messages": [USER]})
    assert "`question` is null" in error_of(path, columns={"prompt": "question"})


def test_columns_that_nothing_reads_are_refused():
    with pytest.raises(ValidationError, match=r"'promt' is nothing that is read. Did you mean prompt"):
        RowSettings(columns={"promt": "question"})


# Bad rows

BAD = {
    "an empty line": b"",
    "an empty line, with blanks": b"  \t ",
    "the same prompt as line 1": {"prompt": "a"},
    "60 characters, more than 50": {"prompt": "x" * 60},
    "53 characters, more than 50": {"messages": [message("user", "x" * 24), ANSWER, message("user", "y")]},
    "not JSON: Expecting value at character 11": b'{"prompt": ',
    "not JSON: Exceeds the limit": b'{"prompt": "n", "n": ' + b"9" * 5000 + b"}",
    "not JSON: maximum recursion depth": b'{"prompt": ' + b"[" * 100_000,
    "a JSON object is wanted, and this is a list": b"[1]",
    "a JSON object is wanted, and this is a NoneType": b"null",
    "half of a surrogate pair": b'{"prompt": "\\ud83d"}',
    "not UTF-8: invalid start byte at byte 13": b'{"prompt": "\xff"}',
    "`prompt` is null": {"prompt": None},
    "`prompt` is 5, and a text is wanted": {"prompt": 5},
    "`prompt` is empty": {"prompt": "  "},
    "none of messages, conversations, prompt, instruction is among its columns (text, id). Name where they are, "
    "such as columns: {prompt: 'text'}": {"text": "a", "id": 3},
    "is among its columns (no column)": {},
    "`messages` is [], and a list of messages is wanted": {"messages": []},
    "`messages` is 'hi', and a list of messages is wanted": {"messages": "hi"},
    "`messages` is ['hi'], and a list of messages is wanted": {"messages": ["hi"]},
    "`content` is None, and a text is wanted": {"messages": [{"role": "user"}]},
    "`content` is [{'type'": {"messages": [message("user", [{"type": "image"}])]},
    "role 'robot' is none of system, user, human": {"messages": [message("robot", "x")]},
    "from 'tool' is none of": {"conversations": [turn("human", "u"), turn("tool", "x")]},
    "`messages` has no message of the user": {"messages": [ANSWER]},
    "begins with the assistant": {"messages": [SYSTEM, ANSWER, USER]},
    "ends with a system message": {"messages": [USER, SYSTEM]},
    "`instances` is 'x', and a list of objects is wanted": {"instruction": "u", "instances": "x"},
    "`instances` is empty": {"instruction": "u", "instances": []},
    "`input` is 3, and a text is wanted": {"instruction": "u", "input": 3},
    "`output` is ['a'], and a list of messages is wanted": {"instruction": "u", "output": ["a"]},
    "`output` is {'a': 1}, and a text is wanted": {"instruction": "u", "output": {"a": 1}},
    "and the assistant's messages are wanted": {"prompt": "p", "completion": [USER]},
    "`is_classification` is 'no', and true or false is wanted": {"instruction": "u", "is_classification": "no"},
    "`license` is ['mit'], and a text is wanted": {"prompt": "p", "license": ["mit"]},
    "`reference` is 42, and a text is wanted": {"prompt": "p", "reference": 42},
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_line_is_named(tmp_path, words):
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, BAD[words], {"prompt": "b"})
    found = error_of(path, max_characters=50)
    assert found.startswith(f"{path}:2: ")
    assert words.removesuffix(", with blanks") in found
    assert found.endswith("\nMend these lines, or remove them, or skip and count them: on_bad_line: skip")
    assert len(found) < 600


def test_bad_lines_can_be_skipped_and_are_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, *BAD.values(), {"prompt": "b"})
    found, skipped = read_tasks(RowSettings(path=path, max_characters=50, on_bad_line="skip"))
    assert [each.instruction for each in found] == ["a", "b"]
    assert skipped == {"empty": 4, "duplicate": 1, "over_long": 2, "malformed": len(BAD) - 7}


def test_ten_bad_lines_are_shown_and_the_others_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, *[b"no"] * 13)
    found = error_of(path).splitlines()
    assert [line.split(" ")[0] for line in found[:10]] == [f"{path}:{n}:" for n in range(2, 12)]
    assert found[10] == "... and 3 more"


def test_each_instance_again_is_counted(tmp_path):
    row = {"instruction": "u", "instances": [{"input": "x", "output": "1"}, {"input": "x", "output": "2"}]}
    path = write(tmp_path / "p.jsonl", row)
    found, skipped = read_tasks(RowSettings(path=path, on_bad_line="skip"))
    assert ([each.output for each in found], skipped) == (["1"], {"duplicate": 1})


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.txt", "p.parquet"])
def test_an_empty_file_is_an_error(tmp_path, name):
    (tmp_path / name).touch()
    assert str(tmp_path / name) in error_of(tmp_path / name, on_bad_line="skip")


def test_a_line_of_ten_megabytes_is_over_long_or_read(tmp_path):
    big = "x" * (10 << 20)
    path = write(tmp_path / "p.jsonl", {"prompt": big}, {"prompt": "a", "other": big})
    found, skipped = read_tasks(RowSettings(path=path, on_bad_line="skip"))
    assert ([each.instruction for each in found], skipped) == (["a"], {"over_long": 1})


@pytest.mark.parametrize("more", [1, 1000])
def test_a_line_without_end_is_not_held(tmp_path, monkeypatch, more):
    monkeypatch.setattr("selfreward.prompts.row_files.MAX_LINE_BYTES", 100)
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, b"x" * (100 + more), {"prompt": "b"}, b"y" * (100 + more))
    found, skipped = read_tasks(RowSettings(path=path, on_bad_line="skip"))
    assert ([each.instruction for each in found], skipped) == (["a", "b"], {"over_long": 2})
    assert f"{path}:2: a line of more than 100 bytes" in error_of(path)


def test_a_byte_order_mark_and_carriage_returns_are_nothing(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b\xef\xbf\xbd"}\r\n{"prompt": "\\ud83d\\ude00"}')
    assert [each.instruction for each in tasks(path)] == ["a", "b\ufffd", "\U0001f600"]


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    assert f"{path}:1: not UTF-8" in error_of(path)


# JSON lists


@pytest.mark.parametrize(
    "text", ['[{"prompt": "a"},\n {"prompt": "b"}]', '\ufeff[\n{"prompt": "a"}, {"prompt": "b"}]\n']
)
def test_a_json_list_is_read(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text, encoding="utf-8")
    assert [each.instruction for each in tasks(path)] == ["a", "b"]


def test_lines_in_a_file_called_json_are_read(tmp_path):
    path = write(tmp_path / "p.json", b"", {"prompt": "a"}, {"prompt": "b"})
    assert [each.instruction for each in tasks(path, on_bad_line="skip")] == ["a", "b"]


def test_a_bad_item_of_a_list_is_named_by_its_row(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "a"}, 3, {"prompt": "\ud83d"}, {"prompt": "a"}]))
    found = error_of(tmp_path / "p.json").splitlines()
    assert found[0].endswith("p.json, row 2: a JSON object is wanted, and this is a int")
    assert "p.json, row 3: half of a surrogate pair" in found[1]
    assert found[2].endswith("p.json, row 4: the same prompt as row 1")
    assert read_tasks(RowSettings(path=tmp_path / "p.json", on_bad_line="skip"))[1] == {"malformed": 2, "duplicate": 1}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'[{"prompt": "a"},\n{"prompt": ', ":2: not JSON"),
        (b'{\n"prompt": "a"}', ": a list of objects is wanted, and this is a dict"),
        (b"3", ": a list of objects is wanted, and this is a int"),
        (b'[{"prompt": "a"},\n\n{"prompt": "\xff"}]', ":3: not UTF-8"),
        (b"[" * 100_000, ": not JSON: maximum recursion depth"),
    ],
)
def test_a_file_that_is_no_list_is_refused_even_where_bad_lines_are_skipped(tmp_path, raw, words):
    path = tmp_path / "p.json"
    path.write_bytes(raw)
    found = error_of(path, on_bad_line="skip")
    assert found.startswith(f"{path}{words}")
    assert found.endswith("Mend it, or give JSONL: an object on each line, in a file named .jsonl")


def test_a_list_can_not_be_streamed(tmp_path):
    (tmp_path / "p.json").write_text('[{"prompt": "a"}]')
    settings = PromptSettings(path=tmp_path / "p.json", num=1, streaming=True)
    with pytest.raises(ValueError, match="one JSON list, which is read whole"):
        DatasetSource(settings).check()


# Parquet


def test_parquet_is_read_in_its_order(tmp_path):
    rows = [{"messages": [message("user", f"u{n}"), ANSWER], "license": None} for n in range(2500)]
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=700)
    found = tasks(path)
    assert [each.instruction for each in found] == [f"u{n}" for n in range(2500)]
    assert {each.output for each in found} == {"a"}


def test_bad_rows_of_parquet_are_named(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", [{"prompt": "a"}, {"prompt": None}, {"prompt": "a"}])
    assert error_of(path).splitlines()[:2] == [
        f"{path}, row 2: `prompt` is null",
        f"{path}, row 3: the same prompt as row 1",
    ]


def test_text_in_parquet_that_is_not_utf_8_is_one_bad_row(tmp_path):
    raw = pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    parquet.write_table(pyarrow.table({"prompt": text}), tmp_path / "p.parquet")
    found, skipped = read_tasks(RowSettings(path=tmp_path / "p.parquet", on_bad_line="skip"))
    assert ([each.instruction for each in found], skipped) == (["a", "c"], {"malformed": 1})


def test_what_is_no_parquet_is_named(tmp_path):
    path = write(tmp_path / "p.parquet", {"prompt": "a"})
    assert error_of(path, on_bad_line="skip").startswith(f"{path}: no readable Parquet")
    whole = write_parquet(tmp_path / "whole.parquet", [{"prompt": "a" * 1000}]).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert error_of(path).startswith(f"{path}: no readable Parquet")


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that is laid out as a data set of the hub with two configurations."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "birds"
    write_parquet(folder / "table/train-0.parquet", [{"prompt": f"q{n}", "response": "a"} for n in range(3)])
    write_parquet(folder / "table/test-0.parquet", [{"prompt": "t"}])
    (folder / "chats").mkdir()
    chats = [{"messages": [USER, ANSWER]}, {"messages": [LAST]}]
    write(folder / "chats/train.jsonl", *chats)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: table\n  data_files:\n"
        "  - {split: train, path: table/train-*.parquet}\n  - {split: test, path: table/test-*.parquet}\n"
        "- config_name: chats\n  data_files:\n  - {split: train, path: chats/train.jsonl}\n---\n"
    )
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub_is_read_by_subset_and_split(hub, streaming):
    settings = {"hub": str(hub), "subset": "table", "streaming": streaming}
    found, _ = read_tasks(RowSettings(**settings))
    assert [(each.instruction, each.output) for each in found] == [("q0", "a"), ("q1", "a"), ("q2", "a")]
    assert {each.source for each in found} == {"birds/table"}
    [test] = read_tasks(RowSettings(**settings, split="test"))[0]
    assert (test.instruction, test.output) == ("t", None)


def test_a_data_set_of_lines_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "lines").mkdir()
    chats = [{"messages": [SYSTEM, USER, ANSWER], "license": "mit"}, {"messages": [LAST]}, {"messages": [LAST]}]
    write(tmp_path / "lines" / "train.jsonl", *chats)
    settings = RowSettings(hub=str(tmp_path / "lines"), on_bad_line="skip")
    found, skipped = read_tasks(settings)
    assert [(each.context, each.instruction, each.output, each.license) for each in found] == [
        ([SYSTEM], "u", "a", "mit"),
        ([], "v", None, None),
    ]
    assert skipped == {"duplicate": 1}
    with pytest.raises(ValueError, match="lines, train, row 3: the same prompt as row 2"):
        read_tasks(settings.model_copy(update={"on_bad_line": "error"}))


def test_iterations_stream_a_data_set_of_the_hub(hub):
    settings = PromptSettings(hub=str(hub), subset="table", streaming=True, num=2)
    DatasetSource(settings).check()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subset": "nope"}, r"'nope' not found\. Available: \['table', 'chats'\]"),
        ({}, "Config name is missing"),
        ({"subset": "table", "split": "nope"}, "nope"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, settings, words):
    with pytest.raises(ValueError, match=f"the data set {hub} can't be read: .*{words}[\\s\\S]*Look at hub, subset"):
        read_tasks(RowSettings(hub=str(hub), **settings))


def test_a_data_set_that_can_not_be_reached_is_named():
    with pytest.raises(ValueError, match="the data set nobody/nothing can't be read"):
        read_tasks(RowSettings(hub="nobody/nothing", revision="0" * 40))


def test_bad_data_in_a_data_set_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "bad").mkdir()
    write(tmp_path / "bad" / "train.jsonl", {"prompt": "a"}, b'{"prompt":')
    with pytest.raises(ValueError, match=r"can't be read: .*JSON parse error"):
        read_tasks(RowSettings(hub=str(tmp_path / "bad")))


def test_the_code_of_a_data_set_is_never_run(tmp_path):
    folder, canary = tmp_path / "birds", tmp_path / "canary"
    folder.mkdir()
    (folder / "birds.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    for streaming in (False, True):
        with pytest.raises(ValueError, match="comes with code of its own, which is never run"):
            read_tasks(RowSettings(hub=str(folder), streaming=streaming))
    assert not canary.exists()


def test_a_data_set_of_the_hub_needs_a_revision():
    with pytest.raises(ValidationError, match="revision is missing"):
        RowSettings(hub="owner/name")
    with pytest.raises(ValidationError, match="there is no hub"):
        RowSettings(revision="abc")


# Documents


def test_documents_are_texts_with_their_licence(tmp_path):
    path = write(tmp_path / "d.jsonl", {"text": "a b", "license": "mit"}, {"text": "c"}, {"text": "a b"}, {"body": "d"})
    found, skipped = read_documents(RowSettings(path=path, license="cc0-1.0", on_bad_line="skip"))
    assert [(each.text, each.license) for each in found] == [("a b", "mit"), ("c", "cc0-1.0")]
    assert skipped == {"duplicate": 1, "malformed": 1}
    assert f"{path}:3: the same document as line 1" in error_of(path, read_documents)
    assert [
        each.text for each in read_documents(RowSettings(path=write(path, {"body": "d"}), columns={"text": "body"}))[0]
    ] == ["d"]


def test_documents_can_be_lines_of_text(tmp_path):
    (tmp_path / "d.txt").write_bytes("\ufeffOne.\r\n\n  Zwei: für \n".encode())
    found, skipped = read_documents(RowSettings(path=tmp_path / "d.txt"))
    assert ([each.text for each in found], skipped) == (["One.", "Zwei: für"], {})


# Seed data


def test_instruction_data_has_the_whole_conversation(tmp_path):
    rows = [row for row, (_, _, _, output) in FORMATS.values() if output]
    found = read_demonstrations(write(tmp_path / "ift.jsonl", *rows))
    wanted = [
        (Task.make(instruction, "", input, context=context).messages, output)
        for _, (context, instruction, input, output) in FORMATS.values()
        if output
    ]
    assert [(each.messages, each.response) for each in found] == wanted


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, "there is no answer: output, completion, response, or a last message of the assistant"),
        ({"prompt": "a", "response": " "}, "the answer is empty"),
        ({"messages": [USER]}, "there is no answer"),
    ],
)
def test_instruction_data_needs_an_answer(tmp_path, row, words):
    path = write(tmp_path / "ift.jsonl", {"prompt": "a", "response": "b"}, row)
    with pytest.raises(ValueError, match=words) as caught:
        read_demonstrations(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert str(caught.value).endswith("Mend these lines, or remove them")


def test_judging_data_needs_its_judgement(tmp_path):
    path = write(tmp_path / "eft.jsonl", {"prompt": "a", "response": "b"})
    with pytest.raises(ValueError, match=r"eft.jsonl:1: `judgement` is None"):
        read_graded(path)


# Large files

MEMORY = """
import resource, sys
from pathlib import Path
from selfreward.prompts.base import SourceContext
from selfreward.prompts.dataset import DatasetSource
from selfreward.prompts.filters.base import Filters
from selfreward.recipe.prompt_settings import FilterSettings, PromptSettings
settings = PromptSettings(path=Path(sys.argv[1]), num=10, streaming=True)
source = DatasetSource(settings)
for iteration in (1, int(sys.argv[2])):
    [first, *_] = source.tasks(SourceContext(iteration, 10, 0, Filters(FilterSettings(), []), None, 1))
    print(first.instruction[:9], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_what_is_streamed(tmp_path):
    path = write(tmp_path / "p.jsonl", *({"prompt": f"{n:09}{'x' * 7000}"} for n in range(6000)))
    command = [sys.executable, "-c", MEMORY, str(path), "599"]
    output = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True).stdout
    (first, before), (last, after) = (line.split() for line in output.splitlines())
    assert (first, last) == ("000000000", "000005980")
    assert int(after) - int(before) < path.stat().st_size / 1024 / 8  # kilobytes
