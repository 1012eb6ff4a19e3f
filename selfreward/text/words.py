"""The words of a text in any script, runs of words, and phrases."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate

# Scripts that put no spaces between words: Thai and Lao, Burmese, Khmer, Japanese kana, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
# Of the same scripts, letters of a few small languages, and archaic kana: ROUGE-L alone takes them apart.
_RARE = "\ua9e0-\ua9fe\uaa60-\uaa7f\U0001aff0-\U0001affe\U0001b000\U0001b001\U0001b11f-\U0001b167"
_CHARACTER = re.compile(rf"[{_UNSPACED}]")
# For ROUGE-L, 々 and the marks that voice kana are no words of their own, as they change what stands before.
_LETTER = re.compile(rf"(?![\u3005\u3099\u309a])[{_UNSPACED}{_RARE}]")
_VARIATION_SELECTORS = range(0xE0100, 0xE01F0)


def words(text: str, letters_only: bool = False) -> list[str]:
    """The words of a text in any script, whatever their case and their encoding (NFKC).

    Words are runs of letters, marks and digits. In scripts without spaces between words, each character is one.

    Args:
        text: any text.
        letters_only: for ROUGE-L. As in ``rouge_score``, an underscore parts words, no punctuation mark is a word, and
            case is that of ``str.lower``. Otherwise, for runs of words that texts share, ``snake_case`` is one word,
            ``ß`` is ``ss``, and a punctuation mark of a script without spaces is a word.
    """
    text = unicodedata.normalize("NFKC", text)
    return (text.lower() if letters_only else text.casefold()).translate(_spacing(letters_only)).split()


class _Spacing(dict[int, str]):
    """What stands for a character, so that a text falls into its words at the spaces; filled as characters come."""

    def __init__(self, letters_only: bool) -> None:
        super().__init__()
        self._letters_only = letters_only

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_letter = unicodedata.category(character)[0] in "LMN"
        if self._letters_only:
            is_word, is_single = is_letter, is_letter and _LETTER.match(character)
        else:
            is_word = (is_letter and code not in _VARIATION_SELECTORS) or character == "_"
            is_single = _CHARACTER.match(character)
        self[code] = f" {character} " if is_single else character if is_word else " "
        return self[code]


@cache
def _spacing(letters_only: bool) -> _Spacing:
    return _Spacing(letters_only)


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
