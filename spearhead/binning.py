"""Counting a segment's rows by the bins of a drift reference: one row in 48, so that it costs next to nothing a row.

Which rows are counted follows from the segment's number and the row's place alone: a segment that is scored again
after a crash is counted the same. Eight rows that follow each other are counted together, as memory brings them.
"""

# What numpy's scalars give is Any to mypy; numba types it all.
# mypy: disable-error-code="no-untyped-call, no-untyped-def"

from __future__ import annotations

from typing import Final, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from spearhead.aggregate import DAY_US, KEPT_DRIFT_DAYS, DriftDay
from spearhead.codes import NO_RANK, Codes, Packed, plain
from spearhead.drift import BINS, Edges, Reference, key_of

ONE_IN: Final = 48  # rows
RUN: Final = 8  # rows that are counted together


class Bins(NamedTuple):
    """A reference as the kernel takes it."""

    edges_id: str
    used: NDArray[np.int64]  # (width,): bins of each feature
    ranks: NDArray[np.int16]  # (BINS - 1, width): edges, filled up with NO_RANK
    scores: NDArray[np.float32]  # (edges,)


def bins_of(reference: Reference) -> Bins:
    """The reference as the kernel takes it."""
    ranks, used = _table(reference.edges)
    return Bins(reference.edges.id, used, ranks, np.array(reference.score_edges, np.float32))


def count(
    bins: Bins,
    features: Codes | Packed,
    scores: NDArray[np.float32],
    event_time: NDArray[np.int64],
    *,
    number: int,
    model: str,
    scored_at: int,
) -> dict[str, DriftDay]:
    """Counts of one row in 48 of segment ``number``, by event day: what ``Aggregate.drift`` holds.

    ``features`` are codes (n, width), ``scores`` float32 (n,), ``event_time`` int64 (n,), us; ``scored_at`` us. Of a
    segment with rows of more event days than the ledger keeps, the newest days.
    """
    rows = counted_rows(len(scores), number)
    found = (features if isinstance(features, Packed) else plain(features)).take(rows)
    of_row = event_time[rows] // DAY_US
    days = _newest(of_row)
    in_features = np.zeros((len(days), found.shape[1] * BINS), np.int32)
    in_scores = np.zeros((len(days), BINS), np.int32)
    _count(found, scores[rows], of_row, days, bins.ranks, bins.scores, in_features, in_scores)
    used = (np.arange(BINS) < bins.used[:, None]).reshape(-1)
    return {
        key_of(bins.edges_id, int(day)): DriftDay(
            int(in_scores[i].sum()), scored_at, in_features[i][used].tolist(), {model: in_scores[i].tolist()}
        )
        for i, day in enumerate(days)
        if in_scores[i].any()
    }


def counted_rows(rows: int, number: int) -> NDArray[np.int64]:
    """Which of a segment's ``rows`` rows are counted, ascending: of every 384 eight, at a place of ``number``'s."""
    firsts = np.arange(RUN * (number % ONE_IN), rows, RUN * ONE_IN)
    chosen = (firsts[:, None] + np.arange(RUN)).reshape(-1)
    return chosen[chosen < rows]


def place(edges: Edges, ranks: NDArray[np.int16], feature: int) -> NDArray[np.int64]:
    """Bins (n,) of the ranks (n,) of one feature's codes, as the kernel finds them."""
    found: NDArray[np.int64] = np.searchsorted(np.array(edges.ranks[feature], np.int16), ranks, side="right")
    return found


def warm() -> None:
    """Compile the kernel, or load it from numba's cache."""
    edges = Edges(features=("a",), ranks=((0,),), settled=(True,))
    ranks, used = _table(edges)
    bins = Bins(edges.id, used, ranks, np.array([0.5], np.float32))
    count(
        bins,
        np.zeros((1, 1), np.uint16),
        np.zeros(1, np.float32),
        np.zeros(1, np.int64),
        number=0,
        model="",
        scored_at=0,
    )


def _newest(of_row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending event days that may be counted, at most as many as the ledger keeps; one at least."""
    if len(of_row) == 0:
        return np.zeros(1, np.int64)
    first, last = int(of_row.min()), int(of_row.max())
    if last - first < KEPT_DRIFT_DAYS:
        return np.arange(first, last + 1)
    return np.unique(of_row)[-KEPT_DRIFT_DAYS:]


def _table(edges: Edges) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    ranks = np.full((BINS - 1, len(edges.features)), NO_RANK, np.int16)
    for feature, found in enumerate(edges.ranks):
        ranks[: len(found), feature] = found
    return ranks, np.array([len(found) + 1 for found in edges.ranks], np.int64)


@nb.njit(cache=True, nogil=True)
def _count(features, scores, of_row, days, ranks, score_edges, in_features, in_scores):
    """Add rows to the counts of their days, ``of_row``; a row of no day in ``days`` is left out."""
    width = features.shape[1]
    found = np.empty(width, np.uint32)  # unsigned: else numba looks whether an index counts from the end
    values = np.empty(width, np.int32)
    slot = 0
    for row in range(len(features)):
        if days[slot] != of_row[row]:
            slot = np.searchsorted(days, of_row[row])
            if days[slot] != of_row[row]:  # older than all that count
                slot = 0
                continue
        for f in range(width):
            code = np.int32(features[row, f])
            magnitude = code & np.int32(0x7FFF)
            values[f] = -magnitude if code >= np.int32(0x8000) else magnitude
            found[f] = np.uint32(f * BINS)
        for edge in range(BINS - 1):  # feature by feature within: such a loop runs on vectors
            for f in range(width):
                found[f] = np.uint32(found[f] + np.uint32(values[f] >= ranks[edge, f]))
        counts = in_features[slot]
        for f in range(width):
            counts[found[f]] += 1
        at = 0
        while at < len(score_edges) and scores[row] >= score_edges[at]:
            at += 1
        in_scores[slot, at] += 1
