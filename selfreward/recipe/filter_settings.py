"""What is taken out of instructions."""

from __future__ import annotations

from math import ceil, log, log1p
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from selfreward.recipe import registry
from selfreward.recipe.base import PositiveInt, Settings
from selfreward.recipe.effects import Effect
from selfreward.recipe.loader import RecipeFile, RecipePath, is_stored, shown

Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Of arXiv 2212.10560: on an instruction as soon as it is written, then on its instances.
PAPER = ("length", "keywords", "first_character", "rouge_l")
PAPER_INSTANCES = ("empty_output", "input_equals_output", "trailing_colon", "contradiction")


class LengthSettings(Settings):
    """Instructions that are too short or too long."""

    decides = True

    min_words: Annotated[int, Field(ge=0)] = Field(4, description="Fewest words.")
    max_words: PositiveInt = Field(150, description="Most words.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}, more than max_words, {self.max_words}. Lower it")
        return self


class KeywordSettings(Settings):
    """Instructions about what a language model can't see or do."""

    decides = True

    words: list[Annotated[str, Field(pattern=r"\S")]] = Field(
        [*"image images graph graphs picture pictures file files map maps draw plot".split(), "go to"],
        description="Whole words or phrases, in any case.",
    )


class LanguageSettings(Settings):
    """Languages, told by py3langid."""

    decides = True

    allowed: list[str] = Field(["en"], description="ISO 639-1 codes.")
    min_probability: Share = Field(
        0.5, description="Removed where the likeliest language is none of these, and at least so likely."
    )


class RougeSettings(Settings):
    """ROUGE-L against the whole pool, exact."""

    decides = True

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.7, description="Removed above this F measure.")
    tokens: Literal["rouge", "unicode"] = Field(
        "rouge",
        description="rouge: those of Google's rouge_score, which knows the letters a to z and digits alone. unicode: "
        "words of any script, and each character where there are no spaces.",
    )


class MinHashSettings(Settings):
    """Near-duplicates by MinHash, for millions."""

    decides = True

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.7, description="Removed from this Jaccard index on.")
    ngram: PositiveInt = Field(3, description="Words of a shingle.")
    num_perm: PositiveInt = Field(
        128, description="Permutations: what is found is compared exactly; with more of them less is compared in vain."
    )

    @property
    def bands(self) -> tuple[int, int]:
        """Bands and the rows of each: the most selective that find 99 of 100 pairs just at the threshold, or (0, 0)."""
        found = 0, 0
        for rows in range(1, self.num_perm // 2 + 1):
            bands = max(2, ceil(log(0.01) / log1p(-(self.threshold**rows))))
            if bands * rows > self.num_perm:
                break
            found = bands, rows
        return found

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bands == (0, 0):
            raise ValueError(
                f"num_perm is {self.num_perm}, too few to find what is as near as threshold {self.threshold:g}. "
                "Raise one of them"
            )
        return self


class EmbeddingSettings(Settings):
    """Near-duplicates by meaning."""

    decides = True

    model: Annotated[RecipePath | None, Effect.EMBEDDER] = Field(
        None, description="A folder or hub name that sentence-transformers loads."
    )
    # Whatever it names, the bytes tell.
    revision: Annotated[str | None, Effect.OPERATIONAL] = Field(None, description="The commit of the hub's model.")
    device: Annotated[str, Effect.OPERATIONAL] = Field(
        "cpu", description="cpu, or cuda where the engine leaves memory for the model."
    )
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.95, description="Removed from this cosine on.")


class NoveltySettings(Settings):
    """Instructions that say nothing which those before them did not say."""

    decides = True

    ngram: PositiveInt = Field(3, description="Words that are counted as one.")
    min_new: Share = Field(0.1, description="Least share of them that nothing in the pool has.")


class DecontaminationSettings(Settings):
    """What stands in evaluation data too."""

    decides = True

    path: RecipeFile | None = Field(None, description="Evaluation data. Empty: the recipe's evaluation.prompts.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Where its rows have other names, as in `columns` of a source."
    )
    ngram: PositiveInt = Field(
        13, description="Removed where so many words in a row are the same; of a shorter question, all words."
    )


class ToxicitySettings(Settings):
    """Hateful or violent text."""

    decides = True

    words: RecipeFile | None = Field(None, description="A text file with a word or phrase a line. Empty: a short list.")
    function: str | None = Field(
        None, description="In its place MODULE:FUNCTION from a text to how toxic it is, from 0 to 1."
    )
    threshold: Share = Field(0.5, description="The function's value from which on a text is removed.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.words is not None and self.function is not None:
            raise ValueError(f"words is {self.words} and function is {self.function}: one of them tells. Take one out")
        return self


class PersonalDataSettings(Settings):
    """Data by which persons can be reached or robbed."""

    decides = True

    kinds: list[Literal["email", "phone", "credit_card", "iban", "ip_address"]] = Field(
        ["email", "phone", "credit_card", "iban", "ip_address"], description="What is looked for.", min_length=1
    )
    region: str | None = Field(None, description="The country (such as US) of phone numbers without a prefix.")


class FilterSettings(Settings):
    """What is taken out, in which order."""

    decides = True

    use: list[str] | None = Field(
        None,
        description="Names in their order: {names}; or MODULE:CLASS. Empty: those of arXiv 2212.10560 for instructions "
        "of a model's own, and none for rows and what they evolve to.",
        json_schema_extra={"names": "FILTERS"},
    )
    length: LengthSettings = LengthSettings()
    keywords: KeywordSettings = KeywordSettings()
    language: LanguageSettings = LanguageSettings()
    rouge_l: RougeSettings = RougeSettings()
    minhash: MinHashSettings = MinHashSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    novelty: NoveltySettings = NoveltySettings()
    decontamination: DecontaminationSettings = DecontaminationSettings()
    toxicity: ToxicitySettings = ToxicitySettings()
    personal_data: PersonalDataSettings = PersonalDataSettings()

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        """Asks each filter that is named whether it can work with its settings; a stored recipe's were asked before."""
        for name in () if is_stored(info) else self.use or ():
            found = registry.load_class(name, registry.FILTERS, "filter")
            if found.of not in found.kinds:
                raise ValueError(
                    f"filter {name!r}: of is {shown(found.of)}, and a filter looks at {' or '.join(found.kinds)}"
                )
            found.check_settings(self)
        return self

    def class_of(self, name: str) -> Any:
        """What a filter says of itself. Of a stored run, whose class may be gone, it is what any class may do."""
        try:
            return registry.load_class(name, registry.FILTERS, "filter")
        except ValueError:
            return registry.base_of("filter")

    def names(self, reading: bool) -> list[str]:
        """The filters in their order, where rows are read or a model writes."""
        return ([] if reading else [*PAPER, *PAPER_INSTANCES]) if self.use is None else self.use
