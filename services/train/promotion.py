"""Whether a new model takes the place of the one in service: both judged on the latest event time that neither saw."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.train import evaluation
from services.train.fit import Rows, predict, split
from spearhead.model import Artifact, Model

LEAST_FRAUDS: Final = 20  # below, a difference in average precision is chance
RESAMPLES: Final = 100
LEAST_CONFIDENCE: Final = 0.9


class Rules(NamedTuple):
    """What a challenger must show."""

    margin: float  # average precision above the champion's, at least
    ece_tolerance: float  # calibration error above the champion's, at most, as a share of the fraud rate


class Verdict(NamedTuple):
    """``figures`` say why; they go into the version's metrics under ``verdict``."""

    promote: bool
    figures: dict[str, Any]

    def refused(self, reason: str) -> Verdict:
        """The same figures, and another outcome."""
        return Verdict(False, self.figures | {"promoted": False, "reason": reason})


def judge(
    challenger: Artifact,
    champion: Model | None,
    rows: Rows,
    rules: Rules,
    scores: NDArray[np.float32] | None = None,
) -> Verdict:
    """Promote if the challenger shows on its test part what ``rules`` ask for, or nothing is in service.

    Rows that shaped the champion's trees are left out. If that leaves no fraud (it was trained elsewhere, on later
    event time) all test rows count: it may have seen them, which favours the one in service. With too few frauds
    nothing can be shown, and the champion stays. ``scores`` are the challenger's of its test part, if they are known.
    """
    if champion is None:
        return _verdict(True, "no model that works was in service", rules)
    test = rows.take(split(rows).test)
    ours = (
        predict(challenger.booster, test.features, challenger.slope, challenger.intercept) if scores is None else scores
    )
    unseen = test.event_time > (champion.window.fit_end if champion.window else np.iinfo(np.int64).max)
    seen = not (test.label[unseen] > 0).any()
    if not seen:
        test, ours = test.take(unseen), ours[unseen]
    theirs = champion.score_values(np.ascontiguousarray(test.features))
    figures: dict[str, Any] = {
        "version": champion.version,
        "champion_average_precision": _average_precision(test, theirs),
        "challenger_average_precision": _average_precision(test, ours),
        "champion_ece": evaluation.calibration(test.label, theirs, test.weight)["ece"],
        "challenger_ece": evaluation.calibration(test.label, ours, test.weight)["ece"],
        "rows": len(test.label),
        "frauds": test.frauds,
        "seen_by_champion": seen,
    }
    objection = _objection(figures, test, rules)
    if objection is None:
        figures["confidence"] = confidence(test.label, ours, theirs, test.weight)
        if figures["confidence"] < LEAST_CONFIDENCE:
            objection = f"better in only {figures['confidence']:.0%} of resamples of the same rows"
    better = "average precision {challenger_average_precision:.4f} against {champion_average_precision:.4f}"
    return _verdict(objection is None, objection or better.format(**figures), rules, figures)


def confidence(
    label: NDArray[Any], ours: NDArray[np.float32], theirs: NDArray[np.float32], weight: NDArray[Any]
) -> float:
    """Share of resamples of the rows, drawn with replacement, in which ``ours`` has the higher average precision.

    A paired bootstrap: both are judged on the same rows each time. A row is drawn a Poisson(1) number of times.
    """
    random = np.random.default_rng(0)  # the same rows give the same verdict
    rankings = [_order(label, scores) for scores in (ours, theirs)]
    times = _poisson()
    won = 0
    for _ in range(RESAMPLES):
        drawn = weight * times[random.integers(0, len(times), len(label), np.uint16)]
        a, b = (_resampled(drawn, ranking) for ranking in rankings)
        won += a > b
    return won / RESAMPLES


class _Order(NamedTuple):
    """Rows by falling score, and where average precision is counted: at the end of each score that a fraud has."""

    rows: NDArray[np.int64]  # (n,)
    frauds: NDArray[np.int64]  # (frauds,) places in ``rows``
    first: NDArray[np.int64]  # (k,) place in ``frauds`` of the first one of each such score, a run of equal ones
    last: NDArray[np.int64]  # (k,) place in ``rows`` of the last row of that score


def _order(label: NDArray[Any], scores: NDArray[np.float32]) -> _Order:
    rows = np.argsort(-scores, kind="stable")
    ranked = scores[rows]
    frauds = np.flatnonzero(label[rows] > 0)
    _, first = np.unique(-ranked[frauds], return_index=True)
    last = np.searchsorted(-ranked, -ranked[frauds[first]], side="right") - 1
    return _Order(rows, frauds, first, last)


def _resampled(drawn: NDArray[Any], order: _Order) -> float:
    """Average precision of rows of weights ``drawn`` (n,), some 0; 0 without fraud. Nothing is sorted anew."""
    ranked = drawn[order.rows]
    caught = np.add.reduceat(ranked[order.frauds], order.first) if len(order.first) else np.zeros(0)
    if not caught.any():
        return 0.0
    flagged = np.cumsum(ranked, dtype=np.float64)[order.last]
    precision = np.cumsum(caught) / np.where(flagged > 0, flagged, 1.0)
    return float((caught * precision).sum() / caught.sum())


def _poisson() -> NDArray[np.float32]:
    """Poisson(1) for each of 65,536 equally likely draws, (65536,): one table instead of millions of logarithms."""
    at_most = np.exp(-1.0) * np.cumsum(1 / np.cumprod([1.0, *range(1, 10)]))
    return np.searchsorted(at_most, (np.arange(65_536) + 0.5) / 65_536).astype(np.float32)


def _objection(figures: dict[str, Any], test: Rows, rules: Rules) -> str | None:
    """What the plain figures hold against the challenger."""
    if test.frauds < LEAST_FRAUDS:
        return f"{test.frauds} frauds to judge by, {LEAST_FRAUDS} are needed"
    ours, theirs = figures["challenger_average_precision"], figures["champion_average_precision"]
    if ours <= theirs or ours < theirs + rules.margin:
        return f"average precision {ours:.4f} is not {rules.margin:g} above the champion's {theirs:.4f}"
    base = float(np.average(test.label > 0, weights=test.weight))
    ours, theirs = figures["challenger_ece"], figures["champion_ece"]
    if ours > theirs + rules.ece_tolerance * base:
        return f"calibration error {ours:.5f} is worse than the champion's {theirs:.5f} by more than is allowed"
    return None


def _verdict(promote: bool, reason: str, rules: Rules, figures: dict[str, Any] | None = None) -> Verdict:
    names = ("version", "champion_average_precision", "challenger_average_precision", "confidence", "champion_ece",
             "challenger_ece", "rows", "frauds", "seen_by_champion")  # fmt: skip
    known = {name: (figures or {}).get(name) for name in names}
    return Verdict(promote, {"promoted": promote, "reason": reason, "margin": rules.margin} | known)


def _average_precision(rows: Rows, scores: NDArray[np.float32]) -> float | None:
    return evaluation.average_precision(evaluation.rank(rows.label, scores, rows.weight))
