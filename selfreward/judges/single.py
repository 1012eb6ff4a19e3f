"""What judges have in common that give each response one score and sample nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfreward.engines import Completion
from selfreward.judges.base import make_judgement
from selfreward.recipe.judge_settings import JudgeSettings
from selfreward.recipe.loader import shown
from selfreward.records import Judgement, Response, derive_seed


def refuse_settings(settings: JudgeSettings, names: Sequence[str]) -> None:
    """Raises ValueError for ``votes`` or another setting of those names that was set and that the judge can't heed."""
    for name in ("votes", *names):
        # A recipe that was read from a run has all defaults in it: whether one was written can't be told.
        value, unset = getattr(settings, name), JudgeSettings.model_fields[name].default
        if value not in (unset, 1 if name == "votes" else None):
            raise ValueError(
                f"{name} is {shown(value)}, and the judge {settings.name}, which gives each response one score and "
                f"samples nothing, does not use it. Take {name} out"
            )


def one_judgement(
    settings: JudgeSettings, response: Response, seed: int, text: str, model: str, **verdict: Any
) -> Judgement:
    """The record of the one score of a response, or of its error; no token was sampled for it."""
    own = derive_seed(seed, response.id, 0)
    return make_judgement(settings.name, [response], 0, own, Completion(text, "stop", 0), model, **verdict)
