"""``History``: what prep remembers of cards and merchants, and the features that come of it.

The state is a function of the rows in the order they were given, however they were cut into batches, and of the
arguments of the constructor. ``arrays`` and ``restore`` carry it through a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead import codes, kernel
from spearhead.aligned import aligned
from spearhead.codes import TUPLES_MAX, Packed
from spearhead.features import FEATURES_VERSION
from spearhead.kernel import HEAP, KEY, LAST, LENGTH, OFFSET, RECENT, SHAPE, START, WORDS
from spearhead.schema import NO_RAW_ROWS

DAY_US: Final = 86_400_000_000
STATE_FORMAT: Final = 2
_FIRST_RECORDS: Final = 1024
_EVICTED_SHARE: Final = 16  # of a full store, the idlest 1/16 go at once
_GROWTH: Final = 4  # idle ones are looked for whenever a store has a quarter more records than the last look left
_CARD_ENTRY, _MERCHANT_ENTRY = 1, 2  # words of a ring's entry


class StateError(ValueError):
    """Arrays that are no state of this version; the message says why."""


class Records:
    """A store of the kernel that grows: at most ``limit`` records, beyond that the longest idle are forgotten.

    Those idle for more than ``idle_us`` of event time are forgotten before. They are looked for when a new one comes
    and ``look_at`` are there: by the number of records alone, so that neither batches nor a restart change what goes.
    """

    def __init__(
        self,
        limit: int,
        entry_words: int,
        remembers: bool,
        *,
        idle_us: int | None = None,
        records: int = 0,
        ring_words: int = 0,
    ) -> None:
        if limit < 1:
            raise ValueError(f"a history needs room for one record at least, not {limit}")
        self.limit = limit
        self.idle_us = idle_us
        self.look_at = limit if idle_us is None else 1
        self.entry_words = entry_words
        self.remembers = remembers
        self.evicted = 0
        self.capacity = 0
        self.count = np.zeros(1, np.int64)
        self.words = aligned(np.zeros, (0,), np.int64)
        self.recent = aligned(np.zeros, (0,), np.uint32)
        self.table = np.zeros(2, np.int64)
        self.heap = np.full(HEAP, -1, np.int64)
        self.heap[0] = 0
        self.ring = aligned(np.zeros, (max(ring_words, 8 * _FIRST_RECORDS),), np.int64)
        self._set_capacity(min(limit, max(records, _FIRST_RECORDS)))

    @property
    def store(self) -> kernel.Store:
        words = self.words
        return kernel.Store(
            self.table, words, words.view(np.int32), words.view(np.float64), words.view(np.float32),
            self.ring, self.heap, self.count,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.words, self.recent, self.table, self.ring))

    @property
    def room(self) -> int:
        """Records there may be before ``make_room`` must be asked for another."""
        return min(self.capacity, self.look_at)

    def make_room(self) -> None:
        """Room for one more record at least."""
        if self.count[0] == self.look_at:
            self._forget()
        if self.count[0] == self.capacity:
            self._set_capacity(min(self.limit, 2 * self.capacity))

    def grow_ring(self) -> None:
        """Room for one more block at least: the largest is a fraction of the growth."""
        self.ring = _resized(self.ring, len(self.ring) + max(len(self.ring) // 2, 4 * kernel.CARD_ROWS_MAX))

    def _set_capacity(self, records: int) -> None:
        self.capacity = records
        self.words = _resized(self.words, records * WORDS)
        if self.remembers:
            self.recent = _resized(self.recent, records * RECENT)
        slots = 1 << (2 * records - 1).bit_length()
        if slots > len(self.table):
            self.table = np.zeros(slots, np.int64)
            kernel.index_records(self.store)

    def _forget(self) -> None:
        """Forget the idle; of a full store at least the idlest 1/16."""
        count = int(self.count[0])
        last = self.words[: count * WORDS].reshape(count, WORDS)[:, LAST]
        many = self._idle(last)
        if count == self.limit:
            many = max(many, 1, count // _EVICTED_SHARE)
        if many:
            self._evict(many)
        left = count - many
        if self.idle_us is not None:
            self.look_at = min(self.limit, left + max(1, left // _GROWTH))

    def _idle(self, last: NDArray[np.int64]) -> int:
        """How many have been idle too long, of newest event times (n,).

        Now is a time that a sixteenth has passed: one row with a wrong date must not make all others look idle.
        """
        if self.idle_us is None:
            return 0
        place = len(last) - 1 - len(last) // _EVICTED_SHARE
        now = np.partition(last, place)[place]
        return int(np.count_nonzero(last < now - self.idle_us))

    def _evict(self, many: int) -> None:
        """Forget the longest idle: by newest event time, then by key, so that no layout decides."""
        count = int(self.count[0])
        records = self.words[: count * WORDS].reshape(count, WORDS)
        latest = np.partition(records[:, LAST], many - 1)[many - 1]
        gone = records[:, LAST] < latest
        ties = np.flatnonzero(records[:, LAST] == latest)
        ties = ties[np.argsort(records[ties, KEY], kind="stable")]
        gone[ties[: many - int(gone.sum())]] = True
        kernel.remove_records(self.store, self.recent, gone)
        kernel.index_records(self.store)
        self.evicted += many

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Copies of what is in use, free of layout: the same history gives the same bytes."""
        count = int(self.count[0])
        records = self.words[: count * WORDS].copy()
        fields = records.view(np.int32).reshape(count, 2 * WORDS)
        entries = np.empty(int(fields[:, LENGTH].sum()) * self.entry_words, np.int64)
        kernel.pack_rings(self.store, self.entry_words, entries)
        fields[:, OFFSET] = -1
        fields[:, START] = 0
        fields[:, SHAPE] = 0
        arrays: dict[str, NDArray[Any]] = {f"{name}_records": records, f"{name}_entries": entries}
        if self.remembers:
            arrays[f"{name}_recent"] = self.recent[: count * RECENT].copy()
        return arrays

    @classmethod
    def restore(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        name: str,
        limit: int,
        entry_words: int,
        remembers: bool,
        idle_us: int | None = None,
    ) -> Records:
        words, entries = arrays[f"{name}_records"], arrays[f"{name}_entries"]
        count = len(words) // WORDS
        # A ring has at most twice the words in use, the smallest apart.
        room = 2 * len(entries) + count * (1 << kernel.FIRST_BLOCK)
        records = cls(limit, entry_words, remembers, idle_us=idle_us, records=count, ring_words=room)
        records.words[: len(words)] = words
        records.count[0] = count
        if remembers:
            records.recent[: count * RECENT] = arrays[f"{name}_recent"]
        if not kernel.unpack_rings(records.store, entry_words, np.ascontiguousarray(entries)):
            raise StateError(f"{name}_entries don't fit {name}_records")
        kernel.index_records(records.store)
        return records


class Labels(NamedTuple):
    """Labels of rows that a history has seen, in the order in which they were given; all (n,)."""

    merchant: NDArray[np.uint64]  # hash of the name, of ``merchant_hashes``
    event_time: NDArray[np.int64]  # of the row, us since 1970
    is_fraud: NDArray[np.int8]  # 1 or 0
    before: NDArray[np.int8]  # the label known before: 1, 0, or -1

    def take(self, rows: NDArray[Any] | slice) -> Labels:
        """The labels of a mask, an order or a slice."""
        return Labels(self.merchant[rows], self.event_time[rows], self.is_fraud[rows], self.before[rows])


class History:
    """Features of transactions from those before them.

    ``card_max`` and ``merchant_max`` bound what is remembered; the longest idle are forgotten first, 1/16 at a time.
    Cards are forgotten earlier once they have been idle for more than ``card_idle_us`` of event time.
    A label counts toward its merchant's risk for rows at least ``label_delay_us`` younger. With ``partitions`` P > 1
    this history sees a P-th of each merchant's traffic, and merchant counts are multiplied by P.
    Raises ValueError on a limit below 1 or a negative time.
    """

    def __init__(
        self,
        card_max: int = 6_000_000,
        merchant_max: int = 1_000_000,
        label_delay_us: int = 7 * DAY_US,
        partitions: int = 1,
        card_idle_us: int = 400 * DAY_US,
    ) -> None:
        if min(label_delay_us, card_idle_us) < 0 or partitions < 1:
            raise ValueError(
                f"label delay {label_delay_us} us, idle time {card_idle_us} us, {partitions} partitions: "
                "must be >= 0, >= 0 and >= 1"
            )
        self.label_delay_us = label_delay_us
        self.partitions = partitions
        self.card_idle_us = card_idle_us
        self._cards = Records(card_max, _CARD_ENTRY, remembers=True, idle_us=card_idle_us)
        self._merchants = Records(merchant_max, _MERCHANT_ENTRY, remembers=False)
        self._counters = np.zeros(3, np.int64)

    def transform(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        """Features of ``batch`` (schema.RAW), float32 (n, WIDTH), C-contiguous; the rows join the history in order."""
        return self._advance(batch, coded=False).values

    def encode(self, batch: pa.RecordBatch) -> Packed:
        """The same as codes: what ``codes.encode`` makes of ``transform``, which is never in memory as a whole.

        Rows share their MERCHANT_LABELS, unless those are more tuples than 16 bits can number.
        """
        parts = []
        for begin in range(0, max(batch.num_rows, 1), TUPLES_MAX):  # so that each part's tuples can be numbered
            out = self._advance(batch.slice(begin, TUPLES_MAX), coded=True)
            tuples = out.tuples[: out.used[0]].view(np.float32)
            parts.append(Packed(out.own, out.numbers, codes.encode(tuples)))
        return codes.joined(parts)

    def _advance(self, batch: pa.RecordBatch, *, coded: bool) -> kernel.Output:
        rows = columns(batch)
        out = kernel.output(batch.num_rows, len(rows.name_hash), coded=coded)
        row, status = 0, -1
        while status != kernel.DONE:
            begin = row
            limits = kernel.Limits(self._cards.room, self._merchants.room, self.label_delay_us, self.partitions)
            row, status = kernel.advance(
                rows, begin, self._cards.store, self._cards.recent, self._merchants.store, limits, self._counters,
                kernel.scratch(len(rows.name_hash)), out,
            )  # fmt: skip
            self._counters[kernel.ROWS] += row - begin
            self._make_room(status)
        return out

    def label(self, labels: Labels) -> int:
        """Take labels that came on their own into their merchants' risk; how many still had a place there.

        They count from here on as if their rows had carried them: for rows at least ``label_delay_us`` younger.
        """
        return kernel.label_merchants(self._merchants.store, *labels, self.label_delay_us)

    def _make_room(self, status: int) -> None:
        if status == kernel.CARDS_FULL:
            self._cards.make_room()
        elif status == kernel.CARD_RING_FULL:
            self._cards.grow_ring()
        elif status == kernel.MERCHANTS_FULL:
            self._merchants.make_room()
        elif status == kernel.MERCHANT_RING_FULL:
            self._merchants.grow_ring()

    @property
    def rows(self) -> int:
        """Rows seen."""
        return int(self._counters[kernel.ROWS])

    @property
    def late(self) -> int:
        """Rows older than their card's newest."""
        return int(self._counters[kernel.LATE])

    @property
    def truncated(self) -> int:
        """Rows that left a card's windows early, because a card holds at most 4,096."""
        return int(self._counters[kernel.TRUNCATED])

    @property
    def card_max(self) -> int:
        """Most cards remembered."""
        return self._cards.limit

    @property
    def merchant_max(self) -> int:
        """Most merchants remembered."""
        return self._merchants.limit

    @property
    def cards(self) -> int:
        return int(self._cards.count[0])

    @property
    def merchants(self) -> int:
        return int(self._merchants.count[0])

    @property
    def evicted_cards(self) -> int:
        return self._cards.evicted

    @property
    def evicted_merchants(self) -> int:
        return self._merchants.evicted

    @property
    def nbytes(self) -> int:
        """Bytes of memory reserved for the state."""
        return self._cards.nbytes + self._merchants.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state for a checkpoint: one-dimensional arrays of numbers, copies."""
        numbers = [
            STATE_FORMAT, FEATURES_VERSION, self._cards.limit, self._merchants.limit, self.label_delay_us,
            self.partitions, self.card_idle_us, self._cards.look_at, self._cards.evicted, self._merchants.evicted,
            *self._counters.tolist(),
        ]  # fmt: skip
        return {
            "numbers": np.array(numbers, np.int64),
            **self._cards.arrays("card"),
            **self._merchants.arrays("merchant"),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The history that ``arrays`` was called on. Raises StateError if they are of another version or incomplete."""
        try:
            numbers = arrays["numbers"].tolist()
            if numbers[:2] != [STATE_FORMAT, FEATURES_VERSION]:
                raise StateError(f"state of format and features {numbers[:2]}, not {[STATE_FORMAT, FEATURES_VERSION]}")
            _, _, card_max, merchant_max, label_delay_us, partitions, card_idle_us, *_ = numbers
            history = cls(card_max, merchant_max, label_delay_us, partitions, card_idle_us)
            history._cards = Records.restore(
                arrays, "card", card_max, _CARD_ENTRY, remembers=True, idle_us=card_idle_us
            )
            history._merchants = Records.restore(arrays, "merchant", merchant_max, _MERCHANT_ENTRY, remembers=False)
        except KeyError as error:
            raise StateError(f"array {error} is missing") from error
        history._cards.look_at, history._cards.evicted, history._merchants.evicted = numbers[7:10]
        history._counters[:] = numbers[10:]
        return history


def merchant_hashes(merchants: pa.DictionaryArray) -> NDArray[np.uint64]:
    """By which the merchants of a column (schema.MERCHANT, no nulls) are remembered, uint64 (n,)."""
    names = merchants.dictionary
    _, offsets, text = names.buffers()
    hashes = np.zeros(len(names), np.uint64)
    starts = _over(offsets, np.int32)[names.offset : names.offset + len(names) + 1]
    kernel.hash_names(starts, _over(text, np.uint8), hashes)
    found: NDArray[np.uint64] = hashes[np.asarray(merchants.indices)]
    return found


def columns(batch: pa.RecordBatch) -> kernel.Rows:
    """The columns that features read, over the batch's own memory (a slice's too). Nulls must not occur."""
    merchant = batch.column("merchant")
    names = merchant.dictionary
    _, offsets, text = names.buffers()
    return kernel.Rows._make(
        [
            *(_numbers(batch.column(name)) for name in _NUMBERS),
            _numbers(merchant.indices),
            _over(offsets, np.int32)[names.offset : names.offset + len(names) + 1],
            _over(text, np.uint8),
            np.zeros(len(names), np.uint64),
        ]
    )


_NUMBERS: Final = (  # in the order of kernel.Rows
    "event_time", "card", "amt_cents", "category", "label", "home_lat", "home_long", "merch_lat", "merch_long",
    "city_pop", "dob",
)  # fmt: skip


def _numbers(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    elif pa.types.is_date32(column.type):
        column = column.view(pa.int32())
    return _read_only(column.to_numpy(zero_copy_only=True))


def _over(buffer: pa.Buffer | None, dtype: type[np.generic]) -> NDArray[Any]:
    return _read_only(np.frombuffer(buffer, dtype) if buffer else np.zeros(1, dtype))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    # To numba a writable array is another type: the kernel would be compiled once more, in the middle of traffic.
    array.flags.writeable = False
    return array


def _resized(array: NDArray[Any], length: int) -> NDArray[Any]:
    larger = aligned(np.zeros, (length,), array.dtype)
    larger[: len(array)] = array
    return larger


def warm() -> None:
    """Compile the kernel's functions, or load them from numba's cache."""
    history = History(card_max=1)
    history.transform(NO_RAW_ROWS)
    nothing = np.empty(0, np.int64)
    history.label(Labels(merchant_hashes(NO_RAW_ROWS.column("merchant")), nothing, *2 * [nothing.astype(np.int8)]))
    History.restore(history.arrays())
    kernel.remove_records(history._cards.store, history._cards.recent, np.zeros(0, np.bool_))
