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

MOST_STEPS: Final = 50
MOST_HALVINGS: Final = 30
LEAST_GAIN: Final = 1e-14  # of log loss by a step; below, the line is where it will be


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
    margin, share = np.asarray(margin, np.float64), np.asarray(weight, np.float64)
    share = share / share.sum()
    line, loss = IDENTITY, _loss(IDENTITY, fraud, margin, share)
    for _ in range(MOST_STEPS):
        whole = _step(line, fraud, margin, share)
        for shorter in range(MOST_HALVINGS):  # far from the least a whole step may go beyond it
            tried = Line(*(at - by / 2**shorter for at, by in zip(line, whole, strict=True)))
            found = _loss(tried, fraud, margin, share)
            if found < loss:
                break
        else:
            break
        line, gained, loss = tried, loss - found, found
        if gained < LEAST_GAIN:
            break
    return line if line.slope > 0 and np.isfinite(line).all() else IDENTITY


def _loss(line: Line, fraud: NDArray[np.bool_], margin: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    """Weighted log loss; ``share`` (n,) sums to 1."""
    odds = line.slope * margin + line.intercept
    # log(1 + e^odds) - fraud * odds. No logaddexp, which is slow, nor a product of vectors, which wakes BLAS's threads.
    return float((share * (np.log1p(np.exp(-np.abs(odds))) + np.maximum(odds, 0) - fraud * odds)).sum())


def _step(
    line: Line, fraud: NDArray[np.bool_], margin: NDArray[np.float64], share: NDArray[np.float64]
) -> tuple[float, float]:
    """Newton's step of the log loss, to be taken off: the inverse of its second derivatives times the first ones."""
    chance = 1 / (1 + np.exp(-np.clip(line.slope * margin + line.intercept, -500, 500)))
    excess, bend = share * (chance - fraud), share * chance * (1 - chance)
    by_slope, by_intercept = float((excess * margin).sum()), float(excess.sum())
    bent = bend * margin
    a, b, c = float((bent * margin).sum()), float(bent.sum()), float(bend.sum())
    determinant = a * c - b * b
    if determinant <= 0:  # one margin for all
        return 0.0, by_intercept / c if c > 0 else 0.0
    return (c * by_slope - b * by_intercept) / determinant, (a * by_intercept - b * by_slope) / determinant


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
