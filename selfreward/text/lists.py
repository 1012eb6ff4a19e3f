"""Lists as models write them: with numbers or bullets, Markdown, talk around them, and items over several lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import dedent

_WORD = r"(?:task|instruction|question|prompt|exercise)"
_BOLD = r"(?:\*\*|__)?"
# 1. 1) (1) [1] 1: 1 - 1\. **1.** ### 1. - 1. Task 1: **Task 1**
_NUMBERED = re.compile(
    rf"""^(?P<indent>[ \t]*)(?P<bullet>[>*+•-][ \t]+)?(?:\#{{1,6}}[ \t]*)?(?P<bold>{_BOLD})[ \t]*
    (?:(?P<word>{_WORD})[ \t]*\#?[ \t]*)?
    [(\[]?(?P<number>\d{{1,3}})(?P<shut>{_BOLD})
    (?:\\?[.):\]、．：）]\)?(?!\d)|[ \t]+[–—-](?=[ \t])|(?(word)(?=[ \t]*$)|(?!)))
    (?P<end>{_BOLD})(?P<text>.*)$""",  # noqa: RUF001
    re.IGNORECASE | re.VERBOSE,
)
# "Task: ..." at the beginning of each, without a number.
_NAMED = re.compile(
    rf"^(?P<indent>[ \t]*)(?P<bullet>)(?:\#{{1,6}}[ \t]*)?(?P<bold>{_BOLD}){_WORD}(?P<shut>{_BOLD})[ \t]*:"
    rf"(?P<end>{_BOLD})(?P<text>.*)$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^(?P<indent>[ \t]*)(?P<bullet>[*+•‣●–-])[ \t]+(?P<text>.*)$")  # noqa: RUF001
_STYLES = (_NUMBERED, _NAMED, _BULLET)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)")
_RULE = re.compile(r"[ \t]*([*_=#-])(?:[ \t]*\1){2,}[ \t]*")
_HEADING = re.compile(r"#{1,6}[ \t].*|(\*\*|__)[^*_]+\1:?|.*:[*_]*")
_APOSTROPHE = "['’]"  # noqa: RUF001
# What a model says before it begins: "Sure!", "Here are some:", "New tasks:".
_TALK = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay|ok|great|got it)[!,.:]|"
    rf"here(?: is| are|{_APOSTROPHE}s)\b.*:\W*$|"
    r"[^.]*\b(?:new|more|another|next|following) (?:tasks?|instructions?)\b[^.]*:\W*$)",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "‘": "’", "`": "`"}  # noqa: RUF001
# How far the numbers of a list may skip: a higher one at the beginning of a line is part of its text.
_SKIP = 3


@dataclass
class _Item:
    number: int
    indent: int
    bullet: str
    lines: list[str]


def has_list(text: str) -> bool:
    """Whether a line of an output begins as items of a list do."""
    return any(map(_mark, text.splitlines()))


def read_list(text: str, begins: int = 1) -> list[str] | None:
    """The items of a list in their order, ``""`` for one without text; None where there is no list.

    Args:
        text: an output. What stands before the list and behind it is talk.
        begins: the number that the first item was to have. A model that goes on with a list may leave it out.
    """
    lines = unfenced(text, lambda line: _mark(line) is not None).splitlines()
    places = [place for place, line in enumerate(lines) if _mark(line)]
    if not places:
        return None
    items = _items(lines[places[0] :])
    before = [line for line in lines[: places[0]] if line.strip()]
    if items[0].number == begins + 1 and len(before) == 1 and not _introduces(before[0]):
        items.insert(0, _Item(begins, 0, "", before))
    return [_text(item, is_last=item is items[-1]) for item in items]


def read_lines(text: str) -> list[str]:
    """The lines of an output that have text, without list marks and without what a model says before it begins."""
    lines = [line for line in unfenced(text, lambda line: bool(line.strip())).splitlines() if line.strip()]
    if len(lines) > 1 and _TALK.match(lines[0]):
        lines = lines[1:]
    return [clean(_rest(mark) if (mark := _mark(line)) else line) for line in lines]


def clean(text: str) -> str:
    """A text without the label, bold and quotation marks around it."""
    text = re.sub(r"(?<!\w)(\*\*|__)(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2", text.strip())
    text = re.sub(rf"^{_WORD}[ \t]*:[ \t]*", "", text, flags=re.IGNORECASE).strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & {*text[1:-1]}:
        text = text[1:-1].strip()
    return text


def unfenced(text: str, is_wanted: Callable[[str], bool]) -> str:
    """What the first code fence holds, where what is wanted stands in it and nothing of the kind before it."""
    lines = text.splitlines()
    fences = [place for place, line in enumerate(lines) if _FENCE.match(line)]
    if not fences:
        return text
    end = fences[1] if len(fences) > 1 else len(lines)
    inside = lines[fences[0] + 1 : end]
    talk = [line for line in lines[: fences[0]] if is_wanted(line) and not _TALK.match(line)]
    return "\n".join(inside) if any(map(is_wanted, inside)) and not talk else text


def _mark(line: str) -> re.Match[str] | None:
    """The list mark at the beginning of a line, if any."""
    if _RULE.fullmatch(line):
        return None
    return next(filter(None, (style.match(line) for style in _STYLES)), None)


def _rest(mark: re.Match[str]) -> str:
    """The text behind a mark. Bold that began before the number may end within it."""
    found = mark.groupdict()
    text = found["text"].strip()
    is_open = found.get("bold") and not (found["shut"] or found["end"])
    return text.replace(found["bold"], "", 1) if is_open else text


def _introduces(line: str) -> bool:
    return line.rstrip(" *_").endswith(":") or _TALK.match(line) is not None


def _items(lines: Sequence[str]) -> list[_Item]:
    """The items of a list that begins with the first line; all have marks of one style."""
    style = next(style for style in _STYLES if style.match(lines[0]))
    items: list[_Item] = []
    in_code = False
    for line in lines:
        in_code ^= _FENCE.match(line) is not None
        mark = None if in_code or _RULE.fullmatch(line) else style.match(line)
        if mark is not None and (not items or _begins(mark, items)):
            number = int(mark["number"]) if style is _NUMBERED else 0
            items.append(_Item(number, _width(mark), mark["bullet"], [_rest(mark)]))
        else:
            items[-1].lines.append(line)
    return items


def _begins(mark: re.Match[str], items: Sequence[_Item]) -> bool:
    """Whether a mark begins a further item, and is not part of the one before it."""
    last = items[-1]
    if _width(mark) > items[0].indent + 1:
        return False
    if mark.re is not _NUMBERED:
        return mark["bullet"] == items[0].bullet
    number, announced = int(mark["number"]), _announces(last)
    if number <= last.number:
        # A list of ones, or a list that begins anew; unless it is what the text before it announced.
        return number in (1, last.number) and not announced
    return number <= last.number + _SKIP


def _announces(item: _Item) -> bool:
    paragraphs = _paragraphs(item.lines)
    return len(paragraphs) == 1 and any(line.rstrip(" *_").endswith(":") for line in paragraphs[0])


def _width(mark: re.Match[str]) -> int:
    return len(mark["indent"].expandtabs(4))


def _text(item: _Item, is_last: bool) -> str:
    """The text of an item without the headings and the talk that follow it."""
    paragraphs = _paragraphs([line for line in item.lines if not _RULE.fullmatch(line)])
    kept = paragraphs[:1]
    for place, paragraph in enumerate(paragraphs[1:], start=1):
        goes_on = paragraph[0][:1].isspace() or kept[-1][-1].rstrip().endswith(":") or _FENCE.match(paragraph[0])
        ends_list = is_last or (place == len(paragraphs) - 1 and _is_heading(paragraph))
        if not goes_on and ends_list:
            break
        kept.append(paragraph)
    first, *others = [line for number, each in enumerate(kept) for line in ([""] if number else []) + each] or [""]
    return clean("\n".join([first.strip(), *dedent("\n".join(others)).splitlines()]))


def _is_heading(paragraph: Sequence[str]) -> bool:
    return len(paragraph) == 1 and _HEADING.fullmatch(paragraph[0].strip()) is not None


def _paragraphs(lines: Sequence[str]) -> list[list[str]]:
    """Lines that stand together; code is never parted."""
    paragraphs: list[list[str]] = [[]]
    in_code = False
    for line in lines:
        in_code ^= _FENCE.match(line) is not None
        if line.strip() or in_code:
            paragraphs[-1].append(line.rstrip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return [paragraph for paragraph in paragraphs if paragraph]
