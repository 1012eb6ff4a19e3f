"""Texts under labels, such as ``Input:`` and ``Output:``, as models write them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from selfreward.text.lists import unfenced

# An input that says that there is none.
_NOTHING = re.compile(
    r"[\W_]*(?:no ?input(?: needed| required)?|none|n/?a|empty|not applicable|not needed)?[\W_]*", re.I
)
# What parts one example from the next: ### --- **Task 4** ### 4. 4.
_PARTING = re.compile(
    r"\s*(?:#+|([=*_-])(?:[ \t]*\1){2,}|(?:#+[ \t]*)?[*_]*(?:task|example)[ \t]*#?\d{1,3}[.:)]?[*_:]*|"
    r"#+[ \t]*[*_]*\d{1,3}[.:)]?[*_]*|[*_]*\d{1,3}[.)][*_]*)\s*",
    re.IGNORECASE,
)
_FAREWELL = re.compile(
    r"\W*(?:let me know|i hope (?:this|these|that)|feel free to|would you like|please let me)\b", re.IGNORECASE
)


@dataclass
class _Example:
    number: int | None
    fields: dict[str, list[str]] = field(default_factory=dict)

    def add(self, line: str) -> None:
        """Goes on with the last text."""
        self.fields[next(reversed(self.fields))].append(line)


class Labels:
    """The labels of one kind of example, in the order in which they come."""

    def __init__(self, *names: str) -> None:
        self._names = [name.lower() for name in names]
        self._line = re.compile(
            rf"""^[ ]{{0,3}}(?:[>*+-][ ])?(?:\#{{1,6}}[ ]*)?(?:\*\*|__)?(?:(?P<before>\d{{1,3}})[.)][ ]*)?(?:\*\*|__)?
            (?:class[ ])?(?P<name>{"|".join(names)})(?:[ ]*\#?(?P<after>\d{{1,3}}))?(?:\*\*|__)?[ ]*
            (?::(?:\*\*|__)?|(?(after)(?=[ \t]*$)|(?!)))[ \t]*(?P<text>.*)$""",
            re.IGNORECASE | re.VERBOSE,
        )

    def read(self, text: str) -> list[dict[str, str]]:
        """The examples of an output in their order, each with the texts that it has, by lower-case label.

        The label that comes first begins every example. A label that its example has already, one out of its order,
        of another number, or without a number where others have one, is part of the text that it stands in.
        """
        lines = unfenced(text, lambda line: self._line.match(line) is not None).splitlines()
        labels = [self._line.match(line) for line in lines]
        numbered = {label["name"].lower() for label in labels if label and _number(label) is not None}
        examples: list[_Example] = []
        opener = next((label["name"].lower() for label in labels if label), "")
        for line, label in zip(lines, labels, strict=True):
            name, number = (label["name"].lower(), _number(label)) if label else ("", None)
            if label is None or (number is None and name in numbered):
                pass
            elif name == opener and (not examples or _is_next(number, examples[-1])):
                examples.append(_Example(number, {name: [label["text"]]}))
                continue
            elif examples and self._belongs(name, number, examples[-1]):
                examples[-1].fields[name] = [label["text"]]
                continue
            if examples:
                examples[-1].add(line)
        return [
            {name: _joined(lines, is_last=example is examples[-1]) for name, lines in example.fields.items()}
            for example in examples
        ]

    def guard(self, text: str) -> str:
        """A text whose lines are no labels: those that are like one stand four spaces further right."""
        lines = text.splitlines()
        return "\n".join(
            f"    {line}" if self._line.match(line) or _PARTING.fullmatch(line) else line for line in lines
        )

    def _belongs(self, name: str, number: int | None, example: _Example) -> bool:
        places = [self._names.index(each) for each in example.fields]
        is_same = number is None or example.number is None or number == example.number
        return is_same and self._names.index(name) > max(places)


def input_of(text: str) -> str:
    """An input, which is empty where it says that there is none."""
    return "" if _NOTHING.fullmatch(text) else text


def _number(label: re.Match[str]) -> int | None:
    digits = label["before"] or label["after"]
    return int(digits) if digits else None


def _is_next(number: int | None, last: _Example) -> bool:
    """Whether a label that may begin an example does. In some lists every number is 1."""
    if number is None or last.number is None:
        return True
    return number > last.number or (number == last.number and len(last.fields) > 1)


def _joined(lines: list[str], is_last: bool) -> str:
    """A text without what parts it from the next example, or the farewell after the last one."""
    kept = "\n".join(lines).strip().splitlines()
    while len(kept) > 1 and (_PARTING.fullmatch(kept[-1]) or not kept[-1].strip()):
        kept.pop()
    text = "\n".join(kept).rstrip()
    body, gap, end = text.rpartition("\n\n")
    return body.rstrip() if is_last and gap and _FAREWELL.match(end) else text
