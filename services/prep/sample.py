"""The training sample: rows by hash of ``trans_num``, at a share that makes the bounded spool span its window.

By hash, because a row must be chosen before its class may be known: sampling by class would be a leak.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.prep.validate import values
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


def sample(features: pa.RecordBatch, share: float, width: int) -> pa.RecordBatch | None:
    """The sampled rows of a features-ready batch, of ``training_schema(width)``; None if there are none."""
    trans = hash_strings(features.column("trans_num"))
    if share < 1.0:
        chosen = np.flatnonzero(trans < share * 2.0**64)
        features, trans = features.take(pa.array(chosen)), trans[chosen]
    if not features.num_rows:
        return None
    made = {"trans": pa.array(trans), "weight": pa.array(np.full(features.num_rows, 1.0 / share, np.float32))}
    schema = training_schema(width)
    columns = [made[field.name] if field.name in made else features.column(field.name) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def hash_strings(strings: pa.StringArray) -> NDArray[np.uint64]:
    """64-bit hashes of non-null strings: of their bytes alone, so the same in any batch, version or machine."""
    offsets = np.frombuffer(strings.buffers()[1], np.int32, len(strings) + 1, strings.offset * 4).astype(np.int64)
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    shortest = int(lengths.min(initial=longest))
    words = _words(strings.buffers()[2], offsets, lengths, longest)
    hashes = lengths.astype(np.uint64)
    scratch = np.empty_like(hashes)
    _mix(hashes, scratch)
    for column in range(words.shape[1]):
        before = None if shortest > 8 * column else hashes.copy()
        hashes ^= words[:, column]
        _mix(hashes, scratch)
        if before is not None:  # strings that have ended already
            np.copyto(hashes, before, where=lengths <= 8 * column)
    return hashes


def _words(
    data: pa.Buffer | None, offsets: NDArray[np.int64], lengths: NDArray[np.int64], longest: int
) -> NDArray[np.uint64]:
    """Each string as little-endian 64-bit words, zeros after its end; shape (n, words of the longest)."""
    characters = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    alike = longest > 0 and bool((lengths == longest).all())
    if alike and longest % 8 == 0:
        return characters[offsets[0] : offsets[-1]].reshape(-1, longest).view("<u8")
    padded = np.zeros((lengths.size, -(-longest // 8) * 8), np.uint8)
    if alike:
        padded[:, :longest] = characters[offsets[0] : offsets[-1]].reshape(-1, longest)
    else:
        column = np.arange(longest)
        inside = column < lengths[:, None]
        padded[:, :longest][inside] = characters[(offsets[:-1, None] + column)[inside]]
    return padded.view("<u8")


def _mix(x: NDArray[np.uint64], scratch: NDArray[np.uint64]) -> None:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), in place."""
    x += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(x, np.uint64(shift), out=scratch)
        x ^= scratch
        x *= np.uint64(factor)
    np.right_shift(x, np.uint64(31), out=scratch)
    x ^= scratch


def newest_event_time(features: pa.RecordBatch) -> int:
    """The newest event time of a batch that is not empty, us since 1970."""
    return int(values(features.column("event_time")).max())
