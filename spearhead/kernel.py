"""The feature kernel: one pass over rows in log order, plain loops over arrays, no Python objects.

All numba code of the features and of making codes of them is in this one file, because numba's cache looks at one
file's time only. What is computed goes into the working rows of a block, and from there to the caller as codes.

Nothing here depends on the machine: sums are integers, logarithm, sine and arc sine are written out in additions and
multiplications (no libm, no fused operations, no ``fastmath``), so a replay on another host gives the same bytes.

A *store* keeps one record of 16 words (128 bytes, two cache lines) per card or merchant, found by an open-addressing
table, and one ring of entries per record in a shared arena:

* ``table`` int64 (power of two): 0 is free, else ``hash's upper 32 bits << 32 | record number + 1``
* ``words`` int64, and the same memory as ``ints`` (int32), ``floats`` (float64), ``singles`` (float32)
* ``ring`` int64: blocks of a power of two of words; ``heap[0]`` is the first word never used, ``heap[k]`` the first
  free block of 2**k words or -1, chained through the blocks' first words

A card's ring holds its rows of the last 7 days, one word each: ``ms since 1970 mod 2**33 << 31 | cents << 1 | new
merchant``. A merchant's holds its 6-hour buckets that aren't empty, two words each: ``bucket << 40 | rows << 20 |
labelled rows`` and ``cents << 20 | frauds``.
"""

# What numpy's scalars give is Any to mypy; numba types it all.
# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def, call-arg"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from spearhead.features import FEATURES, MERCHANT_LABELS, WIDTH

Int64s = NDArray[np.int64]

# Record layout: places are unsigned, so that no index can be negative (numba would test each one for it).
_u = np.uint64
WORDS: Final = 16
KEY, LAST = map(_u, (0, 1))  # LAST: newest event time, us
# int32 fields (two to a word) that both kinds of record have; the ring's first word, log2 of its words, oldest entry,
# entries
OFFSET, SHAPE, START, LENGTH = map(_u, (4, 5, 6, 7))
# cards: int32, float32, int64 and float64 fields
ROWS_24H, ROWS_1H, SMALL_1H, NEW_24H, SEEN_CATEGORIES, SEEN_ROWS = map(_u, range(8, 14))
LAST_LAT, LAST_LONG, FIRST, LAST_HOME = map(_u, range(14, 18))  # FIRST, LAST_HOME: minutes since 1970
CENTS_7D, CENTS_24H, CENTS_1H = map(_u, (9, 10, 11))
LOG_MEAN, MEAN = map(_u, (12, 14))
LOG_VARIANCE, LAST_HIGH, NIGHT_SHARE, HIGH_SHARE = map(_u, (26, 27, 30, 31))  # LAST_HIGH: int32, minutes since 1970
# merchants: int32, int64 and float64 fields; FROM_x and MATURE count entries from the oldest
FROM_24H, FROM_7D, MATURE, RISK_FROM_1D, RISK_FROM_7D, M_ROWS = map(_u, range(8, 14))
M_ROWS_24H, M_ROWS_7D, LABELLED_1D, FRAUDS_1D, LABELLED_7D, FRAUDS_7D, LABELLED_30D, FRAUDS_30D = map(_u, range(14, 22))
M_CENTS_7D, M_MEAN, M_RECENT_RISK = map(_u, (11, 12, 14))
M_RUN_FROM, M_LAST_FRAUD = map(_u, (26, 27))  # buckets, of matured labels; 0 is none
_ONE: Final = _u(1)
_RECORD_WORDS: Final = _u(WORDS)
_RECORD_INTS: Final = _u(2 * WORDS)

RECENT: Final = 32  # merchants a card remembers
HEAP: Final = 32
FIRST_BLOCK: Final = 3  # log2 of the words of a new ring
CARD_ROWS_MAX: Final = 4096  # rows that a card's windows hold

_MS = 1_000
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_WEEK_MS: Final = 7 * _DAY_MS
_DAY_US: Final = _DAY_MS * 1_000
_TIME_MASK: Final = (1 << 33) - 1
_CENTS_MASK: Final = (1 << 30) - 1
_SMALL_CENTS: Final = 500
_MEMORY: Final = 64  # a card's running means forget at 1/64 a row
_MERCHANT_MEMORY: Final = 256
_LOG_STD_FLOOR: Final = 0.1
_HIGH: Final = 3.0  # times a card's usual amount
_HIGH_AFTER: Final = 5  # earlier rows a card needs before an amount is high
_HIGH_MEMORY: Final = 16
_MINUTE_US: Final = 60_000_000
_GAP_FLOOR_S: Final = 60.0
_HOME_KM: Final = 100.0  # nearer is at home
_SPEED_MAX: Final = 10_000.0

BUCKET_US: Final = 6 * _HOUR_MS * 1_000
_BUCKETS_DAY: Final = 4
_LOW20: Final = (1 << 20) - 1
_CENTS_FULL: Final = 1 << 42
_PRIOR_FRAUDS: Final = 0.005  # one imagined row at the base rate
_RECENT_KEEP: Final = 0.75  # what a labelled row leaves of a merchant's recent risk
_RECENT_ROWS: Final = 64  # of a bucket; what they leave is nothing that counts

DONE, CARDS_FULL, CARD_RING_FULL, MERCHANTS_FULL, MERCHANT_RING_FULL = range(5)
LATE, TRUNCATED, ROWS = range(3)  # counters

BLOCK: Final = 32  # rows whose memory is fetched ahead together
_AHEAD_MASK: Final = 4 * BLOCK - 1

_F: Final = {name: place for place, name in enumerate(FEATURES)}
F_AMT, F_HOUR, F_WEEKDAY, F_HOME_KM, F_CATEGORY, F_CITY_POP, F_AGE = range(7)
F_CARD: Final = _F["card_log_gap"]
F_MERCHANT: Final = _F["merch_count_24h"]
OWN: Final = WIDTH - len(MERCHANT_LABELS)  # packed: the codes that a row doesn't share
assert OWN % 2 == WIDTH % 2 == 0
assert FEATURES[OWN:] == MERCHANT_LABELS


class Store(NamedTuple):
    """One kind of record; see the module's text."""

    table: Int64s
    words: Int64s
    ints: NDArray[np.int32]
    floats: NDArray[np.float64]
    singles: NDArray[np.float32]
    ring: Int64s
    heap: Int64s
    used: Int64s  # (1,) records


class Rows(NamedTuple):
    """The columns of a batch that features read, n long; names of merchants as Arrow keeps a dictionary of strings."""

    time: Int64s  # us since 1970
    card: NDArray[np.uint64]
    cents: NDArray[np.int32]
    category: NDArray[np.uint8]
    label: NDArray[np.int8]
    home_lat: NDArray[np.float32]
    home_long: NDArray[np.float32]
    merch_lat: NDArray[np.float32]
    merch_long: NDArray[np.float32]
    city_pop: NDArray[np.int32]
    dob: NDArray[np.int32]  # days since 1970
    merchant: NDArray[np.uint16]  # index into the names
    name_offsets: NDArray[np.int32]  # (names + 1,)
    name_bytes: NDArray[np.uint8]
    name_hash: NDArray[np.uint64]  # (names,) 0 until first needed


class Limits(NamedTuple):
    """Records that fit into the stores, and what else the kernel needs to know."""

    cards: int
    merchants: int
    label_delay: int  # us
    partitions: int


class Scratch(NamedTuple):
    """Memory of one pass. The first two by row number mod 4 BLOCK, what follows ``read`` by place in the block."""

    hashes: NDArray[np.uint64]
    records: Int64s  # the card's record, probably; -1 not known
    merchants: NDArray[np.int32]  # (names,) record of each name, -1 not known
    sums: Int64s  # (9,) a merchant's windows
    copy: NDArray[np.uint32]  # (RECENT,)
    read: Int64s  # (1,)
    log_amount: NDArray[np.float64]
    gap_s: NDArray[np.float64]  # since the card's newest row; -1 for its first
    last_lat: NDArray[np.float64]  # where the card was before
    last_long: NDArray[np.float64]
    number: NDArray[np.float64]
    other: NDArray[np.float64]
    values: NDArray[np.float32]  # (BLOCK, WIDTH) features; and the same memory as
    bits: NDArray[np.uint32]
    words: NDArray[np.uint64]  # (BLOCK, WIDTH / 2)


class Output(NamedTuple):
    """Where a pass puts what it found of n rows: all of it as codes, or as ``values``; what is not wanted is empty."""

    own: NDArray[np.uint16]  # (n, OWN)
    numbers: NDArray[np.uint16]  # (n,) of each row's tuple
    tuples: NDArray[np.uint64]  # (most, (WIDTH - OWN) / 2) float32 values, two a word
    used: Int64s  # (1,) tuples
    last: NDArray[np.int32]  # (names,) number of the tuple of each merchant's row before, -1 none
    values: NDArray[np.float32]  # (n, WIDTH)


def scratch(names: int) -> Scratch:
    """Scratch for a pass over a batch with ``names`` merchants; one pass only, since records may move after it."""
    values = np.empty((BLOCK, WIDTH), np.float32)
    amounts, gaps, lats, longs, numbers, others = np.empty((6, BLOCK))
    return Scratch(
        np.empty(4 * BLOCK, np.uint64), np.empty(4 * BLOCK, np.int64), np.full(names, -1, np.int32),
        np.empty(9, np.int64), np.empty(RECENT, np.uint32), np.zeros(1, np.int64),
        amounts, gaps, lats, longs, numbers, others, values, values.view(np.uint32), values.view(np.uint64),
    )  # fmt: skip


def output(rows: int, names: int, *, coded: bool) -> Output:
    """Room for what comes of so many rows of a batch with ``names`` merchants: their codes, or their values.

    Codes of at most 65,536 rows, as there may be as many tuples.
    """
    of_codes = rows if coded else 0
    return Output(
        np.empty((of_codes, OWN), np.uint16), np.empty(of_codes, np.uint16),
        np.empty((of_codes, (WIDTH - OWN) // 2), np.uint64), np.zeros(1, np.int64), np.full(names, -1, np.int32),
        np.empty((rows - of_codes, WIDTH), np.float32),
    )  # fmt: skip


# Without reference counts (kernels allocate nothing, and counting took a quarter of the time of the trees') and without
# calls that copy the stores' many fields: 3 x faster.
_OPTIONS: Final[dict[str, Any]] = {"_nrt": False, "error_model": "numpy"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _inlined(function: _Function) -> _Function:
    """A part of a kernel."""
    return cast(_Function, nb.njit(**_OPTIONS, forceinline=True)(function))


def compiled(function: _Function) -> _Function:
    """A kernel, called from Python and kept in numba's cache."""
    return cast(_Function, nb.njit(**_OPTIONS, cache=True, nogil=True)(function))


@_inlined
def _signed(number: Any) -> int:
    """The same 64 bits as a signed number."""
    return np.int64(number)  # type: ignore[return-value]


# --- arithmetic -----------------------------------------------------------------------------------------------------

_LN2: Final = 0.6931471805599453
_SQRT2: Final = 1.4142135623730951
_HALF_PI: Final = 1.5707963267948966
_HALF_DEGREE: Final = 0.008726646259971648  # in radians
EARTH_KM: Final = 6371.0088  # mean radius, IUGG

# Highest power first, for Horner's rule.
_ARTANH: Final = tuple(1 / (2 * n + 1) for n in range(8, -1, -1))
_SINE: Final = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(9, -1, -1))
_ARCSINE: Final = tuple(math.comb(2 * n, n) / (4**n * (2 * n + 1)) for n in range(14, -1, -1))


@_inlined
def ln(x: float) -> float:
    """Natural logarithm of a normal, positive number, to 1e-14.

    The exponent's, and 2 artanh((m - 1) / (m + 1)) for the mantissa m.
    """
    bits = np.float64(x).view(np.int64)
    exponent = (bits >> 52) - 1023
    mantissa = np.int64((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)
    above = mantissa > _SQRT2
    mantissa = mantissa * 0.5 if above else mantissa
    exponent = exponent + 1 if above else exponent
    s = (mantissa - 1.0) / (mantissa + 1.0)
    q = s * s
    p = 0.0
    for c in _ARTANH:
        p = p * q + c
    return exponent * _LN2 + 2.0 * s * p


@_inlined
def sine(x: float) -> float:
    """Sine for |x| <= pi / 2 to 1e-15 (Taylor)."""
    q = x * x
    p = 0.0
    for c in _SINE:
        p = p * q + c
    return x * p


@_inlined
def arcsine(x: float) -> float:
    """Arc sine for 0 <= x <= 1 to 1e-10: Taylor up to 1/2, above it by the half angle."""
    small = x <= 0.5
    q = x * x if small else (1.0 - x) * 0.5  # both ways are computed: no branch, so loops over it become vectors
    p = 0.0
    for c in _ARCSINE:
        p = p * q + c
    return x * p if small else _HALF_PI - 2.0 * math.sqrt(q) * p


@_inlined
def distance_km(lat1: float, long1: float, lat2: float, long2: float) -> float:
    """Great-circle distance of two places in degrees (haversine formula), km."""
    turn = long2 - long1
    turn = turn - 360.0 if turn > 180.0 else turn
    turn = turn + 360.0 if turn < -180.0 else turn
    s1 = sine((lat2 - lat1) * _HALF_DEGREE)
    s2 = sine(turn * _HALF_DEGREE)
    cosines = sine(_HALF_PI - abs(lat1) * 2.0 * _HALF_DEGREE) * sine(_HALF_PI - abs(lat2) * 2.0 * _HALF_DEGREE)
    return 2.0 * EARTH_KM * arcsine(math.sqrt(min(max(s1 * s1 + cosines * s2 * s2, 0.0), 1.0)))


@_inlined
def mix(x: np.uint64) -> np.uint64:
    """splitmix64's finaliser: every bit of ``x`` moves every bit of the hash."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_inlined
def _hash_name(offsets: NDArray[np.int32], text: NDArray[np.uint8], code: int) -> np.uint64:
    h = np.uint64(0xCBF29CE484222325)
    for i in range(offsets[code], offsets[code + 1]):
        h = (h ^ np.uint64(text[i])) * np.uint64(0x100000001B3)
    h = mix(h)
    return h if h != np.uint64(0) else np.uint64(1)


@compiled
def hash_names(offsets: NDArray[np.int32], text: NDArray[np.uint8], out: NDArray[np.uint64]) -> None:
    """The hashes of all names, as ``name_key`` gives them one by one."""
    for code in range(len(out)):
        out[code] = _hash_name(offsets, text, code)


@_inlined
def name_key(rows: Rows, code: int) -> np.uint64:
    """64-bit hash of a merchant's name, never 0 (FNV-1a, mixed); computed once per batch and name."""
    h = rows.name_hash[code]
    if h == np.uint64(0):
        h = _hash_name(rows.name_offsets, rows.name_bytes, code)
        rows.name_hash[code] = h
    return h


# --- codes ----------------------------------------------------------------------------------------------------------

# What a code is stands in spearhead/codes.py.
FRACTION_BITS: Final = 9
BIAS: Final = 28  # code exponent 1 is 2**-28; 0 is zero
LARGEST: Final = 0x7FFE  # magnitude
MISSING: Final = 0xFFFF
DROPPED: Final = 23 - FRACTION_BITS
SHIFT: Final = (127 - BIAS - 1) << FRACTION_BITS  # between the exponents' biases
LANES: Final = 16  # codes that are made at once
_FIRST_LANES: Final = (*range(0, OWN - LANES, LANES), OWN - LANES)  # the last ones overlap those before
_SHARED: Final = (WIDTH - OWN) // 2  # words


@intrinsic
def _encode_lanes(typingctx, bits, source, codes, target):
    """The codes of LANES float32 values, of their bits from place ``source`` on, to place ``target`` of ``codes``.

    Both are contiguous. As vectors, by name: in a loop as long as the pass, LLVM doesn't find them by itself.
    """

    def codegen(context, builder, signature, args):
        wide, narrow = (ir.VectorType(ir.IntType(width), LANES) for width in (32, 16))

        def all_of(number):
            return ir.Constant(wide, [number] * LANES)

        def place(position):
            array = context.make_array(signature.args[position])(context, builder, args[position])
            return builder.gep(array.data, [args[position + 1]])

        # Round half to even, as hardware does; a carry out of the fraction goes into the exponent, as it should.
        value = builder.load(builder.bitcast(place(0), wide.as_pointer()), align=4)
        magnitude = builder.and_(value, all_of(0x7FFFFFFF))
        odd = builder.and_(builder.lshr(value, all_of(DROPPED)), all_of(1))
        rounded = builder.lshr(builder.add(builder.add(magnitude, all_of(0x1FFF)), odd), all_of(DROPPED))
        largest = all_of(SHIFT + LARGEST)
        least = builder.select(builder.icmp_unsigned("<", rounded, largest), rounded, largest)
        sign = builder.and_(builder.lshr(value, all_of(16)), all_of(0x8000))
        code = builder.or_(builder.sub(least, all_of(SHIFT)), sign)
        small = builder.icmp_unsigned("<", rounded, all_of(SHIFT + (1 << FRACTION_BITS)))
        code = builder.select(small, all_of(0), code)
        missing = builder.icmp_unsigned(">", magnitude, all_of(0x7F800000))
        code = builder.trunc(builder.select(missing, all_of(MISSING), code), narrow)
        builder.store(code, builder.bitcast(place(2), narrow.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(bits, types.uint64, codes, types.uint64), codegen


@compiled
def encode(bits: NDArray[np.uint32], codes: NDArray[np.uint16]) -> None:
    """The codes (n,) of float32 values of ``bits`` (n,), LANES or more."""
    for first in range(0, len(bits) - LANES, LANES):
        _encode_lanes(bits, _u(first), codes, _u(first))
    _encode_lanes(bits, _u(len(bits) - LANES), codes, _u(len(bits) - LANES))


@_inlined
def _encode_block(merchant: NDArray[np.uint16], begin: int, end: int, work: Scratch, out: Output) -> None:
    """Codes of rows ``begin`` to ``end``, while their values are in the processor's nearest cache."""
    for k in range(_u(end - begin)):
        i = _u(begin) + k
        for first in _FIRST_LANES:
            _encode_lanes(work.bits, k * _u(WIDTH) + _u(first), out.own, i * _u(OWN) + _u(first))
        out.numbers[i] = _number(_u(merchant[i]), k, work, out)


@_inlined
def _number(merchant: np.uint64, k: Any, work: Scratch, out: Output) -> int:
    """The number of the tuple of the block's row ``k``: that of its merchant's row before if it is the same."""
    number = int(out.last[merchant])
    same = number >= 0
    for word in range(_u(_SHARED)):
        same = same and out.tuples[_u(number), word] == work.words[k, _u(OWN // 2) + word]
    if not same:
        number = int(out.used[0])
        out.used[0] += 1
        out.last[merchant] = number
        for word in range(_u(_SHARED)):
            out.tuples[_u(number), word] = work.words[k, _u(OWN // 2) + word]
    return number


@_inlined
def _copy_block(begin: int, end: int, work: Scratch, out: Output) -> None:
    """Values of rows ``begin`` to ``end``."""
    for k in range(_u(end - begin)):
        for column in range(_u(WIDTH)):
            out.values[_u(begin) + k, column] = work.values[k, column]


# --- stores ---------------------------------------------------------------------------------------------------------


@_inlined
def _find(store: Store, key: int, hashed: np.uint64) -> int:
    """Record number of ``key`` or -1."""
    mask = _u(len(store.table) - 1)
    tag = _signed(hashed >> np.uint64(32))
    place = hashed & mask
    while store.table[place] != 0:
        entry = store.table[place]
        record = (entry & 0xFFFFFFFF) - 1
        if (entry >> 32) & 0xFFFFFFFF == tag and store.words[_u(record) * _RECORD_WORDS + KEY] == key:
            return record
        place = (place + _ONE) & mask
    return -1


@_inlined
def _guess(store: Store, hashed: np.uint64) -> int:
    """Record number that ``_find`` will look at first, by the table alone, or -1."""
    mask = _u(len(store.table) - 1)
    tag = _signed(hashed >> np.uint64(32))
    place = hashed & mask
    while store.table[place] != 0:
        entry = store.table[place]
        if (entry >> 32) & 0xFFFFFFFF == tag:
            return (entry & 0xFFFFFFFF) - 1
        place = (place + _ONE) & mask
    return -1


@_inlined
def _enter(store: Store, record: int, hashed: np.uint64) -> None:
    mask = _u(len(store.table) - 1)
    place = hashed & mask
    while store.table[place] != 0:
        place = (place + _ONE) & mask
    store.table[place] = _signed((hashed >> np.uint64(32)) << np.uint64(32)) | (record + 1)


@compiled
def index_records(store: Store) -> None:
    """Fill an empty table with all records."""
    for record in range(store.used[0]):
        _enter(store, record, mix(np.uint64(store.words[_u(record) * _RECORD_WORDS + KEY])))


@_inlined
def _insert(store: Store, key: int, hashed: np.uint64, time: int) -> int:
    """A new record without rows; there must be room."""
    record = store.used[0]
    store.used[0] += 1
    base = _u(record) * _RECORD_WORDS
    for word in range(WORDS):
        store.words[base + _u(word)] = 0
    store.words[base + KEY] = key
    store.words[base + LAST] = time
    store.ints[base * _u(2) + OFFSET] = -1
    _enter(store, record, hashed)
    return record


@_inlined
def _recall(store: Store, key: int, hashed: np.uint64, guess: int, room: int, time: int) -> int:
    """The record of ``key``, perhaps ``guess``, a new one if there is none; -1 if there is no room for it."""
    if guess >= 0 and store.words[_u(guess) * _RECORD_WORDS + KEY] == key:
        return guess
    record = _find(store, key, hashed)
    if record < 0 and store.used[0] < room:
        record = _insert(store, key, hashed, time)
    return record


@_inlined
def _allocate(store: Store, log2: int) -> int:
    """First word of a free block of 2**log2 words, or -1 if the arena has none."""
    block = store.heap[log2]
    if block >= 0:
        store.heap[log2] = store.ring[block]
        return block
    block = store.heap[0]
    if block + (1 << log2) > len(store.ring):
        return -1
    store.heap[0] += 1 << log2
    return block


@_inlined
def _release(store: Store, block: int, log2: int) -> None:
    store.ring[block] = store.heap[log2]
    store.heap[log2] = block


@_inlined
def _has_room(store: Store, record: int, width: int) -> bool:
    """Make room for one more entry of ``width`` words in a record's ring; False if the arena must grow first."""
    at = _u(record) * _RECORD_INTS
    length, offset = store.ints[at + LENGTH], store.ints[at + OFFSET]
    log2 = store.ints[at + SHAPE]
    if offset >= 0 and (length + 1) * width <= 1 << log2:
        return True
    wanted = log2 + 1 if offset >= 0 else FIRST_BLOCK
    block = _allocate(store, wanted)
    if block < 0:
        return False
    if offset >= 0:
        _unroll(store, record, width, store.ring, block)
        _release(store, offset, log2)
    store.ints[at + OFFSET] = block
    store.ints[at + SHAPE] = wanted
    store.ints[at + START] = 0
    return True


@_inlined
def _unroll(store: Store, record: int, width: int, target: Int64s, first: int) -> int:
    """Copy a record's entries, oldest first, to ``target[first:]``; the number of words."""
    at = _u(record) * _RECORD_INTS
    offset, mask = store.ints[at + OFFSET], (1 << (store.ints[at + SHAPE])) - 1
    begin = store.ints[at + START] * width
    words = store.ints[at + LENGTH] * width
    for i in range(words):
        target[first + i] = store.ring[offset + ((begin + i) & mask)]
    return words


@compiled
def pack_rings(store: Store, width: int, target: Int64s) -> None:
    """All records' entries one after the other, as a checkpoint keeps them."""
    first = 0
    for record in range(store.used[0]):
        first += _unroll(store, record, width, target, first)


@compiled
def unpack_rings(store: Store, width: int, packed: Int64s) -> bool:
    """Give every record the smallest ring that holds its entries; False if the arena is too small."""
    first = 0
    for record in range(store.used[0]):
        at = _u(record) * _RECORD_INTS
        words = store.ints[at + LENGTH] * width
        log2 = FIRST_BLOCK
        while 1 << log2 < words:
            log2 += 1
        block = _allocate(store, log2)
        if block < 0:
            return False
        for i in range(words):
            store.ring[block + i] = packed[first + i]
        store.ints[at + OFFSET] = block
        store.ints[at + SHAPE] = log2
        store.ints[at + START] = 0
        first += words
    return True


@compiled
def remove_records(store: Store, recent: NDArray[np.uint32], gone: NDArray[np.bool_]) -> None:
    """Drop the records of which ``gone`` (records,) is true; the others close up in order. Empties the table."""
    kept = 0
    for record in range(store.used[0]):
        at = _u(record) * _RECORD_INTS
        if gone[record]:
            if store.ints[at + OFFSET] >= 0:
                _release(store, store.ints[at + OFFSET], store.ints[at + SHAPE])
            continue
        if kept < record:
            for i in range(WORDS):
                store.words[kept * WORDS + i] = store.words[_u(record) * _RECORD_WORDS + i]
            if len(recent) > 0:
                for i in range(RECENT):
                    recent[kept * RECENT + i] = recent[record * RECENT + i]
        kept += 1
    if len(recent) > 0:
        recent[kept * RECENT : store.used[0] * RECENT] = 0
    store.used[0] = kept
    store.table[:] = 0


# --- features of the row alone --------------------------------------------------------------------------------------


# Logarithms and distances are computed for a block at a time, in loops short enough to become vector instructions;
# each number is the same as it would be alone.


@_inlined
def _before_block(rows: Rows, begin: int, end: int, work: Scratch) -> None:
    """Features of rows ``begin`` to ``end`` that need arithmetic but no history."""
    for k in range(end - begin):
        work.log_amount[k] = ln(1.0 + rows.cents[begin + k] / 100.0)
        work.number[k] = ln(1.0 + max(rows.city_pop[begin + k], 0))
    for k in range(end - begin):
        i = begin + k
        work.other[k] = distance_km(rows.home_lat[i], rows.home_long[i], rows.merch_lat[i], rows.merch_long[i])
    for k in range(end - begin):
        work.values[k, F_CITY_POP] = work.number[k]
        work.values[k, F_HOME_KM] = work.other[k]


@_inlined
def _after_block(rows: Rows, begin: int, end: int, work: Scratch) -> None:
    """Features that need arithmetic on what the rows' cards did last."""
    for k in range(end - begin):
        work.number[k] = ln(1.0 + max(work.gap_s[k], 0.0))
    for k in range(end - begin):
        i = begin + k
        work.other[k] = distance_km(work.last_lat[k], work.last_long[k], rows.merch_lat[i], rows.merch_long[i])
    for k in range(end - begin):
        km, gap_s = work.other[k], work.gap_s[k]
        work.values[k, F_CARD + 0] = work.number[k] if gap_s >= 0.0 else -1.0
        work.values[k, F_CARD + 13] = km
        work.values[k, F_CARD + 14] = min(km * 3600.0 / max(gap_s, _GAP_FLOOR_S), _SPEED_MAX)


@_inlined
def _row_alone(rows: Rows, i: int, out: NDArray[np.float32]) -> bool:
    """The other features that need no history, into ``out`` (WIDTH,); whether it is night."""
    time = rows.time[i]
    day = time // _DAY_US
    hour = (time - day * _DAY_US) / (_HOUR_MS * 1e3)
    out[F_AMT] = rows.cents[i] / 100.0
    out[F_HOUR] = hour
    out[F_WEEKDAY] = (day + 3) % 7  # 1970-01-01 was a Thursday
    out[F_CATEGORY] = rows.category[i]
    out[F_AGE] = (time / _DAY_US - rows.dob[i]) / 365.2425
    return hour < 7.0


# --- a card's history -----------------------------------------------------------------------------------------------


@_inlined
def _expire_card(cards: Store, record: int, now_ms: int) -> None:
    """Drop from the three windows what is a whole window old at ``now_ms``; repeating it changes nothing."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    last_ms = cards.words[base + LAST] // _MS
    offset, mask = cards.ints[at + OFFSET], (1 << (cards.ints[at + SHAPE])) - 1
    newest = cards.ints[at + START] + cards.ints[at + LENGTH]  # one past it
    while cards.ints[at + ROWS_1H] > 0:
        entry = cards.ring[_u(offset + ((newest - cards.ints[at + ROWS_1H]) & mask))]
        if now_ms - last_ms + ((last_ms - (entry >> 31)) & _TIME_MASK) < _HOUR_MS:
            break
        cents = (entry >> 1) & _CENTS_MASK
        cards.ints[at + ROWS_1H] -= 1
        cards.words[base + CENTS_1H] -= cents
        cards.ints[at + SMALL_1H] -= 1 if cents < _SMALL_CENTS else 0
    while cards.ints[at + ROWS_24H] > 0:
        entry = cards.ring[_u(offset + ((newest - cards.ints[at + ROWS_24H]) & mask))]
        if now_ms - last_ms + ((last_ms - (entry >> 31)) & _TIME_MASK) < _DAY_MS:
            break
        cards.ints[at + ROWS_24H] -= 1
        cards.words[base + CENTS_24H] -= (entry >> 1) & _CENTS_MASK
        cards.ints[at + NEW_24H] -= entry & 1
    while cards.ints[at + LENGTH] > 0:
        entry = cards.ring[_u(offset + (cards.ints[at + START] & mask))]
        if now_ms - last_ms + ((last_ms - (entry >> 31)) & _TIME_MASK) < _WEEK_MS:
            break
        _drop_oldest(cards, record, entry)


@_inlined
def _drop_oldest(cards: Store, record: int, entry: int) -> None:
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    mask = (1 << (cards.ints[at + SHAPE])) - 1
    cards.words[base + CENTS_7D] -= (entry >> 1) & _CENTS_MASK
    cards.ints[at + START] = (cards.ints[at + START] + 1) & mask
    cards.ints[at + LENGTH] -= 1


@_inlined
def _truncate_card(cards: Store, record: int) -> None:
    """Drop the oldest row of a card that has as many as its windows hold, from every window that it is in."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    entry = cards.ring[cards.ints[at + OFFSET] + cards.ints[at + START]]
    cents = (entry >> 1) & _CENTS_MASK
    if cards.ints[at + ROWS_1H] == cards.ints[at + LENGTH]:
        cards.ints[at + ROWS_1H] -= 1
        cards.words[base + CENTS_1H] -= cents
        cards.ints[at + SMALL_1H] -= 1 if cents < _SMALL_CENTS else 0
    if cards.ints[at + ROWS_24H] == cards.ints[at + LENGTH]:
        cards.ints[at + ROWS_24H] -= 1
        cards.words[base + CENTS_24H] -= cents
        cards.ints[at + NEW_24H] -= entry & 1
    _drop_oldest(cards, record, entry)


@_inlined
def _visit(recent: NDArray[np.uint32], record: int, merchant: np.uint64, copy: NDArray[np.uint32]) -> bool:
    """Put the merchant first among the card's remembered ones; whether it was not among them. ``copy`` is scratch.

    No branch depends on where it was: the three loops are a few vector instructions each.
    """
    base = _u(record) * _u(RECENT)
    mark = np.uint32(max(merchant >> _u(32), _ONE))  # 0 is an empty place
    found = np.int32(0)  # place plus one; at most one is equal
    for i in range(RECENT):
        mine = recent[base + _u(i)]
        copy[_u(i)] = mine
        found += np.int32(i + 1) * np.int32(mine == mark)
    last = np.int32(RECENT) if found == 0 else found - np.int32(1)
    for i in range(1, RECENT):
        recent[base + _u(i)] = copy[_u(i - 1)] if np.int32(i) <= last else copy[_u(i)]
    recent[base] = mark
    return found == 0


@_inlined
def _enter_windows(cards: Store, record: int, now_ms: int, cents: int, new_merchant: int, counters: Int64s) -> None:
    """The row into the card's ring, which has room, and all windows."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    words, ints = cards.words, cards.ints
    if ints[at + LENGTH] == CARD_ROWS_MAX:
        counters[TRUNCATED] += 1
        _truncate_card(cards, record)
    mask = (1 << ints[at + SHAPE]) - 1
    place = _u(ints[at + OFFSET] + ((ints[at + START] + ints[at + LENGTH]) & mask))
    cards.ring[place] = (now_ms & _TIME_MASK) << 31 | cents << 1 | new_merchant
    ints[at + LENGTH] += 1
    ints[at + ROWS_24H] += 1
    ints[at + ROWS_1H] += 1
    words[base + CENTS_7D] += cents
    words[base + CENTS_24H] += cents
    words[base + CENTS_1H] += cents
    ints[at + SMALL_1H] += 1 if cents < _SMALL_CENTS else 0
    ints[at + NEW_24H] += new_merchant


@_inlined
def _window_features(cards: Store, record: int, out: NDArray[np.float32]) -> None:
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    rows_1h, rows_24h, rows_7d = cards.ints[at + ROWS_1H], cards.ints[at + ROWS_24H], cards.ints[at + LENGTH]
    sum_1h = cards.words[base + CENTS_1H] / 100.0
    sum_24h = cards.words[base + CENTS_24H] / 100.0
    sum_7d = cards.words[base + CENTS_7D] / 100.0
    out[F_CARD + 1] = rows_1h
    out[F_CARD + 2] = rows_24h
    out[F_CARD + 3] = rows_7d
    out[F_CARD + 4] = sum_1h
    out[F_CARD + 5] = sum_24h
    out[F_CARD + 6] = sum_7d
    out[F_CARD + 7] = sum_1h / rows_1h
    out[F_CARD + 9] = sum_7d / rows_7d
    out[F_CARD + 16] = cards.ints[at + NEW_24H]
    out[F_CARD + 18] = cards.ints[at + SMALL_1H]


@_inlined
def _high_amount(cards: Store, at: np.uint64, now: int, high: bool, out: NDArray[np.float32]) -> None:
    """Features of the card's earlier high amounts; then this row's, if it is ``high``, is one of them."""
    minute, last = now // _MINUTE_US, cards.ints[at + LAST_HIGH]
    share = np.float64(cards.singles[at + HIGH_SHARE])
    out[F_CARD + 21] = (minute - last) / 1440.0 if last != 0 else -1.0
    out[F_CARD + 22] = share
    weight = 1.0 / min(cards.ints[at + SEEN_ROWS] + 1, _HIGH_MEMORY)
    cards.singles[at + HIGH_SHARE] = share + ((1.0 if high else 0.0) - share) * weight
    cards.ints[at + LAST_HIGH] = minute if high else last


@_inlined
def _home_features(cards: Store, at: np.uint64, now: int, out: NDArray[np.float32]) -> None:
    """The speed from where the card was last at home; then this row, if at home, is the newest there."""
    minute, last, km = now // _MINUTE_US, cards.ints[at + LAST_HOME], out[F_HOME_KM]
    at_home = km < _HOME_KM
    out[F_CARD + 23] = 0.0 if at_home or last == 0 else min(km * 60.0 / max(minute - last, 1), _SPEED_MAX)
    cards.ints[at + LAST_HOME] = minute if at_home else last


@_inlined
def _habit_features(
    cards: Store, record: int, log_amount: float, amount: float, now: int, night: bool, out: NDArray[np.float32]
) -> None:
    """Features against the running means of the card's earlier rows, which then hold this one."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    floats, singles, seen = cards.floats, cards.singles, cards.ints[at + SEEN_ROWS]
    off, variance = log_amount - floats[base + LOG_MEAN], np.float64(singles[at + LOG_VARIANCE])
    usual = floats[base + MEAN]
    # Two divisions serve five features: they cost more than anything else here.
    days = (now // _MINUTE_US - cards.ints[at + FIRST]) / 1440.0
    per_row = max(days, 1.0) / (seen + 1.0)
    per_usual = 1.0 / max(usual, 0.01)
    rows_24h = cards.ints[at + ROWS_24H]
    spent = cards.words[base + CENTS_24H] * 0.01 * per_usual if seen > 0 else 1.0
    out[F_CARD + 10] = off / max(math.sqrt(variance), _LOG_STD_FLOOR) if seen >= 2 else 0.0
    out[F_CARD + 8] = spent / rows_24h
    out[F_CARD + 11] = amount * per_usual if seen > 0 else 1.0
    out[F_CARD + 12] = rows_24h * per_row
    out[F_CARD + 19] = days
    out[F_CARD + 20] = singles[at + NIGHT_SHARE]
    out[F_CARD + 24] = spent * min(per_row, 1.0)
    _high_amount(cards, at, now, seen >= _HIGH_AFTER and amount > _HIGH * usual, out)

    weight = 1.0 / min(seen + 1, _MEMORY)
    floats[base + LOG_MEAN] += off * weight
    singles[at + LOG_VARIANCE] = (1.0 - weight) * (variance + off * off * weight)
    # A high amount enters at the limit, so that one fraud does not make the next look usual.
    entered = min(amount, _HIGH * usual) if seen >= _HIGH_AFTER else amount
    floats[base + MEAN] = usual + (entered - usual) * weight
    share = np.float64(singles[at + NIGHT_SHARE])
    singles[at + NIGHT_SHARE] = share + ((1.0 if night else 0.0) - share) * weight


@_inlined
def _card_row(
    cards: Store,
    recent: NDArray[np.uint32],
    record: int,
    rows: Rows,
    i: int,
    k: int,
    merchant: np.uint64,
    night: bool,
    counters: Int64s,
    work: Scratch,
    out: NDArray[np.float32],
) -> None:
    """Features of row ``i``, the block's ``k``-th, from its card's history, which then holds it.

    The card's ring has room and is expired.
    """
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    words, ints, places = cards.words, cards.ints, cards.singles
    first = ints[at + SEEN_ROWS] == 0
    if first:
        ints[at + FIRST] = rows.time[i] // _MINUTE_US
    gap_us = rows.time[i] - words[base + LAST]
    if gap_us < 0:
        counters[LATE] += 1
        gap_us = 0
    now = words[base + LAST] + gap_us
    words[base + LAST] = now
    work.gap_s[k] = -1.0 if first else gap_us * 1e-6
    work.last_lat[k] = rows.merch_lat[i] if first else places[at + LAST_LAT]
    work.last_long[k] = rows.merch_long[i] if first else places[at + LAST_LONG]
    places[at + LAST_LAT] = rows.merch_lat[i]
    places[at + LAST_LONG] = rows.merch_long[i]

    cents = _signed(rows.cents[i])
    new_merchant = 1 if _visit(recent, record, merchant, work.copy) else 0
    _enter_windows(cards, record, now // _MS, cents, new_merchant, counters)
    _window_features(cards, record, out)
    _habit_features(cards, record, work.log_amount[k], cents / 100.0, now, night, out)
    _home_features(cards, at, now, out)
    category = 1 << (rows.category[i] & 31)
    out[F_CARD + 15] = new_merchant
    out[F_CARD + 17] = 0.0 if ints[at + SEEN_CATEGORIES] & category else 1.0
    ints[at + SEEN_CATEGORIES] |= category
    ints[at + SEEN_ROWS] = min(ints[at + SEEN_ROWS], 0x7FFFFFFE) + 1


# --- labels that come on their own ----------------------------------------------------------------------------------


@_inlined
def _bucket_from(merchants: Store, record: int, bucket: int) -> int:
    """The oldest of a merchant's entries that is not of a bucket before ``bucket``; their number if there is none."""
    at = _u(record) * _RECORD_INTS
    for index in range(merchants.ints[at + LENGTH]):
        if merchants.ring[_entry(merchants, at, index)] >> 40 >= bucket:
            return index
    return int(merchants.ints[at + LENGTH])


@_inlined
def _label_bucket(merchants: Store, record: int, index: int, labelled: int, frauds: int) -> bool:
    """Change an entry's labels, and the windows that hold it; False if it can't have had what is taken back."""
    at = _u(record) * _RECORD_INTS
    ints, ring = merchants.ints, merchants.ring
    place = _entry(merchants, at, index)
    had, bad = ring[place] & _LOW20, ring[place + _ONE] & _LOW20
    if had + labelled > _LOW20 or bad + frauds < 0 or bad + frauds > had + labelled:
        return False
    ring[place] += labelled
    ring[place + _ONE] += frauds
    if index < ints[at + MATURE]:
        ints[at + LABELLED_30D] += labelled
        ints[at + FRAUDS_30D] += frauds
        if index >= ints[at + RISK_FROM_7D]:
            ints[at + LABELLED_7D] += labelled
            ints[at + FRAUDS_7D] += frauds
        if index >= ints[at + RISK_FROM_1D]:
            ints[at + LABELLED_1D] += labelled
            ints[at + FRAUDS_1D] += frauds
    return True


@_inlined
def _newest_label(merchants: Store, record: int, bucket: int, is_fraud: int) -> None:
    """What a label of a bucket that has matured already says: it is the merchant's latest."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    recent = merchants.floats[base + M_RECENT_RISK]
    merchants.floats[base + M_RECENT_RISK] = recent * _RECENT_KEEP + (1.0 - _RECENT_KEEP) * is_fraud
    if is_fraud == 0:
        merchants.ints[at + M_RUN_FROM] = 0
        return
    merchants.ints[at + M_LAST_FRAUD] = max(merchants.ints[at + M_LAST_FRAUD], bucket)
    if merchants.ints[at + M_RUN_FROM] == 0:
        merchants.ints[at + M_RUN_FROM] = bucket


@_inlined
def _label_merchant(merchants: Store, record: int, time: int, is_fraud: int, before: int, label_delay: int) -> bool:
    at = _u(record) * _RECORD_INTS
    bucket = time // BUCKET_US
    mature = (merchants.words[_u(record) * _RECORD_WORDS + LAST] - label_delay) // BUCKET_US
    index = int(merchants.ints[at + LENGTH])
    if bucket >= mature - 30 * _BUCKETS_DAY:
        index = _bucket_from(merchants, record, bucket)
        if index < merchants.ints[at + LENGTH]:
            labelled, frauds = 1 if before < 0 else 0, is_fraud - max(before, 0)
            if not _label_bucket(merchants, record, index, labelled, frauds):
                return False
    if index < merchants.ints[at + MATURE] or (index == merchants.ints[at + LENGTH] and bucket < mature):
        _newest_label(merchants, record, bucket, is_fraud)
        return True
    return index < merchants.ints[at + LENGTH]


@compiled
def label_merchants(
    merchants: Store,
    names: NDArray[np.uint64],
    time: Int64s,
    is_fraud: NDArray[np.int8],
    before: NDArray[np.int8],
    label_delay: int,
) -> int:
    """Labels of rows that are in the state into their merchants' risk, in order; how many had a place there.

    All (n,): the hash of the merchant's name, the row's event time in us, the label, and the one known before (or -1).
    """
    taken = 0
    for i in range(len(names)):
        record = _find(merchants, _signed(names[i]), mix(names[i]))
        if record >= 0 and _label_merchant(
            merchants, record, time[i], _signed(is_fraud[i]), _signed(before[i]), label_delay
        ):
            taken += 1
    return taken


# --- a merchant's history -------------------------------------------------------------------------------------------


@_inlined
def _entry(merchants: Store, at: np.uint64, index: int) -> np.uint64:
    """Place in the arena of a merchant's ``index``-th oldest bucket; ``at`` is its record's first int32."""
    mask = (1 << (merchants.ints[at + SHAPE])) - 1
    return _u(_signed(merchants.ints[at + OFFSET]) + (((merchants.ints[at + START] + index) * 2) & mask))


@_inlined
def _advance_merchant(merchants: Store, record: int, bucket: int, mature: int) -> None:
    """Move the windows on: counts end in ``bucket``, risks before ``mature``; repeating it changes nothing."""
    at = _u(record) * _RECORD_INTS
    words, ints, ring = merchants.words, merchants.ints, merchants.ring
    length = ints[at + LENGTH]
    while ints[at + FROM_24H] < length:
        place = _entry(merchants, at, ints[at + FROM_24H])
        if ring[place] >> 40 > bucket - _BUCKETS_DAY:
            break
        ints[at + M_ROWS_24H] -= (ring[place] >> 20) & _LOW20
        ints[at + FROM_24H] += 1
    while ints[at + FROM_7D] < length:
        place = _entry(merchants, at, ints[at + FROM_7D])
        if ring[place] >> 40 > bucket - 7 * _BUCKETS_DAY:
            break
        ints[at + M_ROWS_7D] -= (ring[place] >> 20) & _LOW20
        words[_u(record) * _RECORD_WORDS + M_CENTS_7D] -= ring[place + _ONE] >> 20
        ints[at + FROM_7D] += 1
    while ints[at + MATURE] < length:
        place = _entry(merchants, at, ints[at + MATURE])
        if ring[place] >> 40 >= mature:
            break
        labelled, frauds = ring[place] & _LOW20, ring[place + _ONE] & _LOW20
        for field in (LABELLED_1D, LABELLED_7D, LABELLED_30D):
            ints[at + field] += labelled
            ints[at + field + _ONE] += frauds
        if labelled > 0:
            _matured_bucket(merchants, record, ring[place] >> 40, labelled, frauds)
        ints[at + MATURE] += 1
    _leave_risk(merchants, at, RISK_FROM_1D, LABELLED_1D, mature - _BUCKETS_DAY)
    _leave_risk(merchants, at, RISK_FROM_7D, LABELLED_7D, mature - 7 * _BUCKETS_DAY)
    while ints[at + LENGTH] > 0:
        place = _entry(merchants, at, 0)
        if ring[place] >> 40 >= mature - 30 * _BUCKETS_DAY:
            break
        ints[at + LABELLED_30D] -= ring[place] & _LOW20
        ints[at + FRAUDS_30D] -= ring[place + _ONE] & _LOW20
        ints[at + START] = (ints[at + START] + 1) & ((1 << ((ints[at + SHAPE]) - 1)) - 1)
        ints[at + LENGTH] -= 1
        for field in (FROM_24H, FROM_7D, MATURE, RISK_FROM_1D, RISK_FROM_7D):
            ints[at + field] -= 1


@_inlined
def _matured_bucket(merchants: Store, record: int, bucket: int, labelled: int, frauds: int) -> None:
    """The labels of the next newer bucket that has any into what the merchant's latest labels say."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    keep = 1.0
    for _ in range(min(labelled, _RECENT_ROWS)):
        keep *= _RECENT_KEEP
    recent = merchants.floats[base + M_RECENT_RISK]
    merchants.floats[base + M_RECENT_RISK] = recent * keep + (1.0 - keep) * (frauds / labelled)
    if frauds == 0:
        merchants.ints[at + M_RUN_FROM] = 0
        return
    merchants.ints[at + M_LAST_FRAUD] = bucket
    if merchants.ints[at + M_RUN_FROM] == 0:
        merchants.ints[at + M_RUN_FROM] = bucket


@_inlined
def _leave_risk(merchants: Store, at: np.uint64, from_field: np.uint64, labelled_field: np.uint64, oldest: int) -> None:
    ints, ring = merchants.ints, merchants.ring
    while ints[at + from_field] < ints[at + MATURE]:
        place = _entry(merchants, at, ints[at + from_field])
        if ring[place] >> 40 >= oldest:
            break
        ints[at + labelled_field] -= ring[place] & _LOW20
        ints[at + labelled_field + _ONE] -= ring[place + _ONE] & _LOW20
        ints[at + from_field] += 1


@_inlined
def _needs_bucket(merchants: Store, record: int, bucket: int, cents: int) -> bool:
    """Whether the row can't go into the newest bucket: it is of a later one, or that one's numbers are full."""
    at = _u(record) * _RECORD_INTS
    if merchants.ints[at + LENGTH] == 0:
        return True
    place = _entry(merchants, at, merchants.ints[at + LENGTH] - 1)
    entry = merchants.ring[place]
    full = (entry >> 20) & _LOW20 == _LOW20 or (merchants.ring[place + _ONE] >> 20) + cents >= _CENTS_FULL
    return entry >> 40 != bucket or full


@_inlined
def _add_merchant_row(merchants: Store, record: int, new_bucket: bool, bucket: int, cents: int, label: int) -> None:
    at = _u(record) * _RECORD_INTS
    ints, ring = merchants.ints, merchants.ring
    place = _entry(merchants, at, ints[at + LENGTH] - (0 if new_bucket else 1))
    if new_bucket:
        ring[place] = bucket << 40
        ring[place + _ONE] = 0
        ints[at + LENGTH] += 1
    ring[place] += (1 << 20) + (1 if label >= 0 else 0)
    ring[place + _ONE] += (cents << 20) + (1 if label > 0 else 0)
    ints[at + M_ROWS_24H] += 1
    ints[at + M_ROWS_7D] += 1
    merchants.words[_u(record) * _RECORD_WORDS + M_CENTS_7D] += cents


@_inlined
def _scan_merchant(merchants: Store, record: int, bucket: int, mature: int, sums: Int64s) -> None:
    """What the windows of a row held that is older than its merchant's newest: ``sums`` (9,), in field order."""
    at = _u(record) * _RECORD_INTS
    sums[:] = 0
    for index in range(merchants.ints[at + LENGTH]):
        place = _entry(merchants, at, index)
        entry, second = merchants.ring[place], merchants.ring[place + _ONE]
        age = bucket - (entry >> 40)
        if 0 <= age < 7 * _BUCKETS_DAY:
            sums[0] += (entry >> 20) & _LOW20 if age < _BUCKETS_DAY else 0
            sums[1] += (entry >> 20) & _LOW20
            sums[8] += second >> 20
        age = mature - (entry >> 40)
        if 1 <= age <= 30 * _BUCKETS_DAY:
            for window, days in enumerate((1, 7, 30)):
                if age <= days * _BUCKETS_DAY:
                    sums[2 + 2 * window] += entry & _LOW20
                    sums[3 + 2 * window] += second & _LOW20


@_inlined
def _merchant_windows(
    merchants: Store, record: int, time: int, clock: int, label_delay: int, cents: int, sums: Int64s
) -> None:
    """The windows of a row at ``time``, which they hold, into ``sums`` (9,); they have been moved on to ``clock``."""
    at = _u(record) * _RECORD_INTS
    bucket, mature = time // BUCKET_US, (time - label_delay) // BUCKET_US
    if bucket == clock // BUCKET_US and mature == (clock - label_delay) // BUCKET_US:
        for field in range(8):
            sums[field] = merchants.ints[at + M_ROWS_24H + _u(field)]
        sums[8] = merchants.words[_u(record) * _RECORD_WORDS + M_CENTS_7D]
    else:
        _scan_merchant(merchants, record, bucket, mature, sums)
    sums[0] += 1
    sums[1] += 1
    sums[8] += cents


@_inlined
def _merchant_features(
    merchants: Store, record: int, cents: int, partitions: int, sums: Int64s, out: NDArray[np.float32]
) -> None:
    """Features from the merchant's windows ``sums``, which hold the row, and from the mean of its earlier rows."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    seen, mean = merchants.ints[at + M_ROWS], merchants.floats[base + M_MEAN]
    amount = cents / 100.0
    out[F_MERCHANT + 0] = sums[0] * partitions
    out[F_MERCHANT + 1] = sums[1] * partitions
    out[F_MERCHANT + 2] = sums[8] / 100.0 / sums[1]
    out[F_MERCHANT + 3] = amount / max(mean, 0.01) if seen > 0 else 1.0
    out[F_MERCHANT + 4] = (sums[3] + _PRIOR_FRAUDS) / (sums[2] + 1.0)
    out[F_MERCHANT + 5] = (sums[5] + _PRIOR_FRAUDS) / (sums[4] + 1.0)
    out[F_MERCHANT + 6] = (sums[7] + _PRIOR_FRAUDS) / (sums[6] + 1.0)
    out[F_MERCHANT + 7] = sums[5] * partitions
    out[F_MERCHANT + 8] = sums[6] * partitions
    merchants.floats[base + M_MEAN] = mean + (amount - mean) / min(seen + 1, _MERCHANT_MEMORY)
    merchants.ints[at + M_ROWS] = min(seen, 0x7FFFFFFE) + 1


@_inlined
def _latest_labels(
    merchants: Store, record: int, time: int, clock: int, label_delay: int, out: NDArray[np.float32]
) -> None:
    """Features of the merchant's latest matured labels; a late row that may not know all of them gets none."""
    base, at = _u(record) * _RECORD_WORDS, _u(record) * _RECORD_INTS
    bucket = time // BUCKET_US
    known = (time - label_delay) // BUCKET_US == (clock - label_delay) // BUCKET_US
    first, last = merchants.ints[at + M_RUN_FROM], merchants.ints[at + M_LAST_FRAUD]
    out[F_MERCHANT + 9] = merchants.floats[base + M_RECENT_RISK] if known else 0.0
    out[F_MERCHANT + 10] = (bucket - first) / _BUCKETS_DAY if known and first != 0 else -1.0
    out[F_MERCHANT + 11] = (bucket - last) / _BUCKETS_DAY if known and last != 0 else -1.0


# --- the pass -------------------------------------------------------------------------------------------------------


# A row touches a dozen cache lines at random, and waiting for one after the other would take most of the time. So the
# lines of coming rows are read ahead, many at a time, since the CPU overlaps reads that don't depend on each other.
# (Prefetch instructions did not do: they are dropped where the page's address is not at hand.) What was read goes to
# ``work.read``, or the compiler would leave the reads out.


@_inlined
def _read_tables(rows: Rows, begin: int, end: int, cards: Store, work: Scratch) -> None:
    """Hash the cards of rows ``begin`` to ``end``; read where the table may have them."""
    mask = _u(len(cards.table) - 1)
    read = work.read[0]
    for i in range(begin, end):
        h = mix(rows.card[i])
        work.hashes[i & _AHEAD_MASK] = h
        read ^= cards.table[h & mask]
    work.read[0] = read


@_inlined
def _read_records(
    rows: Rows, begin: int, end: int, cards: Store, recent: NDArray[np.uint32], merchants: Store, work: Scratch
) -> None:
    """Read the records of cards and merchants, as far as they are known."""
    read = work.read[0]
    half = _u(WORDS // 2)
    for i in range(begin, end):
        record = _guess(cards, work.hashes[i & _AHEAD_MASK])
        work.records[i & _AHEAD_MASK] = record
        if record >= 0:
            base = _u(record) * _RECORD_WORDS
            read ^= cards.words[base] ^ cards.words[base + half]
            base = _u(record) * _u(RECENT)
            read ^= _signed(recent[base]) ^ _signed(recent[base + _u(RECENT // 2)])
        merchant = work.merchants[rows.merchant[i]]
        if merchant >= 0:
            base = _u(merchant) * _RECORD_WORDS
            read ^= merchants.words[base] ^ merchants.words[base + half]
    work.read[0] = read


@_inlined
def _read_rings(rows: Rows, begin: int, end: int, cards: Store, merchants: Store, work: Scratch) -> None:
    """Read the ends of the cards' windows and the merchants' newest buckets."""
    read = work.read[0]
    for i in range(begin, end):
        record = work.records[i & _AHEAD_MASK]
        if record >= 0 and cards.ints[_u(record) * _RECORD_INTS + LENGTH] > 0:
            at = _u(record) * _RECORD_INTS
            offset, mask = cards.ints[at + OFFSET], (1 << cards.ints[at + SHAPE]) - 1
            start, length, day = cards.ints[at + START], cards.ints[at + LENGTH], cards.ints[at + ROWS_24H]
            read ^= cards.ring[_u(offset + start)] ^ cards.ring[_u(offset + ((start + length) & mask))]
            read ^= cards.ring[_u(offset + ((start + length - day) & mask))]
        merchant = work.merchants[rows.merchant[i]]
        if merchant >= 0 and merchants.ints[_u(merchant) * _RECORD_INTS + LENGTH] > 0:
            at = _u(merchant) * _RECORD_INTS
            read ^= merchants.ring[_entry(merchants, at, merchants.ints[at + LENGTH] - 1)]
    work.read[0] = read


@_inlined
def _one_row(
    rows: Rows,
    i: int,
    k: int,
    cards: Store,
    recent: NDArray[np.uint32],
    merchants: Store,
    limits: Limits,
    counters: Int64s,
    work: Scratch,
    out: NDArray[np.float32],
) -> int:
    """Row ``i``, the block's ``k``-th: DONE, or why not; then doing it again after there is room changes nothing."""
    time, code, cents = rows.time[i], rows.merchant[i], _signed(rows.cents[i])
    name = name_key(rows, code)
    guess, hashed = work.records[i & _AHEAD_MASK], work.hashes[i & _AHEAD_MASK]
    card = _recall(cards, _signed(rows.card[i]), hashed, guess, limits.cards, time)
    if card < 0:
        return CARDS_FULL
    _expire_card(cards, card, max(time, cards.words[_u(card) * _RECORD_WORDS + LAST]) // _MS)
    if cards.ints[_u(card) * _RECORD_INTS + LENGTH] < CARD_ROWS_MAX and not _has_room(cards, card, 1):
        return CARD_RING_FULL
    merchant = _recall(merchants, _signed(name), mix(name), work.merchants[code], limits.merchants, time)
    if merchant < 0:
        return MERCHANTS_FULL
    work.merchants[code] = merchant
    before = merchants.words[_u(merchant) * _RECORD_WORDS + LAST]
    clock = max(time, before)
    bucket, mature = clock // BUCKET_US, (clock - limits.label_delay) // BUCKET_US
    if bucket != before // BUCKET_US or mature != (before - limits.label_delay) // BUCKET_US:
        _advance_merchant(merchants, merchant, bucket, mature)
    new_bucket = _needs_bucket(merchants, merchant, bucket, cents)
    if new_bucket and not _has_room(merchants, merchant, 2):
        return MERCHANT_RING_FULL

    night = _row_alone(rows, i, out)
    _card_row(cards, recent, card, rows, i, k, name, night, counters, work, out)
    _merchant_windows(merchants, merchant, time, clock, limits.label_delay, cents, work.sums)
    _add_merchant_row(merchants, merchant, new_bucket, bucket, cents, rows.label[i])
    _merchant_features(merchants, merchant, cents, limits.partitions, work.sums, out)
    _latest_labels(merchants, merchant, time, clock, limits.label_delay, out)
    merchants.words[_u(merchant) * _RECORD_WORDS + LAST] = clock
    return DONE


@compiled
def advance(
    rows: Rows,
    begin: int,
    cards: Store,
    recent: NDArray[np.uint32],
    merchants: Store,
    limits: Limits,
    counters: Int64s,
    work: Scratch,
    out: Output,
) -> tuple[int, int]:
    """Features of rows from ``begin`` on into ``out``, and the rows into the state.

    Returns (n, DONE), or (row, status): the row before which a store must get room, and which one.
    ``recent`` is (cards * RECENT,): per card the marks of merchants, newest first.
    """
    n = len(rows.time)
    for block in range(begin - 3 * BLOCK, n, BLOCK):
        # Three blocks ahead the table, two ahead what it points at, one ahead what that points at.
        _read_tables(rows, max(begin, block + 3 * BLOCK), min(block + 4 * BLOCK, n), cards, work)
        _read_records(rows, max(begin, block + 2 * BLOCK), min(block + 3 * BLOCK, n), cards, recent, merchants, work)
        _read_rings(rows, max(begin, block + BLOCK), min(block + 2 * BLOCK, n), cards, merchants, work)
        if block < begin:
            continue
        end, status, i = min(block + BLOCK, n), DONE, block
        _before_block(rows, block, end, work)
        while i < end:
            k = i - block
            status = _one_row(rows, i, k, cards, recent, merchants, limits, counters, work, work.values[k])
            if status != DONE:
                break
            i += 1
        _after_block(rows, block, i, work)
        if len(out.values) > 0:
            _copy_block(block, i, work, out)
        else:
            _encode_block(rows.merchant, block, i, work, out)
        if status != DONE:
            return i, status
    return n, DONE
