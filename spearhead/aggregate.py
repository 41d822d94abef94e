"""What one scored segment adds to the ledger, all in integers: totals don't depend on the order of folding.

Units: cents, microseconds, and scores in millionths. Sparse histograms map a bucket's number (text, as JSON has no
other keys) to its figures. An aggregate is stored as JSON, ``metrics/pending/<segment>.json``, until it is folded.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

SCORE_BINS: Final = 20
MICRO: Final = 1_000_000
LATENCY_GROWTH: Final = 1.02  # relative width of a latency bucket
AMOUNT_GROWTH: Final = 1.01  # relative width of a flagged-amount bucket: KPI 13 within 1 %
HOUR_US: Final = 3_600_000_000


class Group(msgspec.Struct):
    """Rows of one category, state or minute."""

    count: int = 0
    cents: int = 0
    flagged: int = 0
    flagged_cents: int = 0
    flagged_score: int = 0  # sum of the flagged rows' scores, in millionths


class Outcomes(msgspec.Struct):
    """Decisions against labels: flagged fraud, flagged genuine, approved genuine, approved fraud."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0


class HourOutcomes(msgspec.Struct):
    """Outcomes of one event-time hour, by whether the model that scored the row was trained on that time."""

    out_of_sample: Outcomes = msgspec.field(default_factory=Outcomes)
    in_sample: Outcomes = msgspec.field(default_factory=Outcomes)


class AmountBucket(msgspec.Struct):
    count: int = 0
    cents: int = 0


class Signal(msgspec.Struct):
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


class Aggregate(msgspec.Struct):
    """Figures of one segment, or (in the ledger) of all segments of an epoch."""

    count: int = 0
    cents: int = 0
    flagged: int = 0
    flagged_cents: int = 0
    unlabelled: int = 0  # rows that carry no label
    score_bins: list[int] = msgspec.field(default_factory=lambda: [0] * SCORE_BINS)
    bands: list[int] = msgspec.field(default_factory=lambda: [0] * 3)  # score < 0.6 <= medium < 0.9 <= high
    categories: dict[str, Group] = msgspec.field(default_factory=dict)
    states: dict[str, Group] = msgspec.field(default_factory=dict)
    minutes: dict[str, Group] = msgspec.field(default_factory=dict)  # minutes since 1970, wall time of scoring
    latency: dict[str, int] = msgspec.field(default_factory=dict)  # bucket -> rows
    latency_us: int = 0  # sum over rows of scored_at - ingested_at
    flagged_amounts: dict[str, AmountBucket] = msgspec.field(default_factory=dict)
    pending_labels: dict[str, HourOutcomes] = msgspec.field(default_factory=dict)  # "<producer>/<event hour>"
    models: dict[str, int] = msgspec.field(default_factory=dict)  # rows scored by each model version
    signals: list[Signal] = msgspec.field(default_factory=list)  # newest first, at most MAX_SIGNALS


MAX_SIGNALS: Final = 50


def latency_bucket(us: float) -> int:
    """Bucket of a latency in microseconds: bucket b holds [1.02^b, 1.02^(b+1)); under 1 us is bucket 0."""
    return max(0, math.floor(math.log(us) / math.log(LATENCY_GROWTH))) if us > 1 else 0


def amount_bucket(cents: int) -> int:
    """Bucket of an amount in cents: bucket b holds [1.01^b, 1.01^(b+1)); 0 and 1 cent are bucket 0."""
    return max(0, math.floor(math.log(cents) / math.log(AMOUNT_GROWTH))) if cents > 1 else 0
