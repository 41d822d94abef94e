"""Scores that are probabilities: a line through the trees' log-odds, fitted on rows that no tree saw.

Platt, "Probabilistic outputs for support vector machines" (1999), on log-odds: two numbers keep the ranking as it is
and can't overfit. Kept only where it makes scores truer on later rows.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.train import evaluation
from spearhead import trees

LEAST_FRAUDS: Final = 50  # of a part; below, the line would follow chance


class Line(NamedTuple):
    """Calibrated log-odds are ``slope`` times the trees' own plus ``intercept``."""

    slope: float
    intercept: float


IDENTITY: Final = Line(1.0, 0.0)


def fit_line(label: NDArray[Any], margin: NDArray[np.float32], weight: NDArray[Any]) -> Line:
    """The line of least weighted log loss; the identity with too few frauds, or where no rising line is best.

    All arrays (n,); ``margin`` in log-odds, ``weight`` positive.
    """
    fraud = np.asarray(label) > 0
    if not _enough(fraud):
        return IDENTITY
    from scipy.optimize import minimize  # noqa: PLC0415, memory that only a training needs

    margin, share = np.asarray(margin, np.float64), np.asarray(weight, np.float64)
    share = share / share.sum()

    def loss(line: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        odds = line[0] * margin + line[1]
        excess = share * (1 / (1 + np.exp(-np.clip(odds, -500, 500))) - fraud)
        value = share @ (np.logaddexp(0, odds) - fraud * odds)
        return float(value), np.array([excess @ margin, excess.sum()])

    found = minimize(loss, np.array(IDENTITY), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9})
    slope, intercept = (float(value) for value in found.x)
    return Line(slope, intercept) if slope > 0 and np.isfinite(found.x).all() else IDENTITY


def confirmed(line: Line, label: NDArray[Any], margin: NDArray[np.float32], weight: NDArray[Any]) -> Line:
    """``line`` if it lowers log loss on these rows and does not raise the calibration error; else the identity."""
    if line == IDENTITY or not _enough(np.asarray(label) > 0):
        return IDENTITY
    before, after = (_judge(each, label, margin, weight) for each in (IDENTITY, line))
    return line if after[0] < before[0] and after[1] <= before[1] else IDENTITY


def _judge(line: Line, label: NDArray[Any], margin: NDArray[np.float32], weight: NDArray[Any]) -> tuple[float, float]:
    """Log loss and expected calibration error."""
    score = trees.probabilities(margin.copy(), *line)
    loss = evaluation.logloss(label, score, weight)
    error = evaluation.calibration(label, score, weight)["ece"]
    assert loss is not None
    return loss, error


def _enough(fraud: NDArray[np.bool_]) -> bool:
    frauds = int(fraud.sum())
    return LEAST_FRAUDS <= frauds <= len(fraud) - LEAST_FRAUDS
