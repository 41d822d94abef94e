"""The hot folder ``raw-data/inbox/``: CSV, Parquet and NDJSON files dropped there become rows, exactly once.

A file is taken when it has stood still for a moment, and deleted once all its rows are durable. One API process at a
time is the producer ``i00``; how far it is stands in its newest segment's cursor, so a killed one's successor goes on
there. Refused rows are set aside with card numbers masked, as those of a replay. So is a file that can't be read at
all: it goes away once a masked copy (of a text) and the reason are durable in raw-transactions' ``dead/``.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr, ClassVar, Final, NamedTuple

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from services.api.dropped import LOOK_SECONDS, Dropped
from services.api.ingest import finish, unfinished
from services.api.taker import Means, Taker
from spearhead import edge
from spearhead.rejects import LONGEST_NAME, Reason, Reject, dead_name, move_aside
from spearhead.schema import RAW, came_together
from spearhead.tokens import Tokenizer

PRODUCER: Final = "i00"
BATCH: Final = 30_000  # records in a segment: the same after a kill, so that a cut-short flush is made again alike
LONGEST_TEXT: Final = 1_000  # characters of a refused row that are kept
LONGEST_LINE: Final = 1024**2  # characters, or bytes
COLUMNS: Final = (*edge.REQUIRED, *edge.OPTIONAL)


class Mark(msgspec.Struct, frozen=True):
    """The cursor of an inbox segment: records of the file up to ``done`` are published; ``end``: all are."""

    identity: str
    done: int
    end: bool
    name: str = ""  # of the file, below the inbox


class UnreadableError(ValueError):
    """Nothing in the file can be read as rows."""


class Inbox(Taker):
    """Takes files of rows."""

    name: ClassVar[str] = "inbox"
    slot: ClassVar[str] = PRODUCER

    def __init__(self, means: Means, tokens: Callable[[], Tokenizer]) -> None:
        super().__init__(means, Dropped(means.volume.files, means.volume.raw_data / "inbox"))
        self._tokens = tokens

    def look(self) -> None:
        """One look: finish requests that were cut short, take every file that is complete.

        Raises OSError, SegmentError, VolumeError, ConfigurationError.
        """
        ready, cut_short = self._dropped.complete(), unfinished(self._volume)
        if not ready and not cut_short:
            return
        self._beat()
        finish(self._volume, cut_short, self._settings.partitions, self._worker, self._roster.alive())
        if not ready or not self._lease.take(self._roster.alive()):
            return
        self._resume()
        begun = self._begun()
        if begun and begun not in ready:
            return
        for name in sorted(ready, key=lambda name: name != begun):
            if self._stop.is_set():
                return
            self._take(name)

    # One file

    def _take(self, name: str) -> None:
        path, identity = self._folder / name, self._dropped.identity(name)
        self._resume()
        mark = self._mark(identity)
        if not mark.end:
            try:
                if not self._publish_from(path, identity, mark.done):
                    return
            except UnreadableError as error:
                self._refuse(path, identity, f"{error}; rows taken before: {self._mark(identity).done:,}")
                return
        self._volume.files.remove(path)
        self._volume.files.sync_folders([path.parent])
        self._log.info("inbox file taken", file=name, rows=self._taken)

    def _mark(self, identity: str) -> Mark:
        """How much of the file is published."""
        newest = self._newest_mark()
        return newest if newest is not None and newest.identity == identity else Mark(identity, 0, False)

    def _begun(self) -> str:
        """The file that is published in part and still there: it comes before any other, whose cursor would hide it."""
        newest = self._newest_mark()
        if newest is None or newest.end or self._dropped.identity(newest.name) != newest.identity:
            return ""
        return newest.name

    def _newest_mark(self) -> Mark | None:
        assert self._producer is not None
        cursor = self._producer.position.cursor
        return msgspec.json.decode(cursor, type=Mark) if cursor else None

    def _publish_from(self, path: Path, identity: str, done: int) -> bool:
        """Publish the records after ``done``; whether that was all of them (else: stopped, or a reset)."""
        batches = records(path, done)
        batch = next(batches, None)
        while batch is not None:
            following = next(batches, None)
            while self._held_back() and not self._stop.wait(LOOK_SECONDS):
                self._beat()
            if self._stop.is_set() or self._volume.epoch() != self._epoch:
                return False
            self._beat()
            self._publish(
                batch, Mark(identity, done + batch.height, following is None, str(path.relative_to(self._folder))), done
            )
            done += batch.height
            batch = following
        return True

    def _publish(self, rows: pl.DataFrame, mark: Mark, before: int) -> None:
        assert self._producer is not None
        checked = edge.check(rows)
        batch = _stamped(edge.to_batch(checked.accepted, self._tokens()))
        rejected = [
            Reject(before + row + 1, reason, edge.as_text(rows.row(row, named=True))[:LONGEST_TEXT])
            for row, reason in enumerate(checked.reason)
            if reason is not None
        ]
        newest = checked.accepted["event_time"].cast(pl.Int64).max() if batch.num_rows else 0
        assert isinstance(newest, int)
        watermark = max(self._producer.position.watermark, newest)
        cursor = msgspec.json.encode(mark).decode()
        self._producer.publish(batch, rejected=rejected, cursor=cursor, watermark=watermark)
        self._taken += rows.height

    def _refuse(self, path: Path, identity: str, reason: str) -> None:
        """Its rows are counted by nobody: those before the fault are published, the others never will be."""
        files, name = self._volume.files, set_aside_name(self._epoch, path.name, identity)
        move_aside(files, path, self._volume.raw / "dead", Reason(reason=reason, rows=0), name)
        self._log.error("inbox file refused", file=path.name, set_aside=name, reason=reason)


def set_aside_name(epoch: int, name: str, identity: str) -> str:
    """What a refused file is called in ``dead/``: another one of the same name is another file."""
    return f"e{epoch:04d}-inbox-{hashlib.sha256(identity.encode()).hexdigest()[:8]}-{dead_name(name)[-LONGEST_NAME:]}"


class Layout(NamedTuple):
    """Columns that are read from a file, and those that must be there."""

    columns: Sequence[str]
    required: Sequence[str]


ROWS: Final = Layout(COLUMNS, edge.REQUIRED)


def records(path: Path, done: int, layout: Layout = ROWS) -> Iterator[pl.DataFrame]:
    """The records after the first ``done``, BATCH at a time, every value text or null. Raises UnreadableError."""
    kind = path.suffix.lower()
    readers = {".csv": _csv, ".parquet": _parquet, ".ndjson": _ndjson, ".jsonl": _ndjson}
    if kind not in readers:
        raise UnreadableError(f"{path.name}: the name must end in one of {', '.join(readers)}")
    rows = itertools.islice(readers[kind](path, layout), done, None)
    while some := list(itertools.islice(rows, BATCH)):
        yield pl.DataFrame(some, schema=dict.fromkeys(layout.columns, pl.String), orient="row")


def _csv(path: Path, layout: Layout) -> Iterator[list[str | None]]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(line.replace("\0", "") for line in _lines(path, file))
        places = _places(path, next(lines, []), layout)
        try:
            for cells in lines:
                if cells:
                    yield [cells[place] if place is not None and place < len(cells) else None for place in places]
        except csv.Error as error:
            raise UnreadableError(f"{path.name}: line {lines.line_num}: {error}") from error


def _parquet(path: Path, layout: Layout) -> Iterator[list[str | None]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            places = _places(path, names, layout)
            for batch in file.iter_batches(BATCH, columns=[names[place] for place in places if place is not None]):
                columns = [
                    batch.column(names[place]).cast(pa.string()).to_pylist()
                    if place is not None
                    else [None] * len(batch)
                    for place in places
                ]
                yield from (list(cells) for cells in zip(*columns, strict=True))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path.name}: not a Parquet file of such rows: {error}") from error
    except OSError as error:
        if error.errno is None:  # not the volume's: a damaged page
            raise UnreadableError(f"{path.name}: damaged: {error}") from error
        raise


def _ndjson(path: Path, layout: Layout) -> Iterator[list[str | None]]:
    with path.open("rb") as file:
        for line in _lines(path, file):
            if line.strip():
                yield _cells(line, layout.columns)


def _lines(path: Path, file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Raises UnreadableError at a line too long to be rows: it is not read to its end."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise UnreadableError(f"{path.name}: a line is longer than {LONGEST_LINE:,} characters")
        yield line


def _cells(line: bytes, columns: Sequence[str]) -> list[str | None]:
    """A line that is no object becomes a row without values, which the edge refuses."""
    try:
        record = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [None] * len(columns)
    return [_text(record.get(name)) for name in columns]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return "" if isinstance(value, dict | list) else str(value)


def _places(path: Path, header: list[str], layout: Layout) -> list[int | None]:
    """Where the columns are. Raises UnreadableError if one that is needed is not there."""
    names = [name.strip() for name in header]
    missing = [name for name in layout.required if name not in names]
    if missing:
        raise UnreadableError(f"{path.name}: columns are missing: {', '.join(missing)}")
    return [names.index(name) if name in names else None for name in layout.columns]


def _stamped(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With the wall time at which the rows came in: now."""
    index = RAW.get_field_index("ingested_at")
    return batch.set_column(index, RAW.field(index), came_together(batch.num_rows, time.time_ns() // 1000))
