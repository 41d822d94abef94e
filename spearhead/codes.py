"""Feature values as 16-bit codes: what the queue carries, half of float32.

A code is a small float: sign, 6 bits of exponent, 9 of fraction. It holds 0, and magnitudes from 2**-28 (4e-9) to
2**35 (3e10) to within 0.1 %; whole numbers up to 1,024 are exact. Smaller magnitudes are 0, larger ones the largest.
Order is kept: the *rank* of a code, int16, is its magnitude with its sign, and ranks compare as values do. NaN is
``MISSING``, whose rank is below all others. Models are trained on decoded values too: training and serving see the
same numbers.
"""

# What numpy's scalars give is Any to mypy; numba types it all.
# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numba as nb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead import kernel

FRACTION_BITS: Final = kernel.FRACTION_BITS
LARGEST: Final = kernel.LARGEST  # magnitude
MISSING: Final = kernel.MISSING
OWN: Final = kernel.OWN  # packed: the codes that a row doesn't share
TUPLES_MAX: Final = 65_536
MISSING_RANK: Final = -0x7FFF
NO_RANK: Final = 0x7FFF  # above all

_DROPPED: Final = kernel.DROPPED
_SHIFT: Final = kernel.SHIFT

Codes = NDArray[np.uint16]


class Packed(NamedTuple):
    """Codes of n rows: each has some of its own, and then those of a tuple that many rows share.

    ``plain`` makes one of a matrix.
    """

    own: Codes  # (n, own), C-contiguous
    numbers: NDArray[np.uint16]  # (n,) of each row's tuple
    tuples: Codes  # (tuples, the other codes), C-contiguous

    @property
    def width(self) -> int:
        return int(self.own.shape[1] + self.tuples.shape[1])

    def take(self, rows: NDArray[Any]) -> Codes:
        """All codes of some rows (places or a mask), C-contiguous (rows, width)."""
        return np.concatenate([self.own[rows], self.tuples[self.numbers[rows]]], axis=1)

    def matrix(self) -> Codes:
        """All codes, C-contiguous (n, width)."""
        if not self.tuples.shape[1]:
            return self.own
        return np.concatenate([self.own, self.tuples[self.numbers]], axis=1)


def plain(matrix: Codes) -> Packed:
    """Codes (n, width) of rows that share nothing."""
    return Packed(matrix, np.zeros(len(matrix), np.uint16), np.empty((1, 0), np.uint16))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _decode(codes, bits):
    for i in range(len(codes)):
        code = np.uint32(codes[i])
        magnitude = code & np.uint32(0x7FFF)
        wide = (magnitude + np.uint32(_SHIFT)) << np.uint32(_DROPPED)
        wide = np.uint32(0) if magnitude == np.uint32(0) else wide
        wide = wide | ((code & np.uint32(0x8000)) << np.uint32(16))
        bits[i] = np.uint32(0x7FC00000) if code == np.uint32(MISSING) else wide


def encode(values: NDArray[np.float32]) -> Codes:
    """Codes of float32 values, of the same shape."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if flat.size < kernel.LANES:
        flat = np.append(flat, np.zeros(kernel.LANES - flat.size, np.float32))
    codes = np.empty(flat.size, np.uint16)
    kernel.encode(_read_only(flat.view(np.uint32)), codes)
    return codes[: values.size].reshape(values.shape)


def decode(codes: Codes) -> NDArray[np.float32]:
    """The float32 values that C-contiguous codes stand for, of the same shape."""
    values = np.empty(codes.shape, np.float32)
    _decode(_read_only(codes.reshape(-1)), values.reshape(-1).view(np.uint32))
    return values


def joined(parts: Sequence[Packed]) -> Packed:
    """The rows of one part or more, one after the other; plain if they are more tuples than 16 bits can number."""
    if len(parts) == 1:
        return parts[0]
    if sum(len(part.tuples) for part in parts) > TUPLES_MAX:
        return plain(np.concatenate([part.matrix() for part in parts]))
    firsts = np.cumsum([0, *(len(part.tuples) for part in parts[:-1])])
    numbers = [part.numbers + np.uint16(first) for part, first in zip(parts, firsts, strict=True)]
    own, tuples = [part.own for part in parts], [part.tuples for part in parts]
    return Packed(np.concatenate(own), np.concatenate(numbers), np.concatenate(tuples))


def lists(codes: Codes) -> pa.FixedSizeListArray:
    """A column of C-contiguous codes (n, width)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])


def column(values: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Rows of values (n, width) as a column of codes, as ``schema.features_schema`` has it."""
    return lists(encode(values))


def of(column: pa.FixedSizeListArray) -> Codes:
    """The codes (n, width) of a column, C-contiguous, over its own memory."""
    found: Codes = column.flatten().to_numpy(zero_copy_only=True)
    return found.reshape(len(column), column.type.list_size)


def values(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """The float32 values (n, width) of a column of codes."""
    return decode(of(column))


def ranked(codes: Codes) -> NDArray[np.int16]:
    """The rank of each code, of the same shape."""
    magnitude = (codes & np.uint16(0x7FFF)).view(np.int16)
    return np.where(codes < 0x8000, magnitude, -magnitude)


def ranks(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The lowest rank whose value is at least each of ``values`` (n,): x >= t is rank(x) >= ranks(t), for any code x.

    NO_RANK where no value is that large.
    """
    order = np.arange(-LARGEST, LARGEST + 1)  # every rank but that of MISSING
    known = decode(np.where(order < 0, 0x8000 - order, order).astype(np.uint16))
    found = np.searchsorted(known, np.asarray(values, np.float32), side="left")
    return np.append(order, NO_RANK)[found].astype(np.int32)


def warm() -> None:
    """Compile both ways, or load them from numba's cache."""
    decode(encode(np.zeros(1, np.float32)))


def _read_only(array):
    # To numba a writable array is another type: the kernel would be compiled once more, in the middle of traffic.
    array = array.view()
    array.flags.writeable = False
    return array
