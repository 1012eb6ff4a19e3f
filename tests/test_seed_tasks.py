"""The project's own seed tasks: their shape, that they are many and diverse, and that their answers can be used."""

import ast
import json
import re
import tomllib
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from selfreward.prompts.dataset import read_tasks
from selfreward.recipe.filter_settings import KeywordSettings
from selfreward.recipe.prompt_settings import RowSettings

COMMON = Path(__file__).parents[1] / "recipes" / "common"
PATH = COMMON / "seed_tasks.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
OUTPUTS = [(row["id"], instance["output"]) for row in ROWS for instance in row["instances"]]
KINDS = {
    *("classification", "extraction", "rewriting", "correction", "summarising", "writing", "maths", "logic", "code"),
    *("conversion", "planning", "advice", "explanation", "question answering", "role play", "translation", "ideas"),
    "everyday",
}
LANGUAGES = {"en", "de", "fr", "es", "it", "pt", "nl", "pl", "tr", "ru", "zh", "ja", "ar", "hi"}


def tokens(text: str) -> list[str]:
    """As Google's rouge_score for English, and for every script: words, or characters where there are no spaces."""
    return re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W_]+", text.lower())


def rouge_l(a: list[str], b: list[str]) -> float:
    from rapidfuzz.distance import LCSseq

    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b))


def blocks(language: str) -> list[str]:
    return [block for _, text in OUTPUTS for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def test_every_row_has_the_shape() -> None:
    names = ["id", "kind", "language", "instruction", "instances", "is_classification", "license"]
    for row in ROWS:
        assert list(row) == names
        assert {row["license"], type(row["is_classification"])} == {"Apache-2.0", bool}
        assert row["instruction"].strip() == row["instruction"] != ""
        assert 1 <= len(row["instances"]) <= 5
        assert all(list(instance) == ["input", "output"] for instance in row["instances"])
    assert [row["id"] for row in ROWS] == [f"seed_{number:03}" for number in range(len(ROWS))]


def test_there_are_enough_of_every_kind() -> None:
    assert len(ROWS) >= 70
    kinds = Counter(row["kind"] for row in ROWS)
    assert kinds.keys() == KINDS
    assert min(kinds.values()) >= 2
    assert all(row["is_classification"] == (row["kind"] == "classification") for row in ROWS)
    assert kinds["classification"] >= 12
    without_input = [row for row in ROWS if not row["instances"][0]["input"]]
    assert 30 <= len(without_input) <= len(ROWS) - 30


def test_the_languages_are_what_they_say() -> None:
    langid = pytest.importorskip("py3langid")
    languages = Counter(row["language"] for row in ROWS)
    assert languages.keys() == LANGUAGES
    assert languages.total() - languages["en"] >= 12
    for row in ROWS:
        texts = [row["instruction"], *(text for instance in row["instances"] for text in instance.values())]
        assert langid.classify(" ".join(texts))[0] == row["language"], row["id"]


def test_a_prompt_source_reads_them() -> None:
    tasks, skipped = read_tasks(RowSettings(path=PATH))
    assert skipped == {}
    assert [task.output for task in tasks] == [output for _, output in OUTPUTS]
    assert len({task.id for task in tasks}) == len(tasks)
    assert {task.license for task in tasks} == {"Apache-2.0"}


def test_no_two_are_nearly_the_same_nor_like_a_prompt_of_the_recipes() -> None:
    own = [(row["instruction"], tokens(row["instruction"])) for row in ROWS]
    lines = [line for name in ("prompts", "heldout") for line in (COMMON / f"{name}.jsonl").read_text().splitlines()]
    others = [(text, tokens(text)) for text in (json.loads(line)["prompt"] for line in lines)]
    pairs = [*combinations(own, 2), *((a, b) for a in own for b in others)]
    assert [(a[0], b[0]) for a, b in pairs if rouge_l(a[1], b[1]) > 0.7] == []
    assert rouge_l(tokens("Name five birds."), tokens("Name five large birds.")) == pytest.approx(6 / 7)


def test_answers_are_whole() -> None:
    for name, output in OUTPUTS:
        assert output.strip() == output != "", name
        assert not output.endswith(":"), name
        assert output.count("```") % 2 == 0, name
    for row in ROWS:
        pairs = [(instance["input"], instance["output"]) for instance in row["instances"]]
        assert len(dict(pairs)) == len(pairs), "one input has one answer"
        assert all(given != answer for given, answer in pairs)


def test_answers_to_classification_are_labels() -> None:
    labels = [(row["id"], i["output"]) for row in ROWS if row["is_classification"] for i in row["instances"]]
    assert all(len(label.split()) <= 2 for _, label in labels)
    several = Counter(name for name, _ in labels)
    assert all(len({label for other, label in labels if other == name}) > 1 for name in several)


def test_code_and_data_in_answers_parse() -> None:
    python, toml = blocks("python"), blocks("toml")
    lists = [output for _, output in OUTPUTS if output[0] in "[{"]
    assert (len(python) >= 6, len(toml) >= 1, len(lists) >= 4) == (True, True, True)
    for code in python:
        ast.parse(code)
    for data in toml:
        tomllib.loads(data)
    for data in lists:
        json.loads(data)
    assert {"javascript", "sql", "rust", "c", "cpp", "java", "bash"} <= {
        name for _, text in OUTPUTS for name in re.findall(r"```(\w+)\n", text)
    }


def test_no_instruction_asks_for_what_the_paper_filters() -> None:
    words = "|".join(re.escape(word) for word in KeywordSettings().words)
    for row in ROWS:
        assert not re.search(rf"\b({words})\b", row["instruction"], re.IGNORECASE), row["id"]
        assert not row["instruction"].startswith("Write a program")
        if row["language"] not in ("zh", "ja", "hi", "ar"):
            assert 4 <= len(row["instruction"].split()) <= 150
