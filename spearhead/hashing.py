"""64-bit hashes of strings, such as ``trans_num``: the same in every version, process and machine."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


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
