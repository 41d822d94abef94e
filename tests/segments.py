"""Segments and small state machines for tests of producers and of a partition's log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead import codes
from spearhead.checkpoint import Arrays
from spearhead.codes import OWN, Packed
from spearhead.companion import companion, read_features
from spearhead.features import WIDTH
from spearhead.files import Files
from spearhead.packing import attach
from spearhead.partition import LostError, Outcome, PartitionLog
from spearhead.producer import Producer
from spearhead.rejects import Reject
from spearhead.schema import FIRST_NAME, INGESTED, INGESTED_MAX, MERCHANT, RAW, TIME
from spearhead.segment import SegmentName
from spearhead.volume import Volume

FORBIDDEN_CENTS = 666  # ``Chain`` refuses rows of this amount
START_US = 1_700_000_000_000_000


def ingested(times: Any) -> pa.DictionaryArray:
    """``ingested_at`` of rows that came at these times, us since 1970; of too many, as many as a segment may have."""
    exact = np.asarray(times, np.int64)
    if len(np.unique(exact)) > INGESTED_MAX:
        first = int(exact.min())
        step = -(-(int(exact.max()) - first + 1) // INGESTED_MAX)
        exact = first + (exact - first) // step * step
    return pa.array(exact, TIME).dictionary_encode().cast(INGESTED)


def raw_batch(start: int, rows: int, cards: int = 7, cents: Sequence[int] | None = None) -> pa.RecordBatch:
    """Rows number ``start`` to ``start + rows`` of an endless deterministic source, of schema.RAW."""
    number = np.arange(start, start + rows)
    columns: dict[str, Any] = {
        "trans_num": pa.array([f"{n:032x}" for n in number], pa.string()),
        "event_time": pa.array(START_US + number * 60_000_000, TIME),
        "ingested_at": ingested(START_US + number),
        "card": pa.array(number * 2_654_435_761 % cards, pa.uint64()),
        "last4": pa.array(number % 10_000, pa.uint16()),
        "amt_cents": pa.array(100 + number % 500 if cents is None else cents, pa.int32()),
        "category": pa.array(number % 14, pa.uint8()),
        "state": pa.array(number % 51, pa.uint8()),
        "merchant": pa.DictionaryArray.from_arrays(pa.array(number % 3, pa.int32()), ["a", "b", "c"]).cast(MERCHANT),
        "first": pa.DictionaryArray.from_arrays(pa.array(number % 2, pa.int16()), ["Ann", "Bo"]).cast(FIRST_NAME),
        "last_initial": pa.array(65 + number % 26, pa.uint8()),
        "label": pa.array(number % 50 == 0, pa.int8()),
        "scenario": pa.array(number % 50 == 0, pa.int8()),
        "home_lat": pa.array(number % 80, pa.float32()),
        "home_long": pa.array(-(number % 120), pa.float32()),
        "merch_lat": pa.array(number % 81, pa.float32()),
        "merch_long": pa.array(-(number % 121), pa.float32()),
        "city_pop": pa.array(number % 100_000, pa.int32()),
        "dob": pa.array(number % 10_000, pa.int32()).cast(pa.date32()),
    }
    return pa.RecordBatch.from_arrays([columns[field.name] for field in RAW], schema=RAW)


def packed_slowly(values: NDArray[np.float32], merchants: NDArray[np.uint16]) -> Packed:
    """What the kernel does, row by row: a row has the tuple of its merchant's row before, or a new one."""
    numbers: list[int] = []
    tuples: list[NDArray[np.float32]] = []
    last: dict[int, tuple[bytes, int]] = {}
    for labels, merchant in zip(values[:, OWN:].copy(), merchants.tolist(), strict=True):
        words = labels.tobytes()
        if merchant not in last or last[merchant][0] != words:
            last[merchant] = (words, len(tuples))
            tuples.append(labels)
        numbers.append(last[merchant][1])
    found = np.array(tuples, np.float32).reshape(-1, WIDTH - OWN)
    return Packed(codes.encode(values[:, :OWN]), np.array(numbers, np.uint16), codes.encode(found))


def attached(raw: pa.RecordBatch, values: NDArray[np.float32]) -> pa.RecordBatch:
    """What prep passes on of these rows if ``values`` (n, WIDTH) are their features."""
    return attach(raw, packed_slowly(values, np.asarray(raw.column("merchant").indices)))


class Chain:
    """A ``partition.Work`` whose every output depends on all rows of the card before it, in order."""

    def __init__(self, sampling: bool = True) -> None:
        self.sampling = sampling
        self.restore(None)

    def restore(self, arrays: Arrays | None) -> None:
        self.links = np.zeros(16, np.int64) if arrays is None else arrays["links"].copy()

    def arrays(self) -> Arrays:
        return {"links": self.links}

    def apply(self, batch: pa.RecordBatch) -> Outcome:
        cents = batch.column("amt_cents").to_numpy()
        rejects = [Reject(int(row) + 1, "forbidden", "4" * 16) for row in np.flatnonzero(cents == FORBIDDEN_CENTS)]
        good = batch.filter(pa.array(cents != FORBIDDEN_CENTS)) if rejects else batch
        links = np.empty(good.num_rows, np.int64)
        cards = good.column("card").to_numpy()
        amounts = good.column("amt_cents").to_numpy()
        for row, (card, amount) in enumerate(zip(cards.tolist(), amounts.tolist(), strict=True)):
            links[row] = self.links[card % 16] = (int(self.links[card % 16]) * 31 + amount) % 1_000_000_007
        names = ["trans_num", "card", "link"]
        columns = [good.column("trans_num"), good.column("card"), pa.array(links)]
        return Outcome(pa.RecordBatch.from_arrays(columns, names), rejects)

    def sample(self, outcome: Outcome) -> pa.RecordBatch | None:
        return outcome.features.slice(0, 1) if self.sampling and outcome.features.num_rows else None


def volume_at(root: Path, files: Files | None = None, partitions: int = 1) -> Volume:
    """A prepared volume; by default without fsync."""
    root.mkdir(parents=True, exist_ok=True)
    Volume(root, Files(fsync=False)).prepare(partitions)
    return Volume(root, files or Files(fsync=False))


def publish(
    volume: Volume, sizes: Sequence[int], producer: str = "g00", partitions: int = 1, finite: bool = False
) -> None:
    """Go on publishing the endless source as ``producer``, in flushes of ``sizes`` rows."""
    source = Producer(volume, producer, partitions, f"feeder{producer}")
    position = source.resume()
    row = int(position.cursor or 0)
    for index, size in enumerate(sizes):
        ended = finite and index == len(sizes) - 1
        source.publish(raw_batch(row, size), cursor=str(row + size), watermark=row + size, ended=ended, finite=finite)
        row += size
    source.close()


class Downstream:
    """Takes what is published as soon as it is asked to, and keeps every copy it ever got."""

    def __init__(self, volume: Volume, topic: str = "features-ready") -> None:
        self._volume = volume
        self._ready = volume.queue / topic / "ready"
        self.taken: list[tuple[str, list[dict[str, Any]]]] = []

    def take(self) -> None:
        for path in sorted(self._ready.glob("*.arrow")):
            batch, info = read_features(self._volume, path)
            assert info.name == path.stem
            self.taken.append((info.name, batch.to_pylist()))
            path.unlink()
            companion(self._volume, info.name).unlink(missing_ok=True)

    def by_name(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by segment; asserts that none came twice."""
        names = [name for name, _ in self.taken]
        assert len(names) == len(set(names)), f"published twice: {sorted(names)}"
        return dict(self.taken)

    def rows(self) -> list[str]:
        """``trans_num`` of all rows that came, in order of production within a producer."""
        return [row["trans_num"] for _, rows in sorted(self.by_name().items()) for row in rows]


def drain(log: PartitionLog, checkpoint_each: int = 0) -> None:
    """Steps until there is nothing to do, also over LostErrors; a checkpoint after each so many steps."""
    done = idle = 0
    while idle < 5:
        try:
            idle = idle + 1 if log.step() == 0 else 0
        except LostError:
            continue
        done += 1
        if checkpoint_each and done % checkpoint_each == 0:
            log.checkpoint(force=True)


def waiting_files(volume: Volume, *folders: str) -> Iterator[str]:
    """Files anywhere below folders of the queue, hidden ones too."""
    for folder in folders:
        for path in (volume.queue / folder).rglob("*"):
            if path.is_file():
                yield str(path.relative_to(volume.queue))


def raw_name(seq: int, producer: str = "g00", partition: int = 0, epoch: int = 1) -> SegmentName:
    return SegmentName(epoch, producer, partition, seq)
