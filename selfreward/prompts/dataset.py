"""Prompts and seed data from JSONL files, each bad line named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward.config import PromptSettings, Recipe
from selfreward.records import Message, Prompt

ROLES = ("system", "user", "assistant")
SHOWN = 10


class DatasetSource:
    """Each iteration takes the next ``num`` prompts of a file, and starts over at its end."""

    def __init__(self, settings: PromptSettings) -> None:
        self._settings = settings

    def prompts(self, iteration: int) -> tuple[list[Prompt], dict[str, int]]:
        """The prompts of an iteration (counted from 1), and how many lines were skipped by reason.

        Raises:
            ValueError: bad lines (with ``on_bad_line: error``), or fewer prompts than ``num``.
        """
        prompts, skipped = read_prompts(self._settings)
        num = self._settings.num or len(prompts)
        if num > len(prompts):
            raise ValueError(
                f"prompts.num is {num}, and {self._settings.path} has {len(prompts)} prompts. Lower num or add prompts"
            )
        start = (iteration - 1) * num
        return [prompts[(start + place) % len(prompts)] for place in range(num)], skipped


def read_prompts(settings: PromptSettings) -> tuple[list[Prompt], dict[str, int]]:
    """All good prompts of a file in its order, and the number of bad lines by reason.

    A line has ``prompt`` (text) or ``messages`` (chat, the user last), and may have ``reference``.

    Raises:
        ValueError: bad lines with ``on_bad_line: error``, each named, or no good line at all.
    """
    seen: dict[str, int] = {}
    prompts: list[Prompt] = []

    def add(number: int, row: dict[str, Any]) -> None:
        prompt = _prompt(row, settings.path.name)
        if len(prompt.text) > settings.max_characters:
            raise _BadLine("over_long", f"{len(prompt.text)} characters, more than {settings.max_characters}")
        if prompt.id in seen:
            raise _BadLine("duplicate", f"the same prompt as line {seen[prompt.id]}")
        seen[prompt.id] = number
        prompts.append(prompt)

    skipped = _read_lines(settings.path, add, skip=settings.on_bad_line == "skip")
    return prompts, skipped


def read_held_out(recipe: Recipe) -> list[Prompt]:
    """The held-out prompts of the evaluation, read as the training prompts are."""
    prompts, _ = read_prompts(recipe.prompts.model_copy(update={"path": recipe.evaluation.prompts}))
    return prompts


@dataclass(frozen=True)
class Graded:
    """A line of judging data: a response with its judgement, whose score is the label."""

    prompt: str
    response: str
    judgement: str
    reference: str | None = None


@dataclass(frozen=True)
class Demonstration:
    """A line of instruction data."""

    prompt: str
    response: str


def read_graded(path: Path) -> list[Graded]:
    """Judging data (EFT). Raises ValueError that names each bad line."""
    rows: list[Graded] = []

    def add(_: int, row: dict[str, Any]) -> None:
        prompt, response, judgement = _texts(row, "prompt", "response", "judgement")
        rows.append(Graded(prompt, response, judgement, _reference(row)))

    _read_lines(path, add)
    return rows


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Instruction data (IFT). Raises ValueError that names each bad line."""
    rows: list[Demonstration] = []
    _read_lines(path, lambda _, row: rows.append(Demonstration(*_texts(row, "prompt", "response"))))
    return rows


class _BadLine(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _read_lines(path: Path, add: Callable[[int, dict[str, Any]], None], skip: bool = False) -> dict[str, int]:
    """Hands each line to ``add``; bad ones are counted by reason, or collected into one error."""
    skipped: dict[str, int] = {}
    messages, good = [], 0
    for number, line in _numbered(path):
        try:
            add(number, _row(line))
            good += 1
        except _BadLine as bad:
            skipped[bad.reason] = skipped.get(bad.reason, 0) + 1
            messages.append(f"{path}:{number}: {bad}")
    if messages and not skip:
        more = f"\n... and {len(messages) - SHOWN} more" if len(messages) > SHOWN else ""
        raise ValueError("\n".join(messages[:SHOWN]) + more + "\nMend these lines, or remove them")
    if not good:
        raise ValueError(f"{path} has no usable line: {skipped or 'it is empty'}")
    return skipped


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            yield number, raw.decode("utf-8", errors="replace")


def _row(line: str) -> dict[str, Any]:
    if not line.strip():
        raise _BadLine("empty", "an empty line")
    if "\ufffd" in line:
        raise _BadLine("malformed", "not UTF-8")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _BadLine("malformed", f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise _BadLine("malformed", f"a JSON object is wanted, and this is a {type(row).__name__}")
    if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
        raise _BadLine("malformed", "half of a surrogate pair, such as \\ud83d alone, which is no character")
    return row


def _texts(row: dict[str, Any], *names: str) -> list[str]:
    for name in names:
        value = row.get(name)
        if not isinstance(value, str):
            raise _BadLine("malformed", f"`{name}` is {value!r}, and a text is wanted")
        if not value.strip():
            raise _BadLine("empty", f"`{name}` is empty")
    return [row[name] for name in names]


def _prompt(row: dict[str, Any], source: str) -> Prompt:
    if "messages" in row:
        messages = _messages(row["messages"])
    else:
        messages = [{"role": "user", "content": _texts(row, "prompt")[0]}]
    return Prompt.make(messages, source, _reference(row))


def _reference(row: dict[str, Any]) -> str | None:
    return _texts(row, "reference")[0] if row.get("reference") is not None else None


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise _BadLine("malformed", f"`messages` is {value!r}, and a list of messages is wanted")
    for item in value:
        _texts(item, "role", "content")
        if item["role"] not in ROLES:
            raise _BadLine("malformed", f"role {item['role']!r} is none of {', '.join(ROLES)}")
    if value[-1]["role"] != "user":
        raise _BadLine("malformed", f"the last message is the {value[-1]['role']}'s, and the user's is wanted")
    return [{"role": item["role"], "content": item["content"]} for item in value]
