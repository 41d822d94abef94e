"""Drift: how far recent traffic is from what the model in service was made of. Pure functions of two small records.

The *reference* (``drift.json`` in a version's folder) holds each feature's bins and their shares in the training
window. Inference counts rows by the same bins (``spearhead/binning.py``) and event day, the ledger adds them up, and
``assess`` compares: population stability indices (PSI), the fraud rate, and frauds against the sum of scores.
``docs/decisions/0016-drift.md`` says why each rule is as it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

import msgspec

from spearhead.aggregate import DAY_US, MICRO, DriftDay, LabelDay

WARN: Final = 0.1
ALARM: Final = 0.25
BINS: Final = 10  # of a feature or of the score, at most
WINDOW_DAYS: Final = 7
LEAST_ROWS: Final = 1_000  # counted rows of either side below which a PSI is chance
LEAST_FRAUDS: Final = 30  # expected frauds, or of the reference, below which a ratio says nothing
RATIO_WARN: Final = 1.25  # a ratio of which even the near end of its interval is beyond it, or below its inverse
RATIO_ALARM: Final = 1.5
DEVIATIONS: Final = 3.0  # standard deviations from a ratio to the ends of its interval
NEVER: Final = math.inf
CALENDAR: Final = frozenset({"hour", "weekday"})  # the same only over whole weeks

# Event days of history after which a feature's distribution has settled: before, it moves though traffic is steady.
HISTORY_DAYS: Final[Mapping[str, float]] = {
    **dict.fromkeys(
        ("amt", "hour", "weekday", "home_km", "category", "log_city_pop", "age_years"),
        0.0,
    ),
    **dict.fromkeys(
        ("card_log_gap", "card_count_1h", "card_count_24h", "card_count_7d", "card_sum_1h", "card_sum_24h",
         "card_sum_7d", "card_mean_1h", "card_mean_ratio_24h", "card_mean_7d", "card_amt_z", "card_amt_ratio",
         "card_rate_ratio", "card_last_km", "card_speed_kmh", "card_home_kmh", "card_small_1h",
         "card_sum_ratio_24h",
         "merch_count_24h", "merch_count_7d", "merch_mean_7d", "merch_amt_ratio"),
        7.0,
    ),
    **dict.fromkeys(("merch_risk_1d",), 8.0),
    **dict.fromkeys(("merch_risk_7d", "merch_frauds_7d", "merch_recent_risk"), 14.0),
    **dict.fromkeys(
        ("card_new_merchant", "card_new_merchants_24h", "card_new_category", "card_night_share", "card_high_share"),
        21.0,
    ),
    **dict.fromkeys(("merch_risk_30d", "merch_labelled_30d"), 37.0),
    # They grow for as long as there is history.
    **dict.fromkeys(("card_days", "card_high_days", "merch_fraud_run_days", "merch_last_fraud_days"), NEVER),
}  # fmt: skip

Status = Literal["ok", "warn", "alarm"]
_WORST: Final[tuple[Status, ...]] = ("ok", "warn", "alarm")


class Edges(msgspec.Struct, frozen=True, kw_only=True):
    """Bins of each feature: value x is in bin b when b of the edges are at most the rank of its code (codes.ranks)."""

    features: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]  # ascending, at most BINS - 1 of each feature; none: one value only
    settled: tuple[bool, ...]  # whether they were drawn from settled history

    @property
    def id(self) -> str:
        """Counts of one id can be added up."""
        return hashlib.sha256(msgspec.json.encode([self.features, self.ranks])).hexdigest()[:12]

    @property
    def size(self) -> int:
        """Bins of all features."""
        return sum(len(edges) + 1 for edges in self.ranks)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """``drift.json``. Shares are those of source rows; ``*_rows`` are the sampled rows that they were measured on."""

    edges: Edges
    shares: tuple[tuple[float, ...] | None, ...]  # of each feature's bins; None: too few rows of settled history
    feature_rows: tuple[int, ...]
    score_edges: tuple[float, ...]  # score x is in bin b when b of the edges are at most x
    score_shares: tuple[float, ...] | None  # of the test part
    score_rows: int
    start: int  # of the training window, us since 1970
    end: int
    rows: int
    frauds: int
    test_frauds: int = 0  # of the test part, which says whether scores are probabilities; 0: not known
    base_rate: float


class FeatureDrift(NamedTuple):
    feature: str
    psi: float | None
    status: Status | None


class RatioDrift(NamedTuple):
    """What was found over what was expected; from ``ratio`` on all is None below LEAST_FRAUDS expected frauds."""

    expected: float | None  # frauds
    observed: int
    rows: int
    ratio: float | None
    low: float | None  # ends of the interval that chance leaves to the ratio
    high: float | None
    status: Status | None


class Drift(NamedTuple):
    """What is known of drift. ``status`` is the worst of all that was measured; None: nothing was."""

    status: Status | None
    start: int | None  # us, event time of the days that features were counted on; None: no whole day yet
    end: int | None
    rows: int  # counted
    score_psi: float | None
    features: tuple[FeatureDrift, ...]  # largest PSI first, those not measured last
    label_rate: RatioDrift
    calibration: RatioDrift


def assess(
    reference: Reference,
    version: str,
    counted: Mapping[str, DriftDay],
    labels: Mapping[str, LabelDay],
    history_began: int,
) -> Drift:
    """Compare what the ledger counted with the reference of ``version``.

    ``counted`` and ``labels`` are the ledger's; ``history_began`` is the event day, days since 1970, since when prep
    has had history.
    """
    days = whole_days(reference.edges.id, counted)
    recent = [counted[key_of(reference.edges.id, day)] for day in days]
    rows = sum(day.rows for day in recent)
    features = _features(reference, recent, days, history_began)
    score_psi = _score_psi(reference, version, recent)
    label_rate, calibration = _ratios(reference, labels)
    known = [score_psi if score_psi is None else _level(score_psi), *(feature.status for feature in features),
             label_rate.status, calibration.status]  # fmt: skip
    found = [status for status in known if status is not None]
    return Drift(
        status=max(found, key=_WORST.index) if found else None,
        start=days[0] * DAY_US if days else None,
        end=(days[-1] + 1) * DAY_US if days else None,
        rows=rows,
        score_psi=score_psi,
        features=features,
        label_rate=label_rate,
        calibration=calibration,
    )


def check_reference(reference: Reference, features: Sequence[str]) -> None:
    """Raises ValueError if the parts of a reference don't fit each other or ``features``."""
    edges, width = reference.edges, len(features)
    fits = edges.features == tuple(features)
    fits = fits and len(edges.ranks) == len(edges.settled) == len(reference.shares) == width
    fits = fits and len(reference.feature_rows) == width and len(reference.score_edges) < BINS
    fits = fits and all(len(ranks) < BINS for ranks in edges.ranks)
    pairs = [*zip(edges.ranks, reference.shares, strict=False), (reference.score_edges, reference.score_shares)]
    if not fits or any(shares is not None and len(shares) != len(found) + 1 for found, shares in pairs):
        raise ValueError("the drift reference is of other features, or its parts don't fit each other")


def psi(shares: Sequence[float], rows: int, counts: Sequence[int]) -> float:
    """Population stability index of ``counts`` against ``shares`` that were measured on ``rows`` rows.

    Both sides have half a row more in each bin, so an empty bin gives a finite figure.
    """
    bins, total = len(counts), sum(counts)
    found = 0.0
    for share, count in zip(shares, counts, strict=True):
        before = (share * rows + 0.5) / (rows + 0.5 * bins)
        now = (count + 0.5) / (total + 0.5 * bins)
        found += (now - before) * math.log(now / before)
    return found


def key_of(edges_id: str, day: int) -> str:
    """Name of an event day's counts in aggregates and in the ledger."""
    return f"{edges_id}/{day}"


def whole_days(edges_id: str, counted: Mapping[str, DriftDay]) -> list[int]:
    """The newest event days, at most WINDOW_DAYS, ascending, of which every hour was counted by these edges.

    That is known of a day whose neighbours were counted too: a first day may have begun earlier, a last one goes on.
    """
    parts = (key.rpartition("/") for key in counted)
    days = {int(day) for name, _, day in parts if name == edges_id}
    return sorted(day for day in days if {day - 1, day + 1} <= days)[-WINDOW_DAYS:]


def has_settled(feature: str, history_days: float) -> bool:
    """Whether ``history_days`` of history are enough for the distribution of ``feature`` to be steady."""
    return history_days >= HISTORY_DAYS.get(feature, NEVER)


def _features(
    reference: Reference, recent: Sequence[DriftDay], days: Sequence[int], history_began: int
) -> tuple[FeatureDrift, ...]:
    whole_week = len(days) == WINDOW_DAYS and days[-1] - days[0] == WINDOW_DAYS - 1
    totals = _summed([day.features for day in recent], reference.edges.size)
    found, begin = [], 0
    for place, name in enumerate(reference.edges.features):
        end = begin + len(reference.edges.ranks[place]) + 1
        shares, rows, counts = reference.shares[place], reference.feature_rows[place], totals[begin:end]
        begin = end
        comparable = bool(days) and has_settled(name, days[0] - history_began)
        comparable = comparable and (whole_week or name not in CALENDAR)
        if shares is None or len(shares) < 2 or not comparable or min(rows, sum(counts)) < LEAST_ROWS:
            found.append(FeatureDrift(name, None, None))
            continue
        value = psi(shares, rows, counts)
        found.append(FeatureDrift(name, value, _level(value)))
    return tuple(sorted(found, key=lambda feature: (feature.psi is None, -(feature.psi or 0.0))))


def _score_psi(reference: Reference, version: str, recent: Iterable[DriftDay]) -> float | None:
    counted = [day.scores[version] for day in recent if version in day.scores]
    counts = _summed(counted, BINS)[: len(reference.score_edges) + 1]
    shares, rows = reference.score_shares, reference.score_rows
    if shares is None or len(shares) < 2 or min(rows, sum(counts)) < LEAST_ROWS:
        return None
    return psi(shares, rows, counts)


def _summed(columns: Sequence[Sequence[int]], size: int) -> list[int]:
    return [sum(column) for column in zip(*columns, strict=True)] if columns else [0] * size


def _ratios(reference: Reference, labels: Mapping[str, LabelDay]) -> tuple[RatioDrift, RatioDrift]:
    """The fraud rate over that of training, and frauds over the sum of scores, over the newest matured days."""
    days = [labels[key] for key in sorted(labels, key=int)][:-1]  # labels of the last day are still maturing
    rates = [(day.frauds, day.rows * reference.base_rate) for day in days]
    judged = [(day.judged_frauds, day.score / MICRO) for day in days]
    recent = days[-WINDOW_DAYS:]
    return (
        _ratio(rates, sum(day.rows for day in recent), reference.frauds),
        _ratio(judged, sum(day.judged_rows for day in recent), reference.test_frauds),
    )


def _ratio(days: Sequence[tuple[int, float]], rows: int, reference_frauds: int) -> RatioDrift:
    """``days`` are observed and expected frauds, oldest first; ``reference_frauds`` is what ``expected`` rests on."""
    recent = days[-WINDOW_DAYS:]
    observed, expected = sum(day[0] for day in recent), sum(day[1] for day in recent)
    if expected < LEAST_FRAUDS or reference_frauds < LEAST_FRAUDS:
        return RatioDrift(expected if rows else None, observed, rows, None, None, None, None)
    low, high = interval(observed, expected, reference_frauds, dispersion(days))
    near = max(low, 1 / high)
    level: Status = "alarm" if near >= RATIO_ALARM else "warn" if near >= RATIO_WARN else "ok"
    return RatioDrift(expected, observed, rows, observed / expected, low, high, level)


def interval(observed: int, expected: float, reference_frauds: int, spread: float) -> tuple[float, float]:
    """Ends of what ``observed`` over ``expected`` may be, DEVIATIONS from it, where chance is all that moves it.

    Those of a Poisson count (Byar's approximation, good from 0 on) whose variance episodes multiply by ``spread``, and
    further apart, on a logarithmic scale, by what chance leaves to the ``reference_frauds`` behind ``expected``.
    """
    count, middle = observed / spread, observed + 0.5
    low = spread * _byar(count, -DEVIATIONS) if count > 0 else 0.0
    high = spread * _byar(count + 1, DEVIATIONS)
    known = DEVIATIONS * math.sqrt(spread / reference_frauds)
    low = middle * math.exp(-math.hypot(math.log(middle / low), known)) if low > 0 else 0.0
    return low / expected, middle * math.exp(math.hypot(math.log(high / middle), known)) / expected


def _byar(count: float, deviations: float) -> float:
    return float(count * max(0.0, 1 - 1 / (9 * count) + deviations / (3 * math.sqrt(count))) ** 3)


def dispersion(days: Sequence[tuple[int, float]]) -> float:
    """Variance of a day's frauds over their mean: 1 for independent ones, more as they come in episodes.

    From differences of days that follow each other, over their joint rate: a level that shifts is no dispersion.
    ``days`` are observed and expected frauds, oldest first.
    """
    terms = []
    for (before, before_expected), (now, now_expected) in pairwise(days):
        if min(before_expected, now_expected) <= 0 or before + now == 0:
            continue
        rate = (before + now) / (before_expected + now_expected)
        difference = before / before_expected - now / now_expected
        terms.append(difference**2 / (rate * (1 / before_expected + 1 / now_expected)))
    return max(1.0, sum(terms) / len(terms)) if terms else 1.0


def _level(value: float) -> Status:
    return "alarm" if value >= ALARM else "warn" if value >= WARN else "ok"
