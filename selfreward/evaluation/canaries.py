"""Empty answers that are known to fool judges, shown to the judge to see whether they fool this one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources


@cache
def canaries() -> tuple[str, ...]:
    """Master keys (arXiv 2507.08794) and constant answers (arXiv 2410.07137), none of which answers anything."""
    lines = (resources.files(__package__) / "canaries.txt").read_text("utf-8").splitlines()
    return tuple(line for line in lines if line.strip())


def canary_figures(scores: Sequence[Sequence[float | None]], lowest: float | None) -> dict[str, float | None]:
    """How often a canary is accepted: it scores no lower than the model's own answer, and more than the least.

    Beside an answer that has the least score itself a canary passes nothing by having that too.

    Args:
        scores: for each prompt the score of the model's own answer, then those of the canaries; None is unscored,
            and an unscored canary is not accepted.
        lowest: the lowest score that the judge can give; None where scores have no lower end.

    Returns:
        ``canary_accepted``, a share; None where no own answer was scored.
    """
    accepted = [
        canary is not None and canary >= own and (lowest is None or canary > lowest)
        for own, *keys in scores
        if own is not None
        for canary in keys
    ]
    return {"canary_accepted": sum(accepted) / len(accepted) if accepted else None}
