"""The training sample: rows by hash of ``trans_num``, at a share that makes the bounded spool span its window.

By hash, because a row must be chosen before its class may be known: sampling by class would be a leak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.prep.validate import values
from spearhead import codes, packing
from spearhead.hashing import hash_strings
from spearhead.schema import training_schema

DAY_US: Final = 86_400_000_000
FIRST_DAYS: Final = 14.0  # event time that the sample spans at first: half of it has matured with the default delay
MEMORY_DAYS: Final = 2.0  # event time over which the rate is averaged
KNOWN_DAYS: Final = 0.25  # event time seen before the measured rate is trusted
TIMED_ROWS: Final = 64  # of a segment, that tell its time

_NEVER: Final = int(np.iinfo(np.int64).min)


class Share:
    """Share of rows to sample: ``min(1, max_rows / (rows per event day * span))``, the rate a moving mean.

    The span is ``window_days``, but no more than FIRST_DAYS until more event time was seen: room left for days to come
    is room that the first models' rows lack. It is 1 until a quarter of an event day was seen. Part of prep's state: a
    function of the log alone.
    """

    def __init__(self, max_rows: float, window_days: float) -> None:
        self._max_rows = max_rows
        self._window_days = window_days
        self._first = self._clock = _NEVER  # us since 1970: the oldest and the newest time of a segment
        self._behind = 0  # rows in a row that were more than MEMORY_DAYS behind the clock
        self._rows = 0.0
        self._days = 0.0

    @property
    def span(self) -> float:
        """Event days that rows sampled at this share would fill the sample with."""
        return min(self._window_days, max(FIRST_DAYS, (self._clock - self._first) / DAY_US))

    @property
    def share(self) -> float:
        """Of rows like the last ones."""
        if self._days < KNOWN_DAYS:
            return 1.0
        return min(1.0, self._max_rows / self.span * self._days / self._rows)

    def update(self, rows: int, at: int) -> None:
        """``rows`` more rows were of event time ``at`` (us since 1970)."""
        self._follow(rows, at)
        days = max(0, at - self._clock) / DAY_US
        decay = math.exp(-days / MEMORY_DAYS)
        self._clock = max(at, self._clock)
        self._rows = self._rows * decay + rows
        self._days = self._days * decay + days

    def _follow(self, rows: int, at: int) -> None:
        """Set the clock back where nothing is as new any more: a wrong date, or a producer that has gone.

        Told by as many rows behind it, one after another, as the sample holds.
        """
        behind = self._clock - at > MEMORY_DAYS * DAY_US
        self._behind = self._behind + rows if behind else 0
        if self._clock == _NEVER or self._behind > self._max_rows:
            self._clock = at
            self._behind = 0
        self._first = at if self._first == _NEVER else min(self._first, at)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state for a checkpoint."""
        times = np.array([self._first, self._clock, self._behind], np.int64)
        return {"share_times": times, "share_means": np.array([self._rows, self._days], np.float64)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go to what ``arrays`` was called on; nothing was seen where a version without it made the checkpoint."""
        if "share_times" in arrays:
            self._first, self._clock, self._behind = arrays["share_times"].tolist()
            self._rows, self._days = arrays["share_means"].tolist()


def sample(features: pa.RecordBatch, share: float) -> pa.RecordBatch | None:
    """The sampled rows of a features-ready batch, of ``training_schema``, with all codes; None if there are none."""
    trans = hash_strings(features.column("trans_num"))
    chosen = np.flatnonzero(trans < np.uint64(share * 2.0**64)) if share < 1.0 else np.arange(len(trans))
    if not len(chosen):
        return None
    matrix = packing.of(features).take(chosen)
    schema = training_schema(matrix.shape[1])
    made = {
        "trans": pa.array(trans[chosen]),
        "weight": pa.array(np.full(len(chosen), 1.0 / share, np.float32)),
        "features": codes.lists(matrix),
    }
    kept = features.select([name for name in schema.names if name not in made]).take(pa.array(chosen))
    columns = [made[name] if name in made else kept.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def newest_event_time(features: pa.RecordBatch) -> int:
    """The newest event time of a batch that is not empty, us since 1970."""
    return int(values(features.column("event_time")).max())


def middle_event_time(features: pa.RecordBatch) -> int:
    """The event time of a batch that is not empty, us since 1970: a median, which a few wrong dates don't move."""
    times = values(features.column("event_time"))
    return int(np.median(times[:: -(-len(times) // TIMED_ROWS)]))
