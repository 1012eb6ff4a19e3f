"""How different instructions are from each other. All figures are taken on a seeded sample of at most 1000."""

from __future__ import annotations

import random
import warnings
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from selfreward.evaluation.root_verb_noun import root_verb_noun
from selfreward.recipe.filter_settings import EmbeddingSettings
from selfreward.text.words import ngrams, words

SAMPLED_TEXTS = 1000
# Shares of what is distinct fall with the amount of text: they are means over windows of so many n-grams or roots.
WINDOW = {"distinct_1": 500, "distinct_2": 500, "distinct_roots": 100}
SELF_BLEU_TEXTS = 100
NUM_CLUSTERS = 16
HASHED_DIMENSIONS = 256
Root = tuple[str, str]


def diversity(
    texts: Sequence[str], seed: int, embedding: EmbeddingSettings, reference: Sequence[str] = ()
) -> dict[str, float]:
    """Figures of instructions; what can't be said of so few texts is left out.

    - ``distinct_1``, ``distinct_2``: unique words and pairs of words beside all (arXiv 1510.03055).
    - ``distinct_roots``: unique pairs of a root verb and noun (:mod:`selfreward.evaluation.root_verb_noun`) beside all,
      and ``rooted``, the share of texts in which there is one.
    - ``self_bleu``: mean sentence BLEU of a text against the others, 0 to 100, higher being less diverse
      (arXiv 1802.01886). It grows with the number of texts up to 100, where the sample ends.
    - ``spread``: mean cosine distance of two texts, 0 to 1, of embeddings where a model is set, else of word counts.
    - ``cluster_coverage``: exp of the entropy of cluster sizes beside the number of clusters, 1 where all clusters are
      as large.

    Args:
        texts: instructions, in an order that depends on nothing but the run.
        seed: of the samples and of the first centres of the clusters.
        embedding: the model, if any.
        reference: what the clusters are those of; the texts themselves where there is none.

    Raises:
        ValueError: the embedding model can't be loaded.
    """
    sample = _sample(texts, seed)
    tokens = [found for found in map(words, sample) if found]
    found = [root for root in map(root_verb_noun, sample) if root is not None]
    figures = {
        "distinct_1": _distinct([word for text in tokens for word in text], WINDOW["distinct_1"]),
        "distinct_2": _distinct([pair for text in tokens for pair in ngrams(text, 2)], WINDOW["distinct_2"]),
        "distinct_roots": _distinct(found, WINDOW["distinct_roots"]),
        "rooted": len(found) / len(sample) if sample else None,
        "self_bleu": self_bleu(tokens[:SELF_BLEU_TEXTS]),
        **_spread(sample, _sample(reference, seed), seed, embedding),
    }
    return {name: value for name, value in figures.items() if value is not None}


def frequent_roots(texts: Sequence[str], num: int) -> list[tuple[Root, int]]:
    """The most frequent pairs of a root verb and noun, with how many texts have them."""
    counts = Counter(root for root in map(root_verb_noun, texts) if root is not None)
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:num]


def self_bleu(tokens: Sequence[Sequence[str]]) -> float | None:
    """Mean of sacrebleu's sentence BLEU of each tokenised text, with all others as its references.

    An n-gram counts as often as in the one other text that has it most often: the two highest counts tell that for
    every text at once.
    """
    if len(tokens) < 2:
        return None
    from sacrebleu.metrics.bleu import BLEU

    counts = [[Counter(ngrams(text, n)) for n in range(1, 5)] for text in tokens]
    most: dict[str, tuple[int, int, int]] = {}  # n-gram: highest count, its text, next highest count
    for place, text in enumerate(counts):
        for ngram, count in (item for of_n in text for item in of_n.items()):
            first, owner, second = most.get(ngram, (0, -1, 0))
            most[ngram] = (count, place, first) if count > first else (first, owner, max(second, count))
    scores = []
    for place, text in enumerate(counts):
        correct = [
            sum(min(count, most[ngram][2 if most[ngram][1] == place else 0]) for ngram, count in of_n.items())
            for of_n in text
        ]
        length = len(tokens[place])
        closest = min((abs(len(other) - length), len(other)) for n, other in enumerate(tokens) if n != place)[1]
        total = [sum(of_n.values()) for of_n in text]
        bleu = BLEU.compute_bleu(correct, total, length, closest, smooth_method="exp", effective_order=True)
        scores.append(bleu.score)
    return float(np.mean(scores))


def _sample(texts: Sequence[str], seed: int) -> list[str]:
    """At most 1000 texts in random order."""
    return random.Random(seed).sample(texts, min(SAMPLED_TEXTS, len(texts)))


def _distinct(items: Sequence[Hashable], window: int) -> float | None:
    """The share of distinct items in each full window, on average; of fewer items, in them all."""
    if not items:
        return None
    starts = range(0, max(1, len(items) - window + 1), window)
    return float(np.mean([len(set(items[s : s + window])) / len(items[s : s + window]) for s in starts]))


def _spread(
    texts: Sequence[str], reference: Sequence[str], seed: int, embedding: EmbeddingSettings
) -> dict[str, float | None]:
    if len(texts) < 2:
        return {}
    vectors = _vectors(texts, embedding)
    # The sum of all pairs' cosines, from the length of the sum of all vectors.
    pairs = float((vectors.sum(axis=0) ** 2).sum() - (vectors**2).sum())
    spread = max(0.0, 1.0 - pairs / (len(texts) * (len(texts) - 1)))
    known = _vectors(reference, embedding) if reference else vectors
    return {"spread": spread, "cluster_coverage": _coverage(vectors, known, seed)}


def _coverage(vectors: NDArray[np.float64], reference: NDArray[np.float64], seed: int) -> float:
    from scipy.cluster.vq import kmeans2, vq
    from scipy.stats import entropy

    distinct = np.unique(reference, axis=0)
    num = min(NUM_CLUSTERS, len(distinct))
    first = distinct[np.random.default_rng(seed).choice(len(distinct), num, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cluster may lose all its members, and keeps its centre
        centres, _ = kmeans2(reference, first, minit="matrix")
    _, sizes = np.unique(vq(vectors, centres)[0], return_counts=True)
    return float(np.exp(entropy(sizes)) / min(NUM_CLUSTERS, len(reference)))


def _vectors(texts: Sequence[str], embedding: EmbeddingSettings) -> NDArray[np.float64]:
    """Vectors of length 1, (num_texts, dim): embeddings, or word counts in 256 places by the words' hashes."""
    if embedding.model is not None:
        from selfreward.prompts.filters.near import encoder

        return encoder(embedding)(texts).astype(np.float64)
    counts: NDArray[np.float64] = np.zeros((len(texts), HASHED_DIMENSIONS))
    for row, text in enumerate(texts):
        for word in words(text) or [""]:
            counts[row, zlib.crc32(word.encode()) % HASHED_DIMENSIONS] += 1
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    return counts
