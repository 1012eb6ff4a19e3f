"""Combinations of DPOConfig's options that TRL refuses only when it trains, after hours of sampling and judging."""

from __future__ import annotations

from typing import Any

from selfreward.recipe import upstream
from selfreward.recipe.loader import shown, suggest

# Built on the difference of the two rewards, in which the partition function of another divergence cancels.
DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
# Two sort the batch, so that a weight would meet another pair's score; TRL weighs in place what the others can't spare.
UNWEIGHED = ("aot", "aot_unpaired", "hinge", "sft")


def loss_types(options: dict[str, Any]) -> list[str]:
    """The names of the losses that are added up, the default among them."""
    losses = options.get("loss_type", "sigmoid")
    return [losses] if isinstance(losses, str) else list(losses)


def check_losses(options: dict[str, Any]) -> None:
    """Checks the losses of training.dpo, with the schedule's, against each other.

    Args:
        options: DPOConfig's, of known names and right types.

    Raises:
        ValueError: a name that the installed TRL does not have, or options that it does not take together.
    """
    losses = loss_types(options)
    divergence = options.get("f_divergence_type", "reverse_kl")
    if "loss_type" in options:
        _require_known("loss_type", losses)
    if "f_divergence_type" in options:
        _require_known("f_divergence_type", [divergence])
    weights = options.get("loss_weights")
    if weights is not None and len(weights) != len(losses):
        raise ValueError(
            f"loss_weights is {weights}, and loss_type has {len(losses)} of {losses}. Write a weight for each"
        )
    if "exo_pair" in losses and not options.get("label_smoothing"):
        raise ValueError("loss_type has exo_pair, which needs label_smoothing above 0, such as 1e-3")
    alone = [loss for loss in losses if loss not in DIFFERENCES]
    if divergence != "reverse_kl" and alone:
        raise ValueError(
            f"f_divergence_type is {divergence}, and loss_type has {alone[0]}, which is defined for "
            f"reverse_kl alone. With {divergence} go {', '.join(DIFFERENCES)}"
        )
    unweighed = [loss for loss in losses if loss in UNWEIGHED]
    if options.get("use_weighting") and unweighed:
        raise ValueError(f"use_weighting does not go with {unweighed[0]} in TRL. Take one of the two out")


def _require_known(option: str, names: list[str]) -> None:
    known = upstream.compared("trl", "trainer/dpo_trainer.py", option)
    for name in names:
        if known and name not in known:
            raise ValueError(f"{option} is {shown(name)}, which the installed trl has not. {suggest(name, known)}")
