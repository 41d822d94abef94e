"""A real file in the Sparkov layout as a source: CSV or Parquet, streamed, once or looping.

A CSV is read in blocks of whole lines, a Parquet file in batches of a row group, so memory does not grow with the file.
A record is a line: a line break inside quotes is a malformed row, and no row can spoil another. A turn of the loop
after the first shifts event time on by whole days and makes ``trans_num`` new; rows refused are refused once.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.generator.source import Chunk, Reject
from spearhead import edge
from spearhead.delimited import LONGEST_LINE, cut
from spearhead.mask import mask
from spearhead.schema import LAST_TIME_US
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer, tokenizer

BLOCK_BYTES: Final = 8 << 20
BLOCK_ROWS: Final = 32_768
LONGEST_TEXT: Final = 1_000  # characters of a refused line that are kept
DAY_US: Final = 86_400_000_000
TURN_MARK: Final = "~"  # comes in no trans_num that the edge accepts, so no row of a later turn meets one of the file


class ReplayError(ValueError):
    """The file can't be replayed; the message says why and names what is missing."""


class Cursor(msgspec.Struct, omit_defaults=True):
    """Where a replay goes on; JSON in the segments' metadata."""

    file: str  # size, time and hash of the header: a replay can't go on in another file
    turn: int = 0
    place: int = 0  # of the block: byte offset (CSV) or row (Parquet)
    line: int = 0  # lines or rows before the block
    skip: int = 0  # records of the block that are done
    first_time: int | None = None  # event times of turn 0 so far, us since 1970
    last_time: int = 0
    watermark: int = 0
    accepted: bool = False  # the file holds at least one row that is accepted


class Block(NamedTuple):
    """Records of the file in order."""

    place: int
    line: int
    next_place: int
    next_line: int
    rows: pl.DataFrame  # texts, by column; well-formed records only
    lines: NDArray[np.int64]  # line numbers of all records, malformed ones too
    malformed: dict[int, Malformed]  # by position among the records


class Malformed(NamedTuple):
    """What is no row."""

    reason: str
    text: str


class Layout(Protocol):
    """A file format."""

    identity: str

    def blocks(self, place: int, line: int) -> Iterator[Block]: ...


class CsvFile:
    """A CSV file with a header line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            header = file.readline(LONGEST_LINE)
            self._start = file.tell()
        if not header.strip():
            raise ReplayError(f"{path} is empty: it needs a header line and rows")
        try:
            names = next(csv.reader([header.decode("utf-8-sig").strip("\r\n")], strict=True))
        except (UnicodeDecodeError, csv.Error, StopIteration) as error:
            raise ReplayError(f"{path} has no CSV header line: {error}") from error
        self._names = [name.strip() for name in names]
        self._wanted = _wanted(path, self._names)
        self.identity = _identity(path, header)

    def blocks(self, place: int, line: int) -> Iterator[Block]:
        """Blocks from byte ``place`` (0: the first row) on; ``line`` lines come before it."""
        place, line = (place, line) if place else (self._start, 1)
        with self.path.open("rb") as file:
            file.seek(place)
            while data := _whole_lines(file):
                block = self._block(data, place, line, file.tell())
                yield block
                place, line = block.next_place, block.next_line

    def _block(self, data: bytes, place: int, line: int, next_place: int) -> Block:
        found = cut(data, self._names, self._wanted)
        malformed = {
            i: Malformed(reason, mask(data[found.start[i] : found.end[i]].decode(errors="replace"))[:LONGEST_TEXT])
            for i, reason in found.faults.items()
        }
        return Block(place, line, next_place, line + found.lines, found.rows, found.line + line + 1, malformed)


def _whole_lines(file: BinaryIO) -> bytes:
    """About BLOCK_BYTES of lines; of a line longer than LONGEST_LINE the rest is passed over."""
    data = file.read(BLOCK_BYTES)
    if data and not data.endswith(b"\n"):
        rest = file.readline(LONGEST_LINE)
        data += rest
        while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
    return data


class ParquetFile:
    """A Parquet file; its columns may be of any type that reads as text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ReplayError(f"{path} is not a whole Parquet file: {error}") from error
        schema = self._file.schema_arrow
        self._wanted = _wanted(path, schema.names)
        for name in self._wanted:
            _require_type(path, schema.field(name))
        self.identity = _identity(path, str(schema).encode())

    def blocks(self, place: int, line: int) -> Iterator[Block]:
        """Blocks from row ``place`` on, which is a block's first; ``line`` is the same number."""
        start = 0
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            if place < end:
                yield from self._group(group, start, end, place)
            start = end

    def _group(self, group: int, start: int, end: int, place: int) -> Iterator[Block]:
        try:
            for batch in self._file.iter_batches(
                BLOCK_ROWS, row_groups=[group], columns=self._wanted, use_threads=False
            ):
                following = start + batch.num_rows
                if start >= place:
                    yield _rows_block(start, following, _as_texts(batch))
                start = following
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
                raise
            yield self._damaged(start, end)

    def _damaged(self, start: int, end: int) -> Block:
        rows = pl.DataFrame(schema=dict.fromkeys(self._wanted, pl.String))
        reason = f"rows {start + 1:,} to {end:,} can't be read: the file is damaged there"
        return Block(start, start, end, end, rows, np.array([start + 1]), {0: Malformed(reason, "")})


def _rows_block(start: int, end: int, rows: pl.DataFrame) -> Block:
    return Block(start, start, end, end, rows, np.arange(start + 1, end + 1), {})


def _as_texts(batch: pa.RecordBatch) -> pl.DataFrame:
    """Every value as a CSV file would have it."""
    frame = pl.DataFrame(pl.from_arrow(batch))
    zoned = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime) and kind.time_zone]
    times = (pl.col(name).dt.convert_time_zone("UTC").dt.replace_time_zone(None) for name in zoned)
    return frame.with_columns(times).with_columns(pl.all().cast(pl.String, strict=False))


def _identity(path: Path, header: bytes) -> str:
    found = path.stat()
    return f"{found.st_size}-{found.st_mtime_ns}-{hashlib.sha256(header).hexdigest()[:16]}"


def _require_type(path: Path, field: pa.Field) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_nested(kind) or (field.name == "cc_num" and pa.types.is_floating(kind)):
        exact = " exactly" if field.name == "cc_num" else ""
        raise ReplayError(f"{path} can't be replayed: column {field.name} has type {kind}, which can't hold it{exact}")


def _wanted(path: Path, names: list[str]) -> list[str]:
    """Columns that are read. Raises ReplayError if one is missing or there twice."""
    _require(path, names)
    return [name for name in names if name in edge.REQUIRED or name in edge.OPTIONAL]


def _require(path: Path, names: list[str]) -> None:
    missing = [name for name in edge.REQUIRED if name not in names]
    if missing:
        raise ReplayError(f"{path} can't be replayed: column{'s' * (len(missing) > 1)} {', '.join(missing)} missing")
    double = sorted({name for name in names if name and names.count(name) > 1})
    if double:
        raise ReplayError(f"{path} can't be replayed: column {', '.join(double)} is there more than once")


def open_layout(path: Path) -> Layout:
    """The file at ``path``. Raises ReplayError if it can't be replayed."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        return ParquetFile(path) if magic == b"PAR1" or path.suffix == ".parquet" else CsvFile(path)
    except OSError as error:
        raise ReplayError(f"source {path} can't be read: {error.strerror}") from error


def open_replay(settings: Settings, cursor: str) -> Replay:
    """The source of SOURCE and LOOP, at ``cursor``. Raises ReplayError, ConfigurationError."""
    assert settings.source is not None
    return Replay(settings.source, tokenizer(settings), settings.loop, cursor)


class _Checked(NamedTuple):
    """A block, checked: which of its records are accepted, and what is wrong with the others."""

    block: Block
    accepted: pl.DataFrame
    positions: NDArray[np.int64]  # (accepted,) where the accepted ones are among the block's records
    refused: dict[int, Malformed]  # by position among the records
    records: int


class Replay:
    """Rows of a file in its own order; the event times are the file's."""

    def __init__(self, path: Path, tokens: Tokenizer, loop: bool, cursor: str = "") -> None:
        self.finite = not loop
        self._path = path
        self._tokens = tokens
        self._layout = open_layout(path)
        self._at = self._resume(cursor)
        self._blocks = self._layout.blocks(self._at.place, self._at.line)
        self._checked: _Checked | None = None

    def _resume(self, cursor: str) -> Cursor:
        if not cursor:
            return Cursor(file=self._layout.identity)
        at = msgspec.json.decode(cursor, type=Cursor)
        if at.file != self._layout.identity:
            raise ReplayError(f"source {self._path} is not the file that this replay began with (it has changed)")
        return at

    def take(self, rows: int) -> Chunk:
        """At most ``rows`` and ``edge.MAX_ROWS`` records; fewer only where the source ends."""
        rows = min(rows, edge.MAX_ROWS)
        pieces: list[pl.DataFrame] = []
        rejected: list[Reject] = []
        taken = 0
        while taken < rows and (checked := self._current()) is not None:
            accepted, refused, count = self._cut(checked, rows - taken)
            pieces.append(accepted)
            rejected.extend(refused)
            taken += accepted.height + len(refused)
            self._at.skip += count
        batch = edge.to_batch(pl.concat(pieces) if pieces else edge.empty(), self._tokens)
        cursor = msgspec.json.encode(self._at).decode()
        return Chunk(batch, rejected, cursor, self._at.watermark, self._current() is None)

    def _current(self) -> _Checked | None:
        """The block at the cursor, with records that are not done; None at the end of the source."""
        at = self._at
        while True:
            if self._checked is not None:
                if at.skip < self._checked.records:
                    return self._checked
                block = self._checked.block
                at.place, at.line, at.skip = block.next_place, block.next_line, 0
                self._checked = None
            following = next(self._blocks, None)
            if following is not None:
                self._checked = self._check(following)
            elif self.finite or not at.accepted or self._shift(at.turn + 1) + at.last_time >= LAST_TIME_US:
                return None
            else:
                at.turn, at.place, at.line, at.skip = at.turn + 1, 0, 0, 0
                self._blocks = self._layout.blocks(0, 0)

    def _check(self, block: Block) -> _Checked:
        records = len(block.lines)
        checked = edge.check(block.rows)
        good = np.delete(np.arange(records), list(block.malformed))
        refused = checked.reason.is_not_null().arg_true().to_list()
        rejects = {
            int(good[i]): Malformed(checked.reason[i], edge.as_text(block.rows.row(i, named=True))[:LONGEST_TEXT])
            for i in refused
        }
        return _Checked(block, checked.accepted, good[checked.positions], rejects | block.malformed, records)

    def _cut(self, checked: _Checked, rows: int) -> tuple[pl.DataFrame, list[Reject], int]:
        """Up to ``rows`` records from the cursor on: those accepted, those refused, and how many are then done."""
        start = self._at.skip
        if self._at.turn == 0:
            end = min(start + rows, checked.records)
            bad = ((i, checked.refused[i]) for i in sorted(checked.refused) if start <= i < end)
            refused = [Reject(int(checked.block.lines[i]), *found) for i, found in bad]
        else:  # refused in turn 0 already
            rank = int(np.searchsorted(checked.positions, start)) + rows
            end = int(checked.positions[rank - 1]) + 1 if rank <= len(checked.positions) else checked.records
            refused = []
        low, high = np.searchsorted(checked.positions, [start, end])
        return self._in_turn(checked.accepted.slice(int(low), int(high - low))), refused, end - start

    def _in_turn(self, accepted: pl.DataFrame) -> pl.DataFrame:
        """The rows as this turn gives them; notes their event times."""
        at = self._at
        if not accepted.height:
            return accepted
        times = accepted["event_time"].cast(pl.Int64)
        low, high = int(times.min()), int(times.max())  # type: ignore[arg-type]
        at.accepted = True
        if at.turn == 0:
            at.first_time = low if at.first_time is None else min(low, at.first_time)
            at.last_time = max(high, at.last_time)
            at.watermark = max(high, at.watermark)
            return accepted
        shift = self._shift(at.turn)
        at.watermark = max(high + shift, at.watermark)
        return accepted.with_columns(
            pl.col("event_time") + pl.duration(microseconds=shift), pl.col("trans_num") + f"{TURN_MARK}{at.turn}"
        )

    def _shift(self, turn: int) -> int:
        """Microseconds by which a turn comes later: as many whole days as the file needs, so that hours stay hours."""
        assert self._at.first_time is not None
        return turn * ((self._at.last_time - self._at.first_time) // DAY_US + 1) * DAY_US
