"""What filters need of texts: their words, runs of words, phrases, and the texts of a task."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate

from selfreward.records import Task

# Scripts that put no spaces between words: Thai and Lao, Burmese, Khmer, Japanese kana, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile(r"\w+", re.ASCII)


def words(text: str) -> list[str]:
    """The words of a text in any script, in lower case and without accidents of encoding (NFKC).

    Where words are not divided by spaces, each character is one.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.casefold())  # the same, many times as fast
    return _word().findall(unicodedata.normalize("NFKC", text).casefold())


@cache
def _word() -> re.Pattern[str]:
    # \w lacks the marks that are vowels of Hindi or Tamil, without which a word falls apart.
    marks = "".join(character for character in map(chr, range(0x20000)) if unicodedata.category(character)[0] == "M")
    return re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\w{marks}])+")


def ngrams(words: Sequence[str], n: int) -> list[str]:
    """Each ``n`` words in a row, with spaces between; of fewer words, none."""
    text = " ".join(words)
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    return [text[starts[first] : starts[first + n] - 1] for first in range(len(words) - n + 1)]


def phrase_finder(phrases: Iterable[str]) -> Callable[[str], str | None]:
    """Finds the first of some words or phrases in a text, as whole words in any case, and gives it in lower case.

    White space in a phrase stands for any, and an apostrophe for a curly one too. Where a script has no spaces, a
    phrase is found within a longer word.
    """
    # The longest first, as the first that fits is the one that is given.
    found = sorted({" ".join(each.casefold().split()) for each in phrases}, key=lambda each: (-len(each), each))
    every = "|".join(r"\s+".join(map(re.escape, each.split(" "))).replace("'", "['\u2019]") for each in found)
    pattern = re.compile(rf"(?<![^\W{_UNSPACED}])(?:{every or '(?!)'})(?![^\W{_UNSPACED}])")

    def find(text: str) -> str | None:
        match = pattern.search(text.casefold())
        return None if match is None else match[0]

    return find


def parts(task: Task) -> list[tuple[str, str]]:
    """The texts of a task that are not empty, each with what it is."""
    every = [
        *(("earlier message", message["content"]) for message in task.context),
        ("instruction", task.instruction),
        ("input", task.input),
        ("output", task.output or ""),
        ("reference", task.reference or ""),
    ]
    return [(name, text) for name, text in every if text.strip()]
