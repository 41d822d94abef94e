"""What one scored segment adds to the ledger, all in integers: totals don't depend on the order of folding.

Units: cents, microseconds, and scores in millionths. Sparse histograms map a bucket's number (text, as JSON has no
other keys) to its figures. An aggregate is stored as JSON, ``metrics/pending/<segment>.json``, until it is folded.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from copy import copy
from typing import Final

import msgspec

from spearhead.reasons import Reason

SCORE_BINS: Final = 20
MICRO: Final = 1_000_000
LATENCY_GROWTH: Final = 1.02  # relative width of a latency bucket
AMOUNT_GROWTH: Final = 1.01  # relative width of a flagged-amount bucket: KPI 13 within 1 %
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US


class Group(msgspec.Struct, gc=False):
    """Rows of one category, state or minute."""

    count: int = 0
    cents: int = 0
    flagged: int = 0
    flagged_cents: int = 0
    flagged_score: int = 0  # sum of the flagged rows' scores, in millionths


class Outcomes(msgspec.Struct, gc=False):
    """Decisions against labels: flagged fraud, flagged genuine, approved genuine, approved fraud."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0


class HourOutcomes(msgspec.Struct, gc=False):
    """Outcomes of one event-time hour, by whether the model that scored the row was trained on that time."""

    out_of_sample: Outcomes = msgspec.field(default_factory=Outcomes)
    in_sample: Outcomes = msgspec.field(default_factory=Outcomes)
    score: int = 0  # sum of the scores of rows out of sample, in millionths


class LabelDay(msgspec.Struct, gc=False):
    """Matured labels of one event day. ``judged``: those out of sample of the model that scored them."""

    rows: int = 0
    frauds: int = 0
    judged_rows: int = 0
    judged_frauds: int = 0
    score: int = 0  # sum of the judged rows' scores, in millionths


class DriftDay(msgspec.Struct, gc=False):
    """Rows of one event day that were counted by the bins of a drift reference (spearhead/drift.py)."""

    rows: int = 0
    seen: int = 0  # when the last of them was scored, us since 1970
    features: list[int] = msgspec.field(default_factory=list)  # rows in each bin, feature after feature
    scores: dict[str, list[int]] = msgspec.field(default_factory=dict)  # the same of scores, by model version


class Feedback(msgspec.Struct, gc=False):
    """Labels that came on their own, and what they changed. received = applied + corrected + duplicate + unmatched."""

    received: int = 0
    applied: int = 0  # the first label of a transaction
    corrected: int = 0  # said otherwise than the label before
    duplicate: int = 0  # said the same, or was older than the label that is known
    unmatched: int = 0  # there was no decision to join it with
    outcomes: HourOutcomes = msgspec.field(default_factory=HourOutcomes)  # a correction takes the old outcome back
    taken_back: HourOutcomes = msgspec.field(default_factory=HourOutcomes)  # what corrections did so


class AmountBucket(msgspec.Struct, gc=False):
    count: int = 0
    cents: int = 0


class Signal(msgspec.Struct, gc=False):
    """One flagged transaction, as the API shows it."""

    trans_num: str
    event_time: int  # us since 1970
    scored_at: int  # us since 1970
    score: int  # millionths
    cents: int
    merchant: str
    category: str
    state: str
    last4: int
    cardholder: str  # "Jennifer B."
    model: str
    reasons: list[Reason] | None = None  # strongest first; None: not computed


class Aggregate(msgspec.Struct):
    """Figures of one segment, or (in the ledger) of all segments of an epoch."""

    count: int = 0
    cents: int = 0
    flagged: int = 0
    flagged_cents: int = 0
    unlabelled: int = 0  # rows that carry no label
    reasons_computed: int = 0  # flagged rows whose reasons were computed when they were scored
    reasons_deferred: int = 0  # flagged rows beyond the budget of reasons
    score_bins: list[int] = msgspec.field(default_factory=lambda: [0] * SCORE_BINS)
    bands: list[int] = msgspec.field(default_factory=lambda: [0] * 3)  # score < 0.6 <= medium < 0.9 <= high
    categories: dict[str, Group] = msgspec.field(default_factory=dict)
    states: dict[str, Group] = msgspec.field(default_factory=dict)
    minutes: dict[str, Group] = msgspec.field(default_factory=dict)  # minutes since 1970, wall time of scoring
    latency: dict[str, int] = msgspec.field(default_factory=dict)  # bucket -> rows
    latency_us: int = 0  # sum over rows of scored_at - ingested_at
    flagged_amounts: dict[str, AmountBucket] = msgspec.field(default_factory=dict)
    pending_labels: dict[str, HourOutcomes] = msgspec.field(default_factory=dict)  # "<producer>/<event hour>"
    label_days: dict[str, LabelDay] = msgspec.field(default_factory=dict)  # matured labels by event day since 1970
    drift: dict[str, DriftDay] = msgspec.field(default_factory=dict)  # "<edges>/<event day>"
    feedback: Feedback = msgspec.field(default_factory=Feedback)
    models: dict[str, int] = msgspec.field(default_factory=dict)  # rows scored by each model version
    signals: list[Signal] = msgspec.field(default_factory=list)  # newest first, at most MAX_SIGNALS
    first_scored_at: int = 0  # us since 1970; 0: no rows
    first_event_day: int = 0  # days since 1970, of the rows scored first: history began then
    last_scored_at: int = 0


MAX_SIGNALS: Final = 50
KEPT_DRIFT_DAYS: Final = 9  # a week of whole days, and one on either side
KEPT_DRIFT_MODELS: Final = 3  # of a day, newest versions
KEPT_LABEL_DAYS: Final = 28


def latency_bucket(us: float) -> int:
    """Bucket of a latency in microseconds: bucket b holds [1.02^b, 1.02^(b+1)); under 1 us is bucket 0."""
    return max(0, math.floor(math.log(us) / math.log(LATENCY_GROWTH))) if us > 1 else 0


def amount_bucket(cents: int) -> int:
    """Bucket of an amount in cents: bucket b holds [1.01^b, 1.01^(b+1)); 0 and 1 cent are bucket 0."""
    return max(0, math.floor(math.log(cents) / math.log(AMOUNT_GROWTH))) if cents > 1 else 0


def merge(into: Aggregate, others: Iterable[Aggregate]) -> None:
    """Add the figures of ``others`` to ``into``, exactly; ``others`` stay as they are."""
    signals = into.signals
    for other in others:
        _merge_counts(into, other)
        _merge_groups(into.categories, other.categories)
        _merge_groups(into.states, other.states)
        _merge_groups(into.minutes, other.minutes)
        _merge_integers(into.latency, other.latency)
        _merge_integers(into.models, other.models)
        _merge_amounts(into.flagged_amounts, other.flagged_amounts)
        _merge_hours(into.pending_labels, other.pending_labels)
        _merge_label_days(into.label_days, other.label_days)
        _merge_drift(into.drift, other.drift)
        _merge_feedback(into.feedback, other.feedback)
        signals = signals + other.signals
    into.signals = heapq.nlargest(MAX_SIGNALS, signals, key=lambda signal: (signal.scored_at, signal.trans_num))


def add_outcomes(into: Outcomes, other: Outcomes) -> None:
    """Add the counts of ``other`` to ``into``."""
    into.tp += other.tp
    into.fp += other.fp
    into.tn += other.tn
    into.fn += other.fn


def outcomes_count(outcomes: Outcomes) -> int:
    """Rows in all four outcomes."""
    return outcomes.tp + outcomes.fp + outcomes.tn + outcomes.fn


def prune_minutes(minutes: dict[str, Group], keep: int) -> None:
    """Keep the newest ``keep`` minutes."""
    for minute in sorted(minutes, key=int)[:-keep]:
        del minutes[minute]


def add_hour(label_days: dict[str, LabelDay], hour: int, outcomes: HourOutcomes) -> None:
    """Add the matured outcomes of an event hour (since 1970) to its day."""
    judged, seen = outcomes.out_of_sample, outcomes.in_sample
    rows, frauds = outcomes_count(judged), judged.tp + judged.fn
    day = LabelDay(rows + outcomes_count(seen), frauds + seen.tp + seen.fn, rows, frauds, outcomes.score)
    _merge_label_days(label_days, {str(hour * HOUR_US // DAY_US): day})


def prune_days(label_days: dict[str, LabelDay], drift: dict[str, DriftDay]) -> None:
    """Keep the newest event days with labels, and of drift those that were counted last.

    Of drift not the newest: a row with a wrong date, far ahead, would stay for good.
    """
    for day in sorted(label_days, key=int)[:-KEPT_LABEL_DAYS]:
        del label_days[day]
    for key in sorted(drift, key=lambda key: (drift[key].seen, int(key.rpartition("/")[2]), key))[:-KEPT_DRIFT_DAYS]:
        del drift[key]
    for counted in drift.values():
        for model in sorted(counted.scores, key=lambda model: (len(model), model))[:-KEPT_DRIFT_MODELS]:
            del counted.scores[model]


def _merge_counts(into: Aggregate, other: Aggregate) -> None:
    into.count += other.count
    into.cents += other.cents
    into.flagged += other.flagged
    into.flagged_cents += other.flagged_cents
    into.unlabelled += other.unlabelled
    into.reasons_computed += other.reasons_computed
    into.reasons_deferred += other.reasons_deferred
    into.latency_us += other.latency_us
    into.score_bins = [a + b for a, b in zip(into.score_bins, other.score_bins, strict=True)]
    into.bands = [a + b for a, b in zip(into.bands, other.bands, strict=True)]
    into.last_scored_at = max(into.last_scored_at, other.last_scored_at)
    if other.first_scored_at:
        first = (other.first_scored_at, other.first_event_day)
        known = (into.first_scored_at, into.first_event_day) if into.first_scored_at else first
        into.first_scored_at, into.first_event_day = min(known, first)


def _merge_groups(into: dict[str, Group], other: dict[str, Group]) -> None:
    for key, group in other.items():
        total = into.get(key)
        if total is None:
            into[key] = copy(group)
            continue
        total.count += group.count
        total.cents += group.cents
        total.flagged += group.flagged
        total.flagged_cents += group.flagged_cents
        total.flagged_score += group.flagged_score


def _merge_integers(into: dict[str, int], other: dict[str, int]) -> None:
    for key, value in other.items():
        into[key] = into.get(key, 0) + value


def _merge_amounts(into: dict[str, AmountBucket], other: dict[str, AmountBucket]) -> None:
    for key, bucket in other.items():
        total = into.get(key)
        if total is None:
            into[key] = copy(bucket)
            continue
        total.count += bucket.count
        total.cents += bucket.cents


def _merge_hours(into: dict[str, HourOutcomes], other: dict[str, HourOutcomes]) -> None:
    for key, hour in other.items():
        total = into.get(key)
        if total is None:
            total = into[key] = HourOutcomes()
        add_outcomes(total.out_of_sample, hour.out_of_sample)
        add_outcomes(total.in_sample, hour.in_sample)
        total.score += hour.score


def _merge_label_days(into: dict[str, LabelDay], other: dict[str, LabelDay]) -> None:
    for key, day in other.items():
        total = into.setdefault(key, LabelDay())
        total.rows += day.rows
        total.frauds += day.frauds
        total.judged_rows += day.judged_rows
        total.judged_frauds += day.judged_frauds
        total.score += day.score


def _merge_drift(into: dict[str, DriftDay], other: dict[str, DriftDay]) -> None:
    for key, day in other.items():
        total = into.setdefault(key, DriftDay())
        total.rows += day.rows
        total.seen = max(total.seen, day.seen)
        total.features = _added(total.features, day.features)
        for model, counts in day.scores.items():
            total.scores[model] = _added(total.scores.get(model, []), counts)


def _added(one: list[int], other: list[int]) -> list[int]:
    """Sum of two counts by the same bins; an empty one has counted nothing."""
    return [a + b for a, b in zip(one, other, strict=True)] if one and other else list(one or other)


def _merge_feedback(into: Feedback, other: Feedback) -> None:
    into.received += other.received
    into.applied += other.applied
    into.corrected += other.corrected
    into.duplicate += other.duplicate
    into.unmatched += other.unmatched
    for total, one in ((into.outcomes, other.outcomes), (into.taken_back, other.taken_back)):
        add_outcomes(total.out_of_sample, one.out_of_sample)
        add_outcomes(total.in_sample, one.in_sample)
