"""The training sample: rows by hash of ``trans_num``, at a share that makes the bounded spool span its window.

By hash, because a row must be chosen before its class may be known: sampling by class would be a leak.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import pyarrow as pa

from services.prep.validate import values
from spearhead import codes, packing
from spearhead.hashing import hash_strings
from spearhead.schema import training_schema

DAY_US: Final = 86_400_000_000
MEMORY_DAYS: Final = 2.0  # event time over which the rate is averaged
KNOWN_DAYS: Final = 0.25  # event time seen before the measured rate is trusted


class Share:
    """Share of rows to sample: ``min(1, max_rows / (rows per event day * window_days))``, the rate a moving mean.

    ``share`` starts at ``known`` (what an earlier worker had found, else 1) until a quarter of an event day was seen.
    """

    def __init__(self, max_rows: int, window_days: float, known: float = 1.0) -> None:
        self._target = max_rows / window_days  # sampled rows per event day
        self._watermark: int | None = None
        self._rows = 0.0
        self._days = 0.0
        self.share = known

    def update(self, rows: int, watermark: int) -> None:
        """``rows`` more rows brought the newest event time to ``watermark`` (us since 1970)."""
        days = 0.0 if self._watermark is None else max(0, watermark - self._watermark) / DAY_US
        decay = math.exp(-days / MEMORY_DAYS)
        self._watermark = max(watermark, self._watermark or 0)
        self._rows = self._rows * decay + rows
        self._days = self._days * decay + days
        if self._days >= KNOWN_DAYS:
            self.share = min(1.0, self._target * self._days / self._rows)


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
