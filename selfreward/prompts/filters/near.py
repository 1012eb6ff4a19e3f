"""Near-duplicates: by the words that instructions share, and by what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from selfreward.prompts.filters.base import BuiltInFilter, Finding, Kind
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.recipe.filter_settings import EmbeddingSettings, FilterSettings
from selfreward.records import Task
from selfreward.runtime.extras import optional
from selfreward.text.words import ngrams, words

if TYPE_CHECKING:
    from datasketch import MinHash

Vectors = NDArray[np.float32]
# A model gives the same text vectors that differ in their last bits, depending on what it was encoded together with.
DIGITS = 4
EDGE = 10.0**-DIGITS
# Texts that are encoded and compared together, and rows of the pool in one array.
BATCH_TEXTS, BLOCK_ROWS = 1024, 4096


class NearByWords(BuiltInFilter):
    """Jaccard index of word shingles; the near ones are found by MinHash in bands, as datasketch does it.

    What is found is compared exactly, so nothing is taken out for an estimate; what is not found stays. By design that
    is 1 of 100 pairs just at the threshold and fewer of nearer ones (measured with the defaults: 4 of 725 pairs with an
    index of 0.70 to 0.72, none of 873 from 0.80 on). An instruction takes about 6 kB.
    """

    of: ClassVar[Kind] = "instruction"
    block: ClassVar[str | None] = "minhash"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        """Raises ValueError where datasketch is missing."""
        with optional("filter minhash", "data"):
            import datasketch
        self._settings = settings.minhash
        bands, rows = self._settings.bands
        self._empty = datasketch.MinHash(num_perm=bands * rows, seed=1)
        self._index = datasketch.MinHashLSH(num_perm=bands * rows, params=(bands, rows))
        self._pool: list[tuple[str, str]] = []  # id and instruction
        # What passes is looked at and then added.
        self._last: tuple[str | None, MinHash] = None, self._empty

    def look(self, task: Task) -> Finding | None:
        found = [self._pool[place] for place in self._index.query(self._sketch(task.instruction))]
        mine = self._shingles(task.instruction) if found else set()
        compared = [(_jaccard(mine, self._shingles(text)), id) for id, text in found]
        return _nearest(compared, self._settings.threshold, f"Jaccard index of {self._settings.ngram}-word shingles")

    def add(self, task: Task) -> None:
        self._index.insert(len(self._pool), self._sketch(task.instruction), check_duplication=False)
        self._pool.append((task.instruction_id, task.instruction))

    def _sketch(self, text: str) -> MinHash:
        if self._last[0] != text:
            sketch = self._empty.copy()
            sketch.update_batch([shingle.encode() for shingle in self._shingles(text)])
            self._last = text, sketch
        return self._last[1]

    def _shingles(self, text: str) -> set[str]:
        """Each ``ngram`` words in a row; a shorter text is one shingle, and so is one without words."""
        found = words(text)
        return set(ngrams(found, self._settings.ngram)) or {" ".join(found) or text.strip()}


class NearByMeaning(BuiltInFilter):
    """Cosine of sentence embeddings, rounded to 4 places, with every instruction of the pool.

    Texts are encoded and compared in batches: a batch with the pool as it is when its first text is looked at, and
    each text with what has joined since. An instruction takes 4 bytes for each dimension of the model.
    """

    of: ClassVar[Kind] = "instruction"
    block: ClassVar[str | None] = "embedding"

    @classmethod
    def check_settings(cls, settings: FilterSettings) -> None:
        if settings.embedding.model is None:
            raise ValueError("use names embedding, and embedding.model is missing: name the model that embeds")

    @classmethod
    def model(cls, settings: FilterSettings) -> ModelSettings | None:
        path, revision = settings.embedding.model, settings.embedding.revision
        return None if path is None else ModelSettings(path=path, revision=revision)

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        """Raises ValueError where sentence-transformers is missing or can't load the model."""
        self._threshold = settings.embedding.threshold
        self._encode = encoder(settings.embedding)
        self._ids: list[str] = []
        self._blocks: list[Vectors] = []  # (ROWS, dim) each, the last one filled as far as there are ids
        self._queue: list[str] = []
        self._turns: dict[str, int] = {}  # of each text in the queue, when it comes
        self._places: dict[str, int] = {}  # of each text in the batch, its row in:
        self._vectors: Vectors = np.empty((0, 0), np.float32)
        self._compared: list[list[tuple[float, str]]] = []
        self._size = 0  # of the pool that the batch was compared with

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Queues texts, which are encoded a batch at a time as they are reached, so that memory stays bounded."""
        self._queue = list(dict.fromkeys(task.instruction for task in tasks))
        self._turns = {text: turn for turn, text in enumerate(self._queue)}

    def look(self, task: Task) -> Finding | None:
        place = self._place(task.instruction)
        if not self._compared:
            self._compared, self._size = self._near(self._vectors, 0), len(self._ids)
        [later] = self._near(self._vectors[place : place + 1], self._size)
        return _nearest(self._compared[place] + later, self._threshold, "cosine of embeddings")

    def add(self, task: Task) -> None:
        place = self._place(task.instruction)
        vector = self._vectors[place]
        row = len(self._ids) % BLOCK_ROWS
        if row == 0:
            self._blocks.append(np.empty((BLOCK_ROWS, len(vector)), np.float32))
        self._blocks[-1][row] = vector
        self._ids.append(task.instruction_id)

    def _place(self, text: str) -> int:
        """The row of a text in the batch; where it is in none, the batch that begins with it is encoded."""
        if text not in self._places:
            turn = self._turns.get(text)
            batch = [text] if turn is None else self._queue[turn : turn + BATCH_TEXTS]
            self._vectors, self._compared = self._encode(batch), []
            self._places = {each: place for place, each in enumerate(batch)}
        return self._places[text]

    def _near(self, vectors: Vectors, start: int) -> list[list[tuple[float, str]]]:
        """For each vector the nearest of the pool from a place on, if near enough, in each block."""
        near: list[list[tuple[float, str]]] = [[] for _ in vectors]
        if start == len(self._ids):
            return near
        for begin in range(start - start % BLOCK_ROWS, len(self._ids), BLOCK_ROWS):
            first = max(start, begin)
            cosines = vectors @ self._blocks[begin // BLOCK_ROWS][first - begin : len(self._ids) - begin].T
            best = cosines.max(axis=1)
            for query in np.flatnonzero(best >= self._threshold - EDGE):
                for row in np.flatnonzero(cosines[query] >= best[query] - EDGE):
                    near[query].append((round(float(cosines[query, row]), DIGITS), self._ids[first + row]))
        return near


@lru_cache(maxsize=1)
def encoder(settings: EmbeddingSettings) -> Callable[[Sequence[str]], Vectors]:
    """From texts to vectors of length 1, (num_texts, dim); what the model has no token of may have length 0.

    A model cuts texts that are longer than it takes.

    Raises:
        ValueError: sentence-transformers is missing, or can't load the model.
    """
    assert settings.model is not None, "the settings ask for a model where this is used"
    with optional("filter embedding", "data"):
        import sentence_transformers
    from safetensors import SafetensorError

    try:
        model = sentence_transformers.SentenceTransformer(
            settings.model,
            device=settings.device,
            revision=settings.revision,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": "float32"},
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"embedding.model: {settings.model} can't be loaded by sentence-transformers: {reason} "
            "Give a folder that its save_pretrained wrote, or the name of a hub model"
        ) from error

    def encode(texts: Sequence[str]) -> Vectors:
        vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        if not np.isfinite(vectors).all():
            raise ValueError(f"embedding.model: {settings.model} gives vectors that are not finite. Use another model")
        return np.asarray(vectors, np.float32)

    return encode


def _nearest(compared: Sequence[tuple[float, str]], threshold: float, measure: str) -> Finding | None:
    """The most similar one, the smallest id of those, if it is near enough."""
    similarity, id = min(compared, key=lambda each: (-each[0], each[1]), default=(0.0, ""))
    if not id or similarity < threshold:
        return None
    return Finding(f"{measure} {similarity:.2f}, not below {threshold:g}", id, similarity)


def _jaccard(one: set[str], other: set[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
