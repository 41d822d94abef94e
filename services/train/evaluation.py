"""How good scores are: figures of weighted, labelled rows. A figure that is not defined is None, never a number.

Arrays: ``label`` bool or int (n,), ``score`` float (n,), ``weight`` float (n,) positive, source rows a row stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CURVE_POINTS: Final = 200
# A missed fraud costs many alerts, so the cheapest threshold may be far below 0.01.
THRESHOLDS: Final = (*(round(0.001 * i, 3) for i in range(1, 10)), *(round(0.01 * i, 2) for i in range(1, 100)))
# Fraud is rare: nearly all scores lie below 0.01, so bins of one width would say nothing of them.
RELIABILITY_EDGES: Final = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(round(0.1 * i, 1) for i in range(1, 11)))


class Costs(NamedTuple):
    """What a decision costs."""

    per_alert: float  # $, whether or not it was fraud
    per_missed_fraud: float  # $ per $ of the fraud's amount


class Ranking(NamedTuple):
    """Weights caught at each distinct score, highest score first. All arrays are (k,)."""

    scores: Floats
    tp: Floats  # weight of the frauds that score at least this
    fp: Floats


def rank(label: NDArray[Any], score: NDArray[Any], weight: NDArray[Any]) -> Ranking:
    """Cumulative weights by falling score; equal scores are one point."""
    order = np.argsort(-score, kind="stable")
    ranked = np.asarray(score, np.float64)[order]
    fraud = (np.asarray(label)[order] > 0) * np.asarray(weight, np.float64)[order]
    genuine = np.asarray(weight, np.float64)[order] - fraud
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(ranked) else np.empty(0, np.intp)
    return Ranking(ranked[last], np.cumsum(fraud)[last], np.cumsum(genuine)[last])


def average_precision(ranking: Ranking) -> float | None:
    """Mean precision over the recalls reached: sum of (R_k - R_k-1) P_k. None without fraud."""
    if len(ranking.tp) == 0 or ranking.tp[-1] == 0:
        return None
    precision = ranking.tp / (ranking.tp + ranking.fp)
    return float(np.sum(np.diff(ranking.tp, prepend=0.0) * precision) / ranking.tp[-1])


def auc(ranking: Ranking) -> float | None:
    """Area under the ROC curve, ties counted half. None if a class is missing."""
    if len(ranking.tp) == 0 or ranking.tp[-1] == 0 or ranking.fp[-1] == 0:
        return None
    tp, fp = np.append(0.0, ranking.tp), np.append(0.0, ranking.fp)
    return float(np.sum(np.diff(fp) * (tp[1:] + tp[:-1]) / 2) / (tp[-1] * fp[-1]))


def pr_curve(ranking: Ranking) -> list[dict[str, float]]:
    """Points of the precision-recall curve, evenly spread over recall, for a plot. Empty without fraud."""
    if len(ranking.tp) == 0 or ranking.tp[-1] == 0:
        return []
    recall = ranking.tp / ranking.tp[-1]
    picked = np.unique(np.searchsorted(recall, np.linspace(0, 1, CURVE_POINTS)).clip(max=len(recall) - 1))
    precision = ranking.tp / (ranking.tp + ranking.fp)
    return [
        {"threshold": float(ranking.scores[i]), "recall": float(recall[i]), "precision": float(precision[i])}
        for i in picked
    ]


def calibration(label: NDArray[Any], score: NDArray[Any], weight: NDArray[Any]) -> dict[str, Any]:
    """How far scores are probabilities: ``ece``, ``brier`` and the ``bins`` of a reliability diagram.

    The expected calibration error is the mean over all rows of |mean score - fraud rate| of the row's bin; the Brier
    score is the mean of (score - label)^2. ``rows`` and ``frauds`` of a bin are rows of the sample, its rates weighted.
    """
    if len(score) == 0:
        return {"ece": None, "brier": None, "bins": []}
    score, weight = np.asarray(score, np.float64), np.asarray(weight, np.float64)
    fraud = np.asarray(label) > 0
    edges = RELIABILITY_EDGES
    place = np.searchsorted(edges[1:-1], score, side="right")
    size = len(edges) - 1
    rows, frauds = np.bincount(place, minlength=size), np.bincount(place, fraud, minlength=size)
    weights, scores, positives = (
        np.bincount(place, w, minlength=size) for w in (weight, weight * score, weight * fraud)
    )
    bins = [
        {
            "low": edges[i],
            "high": edges[i + 1],
            "rows": int(rows[i]),
            "frauds": int(frauds[i]),
            "mean_score": _ratio(float(scores[i]), float(weights[i])),
            "fraud_rate": _ratio(float(positives[i]), float(weights[i])),
        }
        for i in range(size)
    ]
    return {
        "ece": float(np.abs(scores - positives).sum() / weight.sum()),
        "brier": float(np.average((score - fraud) ** 2, weights=weight)),
        "bins": bins,
    }


def at_threshold(
    threshold: float,
    label: NDArray[Any],
    score: NDArray[Any],
    weight: NDArray[Any],
    cents: NDArray[Any],
    costs: Costs | None = None,
) -> dict[str, float | None]:
    """Figures of flagging every row whose score, as a double, is at least ``threshold``.

    ``cost`` is $ per million transactions: every alert, and every fraud that was not flagged. None without ``costs``.
    """
    flagged, fraud = np.asarray(score, np.float64) >= threshold, np.asarray(label) > 0
    weight = np.asarray(weight, np.float64)
    dollars = weight * cents / 100
    tp, fp = float(weight[flagged & fraud].sum()), float(weight[flagged & ~fraud].sum())
    fn, tn = float(weight[~flagged & fraud].sum()), float(weight[~flagged & ~fraud].sum())
    missed = float(dollars[~flagged & fraud].sum())
    cost = (tp + fp) * costs.per_alert + missed * costs.per_missed_fraud if costs else None
    return {
        "threshold": threshold,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "false_positive_rate": _ratio(fp, fp + tn),
        "alerts_per_million": _ratio(1e6 * (tp + fp), tp + fp + tn + fn),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "fraud_dollars_caught": float(dollars[flagged & fraud].sum()),
        "fraud_dollars_missed": missed,
        "cost": None if cost is None else _ratio(1e6 * cost, tp + fp + tn + fn),
    }


def threshold_table(
    operating: float,
    label: NDArray[Any],
    score: NDArray[Any],
    weight: NDArray[Any],
    cents: NDArray[Any],
    costs: Costs | None = None,
) -> list[dict[str, float | None]]:
    """``at_threshold`` for every hundredth, thousandths below, and the operating point; empty without rows."""
    if len(score) == 0:
        return []
    return [at_threshold(t, label, score, weight, cents, costs) for t in sorted({*THRESHOLDS, operating})]


def cheapest(table: Sequence[Mapping[str, float | None]]) -> float | None:
    """The threshold of least cost; of equal ones the highest: fewest alerts. None where no cost is known."""
    known = [(cost, -(row["threshold"] or 0.0)) for row in table if (cost := row["cost"]) is not None]
    return -min(known)[1] if known else None


def by_scenario(
    names: Sequence[str], scenario: NDArray[Any], label: NDArray[Any], score: NDArray[Any], weight: NDArray[Any]
) -> dict[str, float | None]:
    """Average precision of finding each scenario's frauds among all genuine rows; None where a scenario has none."""
    order = np.argsort(-score, kind="stable")  # once for all: what is sorted sorts in no time
    scenario, label, score, weight = scenario[order], np.asarray(label)[order], score[order], weight[order]
    genuine = label <= 0
    found: dict[str, float | None] = {}
    for code, name in enumerate(names[1:], start=1):  # 0 is "none": frauds of a file that names no scenario
        rows = genuine | ((scenario == code) & ~genuine)
        found[name] = average_precision(rank(label[rows], score[rows], weight[rows]))
    return found


def by_category(
    names: Sequence[str],
    category: NDArray[Any],
    threshold: float,
    label: NDArray[Any],
    score: NDArray[Any],
    weight: NDArray[Any],
) -> dict[str, dict[str, float | None]]:
    """Figures of each category's rows among themselves; ``rows`` and ``frauds`` are rows of the sample."""
    found: dict[str, dict[str, float | None]] = {}
    for code, name in enumerate(names):
        rows = np.asarray(category) == code
        if not rows.any():
            continue
        part = (label[rows], score[rows], weight[rows])
        flagged = at_threshold(threshold, *part, np.zeros(int(rows.sum())))
        found[name] = {
            "rows": int(rows.sum()),
            "frauds": int((part[0] > 0).sum()),
            "average_precision": average_precision(rank(*part)),
            "precision": flagged["precision"],
            "recall": flagged["recall"],
        }
    return found


def summary(label: NDArray[Any], score: NDArray[Any], weight: NDArray[Any]) -> dict[str, float | None]:
    """Average precision, AUC and mean log loss."""
    ranking = rank(label, score, weight)
    return {
        "average_precision": average_precision(ranking),
        "auc": auc(ranking),
        "logloss": logloss(label, score, weight),
    }


def importances(gains: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Each feature's share of the total gain, largest first; a feature no tree uses has 0."""
    total = sum(gains.values())
    shares = {name: gains.get(name, 0.0) / total if total else 0.0 for name in names}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def logloss(label: NDArray[Any], score: NDArray[Any], weight: NDArray[Any]) -> float | None:
    """Mean of -log of the probability given to what came true. None without rows."""
    if len(score) == 0:
        return None
    p = np.clip(np.asarray(score, np.float64), 1e-7, 1 - 1e-7)
    losses = -np.log(np.where(np.asarray(label) > 0, p, 1 - p))
    return float(np.average(losses, weights=weight))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
