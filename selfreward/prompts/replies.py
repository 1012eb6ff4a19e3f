"""Requests from the packaged templates, and the one prompt that a model's reply holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from selfreward.engines.base import Completion, SamplingParams
from selfreward.recipe.prompt_settings import SourceSettings
from selfreward.text.prompt_template import Template
from selfreward.text.refusals import is_refusal

Row = TypeVar("Row")
TEMPLATES = Path(__file__).with_name("templates")

_KIND = r"(?:given|rewritten|created|evolved|revised|new)"
_NOUN = r"(?:prompt|instruction|question|version|request)"
_YES = r"(?:sure(?: thing)?|certainly|absolutely|of course|okay|ok)\b"
_DONE = r"i(?:['’]ve| have) (?:rewritten|revised|created|written|made)\b"  # noqa: RUF001
# "Sure!" on a line of its own; "Here is the rewritten prompt, with one more constraint:"; "Sure, I can do that:"
_TALK = re.compile(
    rf"[*_\s]*(?:{_YES}[!,.]*[*_ \t]*(?:\n|\Z)"
    rf"|(?:{_YES}[!,.]*\s*)?(?:here(?:['’]s| is)|this is|below is)\b[^\n:]{{0,80}}\b{_NOUN}\b[^\n:]{{0,80}}:[*_]*"  # noqa: RUF001
    rf"|(?:{_YES}[!,.]|{_DONE})[^\n:]{{0,120}}:[*_ \t]*\n)\s*",
    re.IGNORECASE,
)
# "#Rewritten Prompt#:", "**Rewritten prompt:**", "### New instruction" on a line of its own, "Prompt: ..."
_LABEL = re.compile(
    rf"[#*_\s]*(?:(?:the )?{_KIND}[ _-]{_NOUN}|prompt|instruction|question)\b"
    r"(?:[ \t]*[#*_]+[ \t]*:?[*_]*|[ \t]*:[*_]*|[ \t]*\n)\s*",
    re.IGNORECASE,
)
_TAGS = re.compile(
    rf"<(?P<name>(?:{_KIND}[_-]{_NOUN}|prompt)(?:-\d+)?)>(?P<inside>.*?)(?:</(?P=name)>|\Z)\s*",
    re.DOTALL | re.IGNORECASE,
)
_CODE = re.compile(r"(?P<marks>```|~~~)[a-z]*\n(?P<inside>(?:(?!```|~~~).)*)(?P=marks)", re.DOTALL)
_BOLD = re.compile(r"(?P<marks>\*\*|__)(?P<inside>(?:(?!\*\*|__).)+)(?P=marks)", re.DOTALL)
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "‘": "’"}  # noqa: RUF001


def template(name: str, *places: str) -> Template:
    """The packaged template ``templates/NAME.txt``, which has those places."""
    return Template.read(TEMPLATES / f"{name}.txt", places)


def greedy(settings: SourceSettings) -> SamplingParams:
    """How a model is asked for a verdict."""
    return SamplingParams(0.0, 1.0, settings.generation.max_tokens)


def failure(completion: Completion) -> str | None:
    """The name of what makes a completion useless, if anything: truncated, prompt_too_long, empty."""
    if completion.finish_reason != "stop":
        return {"length": "truncated"}.get(completion.finish_reason, completion.finish_reason)
    return None if completion.text.strip() else "empty"


def read_prompt(completion: Completion) -> tuple[str, str | None]:
    """The prompt in a reply that was to hold nothing else, or the name of what makes it useless.

    What models put around it is left out: announcements, labels, tags, code fences, bold, quotation marks.

    Returns:
        (the prompt, None) or ("", truncated | prompt_too_long | empty | refusal).
    """
    name = failure(completion)
    if name is not None:
        return "", name
    text = unwrap(completion.text)
    if not text:
        return "", "empty"
    return ("", "refusal") if is_refusal(text) else (text, None)


def unwrap(text: str) -> str:
    """A reply's prompt without what stands around it."""
    before = None
    while text != before:
        before, text = text, text.strip()
        for beginning in (_TALK, _LABEL):
            text = text.removeprefix(_matched(beginning, text))
        for around in (_TAGS, _CODE, _BOLD):
            if match := around.fullmatch(text):
                text = match["inside"].strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & {*text[1:-1]}:
            text = text[1:-1]
    return text


def in_turn(rows: Sequence[Row], taken: int) -> list[Row]:
    """All rows, those first that are next once so many were taken, and the first ones again behind the last."""
    start = taken % len(rows)
    return [*rows[start:], *rows[:start]]


def _matched(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.match(text)
    return match.group() if match else ""
