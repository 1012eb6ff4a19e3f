"""Judge prompts: a template with places, filled with text that stays data."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path

from selfreward.records import Message

# Places whose whole paragraph is left out where there is nothing to put in.
OPTIONAL = ("reference", "criteria")

_FENCE = re.compile(r"(?=<(?P<name>[A-Za-z][\w-]*)>(?P<inside>.*?)</(?P=name)>)", re.DOTALL)
_BRACKET = re.compile(r"[<‹«˂ᐸ≤≪≮≺⋖〈⟨⟪❬❮❰⦑⦓⧼⩹⩽⪡⪻《]|&lt|&#0*60|&#x0*3c|\\u003c|\\x3c|%3c", re.IGNORECASE)  # noqa: RUF001
# What looks like a tag, whether it is closed or not: a bracket, perhaps a slash or spaces, and a letter.
_TAG = re.compile(rf"(?:{_BRACKET.pattern})[\W_]{{0,40}}(?=(?P<word>[^\W\d_][^>]{{0,40}}))", re.IGNORECASE)


class Template:
    """A judge prompt with places such as ``{prompt}`` and ``{response}``.

    Tags around a place, ``<response>{response}</response>``, are a fence. Where a text holds something like a fence's
    tag, that fence has another name, ``<response-2>``, with a number that is in none of the texts: what the texts say,
    none of them ends its fence.
    """

    def __init__(self, source: str, text: str, places: Sequence[str]) -> None:
        """Takes a template.

        Args:
            source: where it is from, for messages.
            text: the template.
            places: those that it must have.

        Raises:
            ValueError: a place is missing.
        """
        self.text = text.strip()
        missing = [place for place in places if f"{{{place}}}" not in self.text]
        if missing:
            raise ValueError(
                f"template {source} has no {' and no '.join(f'{{{place}}}' for place in missing)}. "
                f"Write {' and '.join(f'{{{place}}}' for place in places)} where they belong"
            )
        # A judge that needs criteria always has them; a prompt may be without a reference.
        absent = {"reference", *({"criteria"} - {*places})}
        for paragraph in re.split(r"\n{2,}", self.text):
            held = [place for place in (*places, *OPTIONAL) if f"{{{place}}}" in paragraph]
            if len(set(held)) > 1 and set(held) & absent:
                raise ValueError(
                    f"template {source} has {' and '.join(f'{{{place}}}' for place in dict.fromkeys(held))} in one "
                    "paragraph, which is left out where there is no text for an optional place. Put an empty line "
                    "between them"
                )
        self._fences = {f["name"] for f in _FENCE.finditer(self.text) if re.search(r"\{\w+\}", f["inside"])}

    @classmethod
    def read(cls, path: Path, places: Sequence[str]) -> Template:
        """The template of a file. Raises ValueError if a place is missing."""
        return cls(str(path), path.read_text("utf-8"), places)

    def fill(self, **texts: str | None) -> list[Message]:
        """The judge prompt as a conversation; a text of an optional place may be None."""
        paragraphs = re.split(r"\n{2,}", self.text)
        absent = [f"{{{name}}}" for name in OPTIONAL if texts.get(name) is None]
        template = "\n\n".join(p for p in paragraphs if not any(place in p for place in absent))
        template = self._fenced(template, [text for text in texts.values() if text])
        # In one pass: a response that holds "{prompt}" is not a template.
        places = "|".join(re.escape(f"{{{name}}}") for name in texts)
        content = re.sub(places, lambda match: texts[match.group()[1:-1]] or "", template)
        return [{"role": "user", "content": content}]

    def _fenced(self, template: str, texts: Sequence[str]) -> str:
        """The template with other names for the fences that a text could end."""
        words = {word for text in texts for word in _tags(text)}
        imitated = [fence for fence in self._fences if _imitates(words, fence)]
        if imitated:
            number = _unused_number(texts)
            names = "|".join(map(re.escape, imitated))
            template = re.sub(rf"<(/?(?:{names}))>", rf"<\1-{number}>", template)
        return template


def _tags(text: str) -> set[str]:
    """The letters of everything in a text that looks like a tag, invisible characters and accents aside."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    if not _BRACKET.search(text):
        return set()
    visible = "".join(c for c in text if c.isspace() or (c.isprintable() and unicodedata.category(c)[0] != "M"))
    return {_letters(tag["word"]) for tag in _TAG.finditer(re.sub(r"\s+", " ", visible))}


def _letters(word: str) -> str:
    return "".join(filter(str.isalpha, word)).lower()


def _imitates(words: Collection[str], fence: str) -> bool:
    """Whether one of the words may be taken for a fence's name; no one knows what foreign letters look like."""
    name = _letters(fence)
    beginnings = {word[: len(name) + 2] for word in words}
    return not all(map(str.isascii, beginnings)) or bool(get_close_matches(name, beginnings, n=1, cutoff=0.7))


def _unused_number(texts: Iterable[str]) -> int:
    """The first number from 2 that stands in none of the texts, in whatever digits."""
    plain = (unicodedata.normalize("NFKC", text) for text in texts)
    used = {int(digits) for text in plain for digits in re.findall(r"\d{1,9}", text)}
    return next(number for number in count(2) if number not in used)
