"""Criteria that a user writes, for judges that score or compare by them (arXiv 2405.01535). No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from selfreward.recipe import strict_yaml
from selfreward.recipe.base import Settings
from selfreward.recipe.loader import VALUE_ERROR, bad_value, shown, suggest

_FORM = "Write a list whose items are {name: accuracy, description: All that it says is true., weight: 2}"


class Criterion(Settings):
    """What a response is judged by, and how much it counts beside the others."""

    name: str
    description: str
    weight: Annotated[float, Field(gt=0.0)] = 1.0

    @field_validator("name")
    @classmethod
    def _words(cls, value: str) -> str:
        # A judge writes the name on a line of its own, with the score behind it.
        if not re.fullmatch(r"\w+([ -]\w+)*", value) or len(value) > 60:
            raise ValueError(f"{shown(value)} is no name: use words of letters and digits, 60 characters at most")
        return value

    @field_validator("description")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is empty. Say what a good response does")
        return value.strip()


def read_criteria(path: Path) -> list[Criterion]:
    """The criteria of a YAML file, in its order.

    Raises:
        ValueError: not YAML or no list, an unknown or missing key, a bad value, two criteria of one name.
    """
    try:
        node, rows = strict_yaml.load(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}. Save the file as UTF-8") from None
    except yaml.YAMLError as error:
        line, problem = strict_yaml.explain(error)
        raise ValueError(f"{path}:{line}: {problem}") from None
    if not isinstance(node, yaml.SequenceNode) or not rows:
        raise ValueError(f"{path}: there is no list of criteria in it, but {shown(rows)}. {_FORM}")
    places = [f"{path}:{item.start_mark.line + 1}" for item in node.value]
    criteria = [_criterion(place, row) for place, row in zip(places, rows, strict=True)]
    for number, (place, criterion) in enumerate(zip(places, criteria, strict=True)):
        if criterion.name.casefold() in {other.name.casefold() for other in criteria[:number]}:
            raise ValueError(f"{place}: name: {criterion.name!r} stands there a second time. Give each its own name")
    return criteria


def describe(criteria: Sequence[Criterion]) -> str:
    """The criteria as a judge prompt shows them: numbered, unless there is but one."""
    lines = [f"{criterion.name}: {criterion.description}" for criterion in criteria]
    return lines[0] if len(lines) == 1 else "\n".join(f"{place}. {line}" for place, line in enumerate(lines, start=1))


def _criterion(place: str, row: Any) -> Criterion:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a criterion is a mapping, and this is {shown(row)}. {_FORM}")
    try:
        return Criterion.model_validate(row)
    except ValidationError as error:
        messages = [_message(dict(problem)) for problem in error.errors(include_url=False)]
        raise ValueError("\n".join(f"{place}: {message}" for message in messages)) from None


def _message(problem: dict[str, Any]) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key. {suggest(key, list(Criterion.model_fields))}"
    if problem["type"] == "missing":
        return f"{key}: missing. {_FORM}"
    if problem["type"] == "value_error":
        return f"{key}: {str(problem['msg']).removeprefix(VALUE_ERROR)}"
    return f"{key}: {bad_value(problem)}"
