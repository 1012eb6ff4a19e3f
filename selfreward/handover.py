"""The proof that the weights that are served are those that were trained. No torch.

A training leaves *probes*: a few texts with the log-probabilities that its policy, the model before it and the
saved model give them. The engine that serves the new weights is asked for the same figures, and
:func:`require_served` compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import inf, sqrt
from pathlib import Path

from selfreward.durable import read_sealed, write_sealed
from selfreward.errors import HandoverError

# Greatest log-probability difference, in nats, that an engine's own arithmetic may make in the mean of all tokens.
# Two right implementations differ by rounding: some 1e-6 in float32; in half precisions the output layer rounds
# logits of 8 to 32 in steps of 2^-7 to 2^-6 (float16) or 2^-4 to 2^-3 (bfloat16).
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
# A greater standard error of the share can't tell the old weights from the new ones with three sigma on both sides.
DECISIVE = 1 / 6

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

    @property
    def merge_difference(self) -> float:
        """The greatest difference between a token's log-probability under the policy and the saved model."""
        return max(abs(p - m) for p, m in zip(_flat(self.policy), _flat(self.merged), strict=True))

    @property
    def merge_share(self) -> float:
        """Which part of what training changed is in the saved model: 1 all, 0 nothing."""
        return _share(self.previous, self.policy, self.merged)[0]


@dataclass(frozen=True)
class Evidence:
    """What the log-probabilities of an engine say about the weights that it serves.

    ``difference`` is the mean distance to the policy. ``share`` is 1 where the new weights are served and 0 where
    the old ones are, with its standard error.
    """

    difference: float
    share: float
    share_error: float

    @property
    def decisive(self) -> bool:
        """Whether the change stands out of the engine's noise, so that the share tells old weights from new ones."""
        return self.share_error <= DECISIVE


def read_probes(model_path: str) -> Probes | None:
    """The probes of a model that a run has trained, or None for any other model."""
    path = Path(model_path).parent / "train" / "probes.json"
    return Probes.read(path) if path.is_file() else None


def compare(probes: Probes, served: LogProbs) -> Evidence:
    """Measures what an engine serves.

    The share is the projection of (served - previous) on (merged - previous) over all tokens. As noise is added
    up over all of them, it has far more power than a distance where the change is small.

    Args:
        probes: the texts.
        served: for each text of n ids, the n - 1 log-probabilities that the engine gives.
    """
    pairs = zip(_flat(served), _flat(probes.policy), strict=True)
    differences = [abs(ours - theirs) for ours, theirs in pairs]
    share, error = _share(probes.previous, probes.merged, served)
    return Evidence(sum(differences) / len(differences), share, error)


def require_served(probes: Probes, served: LogProbs, model: str) -> Evidence:
    """Compares, and returns what it found.

    Raises:
        HandoverError: the engine's figures are too far from the policy's, or nearer to the model before it.
    """
    evidence, bound = compare(probes, served), BOUNDS[probes.dtype]
    figures = (
        f"its log-probabilities differ from the trained policy's by {evidence.difference:.3g} nats in the mean "
        f"(bound {bound:g} in {probes.dtype}), and {evidence.share:.0%} of the change is served"
    )
    if not evidence.difference <= bound or (evidence.decisive and evidence.share < 0.5):
        raise HandoverError(
            f"the engine does not serve {model}: {figures}. Restart it with launch.keep_engine: false; if that does "
            "not help, serve with engine.name: transformers and report it"
        )
    return evidence


def require_merged(probes: Probes) -> None:
    """Checks a merge before the model goes any further.

    Raises:
        HandoverError: training changed nothing, or the saved model is not the trained policy.
    """
    if _flat(probes.policy) == _flat(probes.previous):
        raise HandoverError(
            "training changed nothing: the trained policy gives every probe the log-probabilities of the model before "
            "it. Raise the learning_rate, and look for training.lora settings that reach no layer"
        )
    bound = BOUNDS[probes.dtype]
    if not probes.merge_difference <= bound:
        raise HandoverError(
            f"the saved model is not the trained policy: a token's log-probability differs by "
            f"{probes.merge_difference:.3g} nats (bound {bound:g} in {probes.dtype}). Set model.dtype to float32, "
            "or take out what training.lora adds to plain LoRA"
        )


def _share(old: LogProbs, new: LogProbs, seen: LogProbs) -> tuple[float, float]:
    """The coefficient of (seen - old) on (new - old), with its standard error; nothing is known if old is new."""
    change = [n - o for n, o in zip(_flat(new), _flat(old), strict=True)]
    moved = [s - o for s, o in zip(_flat(seen), _flat(old), strict=True)]
    power = sum(c * c for c in change)
    if not power:
        return 0.0, inf
    share = sum(m * c for m, c in zip(moved, change, strict=True)) / power
    residual = sum((m - share * c) ** 2 for m, c in zip(moved, change, strict=True))
    return share, sqrt(residual / max(len(change) - 1, 1) / power)


def _flat(texts: LogProbs) -> list[float]:
    return list(chain.from_iterable(texts))
