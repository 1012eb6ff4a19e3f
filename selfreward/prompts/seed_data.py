"""Data of the seed stage: instructions with their answers (IFT), and responses with their judgements (EFT)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from selfreward.prompts.formats import ANSWERS, tasks_of
from selfreward.prompts.row_files import BadRow, Row
from selfreward.prompts.rows import Rows, optional_text, text_of
from selfreward.recipe.prompt_settings import RowSettings
from selfreward.records import Graded, Message

Item = TypeVar("Item")


@dataclass(frozen=True)
class Demonstration:
    """A row of instruction data: a conversation up to a message of the user, and the answer to it."""

    messages: list[Message]
    response: str


def read_graded(path: Path) -> list[Graded]:
    """Judging data (EFT). Raises ValueError that names each bad row."""
    return _read(path, _graded)


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Instruction data (IFT), in any format that a prompt source reads. Raises ValueError that names each bad row."""
    settings = RowSettings(path=path)
    return _read(path, lambda row: _demonstrations(row, settings))


def _read(path: Path, make: Callable[[Row], Iterable[Item]]) -> list[Item]:
    rows = Rows(RowSettings(path=path), way_out="")
    found = [item for _, item in rows.made(make)]
    rows.finish(len(found))
    return found


def _graded(row: Row) -> list[Graded]:
    prompt, response, judgement = (text_of(row, name) for name in ("prompt", "response", "judgement"))
    return [Graded(prompt, response, judgement, optional_text(row, "reference"))]


def _demonstrations(row: Row, settings: RowSettings) -> list[Demonstration]:
    return [Demonstration(task.messages, _answer(task.output)) for task in tasks_of(row, settings, "")]


def _answer(output: str | None) -> str:
    if output is None:
        raise BadRow("malformed", f"there is no answer: {', '.join(ANSWERS)}, or a last message of the assistant")
    if not output.strip():
        raise BadRow("empty", "the answer is empty")
    return output
