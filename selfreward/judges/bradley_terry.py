"""Strengths from who beat whom, by the model of Bradley and Terry (Biometrika 39, 1952).

The chance that i beats j is 1 / (1 + exp(s_j - s_i)) for strengths s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

# One number an item, and one for each two of them.
Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Wins, and as many losses, of each against an average opponent.
PRIOR = 0.1
# Digits behind the point: equal records give equal strengths, whatever the order of the sums.
DIGITS = 6


def strengths(wins: Sequence[Sequence[float]], prior: float = PRIOR) -> list[float]:
    """The strengths of greatest likelihood, in nats, with a mean of 0.

    Besides its own matches each item has won and lost ``prior`` matches against an opponent of strength 0. So
    the undefeated stay finite, those that never met have a place on the same scale, and the prior weighs as much
    among many items as among few.

    Args:
        wins: ``wins[i][j]`` is how often i beat j, in matches or fractions of them.
        prior: greater than 0.
    """
    assert prior > 0, "an undefeated item would be infinitely strong"
    if not wins:
        return []
    likelihood = _Likelihood(np.asarray(wins, dtype=np.float64), prior)
    found = minimize(
        likelihood.loss,
        np.zeros(len(wins)),
        jac=likelihood.gradient,
        hess=likelihood.hessian,
        method="trust-exact",
        options={"gtol": 1e-9},
    )
    # The search ends where the slope is small, which is not near enough where the likelihood is flat.
    best = found.x - np.linalg.solve(likelihood.hessian(found.x), likelihood.gradient(found.x))
    # Adding 0 makes a 0 of -0.
    return [round(float(strength), DIGITS) + 0.0 for strength in best - best.mean()]


def strengths_by_id(wins: Mapping[tuple[str, str], float], prior: float = PRIOR) -> dict[str, float]:
    """As :func:`strengths`, from wins by (id of the winner, id of the loser); a pair may have 0 of them."""
    ids = sorted({subject for pair in wins for subject in pair})
    return dict(zip(ids, strengths([[wins.get((i, j), 0.0) for j in ids] for i in ids], prior), strict=True))


class _Likelihood:
    """The negative log-likelihood, which is strictly convex, and its derivatives."""

    def __init__(self, wins: Matrix, prior: float) -> None:
        self._wins, self._prior = wins, prior

    def loss(self, strength: Vector) -> float:
        matches = (self._wins * log_expit(_gaps(strength))).sum()
        return float(-matches - self._prior * (log_expit(strength) + log_expit(-strength)).sum())

    def gradient(self, strength: Vector) -> Vector:
        surprise = self._wins * expit(-_gaps(strength))
        pull: Vector = surprise.sum(axis=0) - surprise.sum(axis=1) + self._prior * (expit(strength) - expit(-strength))
        return pull

    def hessian(self, strength: Vector) -> Matrix:
        gaps = _gaps(strength)
        curvature = (self._wins + self._wins.T) * expit(gaps) * expit(-gaps)
        own = 2 * self._prior * expit(strength) * expit(-strength)
        bend: Matrix = np.diag(curvature.sum(axis=1) + own) - curvature
        return bend


def _gaps(strength: Vector) -> Matrix:
    gaps: Matrix = strength[:, None] - strength[None, :]
    return gaps
