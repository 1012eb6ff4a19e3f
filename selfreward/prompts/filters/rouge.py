"""Near-duplicates by ROUGE-L, exact and against the whole pool (arXiv 2212.10560).

The paper's filter computes the F measure of each candidate with every instruction of the pool by Google's
``rouge_score``, about 13,000 pairs a second. The same decisions come from less work. First a bound: with m and n
words, an F measure above t needs more than t * (m + n) / 2 words in common, and signatures of a few bits a word tell
for the whole pool at once how many can be. What is left, one text or a few, gets its longest common subsequence (LCS)
from rapidfuzz, which finds it 64 words at a time, on strings that have one character for each word.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selfreward.prompts.filters.base import BuiltInFilter, Finding, Kind
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.records import Task
from selfreward.text.words import words

# Rounding must not take a text out of the candidates: its limit is so much higher, in words.
SLACK = 1e-6
# Shelves hold texts of up to 31 words, of 32 to 63, and so on; the last one those of 512 or more.
LAST_SHELF = 5


class Neighbour(NamedTuple):
    """A text of the pool, by its id, and the F measure with it."""

    id: str
    f_measure: float


def f_measure(common: int, m: int, n: int) -> float:
    """ROUGE-L of texts of m and n tokens with an LCS of ``common``, rounded as ``rouge_score`` rounds it.

    The steps are that library's own, as those of 2 * common / (m + n) round otherwise where it equals the threshold.
    """
    if common == 0:
        return 0.0
    precision, recall = common / m, common / n
    return 2 * precision * recall / (precision + recall)


def rouge_tokens(text: str) -> list[str]:
    """Those of ``rouge_score`` without stemming: runs of a to z and digits. A text of another script has none."""
    return re.findall(r"[a-z0-9]+", text.lower())


_TOKENS: dict[str, Callable[[str], list[str]]] = {"rouge": rouge_tokens, "unicode": partial(words, letters_only=True)}


class RougeIndex:
    """A pool of texts that grows, and the nearest of them to a text, by ROUGE-L.

    Memory grows with the number of words in the pool, and a look-up takes a few nanoseconds for each of its texts.

    Args:
        threshold: the F measure that a neighbour is above, from 0 to under 1.
        tokens: how texts become words: by :func:`rouge_tokens`, or by :func:`selfreward.text.words.words`.
    """

    def __init__(self, threshold: float, tokens: Literal["rouge", "unicode"] = "rouge") -> None:
        from rapidfuzz.distance import LCSseq

        self.threshold = threshold
        self._lcs = LCSseq.similarity
        self._tokens = _TOKENS[tokens]
        self._codes: dict[str, str] = {}  # a character for each word of the pool; none has the code 0
        self._ids: dict[str, str] = {}  # of each text in such characters the smallest id
        self._shelves: dict[int, _Shelf] = {}

    def add(self, id: str, text: str) -> None:
        """Adds a text to the pool. One without tokens is near to none.

        Raises:
            ValueError: the pool has more different words than there are characters.
        """
        tokens = self._tokens(text)
        for word in tokens:
            if word not in self._codes:
                self._codes[word] = self._new_code()
        encoded = "".join(map(self._codes.__getitem__, tokens))
        if encoded in self._ids:
            self._ids[encoded] = min(id, self._ids[encoded])
        elif encoded:
            self._ids[encoded] = id
            size = min((len(encoded) // 32).bit_length(), LAST_SHELF)
            if size not in self._shelves:
                self._shelves[size] = _Shelf(size, self.threshold)
            self._shelves[size].append(encoded)

    def nearest(self, text: str) -> Neighbour | None:
        """The neighbour with the greatest F measure above the threshold; of equal ones that with the smallest id."""
        query = "".join(self._codes.get(word, "\0") for word in self._tokens(text))
        if query in self._ids:
            return Neighbour(self._ids[query], 1.0)
        best: Neighbour | None = None
        for shelf in self._shelves.values() if query else ():
            for other in shelf.candidates(query):
                near = Neighbour(self._ids[other], f_measure(self._lcs(query, other), len(query), len(other)))
                if near.f_measure > self.threshold and (best is None or _order(near) < _order(best)):
                    best = near
        return best

    def _new_code(self) -> str:
        if len(self._codes) == sys.maxunicode:
            raise ValueError(
                f"rouge_l: the pool has more than {sys.maxunicode:,} different words, the most that it can tell "
                "apart. Use the filter minhash for a pool of this size"
            )
        return chr(len(self._codes) + 1)


def _order(neighbour: Neighbour) -> tuple[float, str]:
    return -neighbour.f_measure, neighbour.id


class _Shelf:
    """The texts of similar length, each with a signature: a bit for each of its words, where words can share one.

    A word of x whose bit is not set in y is not in y. With c such bits, no more than m - c of m words are in common.
    """

    def __init__(self, size: int, threshold: float) -> None:
        self._shortest = 16 << size if size else 1
        self._longest = (32 << size) - 1 if size < LAST_SHELF else sys.maxsize
        self._bits = 128 << size  # four a word or more, up to the last shelf, so that few words share one
        self._half = threshold / 2
        self._texts: list[str] = []
        # A column by text: the bits that are not set, 64 a row, and its part in the two limits of `candidates`.
        self._unset: NDArray[np.uint64] = np.zeros((self._bits // 64, 64), np.uint64)
        self._limits: NDArray[np.float64] = np.zeros((2, 64))

    def append(self, text: str) -> None:
        place, n = len(self._texts), len(text)
        if place == self._limits.shape[1]:
            self._unset = np.concatenate([self._unset, np.zeros_like(self._unset)], axis=1)
            self._limits = np.concatenate([self._limits, np.zeros_like(self._limits)], axis=1)
        signature = self._signature(text)
        self._unset[:, place] = ~self._rows(signature)
        self._limits[:, place] = -self._half * n, (1 - self._half) * n - signature.bit_count()
        self._texts.append(text)

    def candidates(self, query: str) -> list[str]:
        """Those above the threshold and few others. The code 0 in ``query`` stands for words that no text has."""
        m, known = len(query), query.replace("\0", "")
        best = min(max(m, self._shortest), self._longest)
        if min(m, best) < self._half * (m + best) - SLACK:
            return []
        size, signature = len(self._texts), self._signature(known)
        missing: NDArray[Any] = np.zeros(size, np.uint8 if self._bits < 256 else np.uint16)
        for bits, unset in zip(self._rows(signature), self._unset, strict=True):
            missing += np.bitwise_count(bits & unset[:size])
        # No more than len(known) - missing words of the query are in the text; and as `missing` less the query's bits
        # is how many bits of the text the query lacks, less the text's bits, the same from the text's side.
        of_query, of_text = self._limits[:, :size]
        needed = self._half * m - SLACK
        limit = np.minimum(of_query + (len(known) - needed), of_text + (signature.bit_count() - needed))
        return [self._texts[place] for place in np.flatnonzero(missing <= limit)]

    def _signature(self, text: str) -> int:
        return sum(1 << bit for bit in {ord(character) % self._bits for character in text})

    def _rows(self, signature: int) -> NDArray[np.uint64]:
        return np.frombuffer(signature.to_bytes(self._bits // 8, "little"), np.uint64)


class RougeL(BuiltInFilter):
    """Takes out an instruction whose ROUGE-L F measure with any of the pool is above the threshold (0.7).

    The decisions are those of ``rouge_score`` without stemming. With ``tokens: rouge`` an instruction without a letter
    from a to z or a digit has no tokens, so its F measure with everything is 0 and it always stays, as it does there;
    ``tokens: unicode`` compares these too.
    """

    of: ClassVar[Kind] = "instruction"
    block: ClassVar[str | None] = "rouge_l"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        self._index = RougeIndex(settings.rouge_l.threshold, settings.rouge_l.tokens)

    def look(self, task: Task) -> Finding | None:
        near = self._index.nearest(task.instruction)
        if near is None:
            return None
        detail = f"ROUGE-L is {near.f_measure:.3g} with an instruction of the pool, above {self._index.threshold}"
        return Finding(detail, near.id, near.f_measure)

    def add(self, task: Task) -> None:
        self._index.add(task.instruction_id, task.instruction)
