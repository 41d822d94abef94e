"""The drift reference of a model: bins of its features and scores, and their shares in its training window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.train.fit import Rows
from spearhead import codes
from spearhead.binning import place
from spearhead.drift import BINS, CALENDAR, HISTORY_DAYS, LEAST_ROWS, NEVER, WARN, Edges, Reference, psi
from spearhead.features import MERCHANT

DAY_US: Final = 86_400_000_000
MOST_ROWS: Final = 200_000  # that shares are measured on
LEAST_SHARE: Final = 0.002  # of a bin when it is drawn
LEAST_DAYS: Final = 3  # of settled history
UNSTEADY: Final = 0.03  # PSI within the window
LABELLED_DAYS: Final = (
    7.0  # a merchant's features that need more history are of its labels, and move too slowly to tell
)
LUMPED: Final = 2.0  # inherited bins are drawn anew when the largest holds this many times what a new one would


def reference(
    rows: Rows,
    names: Sequence[str],
    scores: NDArray[np.float32],
    test: Rows,
    champion: Reference | None,
    history_began: int | None,
) -> Reference:
    """The reference of a model made of ``rows`` (as ``fit.in_order`` gives them), its ``scores`` those of ``test``.

    The champion's bins are taken over where they still serve, so that what was counted by them goes on counting.
    ``history_began`` is the event day, days since 1970, since when there has been history; None: since the first row.
    """
    some = rows.take(slice(None, None, -(-len(rows.label) // MOST_ROWS)))
    begun = int(rows.event_time[0]) if history_began is None else history_began * DAY_US
    ranks = np.ascontiguousarray(codes.ranked(codes.encode(some.features)).T)
    kept = [_steady(some.event_time, name, begun) for name in names]
    edges = _edges(names, ranks, some, kept, champion)
    merchants = _merchants(rows, names)
    shares = [
        _feature_shares(
            place(edges, found[which], feature), some.weight[which], len(edges.ranks[feature]) + 1, name, merchants
        )
        for feature, (name, found, which) in enumerate(zip(names, ranks, kept, strict=True))
    ]
    score_edges = _draw_scores(scores, test.weight) if len(scores) else ()
    score_bins = np.searchsorted(np.array(score_edges, np.float32), scores, side="right")
    return Reference(
        edges=edges,
        shares=tuple(shares),
        feature_rows=tuple(int(which.sum()) for which in kept),
        score_edges=score_edges,
        score_shares=_shares(score_bins, test.weight, len(score_edges) + 1) if len(scores) else None,
        score_rows=len(scores),
        start=int(rows.event_time[0]),
        end=int(rows.event_time[-1]),
        rows=len(rows.label),
        frauds=rows.frauds,
        test_frauds=test.frauds,
        base_rate=float(np.average(rows.label > 0, weights=rows.weight)),
    )


def _steady(event_time: NDArray[np.int64], name: str, begun: int) -> NDArray[np.bool_]:
    """Which rows (n,) tell how ``name`` is distributed: those with enough history, of whole weeks if it is calendar."""
    needed = HISTORY_DAYS.get(name, NEVER)
    if needed == NEVER:
        return np.zeros(len(event_time), np.bool_)
    begin, end = int(event_time[0]), int(event_time[-1])
    if name in CALENDAR:
        weeks = (end - begin + DAY_US // 2) // (7 * DAY_US)  # half a day more or less makes no difference
        begin = max(begin, end + 1 - weeks * 7 * DAY_US)
    if needed:
        begin = max(begin, begun + round(needed * DAY_US))
        if end - begin < LEAST_DAYS * DAY_US:
            begin = end + 1
    which: NDArray[np.bool_] = event_time >= begin
    return which


def _edges(
    names: Sequence[str],
    ranks: NDArray[np.int16],  # (features, n)
    rows: Rows,
    kept: Sequence[NDArray[np.bool_]],
    champion: Reference | None,
) -> Edges:
    """The champion's bins unless they were drawn for other features, from less history, or hold too much in one."""
    settled = tuple(bool(which.sum() >= 2 * LEAST_ROWS) for which in kept)
    drawn = []
    for found, which in zip(ranks, kept, strict=True):
        chosen = which if which.sum() >= 2 * LEAST_ROWS else np.ones(len(found), np.bool_)
        drawn.append(_draw_ranks(found[chosen], rows.weight[chosen]))
    new = Edges(features=tuple(names), ranks=tuple(drawn), settled=settled)
    old = champion.edges if champion is not None else None
    if old is None or old.features != new.features:
        return new
    for feature, which in enumerate(kept):
        if not settled[feature]:
            continue
        if not old.settled[feature]:
            return new
        mine, theirs = (
            max(_shares(place(edges, ranks[feature][which], feature), rows.weight[which], BINS)) for edges in (new, old)
        )
        if theirs >= 0.5 and theirs >= LUMPED * mine:
            return new
    return old


def _draw_ranks(ranks: NDArray[np.int16], weight: NDArray[np.float32]) -> tuple[int, ...]:
    """``_draw`` of ranks (n,). There are few different ones, so they are counted, not sorted."""
    mass = np.bincount(ranks.astype(np.int64) - codes.MISSING_RANK, weight.astype(np.float64))
    known = np.flatnonzero(mass)
    return tuple(int(edge) for edge in _draw(known + codes.MISSING_RANK, mass[known]))


def _draw_scores(scores: NDArray[np.float32], weight: NDArray[np.float32]) -> tuple[float, ...]:
    known, inverse = np.unique(scores.astype(np.float64), return_inverse=True)
    return _draw(known, np.bincount(inverse, weight.astype(np.float64)))


def _draw(values: NDArray[Any], weight: NDArray[np.float64]) -> tuple[float, ...]:
    """Edges, ascending, of at most BINS bins of about one weight. A value that is heavier has a bin for itself.

    ``values`` (k,) ascending, each once, ``weight`` (k,) what each of them weighs. Every bin holds LEAST_SHARE of the
    weight at least; a value on an edge belongs to the bin above it.
    """
    known, mass = values.tolist(), weight.tolist()
    left = float(weight.sum())
    least = LEAST_SHARE * left
    edges: list[float] = []
    held = 0.0
    for i in range(len(known) - 1):
        held += mass[i]
        wanted = left / (BINS - len(edges))
        # Better a little less than a whole bin than a heavy value in it too.
        full = held >= wanted or (held + mass[i + 1] > 1.5 * wanted and held >= 0.5 * wanted)
        if full and held >= least and left - held >= least and len(edges) < BINS - 1:
            edges.append(known[i + 1])
            left -= held
            held = 0.0
    return tuple(edges)


def _merchants(rows: Rows, names: Sequence[str]) -> float:
    """How many merchants of one size would share a week as the window's do: 1 / (sum of squared shares).

    From what each row knows of its merchant: a week's rows over those that a row's own merchant has on average.
    """
    days = (int(rows.event_time[-1]) - int(rows.event_time[0]) + 1) / DAY_US
    if "merch_count_7d" not in names or days < 1:
        return 0.0
    a_week = float(rows.weight.sum(dtype=np.float64)) * 7 / days
    own = float(np.average(rows.features[:, list(names).index("merch_count_7d")], weights=rows.weight))
    return a_week / own if own > 0 else 0.0


def _feature_shares(
    bins: NDArray[np.int64], weight: NDArray[np.float32], size: int, name: str, merchants: float
) -> tuple[float, ...] | None:
    """Shares of a feature's bins over rows ascending in event time; None if they tell too little.

    A merchant's rows move together, so where merchants are few their features are never steady: those that differ
    within the window itself are not compared, nor those that could not have within it but would by chance from then on.
    """
    if len(bins) < 2 * LEAST_ROWS:
        return None
    if name in MERCHANT:
        by_chance = 2 * (size - 1) / merchants if merchants else math.inf  # PSI of two draws of so many merchants
        slow = HISTORY_DAYS.get(name, NEVER) > LABELLED_DAYS
        if _unsteadiness(bins, weight, size) >= UNSTEADY or (slow and by_chance >= WARN):
            return None
    return _shares(bins, weight, size)


def _unsteadiness(bins: NDArray[np.int64], weight: NDArray[np.float32], size: int) -> float:
    """The largest PSI of a third of the rows, in order, against the two others."""
    third = np.arange(len(bins)) * 3 // len(bins)
    found = []
    for part in range(3):
        inside = third == part
        counts = np.bincount(bins[inside], minlength=size).tolist()
        found.append(psi(_shares(bins[~inside], weight[~inside], size), int((~inside).sum()), counts))
    return max(found)


def _shares(bins: NDArray[np.int64], weight: NDArray[np.float32], size: int) -> tuple[float, ...]:
    found = np.bincount(bins, weight.astype(np.float64), minlength=size)
    return tuple((found / found.sum()).tolist())
