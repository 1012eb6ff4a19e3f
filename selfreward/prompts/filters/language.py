"""Instructions in languages that are not wanted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from selfreward.prompts.filters.base import BuiltInFilter, Finding, Kind
from selfreward.recipe.filter_settings import FilterSettings
from selfreward.records import Task
from selfreward.runtime.extras import optional


class Language(BuiltInFilter):
    """Instructions whose likeliest language, by py3langid, is none of those allowed and at least so likely.

    Its probabilities, one for each of its languages, sum to 1 and are lower for short texts, which therefore stay.
    Text in a language that it does not know, code or formulas get whatever is nearest. An instance's input and output
    are not looked at, as a translation has others.
    """

    of: ClassVar[Kind] = "instruction"
    block: ClassVar[str | None] = "language"

    def __init__(self, settings: FilterSettings, held_out: Path | None) -> None:
        self._settings = settings.language
        known = _identifier().labels
        unknown = [code for code in self._settings.allowed if code not in known]
        if unknown:
            raise ValueError(
                f"filters.language.allowed has {', '.join(unknown)}, which py3langid does not know. It knows "
                f"{', '.join(sorted(known))}"
            )

    def look(self, task: Task) -> Finding | None:
        language, probability = _identifier().classify(task.instruction)
        if language in self._settings.allowed or probability < self._settings.min_probability:
            return None
        return Finding(f"in {language}, with probability {probability:.2f}")


@cache
def _identifier() -> Any:
    with optional("filter language", "data"):
        from py3langid import langid
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
