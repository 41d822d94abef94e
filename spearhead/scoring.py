"""From a segment's columns and scores to what the pipeline keeps: decisions, results and aggregates.

One pass over the rows does all sums (``_sum_rows``); what a row at a time in Python costs is bounded by the 50 newest
alerts. Sums are integers: cents, microseconds, millionths of a score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numba as nb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead.aggregate import (
    DAY_US,
    HOUR_US,
    MAX_SIGNALS,
    MICRO,
    SCORE_BINS,
    Aggregate,
    AmountBucket,
    Group,
    HourOutcomes,
    Outcomes,
    Signal,
    amount_bucket,
    latency_bucket,
)
from spearhead.reasons import Reason
from spearhead.schema import CATEGORIES, CODED, DECISIONS, MAX_AMOUNT_CENTS, RESULTS, STATES, TIME

MINUTE_US: Final = 60_000_000
LONGEST_LATENCY_US: Final = 10 * 366 * 86_400 * MICRO  # longer ones share the last bucket
_DENSE_HOURS: Final = 8_192  # event hours of a segment held in a table without a sort
_CATEGORY = pa.array(CATEGORIES, pa.string())
_STATE = pa.array(STATES, pa.string())
_DECISION = pa.array(DECISIONS, pa.string())


def _bucket_edges(bucket: Callable[[int], int], largest: int) -> NDArray[np.int64]:
    """Smallest value of each bucket number; a bucket that holds no whole number has its successor's."""
    edges = [0]
    for number in range(1, bucket(largest) + 1):
        low, high = edges[-1], largest
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if bucket(middle) >= number else (middle + 1, high)
        edges.append(low)
    return np.array(edges, np.int64)


_LATENCY_EDGES: Final = _bucket_edges(latency_bucket, LONGEST_LATENCY_US)
_AMOUNT_EDGES: Final = _bucket_edges(amount_bucket, MAX_AMOUNT_CENTS)


class Scored(NamedTuple):
    """Rows of one segment with their decisions."""

    batch: pa.RecordBatch  # of schema.features_schema
    scores: NDArray[np.float32]  # (n,), 0 to 1
    decisions: NDArray[np.int8]  # (n,), index into DECISIONS
    flagged: NDArray[np.int64]  # rows, ascending
    scored_at: int  # wall time, us since 1970
    model: str


class Sums(NamedTuple):
    """What one pass over the rows adds up. ``groups`` columns are those of ``Group``."""

    categories: NDArray[np.int64]  # (256, 5): count, cents, flagged, flagged cents, flagged score in millionths
    states: NDArray[np.int64]  # (256, 5)
    score_bins: NDArray[np.int64]  # (20,)
    bands: NDArray[np.int64]  # (3,)
    latency: NDArray[np.int64]  # (buckets,)
    amounts: NDArray[np.int64]  # (buckets, 2): flagged rows, flagged cents
    outcomes: NDArray[np.int64]  # (hours, 8): tp fp tn fn out of sample, then in sample
    expected: NDArray[np.float64]  # (hours,): sum of the scores of labelled rows out of sample
    totals: NDArray[np.int64]  # (3,): unlabelled rows, sum of latency us, rows whose score is no probability


def decide(
    batch: pa.RecordBatch,
    scores: NDArray[np.float32],
    *,
    producer: str,
    threshold: float,
    train_end: int,
    scored_at: int,
    model: str,
) -> tuple[Scored, Aggregate]:
    """Decisions of a segment's rows and what they add to the ledger.

    ``scores`` is float32 (n,). A row is flagged when its score, as a double, is at least ``threshold``. Rows up to
    event time ``train_end``, us, count as in sample. A negative latency (clocks of two hosts) counts as 0.
    Raises ValueError if a score is not in 0 to 1 or a category or state code is unknown.
    """
    event_time = _numbers(batch, "event_time")
    hours = _hours(event_time)
    decisions = np.zeros(len(scores), np.int8)
    times, came = _ingested_at(batch)
    sums = _empty_sums(len(hours))
    _sum_rows(
        scores, _numbers(batch, "amt_cents"), _numbers(batch, "category"), _numbers(batch, "state"),
        _numbers(batch, "label"), event_time, times, came,
        scored_at, threshold, train_end, hours, _LATENCY_EDGES, _AMOUNT_EDGES, decisions, *sums,
    )  # fmt: skip
    _check(sums)
    scored = Scored(batch, scores, decisions, np.flatnonzero(decisions.view(np.bool_)), scored_at, model)
    return scored, _aggregate(sums, scored, hours, producer)


def expected_loss(scored: Scored) -> NDArray[np.float64]:
    """Score times amount of each flagged row, in cents."""
    rows = scored.flagged
    loss: NDArray[np.float64] = scored.scores[rows].astype(np.float64) * _numbers(scored.batch, "amt_cents")[rows]
    return loss


def explain(scored: Scored, aggregate: Aggregate, reasons: Mapping[int, list[Reason]]) -> None:
    """Count in the aggregate of ``scored`` the flagged rows that have ``reasons``, by row, and show its signals'."""
    aggregate.reasons_computed = len(reasons)
    aggregate.reasons_deferred = aggregate.flagged - len(reasons)
    for row, signal in zip(_signal_rows(scored).tolist(), aggregate.signals, strict=True):
        signal.reasons = reasons.get(row)


def results(scored: Scored) -> pa.RecordBatch:
    """The segment as schema.RESULTS; columns that don't change keep the memory of the batch."""
    batch, same = scored.batch, pa.array(np.zeros(len(scored.scores), np.int8))
    columns = {
        "card_token": batch.column("card"),
        "amt": pa.array(_numbers(batch, "amt_cents") / 100.0),
        "category": _coded(batch.column("category").view(pa.int8()), _CATEGORY),
        "state": _coded(batch.column("state").view(pa.int8()), _STATE),
        "risk_score": pa.array(scored.scores),
        "decision": _coded(pa.array(scored.decisions), _DECISION),
        "is_fraud": _is_fraud(_numbers(batch, "label")),
        "model_version": _coded(same, pa.array([scored.model])),
        "scored_at": pa.DictionaryArray.from_arrays(same, pa.array([scored.scored_at], TIME), safe=False),
    }
    arrays = [columns[name] if name in columns else batch.column(name) for name in RESULTS.names]
    return pa.RecordBatch.from_arrays(arrays, schema=RESULTS)


def event_times(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Event times of a batch's rows, int64 us since 1970 (n,), over its own memory."""
    return _numbers(batch, "event_time")


def warm() -> None:
    """Compile the kernel, or read it from its cache, before the first row waits for it."""
    _sum_rows(
        np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.uint8),
        np.empty(0, np.int8), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8),
        0, 0.5, 0, np.zeros(1, np.int64), _LATENCY_EDGES, _AMOUNT_EDGES, np.empty(0, np.int8), *_empty_sums(1),
    )  # fmt: skip


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """A column's numbers over its own memory; timestamps as int64 us."""
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return numbers


def _ingested_at(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """When rows came, int64 us since 1970 (times,), and which of these times is each row's (n,)."""
    column = batch.column("ingested_at")
    times: NDArray[np.int64] = column.dictionary.view(pa.int64()).to_numpy(zero_copy_only=True)
    came: NDArray[np.uint8] = column.indices.to_numpy(zero_copy_only=True)
    if len(came) and came.max() >= len(times):
        raise ValueError(f"a row came at time {came.max()} of {len(times)}")
    return times, came


def _hours(event_time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending event hours that may occur in ``event_time``."""
    if len(event_time) == 0:
        return np.zeros(1, np.int64)
    first, last = int(event_time.min()) // HOUR_US, int(event_time.max()) // HOUR_US
    if last - first < _DENSE_HOURS:
        return np.arange(first, last + 1, dtype=np.int64)
    return np.unique(event_time // HOUR_US)


def _empty_sums(hours: int) -> Sums:
    # A code is a byte: 256 rows take whatever a damaged segment says, and _check tells.
    return Sums(
        np.zeros((256, 5), np.int64), np.zeros((256, 5), np.int64), np.zeros(SCORE_BINS, np.int64),
        np.zeros(3, np.int64), np.zeros(len(_LATENCY_EDGES), np.int64), np.zeros((len(_AMOUNT_EDGES), 2), np.int64),
        np.zeros((hours, 8), np.int64), np.zeros(hours), np.zeros(3, np.int64),
    )  # fmt: skip


@nb.njit(cache=True, nogil=True)
def _sum_rows(
    scores: NDArray[np.float32],
    cents: NDArray[np.int32],
    category: NDArray[np.uint8],
    state: NDArray[np.uint8],
    label: NDArray[np.int8],
    event_time: NDArray[np.int64],
    times: NDArray[np.int64],
    came: NDArray[np.uint8],
    scored_at: int,
    threshold: float,
    train_end: int,
    hours: NDArray[np.int64],
    latency_edges: NDArray[np.int64],
    amount_edges: NDArray[np.int64],
    decisions: NDArray[np.int8],
    categories: NDArray[np.int64],
    states: NDArray[np.int64],
    score_bins: NDArray[np.int64],
    bands: NDArray[np.int64],
    latency: NDArray[np.int64],
    amounts: NDArray[np.int64],
    outcomes: NDArray[np.int64],
    expected: NDArray[np.float64],
    totals: NDArray[np.int64],
) -> None:
    """Add every row to the sums (shapes in ``Sums``) and set its decision. (n,) arrays; times us, money cents.

    Row ``i`` came at ``times[came[i]]``.

    Latency bucket and hour slot of a row are mostly those of the row before, so they are looked up on change only.
    """
    bucket, place, waited = 0, np.int64(-1), 0
    slot, hour_start = -1, 0
    for i in range(len(scores)):
        score = np.float64(scores[i])
        if not 0.0 <= score <= 1.0:
            totals[2] += 1
            continue
        amount = np.int64(cents[i])
        bin_ = min(int(score * 20.0), 19)
        score_bins[bin_] += 1
        bands[(score >= 0.6) + (score >= 0.9)] += 1
        c, s = category[i], state[i]
        categories[c, 0] += 1
        categories[c, 1] += amount
        states[s, 0] += 1
        states[s, 1] += amount
        if came[i] != place:
            place = np.int64(came[i])
            waited = max(scored_at - times[place], 0)
            bucket = np.searchsorted(latency_edges, waited, side="right") - 1
        latency[bucket] += 1
        totals[1] += waited
        flagged = score >= threshold
        if flagged:
            decisions[i] = 1
            micro = int(score * 1e6 + 0.5)
            categories[c, 2] += 1
            categories[c, 3] += amount
            categories[c, 4] += micro
            states[s, 2] += 1
            states[s, 3] += amount
            states[s, 4] += micro
            range_ = np.searchsorted(amount_edges, amount, side="right") - 1
            amounts[range_, 0] += 1
            amounts[range_, 1] += amount
        if label[i] < 0:
            totals[0] += 1
            continue
        time = event_time[i]
        if slot < 0 or time < hour_start or time >= hour_start + 3_600_000_000:
            hour = time // 3_600_000_000
            hour_start = hour * 3_600_000_000
            slot = np.searchsorted(hours, hour)
        fraud = label[i] > 0
        kind = (0 if fraud else 1) if flagged else (3 if fraud else 2)
        seen = time <= train_end
        outcomes[slot, kind + (4 if seen else 0)] += 1
        expected[slot] += 0.0 if seen else score


def _check(sums: Sums) -> None:
    if sums.totals[2]:
        raise ValueError(f"{sums.totals[2]} scores are not between 0 and 1")
    for table, known, what in ((sums.categories, CATEGORIES, "category"), (sums.states, STATES, "state")):
        unknown = np.flatnonzero(table[len(known) :, 0])
        if len(unknown):
            raise ValueError(f"unknown {what} code {len(known) + unknown[0]}")


def _aggregate(sums: Sums, scored: Scored, hours: NDArray[np.int64], producer: str) -> Aggregate:
    total = Group(*sums.categories.sum(axis=0).tolist())
    return Aggregate(
        count=total.count,
        cents=total.cents,
        flagged=total.flagged,
        flagged_cents=total.flagged_cents,
        unlabelled=int(sums.totals[0]),
        reasons_deferred=total.flagged,  # until ``explain``
        score_bins=sums.score_bins.tolist(),
        bands=sums.bands.tolist(),
        categories=_groups(sums.categories, CATEGORIES),
        states=_groups(sums.states, STATES),
        minutes={str(scored.scored_at // MINUTE_US): total} if total.count else {},
        latency={str(b): int(sums.latency[b]) for b in np.flatnonzero(sums.latency).tolist()},
        latency_us=int(sums.totals[1]),
        flagged_amounts={
            str(b): AmountBucket(*sums.amounts[b].tolist()) for b in np.flatnonzero(sums.amounts[:, 0]).tolist()
        },
        pending_labels={
            f"{producer}/{hours[h]}": HourOutcomes(
                Outcomes(*sums.outcomes[h, :4].tolist()),
                Outcomes(*sums.outcomes[h, 4:].tolist()),
                int(sums.expected[h] * MICRO + 0.5),
            )
            for h in np.flatnonzero(sums.outcomes.any(axis=1)).tolist()
        },
        models={scored.model: total.count} if total.count else {},
        signals=_signals(scored),
        first_scored_at=scored.scored_at if total.count else 0,
        first_event_day=int(hours[0]) * HOUR_US // DAY_US if total.count else 0,
        last_scored_at=scored.scored_at if total.count else 0,
    )


def _groups(table: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, Group]:
    return {names[code]: Group(*table[code].tolist()) for code in np.flatnonzero(table[:, 0]).tolist()}


def _signals(scored: Scored) -> list[Signal]:
    """The last flagged rows of the segment, newest first."""
    rows = _signal_rows(scored)
    if len(rows) == 0:
        return []
    columns = scored.batch.select(_SIGNAL_COLUMNS).take(pa.array(rows)).to_pydict()
    scores = scored.scores[rows].tolist()
    return [
        Signal(
            trans_num=row["trans_num"],
            event_time=event_time,
            scored_at=scored.scored_at,
            score=int(score * 1e6 + 0.5),
            cents=row["amt_cents"],
            merchant=row["merchant"],
            category=CATEGORIES[row["category"]],
            state=STATES[row["state"]],
            last4=row["last4"],
            cardholder=f"{row['first']} {chr(row['last_initial'])}.",
            model=scored.model,
        )
        for row, event_time, score in zip(
            (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)),
            _numbers(scored.batch, "event_time")[rows].tolist(),
            scores,
            strict=True,
        )
    ]


def _signal_rows(scored: Scored) -> NDArray[np.int64]:
    return scored.flagged[-MAX_SIGNALS:][::-1]


_SIGNAL_COLUMNS: Final = ["trans_num", "amt_cents", "merchant", "category", "state", "last4", "first", "last_initial"]


def _coded(codes: pa.Array, dictionary: pa.Array) -> pa.DictionaryArray:
    """Codes (int8) with their dictionary; codes were checked against it, so Arrow need not."""
    return pa.DictionaryArray.from_arrays(codes, dictionary, safe=False).cast(CODED)


def _is_fraud(label: NDArray[np.int8]) -> pa.BooleanArray:
    known = pa.py_buffer(np.packbits(label >= 0, bitorder="little"))
    fraud = pa.py_buffer(np.packbits(label > 0, bitorder="little"))
    return pa.BooleanArray.from_buffers(pa.bool_(), len(label), [known, fraud])
