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

from typing import Any, Final, NamedTuple

import numba as nb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead.features import FEATURES, MERCHANT_LABELS, WIDTH

FRACTION_BITS: Final = 9
BIAS: Final = 28  # code exponent 1 is 2**-28; 0 is zero
LARGEST: Final = 0x7FFE  # magnitude
MISSING: Final = 0xFFFF
OWN: Final = WIDTH - len(MERCHANT_LABELS)  # packed: the codes that a row doesn't share
TUPLES_MAX: Final = 65_536
MISSING_RANK: Final = -0x7FFF
NO_RANK: Final = 0x7FFF  # above all
_DROPPED: Final = 23 - FRACTION_BITS
_LANES: Final = 16  # codes that a vector holds
_WHOLE: Final = OWN // _LANES * _LANES
_SHARED: Final = (WIDTH - OWN) // 2  # words
assert OWN % 2 == WIDTH % 2 == 0
assert FEATURES[OWN:] == MERCHANT_LABELS
_SHIFT: Final = (127 - BIAS - 1) << FRACTION_BITS  # between the exponents' biases

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


@nb.njit(inline="always")
def _code(bits):
    """The code of a float32 of these bits."""
    magnitude = np.int32(bits & np.uint32(0x7FFFFFFF))
    # Round half to even, as hardware does; a carry out of the fraction goes into the exponent, as it should.
    rounded = (magnitude + np.int32(0x1FFF) + ((magnitude >> _DROPPED) & np.int32(1))) >> np.int32(_DROPPED)
    code = min(rounded - np.int32(_SHIFT), np.int32(LARGEST))
    signed = code | (np.int32(bits >> np.uint32(16)) & np.int32(0x8000))
    code = np.int32(0) if code < np.int32(1 << FRACTION_BITS) else signed
    return np.uint16(np.int32(MISSING) if magnitude > np.int32(0x7F800000) else code)


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _encode(bits, codes):
    for i in range(len(bits)):
        codes[i] = _code(bits[i])


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _pack(bits, words, merchant, last, own, tuples, numbers):
    """Codes ``own`` (n, OWN) of float32 rows, and into ``tuples`` (most, 4) the words of two values that are left.

    ``last`` is the number of the tuple of each merchant's row before, -1 none. Returns how many tuples there are, -1 if
    too many.
    """
    used = 0
    for i in range(np.uint64(len(bits))):
        for k in range(np.uint64(_WHOLE)):
            own[i, k] = _code(bits[i, k])
        for k in range(np.uint64(OWN - _LANES), np.uint64(OWN)):  # some again: so these are vectors too
            own[i, k] = _code(bits[i, k])
        number = int(last[np.uint64(merchant[i])])
        same = number >= 0
        for k in range(np.uint64(_SHARED)):
            same = same and tuples[np.uint64(number), k] == words[i, np.uint64(OWN // 2) + k]
        if not same:
            if used == len(tuples):
                return -1
            number = used
            used += 1
            last[np.uint64(merchant[i])] = number
            for k in range(np.uint64(_SHARED)):
                tuples[np.uint64(number), k] = words[i, np.uint64(OWN // 2) + k]
        numbers[i] = number
    return used


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
    values = np.ascontiguousarray(values, np.float32)
    codes = np.empty(values.shape, np.uint16)
    _encode(_read_only(values.reshape(-1).view(np.uint32)), codes.reshape(-1))
    return codes


def decode(codes: Codes) -> NDArray[np.float32]:
    """The float32 values that C-contiguous codes stand for, of the same shape."""
    values = np.empty(codes.shape, np.float32)
    _decode(_read_only(codes.reshape(-1)), values.reshape(-1).view(np.uint32))
    return values


def pack(values: NDArray[np.float32], merchant: NDArray[np.uint16], merchants: int) -> Packed | None:
    """The codes of C-contiguous float32 values (n, WIDTH) of rows of ``merchant`` (n,), each below ``merchants``.

    Rows share their MERCHANT_LABELS. None if those are more tuples than 16 bits can number.
    """
    own, numbers = np.empty((len(values), OWN), np.uint16), np.empty(len(values), np.uint16)
    tuples = np.empty((min(len(values), TUPLES_MAX), WIDTH - OWN), np.float32)
    last = np.full(merchants, -1, np.int32)
    bits, words = _read_only(values.view(np.uint32)), _read_only(values.view(np.uint64))
    used = _pack(bits, words, _read_only(merchant), last, own, tuples.view(np.uint64), numbers)
    return None if used < 0 else Packed(own, numbers, encode(tuples[:used]))


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
    pack(np.zeros((1, WIDTH), np.float32), np.zeros(1, np.uint16), 1)


def _read_only(array):
    # To numba a writable array is another type: the kernel would be compiled once more, in the middle of traffic.
    array = array.view()
    array.flags.writeable = False
    return array
