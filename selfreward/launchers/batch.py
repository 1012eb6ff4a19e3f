"""The recipe's batch, shared among the processes of a training. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Pairs or examples in a step (arXiv 2401.10020, section 3.1.2).
DEFAULT_BATCH = 16
PER_DEVICE, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


def shared_batch(options: Mapping[str, Any], ranks: int) -> dict[str, int]:
    """The options of each process with which all of them together train the recipe's batch in a step.

    That is per_device_train_batch_size x gradient_accumulation_steps, whatever the number of processes. Several
    accumulate less, and share a batch only when there is nothing left to accumulate; no process trains more at once
    than the recipe says, which is what a GPU has room for.

    The steps of several processes are those of one, with the same examples in each, but for two things:

    - Where the processes can't share the last examples of an epoch evenly, accelerate gives them the epoch's first
      ones once more, up to ranks x per_device_train_batch_size - 1 of them. They count in the last step of the epoch;
      one process makes that step of the remaining examples alone. The number of steps is the same.
    - Some losses of DPO are no mean over pairs: ``sft`` is one over the tokens of a micro-batch, ``aot`` and
      ``aot_unpaired`` sort within it, and ``bco_pair`` keeps an average of what its process has seen. With those,
      how a batch is split into micro-batches is seen in the loss, on one process as on several.

    Raises:
        ValueError: the processes can't share the batch evenly.
    """
    per_device, accumulation = _positive(options, PER_DEVICE, DEFAULT_BATCH), _positive(options, ACCUMULATION, 1)
    batch = per_device * accumulation
    if batch % ranks:
        possible = [str(number) for number in range(1, batch + 1) if batch % number == 0]
        low = batch // ranks * ranks
        raise ValueError(
            f"a step trains {batch} examples ({PER_DEVICE} {per_device} x {ACCUMULATION} {accumulation}), which "
            f"{ranks} processes can't share evenly. Start {_either(possible)} in all, or write a batch of "
            f"{_either([str(size) for size in (low, low + ranks) if size])}"
        )
    share = batch // ranks
    each = max(size for size in range(1, min(per_device, share) + 1) if share % size == 0)
    return {PER_DEVICE: each, ACCUMULATION: share // each}


def _positive(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: write a whole number, 1 or more")
    return value


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
