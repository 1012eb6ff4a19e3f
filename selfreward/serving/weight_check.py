"""The proof that the weights that are served are those that were trained. No torch.

A training leaves *probes*: a few texts with the log-probabilities that its policy, the model before it and the
saved model give them. The engine that serves the new weights is asked for the same figures, and
:func:`require_served` compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from math import inf, sqrt
from pathlib import Path

from selfreward.errors import WeightCheckError
from selfreward.runs.stages import model_folders
from selfreward.runs.stored import PROBES
from selfreward.runtime.atomic import read_sealed, write_sealed

# Greatest log-probability difference, in nats, that an engine's own arithmetic may make in the mean of all tokens.
# Two right implementations differ by rounding: some 1e-6 in float32; in half precisions the output layer rounds
# logits of 8 to 32 in steps of 2^-7 to 2^-6 (float16) or 2^-4 to 2^-3 (bfloat16).
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
# The same for the greatest difference of a token between the policy and the merged model, both computed in float32:
# what remains is the rounding of the weights. Measured: up to 2e-5 in float32 and 0.12 in bfloat16.
MERGE_BOUNDS = {"float32": 1e-3, "float16": 1e-1, "bfloat16": 5e-1}
# A greater standard error of the share can't tell the old weights from the new ones with three sigma on both sides.
MAX_SHARE_ERROR = 1 / 6

LogProbs = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Probes:
    """Texts and what they are given: for each text of n token ids, n - 1 log-probabilities in nats.

    Computed on the CPU in float32 from weights of ``dtype``, so that the figures hold no rounding but that of
    the weights.
    """

    dtype: str
    ids: Sequence[Sequence[int]]
    previous: LogProbs  # M_t
    policy: LogProbs  # what was trained: M_t with its adapter, or the float32 weights of SFT
    merged: LogProbs  # M_{t+1} as it was saved

    def write(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        write_sealed(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Probes:
        """Reads the file. Raises Damaged if a byte of it is not what was written."""
        return cls(**read_sealed(path))

    def ends(self, num: int) -> Probes:
        """The same texts with the figures of their last tokens alone."""
        previous, policy, merged = ([text[-num:] for text in x] for x in (self.previous, self.policy, self.merged))
        return replace(self, previous=previous, policy=policy, merged=merged)


@dataclass(frozen=True)
class Evidence:
    """What log-probabilities say about the weights that they come from.

    ``difference`` is the mean distance to the policy in nats, ``greatest`` that of one token. ``share`` is 1 where
    the new weights are served and 0 where the old ones are, with its standard error.
    """

    difference: float
    greatest: float
    share: float
    share_error: float

    @property
    def old(self) -> bool:
        """Whether these are the old weights; where the change does not stand out of the noise, nobody can tell."""
        return self.share < 0.5 and self.share_error <= MAX_SHARE_ERROR


def read_probes(model_path: str) -> Probes | None:
    """The probes of a model that a run has trained, or None for any other model."""
    folder = Path(model_path)
    made_by = {model: stage for stage, model in model_folders()}
    path = folder.with_name(made_by.get(folder.name, folder.name)) / PROBES
    return Probes.read(path) if path.is_file() else None


def compare(probes: Probes, served: LogProbs) -> Evidence:
    """Measures what an engine serves, against the saved model and the one before it.

    Args:
        probes: the texts.
        served: for each text of n ids, the n - 1 log-probabilities that the engine gives.
    """
    return _evidence(served, probes.policy, probes.previous, probes.merged)


def require_served(probes: Probes, served: LogProbs, model: str) -> Evidence:
    """Compares, and returns what it found.

    Raises:
        WeightCheckError: the engine's figures are too far from the policy's, or nearer to the model before it.
    """
    evidence, bound = compare(probes, served), BOUNDS[probes.dtype]
    figures = (
        f"its log-probabilities differ from the trained policy's by {evidence.difference:.3g} nats in the mean "
        f"(bound {bound:g} in {probes.dtype}), and {evidence.share:.0%} of the change is served"
    )
    if not evidence.difference <= bound or evidence.old:
        raise WeightCheckError(
            f"the engine does not serve {model}: {figures}. Restart it with launch.keep_engine: false; if that does "
            "not help, serve with engine.name: transformers and report it"
        )
    return evidence


def require_merged(probes: Probes) -> Evidence:
    """Compares the saved model with the policy, and returns what it found.

    Raises:
        WeightCheckError: training changed nothing, or the saved model is not the trained policy.
    """
    if _flat(probes.policy) == _flat(probes.previous):
        raise WeightCheckError(
            "training changed nothing: the trained policy gives every probe the log-probabilities of the model before "
            "it. Raise the learning_rate, and look for training.lora settings that reach no layer"
        )
    evidence = _evidence(probes.merged, probes.policy, probes.previous, probes.policy)
    bound = MERGE_BOUNDS[probes.dtype]
    if not evidence.greatest <= bound or evidence.old:
        raise WeightCheckError(
            f"the saved model is not the trained policy: a token's log-probability differs by {evidence.greatest:.3g} "
            f"nats (bound {bound:g} in {probes.dtype}), and {evidence.share:.0%} of the change is in it. Set "
            "model.dtype to float32, or take out what training.lora adds to plain LoRA"
        )
    return evidence


def _evidence(seen: LogProbs, policy: LogProbs, old: LogProbs, new: LogProbs) -> Evidence:
    """The share is the coefficient of (seen - old) on (new - old) over all tokens.

    A projection has far more power than a distance where the change is small, as the noise of all tokens averages out.
    """
    distances = [abs(difference) for difference in _minus(seen, policy)]
    moved, change = _minus(seen, old), _minus(new, old)
    power = sum(c * c for c in change)
    share = sum(m * c for m, c in zip(moved, change, strict=True)) / power if power else 0.0
    residual = sum((m - share * c) ** 2 for m, c in zip(moved, change, strict=True))
    error = sqrt(residual / max(len(change) - 1, 1) / power) if power else inf
    return Evidence(sum(distances) / len(distances), max(distances), share, error)


def _minus(texts: LogProbs, others: LogProbs) -> list[float]:
    return [a - b for a, b in zip(_flat(texts), _flat(others), strict=True)]


def _flat(texts: LogProbs) -> list[float]:
    return list(chain.from_iterable(texts))
