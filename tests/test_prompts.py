"""Prompts from a file: every prompt is used, every bad line is named."""

import json

import pytest

from selfreward.config import PromptSettings
from selfreward.prompts.dataset import DatasetSource, read_graded, read_prompts


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def prompts_file(tmp_path, count):
    return write(tmp_path / "prompts.jsonl", *(json.dumps({"prompt": f"prompt {n}"}) for n in range(count)))


def test_each_iteration_takes_the_next_prompts_and_starts_over_at_the_end(tmp_path):
    source = DatasetSource(PromptSettings(path=prompts_file(tmp_path, 7), num=3))
    taken = [[p.text for p in source.prompts(t)[0]] for t in (1, 2, 3)]
    assert taken == [[f"prompt {n % 7}" for n in range(start, start + 3)] for start in (0, 3, 6)]


def test_no_prompt_is_lost_without_a_number(tmp_path):
    prompts, skipped = DatasetSource(PromptSettings(path=prompts_file(tmp_path, 7))).prompts(2)
    assert len({p.id for p in prompts}) == 7
    assert skipped == {}


def test_more_prompts_than_there_are_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"prompts.num is 8, and .* has 7 prompts"):
        DatasetSource(PromptSettings(path=prompts_file(tmp_path, 7), num=8)).prompts(1)


BAD = [
    (b"", "an empty line"),
    (b'{"prompt": "a"}', "the same prompt as line 1"),
    (b'{"prompt": "' + b"x" * 60 + b'"}', "60 characters, more than 50"),
    (b'{"prompt": ', "not JSON"),
    (b"[1]", "a JSON object is wanted, and this is a list"),
    (b'{"text": "a"}', "`prompt` is None, and a text is wanted"),
    (b'{"prompt": "  "}', "`prompt` is empty"),
    (b'{"prompt": "\xff"}', "not UTF-8"),
    (b'{"messages": []}', "a list of messages is wanted"),
    (b'{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot' is none of"),
    (b'{"messages": [{"role": "assistant", "content": "x"}]}', "the last message is the assistant's"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", b'{"prompt": "a"}', line, b'{"prompt": "b"}')
    with pytest.raises(ValueError, match="Mend these lines") as error:
        read_prompts(PromptSettings(path=path, max_characters=50))
    assert f"{path}:2: " in str(error.value)
    assert message in str(error.value)


def test_bad_lines_can_be_skipped_and_are_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", b'{"prompt": "a"}', *(line for line, _ in BAD), b'{"prompt": "b"}')
    prompts, skipped = read_prompts(PromptSettings(path=path, max_characters=50, on_bad_line="skip"))
    assert [p.text for p in prompts] == ["a", "b"]
    assert skipped == {"empty": 2, "duplicate": 1, "over_long": 1, "malformed": 7}


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "p.jsonl").touch()
    with pytest.raises(ValueError, match="no usable line"):
        read_prompts(PromptSettings(path=tmp_path / "p.jsonl"))


def test_a_conversation_is_a_prompt(tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = write(tmp_path / "p.jsonl", json.dumps({"messages": chat, "reference": "42"}))
    [prompt] = read_prompts(PromptSettings(path=path))[0]
    assert (prompt.messages, prompt.reference) == (chat, "42")
    assert prompt.text == "system: s\n\nuser: u"


def test_judging_data_needs_its_judgement(tmp_path):
    path = write(tmp_path / "eft.jsonl", '{"prompt": "a", "response": "b"}')
    with pytest.raises(ValueError, match=r"eft.jsonl:1: `judgement` is None"):
        read_graded(path)
