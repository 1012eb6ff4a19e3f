"""Near-duplicates by words and by meaning, against brute force."""

import random
import shutil
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from selfreward.evaluation.diversity import diversity
from selfreward.prompts.filters import near
from selfreward.prompts.filters.base import Filters, Finding
from selfreward.prompts.filters.near import NearByMeaning, NearByWords
from selfreward.recipe.filter_settings import EmbeddingSettings, FilterSettings, MinHashSettings
from selfreward.records import Task
from selfreward.tiny import world

WORDS = [f"{a}{b}" for a, b in product("abcdefgh", "klmnopqr")]


def task(text: str) -> Task:
    return Task.make(text, "test")


def by_words(threshold: float = 0.7, ngram: int = 3, num_perm: int = 128) -> NearByWords:
    minhash = MinHashSettings(threshold=threshold, ngram=ngram, num_perm=num_perm)
    return NearByWords(FilterSettings(minhash=minhash), None)


def jaccard(one: str, other: str, n: int) -> float:
    a, b = ({tuple(t.lower().split()[k : k + n]) for k in range(len(t.split()) - n + 1)} for t in (one, other))
    return len(a & b) / len(a | b)


def variants(num: int, changes: int) -> list[tuple[str, str]]:
    """Pairs of texts of 20 words that differ in ``changes`` places or fewer."""
    rng = random.Random(0)
    pairs = []
    for _ in range(num):
        words = rng.choices(WORDS, k=20)
        other = list(words)
        for place in rng.sample(range(20), changes):
            other[place] = rng.choice(WORDS)
        pairs.append((" ".join(words), " ".join(other)))
    return pairs


def test_a_repeat_in_other_case_and_with_other_marks_is_taken_out_with_its_neighbour() -> None:
    filter, first = by_words(), task("Write a short poem about the sea, please.")
    filter.add(first)
    assert filter.look(task("Name three rivers of France and their lengths.")) is None
    finding = filter.look(task("write a short poem about the sea please!"))
    assert finding == Finding("Jaccard index of 3-word shingles 1.00, not below 0.7", first.instruction_id, 1.0)


def test_the_index_is_the_true_one_and_decides_at_the_threshold() -> None:
    # 10 and 9 shingles, of which 9 are shared.
    text = "a b c d e f g h i j k l"
    filter = by_words(threshold=0.9)
    filter.add(task(text))
    finding = filter.look(task("a b c d e f g h i j k"))
    assert finding is not None
    assert finding.similarity == 0.9
    filter = by_words(threshold=0.91)
    filter.add(task(text))
    assert filter.look(task("a b c d e f g h i j k")) is None


def test_the_nearest_is_named_and_of_equals_the_smallest_id() -> None:
    filter = by_words(threshold=0.3)
    far, near_ones = "a b c d e f g x y z", ["a b c d e f g h i 1", "a b c d e f g h i 2", "a b c d e f g h i 3"]
    for text in (far, *near_ones):
        filter.add(task(text))
    finding = filter.look(task("a b c d e f g h i j"))
    assert finding is not None
    assert finding.neighbour_id == min(task(text).instruction_id for text in near_ones)


@pytest.mark.parametrize("text", ["Hi", "!!!", "写一首关于大海的诗", "कविता लिखो", "🎈"])
def test_texts_that_are_short_or_without_words_or_spaces_compare_too(text: str) -> None:
    filter = by_words()
    assert filter.look(task(text)) is None
    filter.add(task(text))
    assert filter.look(task(text)) is not None
    assert filter.look(task("???")) is None


def test_no_pair_is_taken_out_wrongly_and_few_are_missed() -> None:
    hits = misses = 0
    for one, other in [pair for changes in (1, 2, 3) for pair in variants(400, changes)]:
        filter, true = by_words(0.5), jaccard(one, other, 3)
        filter.add(task(one))
        finding = filter.look(task(other))
        if finding is not None:
            assert finding.similarity == true >= 0.5
        hits += finding is not None
        misses += finding is None and true >= 0.5
    assert hits > 500
    # 1 % at the threshold itself, and most of these pairs are nearer.
    assert misses <= 0.01 * (hits + misses)


def test_the_same_texts_give_the_same_findings_each_time() -> None:
    texts = [text for pair in variants(200, 2) for text in pair]

    def findings() -> list[Finding | None]:
        filter, found = by_words(0.5), []
        for text in texts:
            found.append(filter.look(task(text)))
            filter.add(task(text))
        return found

    assert findings() == findings()


def test_too_few_permutations_for_a_threshold_are_refused_with_the_settings() -> None:
    with pytest.raises(ValueError, match=r"num_perm is 16, too few to find what is as near as threshold 0.1"):
        MinHashSettings(threshold=0.1, num_perm=16)


@pytest.mark.parametrize(("threshold", "num_perm"), [(0.3, 64), (0.7, 128), (0.9, 256), (0.99, 128)])
def test_bands_find_99_of_100_at_the_threshold_within_the_permutations(threshold: float, num_perm: int) -> None:
    bands, rows = MinHashSettings(threshold=threshold, num_perm=num_perm).bands
    assert bands * rows <= num_perm
    assert 1 - (1 - threshold**rows) ** bands >= 0.99


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each word of the tiny world has a random direction, and a text is the mean of its words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tiny_world.pretrain import build_tokenizer

    tokenizer = build_tokenizer()
    weights = np.random.default_rng(0).standard_normal((len(tokenizer), 32)).astype(np.float32)
    folder = tmp_path_factory.mktemp("models") / "embedding"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save_pretrained(
        str(folder)
    )
    return folder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    train, _ = world.split()
    return [each.text for each in random.Random(0).sample(train, 400)]


def settings(model: Path, threshold: float = 0.9) -> FilterSettings:
    return FilterSettings(use=["embedding"], embedding=EmbeddingSettings(model=str(model), threshold=threshold))


def unit_vectors(model: Path, texts: list[str]) -> NDArray[np.float64]:
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(str(model), device="cpu").encode(texts).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_meaning_accepts_what_a_comparison_of_all_pairs_accepts(model: Path, texts: list[str]) -> None:
    vectors = unit_vectors(model, texts)
    cosines = np.round(vectors @ vectors.T, 4)
    accepted: list[int] = []
    neighbours: dict[str, tuple[str, float]] = {}
    for place, text in enumerate(texts):
        near_ones = [(-cosines[place, other], task(texts[other]).instruction_id) for other in accepted]
        if near_ones and -min(near_ones)[0] >= 0.9:
            neighbours[text] = min(near_ones)[1], -min(near_ones)[0]
        else:
            accepted.append(place)
    filters = Filters(settings(model), ["embedding"])
    assert [t.instruction for t in filters.filter([task(text) for text in texts])] == [texts[p] for p in accepted]
    assert {r.instruction: r.neighbour_id for r in filters.removed} == {t: id for t, (id, _) in neighbours.items()}
    similarities = {text: similarity for text, (_, similarity) in neighbours.items()}
    assert {r.instruction: r.similarity for r in filters.removed} == pytest.approx(similarities, abs=2e-4)
    assert 50 < len(accepted) < 350


@pytest.mark.parametrize(("batch", "rows"), [(7, 5), (1, 1), (64, 400)])
def test_batches_and_blocks_of_any_size_decide_the_same(
    model: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, batch: int, rows: int
) -> None:
    whole = Filters(settings(model), ["embedding"])
    whole.add_known([task(text) for text in texts[:100]])
    whole.filter([task(text) for text in texts[100:300]])
    monkeypatch.setattr(near, "BATCH_TEXTS", batch)
    monkeypatch.setattr(near, "BLOCK_ROWS", rows)
    parts = Filters(settings(model), ["embedding"])
    parts.add_known([task(text) for text in texts[:100]])
    for begin in range(100, 300, 11):
        parts.filter([task(text) for text in texts[begin : min(begin + 11, 300)]])
    assert parts.removed == whole.removed
    assert whole.removed


def test_texts_that_nothing_prepared_are_encoded_by_themselves(model: Path, texts: list[str]) -> None:
    filter = NearByMeaning(settings(model), None)
    filter.add(task(texts[0]))
    assert filter.look(task(texts[1])) is None
    finding = filter.look(task(texts[0]))
    assert finding == Finding("cosine of embeddings 1.00, not below 0.9", task(texts[0]).instruction_id, 1.0)


def test_a_text_without_tokens_is_near_to_nothing(model: Path, texts: list[str]) -> None:
    filter = NearByMeaning(settings(model), None)
    filter.add(task(texts[0]))
    assert filter.look(task("")) is None


def test_the_spread_of_prompts_is_that_of_their_embeddings(model: Path, texts: list[str]) -> None:
    vectors = unit_vectors(model, texts[:50])
    distances = [1 - one @ other for one, other in combinations(vectors, 2)]
    found = diversity(texts[:50], 0, EmbeddingSettings(model=str(model)))
    assert found["spread"] == pytest.approx(np.mean(distances), abs=1e-5)
    assert found["spread"] != pytest.approx(diversity(texts[:50], 0, EmbeddingSettings())["spread"], abs=1e-3)


def test_a_model_that_is_none_is_refused_with_a_way_out(tmp_path: Path) -> None:
    for bad in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match=rf"embedding.model: {bad} can't be loaded .*save_pretrained"):
            NearByMeaning(settings(bad), None)


def test_a_folder_that_names_code_of_its_own_runs_none_of_it(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    modules = (tmp_path / "model" / "modules.json").read_text()
    kind = "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    assert kind in modules
    (tmp_path / "model" / "modules.json").write_text(modules.replace(kind, "evil.Evil"))
    with pytest.raises(ValueError, match="can't be loaded"):
        NearByMeaning(settings(tmp_path / "model"), None)
    assert not (tmp_path / "ran").exists()
