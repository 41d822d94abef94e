"""A real file in the Sparkov layout as a source: CSV or Parquet, streamed, once or looping.

A CSV is read in blocks of whole lines, so a line break inside quotes is a malformed row. A block that parses as it
should goes the fast way; one that doesn't is read line by line, so that each malformed line is refused on its own.
A turn of the loop after the first shifts event time on and makes ``trans_num`` new; rows refused are refused once.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.generator.source import Chunk, Reject
from spearhead import edge
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer, tokenizer

BLOCK_BYTES: Final = 4 << 20
BLOCK_ROWS: Final = 16_384
LONGEST_LINE: Final = 1 << 20
GAP_US: Final = 60_000_000  # between the last row of a turn and the first of the next


class ReplayError(ValueError):
    """The file can't be replayed; the message says why and names what is missing."""


class Cursor(msgspec.Struct, omit_defaults=True):
    """Where a replay goes on; JSON in the segments' metadata."""

    file: str  # size and hash of the header: a replay can't go on in another file
    turn: int = 0
    place: int = 0  # of the block: byte offset (CSV) or row (Parquet)
    line: int = 0  # lines or rows before the block
    skip: int = 0  # records of the block that are done
    first_time: int | None = None  # event times of turn 0 so far, us since 1970
    last_time: int = 0
    watermark: int = 0
    accepted: bool = False  # the file holds at least one row that is accepted


class Block(NamedTuple):
    """Records of the file in order. ``lines`` are their line numbers, ``malformed`` what is no record at all."""

    place: int
    line: int
    next_place: int
    next_line: int
    rows: pl.DataFrame  # texts, by column; well-formed records only
    lines: list[int] | range  # of all records, malformed ones too
    malformed: dict[int, str]  # position among the records -> reason
    texts: list[str] | None  # the records as text; None: made from ``rows``


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
            names = next(csv.reader([header.decode("utf-8-sig").strip()], strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ReplayError(f"{path} has no CSV header line: {error}") from error
        _require(path, names)
        self._names = [name or f"unnamed{i}" for i, name in enumerate(names)]
        self._wanted = [name for name in self._names if name in edge.REQUIRED or name in edge.OPTIONAL]
        self.identity = f"{path.stat().st_size}-{hashlib.sha256(header).hexdigest()[:16]}"

    def blocks(self, place: int, line: int) -> Iterator[Block]:
        """Blocks from byte ``place`` (0: the first row) on; ``line`` lines come before it."""
        place, line = (place, line) if place else (self._start, 1)
        with self.path.open("rb") as file:
            file.seek(place)
            while data := file.read(BLOCK_BYTES):
                if not data.endswith(b"\n"):
                    data += file.readline(LONGEST_LINE)
                count = data.count(b"\n") + (not data.endswith(b"\n"))
                yield self._block(data, place, line, count)
                place, line = place + len(data), line + count

    def _block(self, data: bytes, place: int, line: int, count: int) -> Block:
        rows = self._parse(data)
        if rows is not None and rows.height == count:
            lines = range(line + 1, line + count + 1)
            return Block(place, line, place + len(data), line + count, rows, lines, {}, None)
        return self._line_by_line(data, place, line, count)

    def _parse(self, data: bytes) -> pl.DataFrame | None:
        """All lines at once; None if one of them is not as it should be."""
        try:
            table = pacsv.read_csv(
                io.BytesIO(data),
                read_options=pacsv.ReadOptions(use_threads=False, column_names=self._names, block_size=2 * len(data)),
                convert_options=pacsv.ConvertOptions(
                    include_columns=self._wanted, column_types=dict.fromkeys(self._wanted, pa.string())
                ),
            )
        except pa.ArrowInvalid:
            return None
        return pl.DataFrame(pl.from_arrow(table))

    def _line_by_line(self, data: bytes, place: int, line: int, count: int) -> Block:
        at = [self._names.index(name) for name in self._wanted]
        lines: list[int] = []
        texts: list[str] = []
        good: list[list[str]] = []
        malformed: dict[int, str] = {}
        for number, raw in enumerate(data.split(b"\n"), line + 1):
            if not raw.strip():
                continue
            fields, fault = self._fields(raw)
            if fault:
                malformed[len(lines)] = fault
            else:
                good.append([fields[i] for i in at])
            lines.append(number)
            texts.append(raw.decode(errors="replace").rstrip("\r"))
        rows = pl.DataFrame(good, schema=dict.fromkeys(self._wanted, pl.String), orient="row")
        return Block(place, line, place + len(data), line + count, rows, lines, malformed, texts)

    def _fields(self, raw: bytes) -> tuple[list[str], str]:
        try:
            fields = next(csv.reader([raw.decode().rstrip("\r")], strict=True))
        except UnicodeDecodeError:
            return [], "line is not UTF-8"
        except csv.Error as error:
            return [], f"line is not CSV: {error}"
        if len(fields) != len(self._names):
            return [], f"line has {len(fields)} fields, the header has {len(self._names)}"
        return fields, ""


class ParquetFile:
    """A Parquet file; its columns may be of any type that reads as text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ReplayError(f"{path} is not a whole Parquet file: {error}") from error
        names = self._file.schema_arrow.names
        _require(path, names)
        self._wanted = [name for name in names if name in edge.REQUIRED or name in edge.OPTIONAL]
        digest = hashlib.sha256(str(self._file.schema_arrow).encode()).hexdigest()[:16]
        self.identity = f"{path.stat().st_size}-{digest}"

    def blocks(self, place: int, line: int) -> Iterator[Block]:
        """Blocks from row ``place`` on, which is a block's first; ``line`` is the same number."""
        start = 0
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            if place < end:
                yield from self._group(group, start, place)
            start = end

    def _group(self, group: int, start: int, place: int) -> Iterator[Block]:
        batches = self._file.iter_batches(BLOCK_ROWS, row_groups=[group], columns=self._wanted, use_threads=False)
        for batch in batches:
            end = start + batch.num_rows
            if start >= place:
                rows = pl.DataFrame(pl.from_arrow(batch)).with_columns(pl.all().cast(pl.String, strict=False))
                yield Block(start, start, end, end, rows, range(start + 1, end + 1), {}, None)
            start = end


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
    """A block, checked: which of its records are accepted, and why the others aren't."""

    block: Block
    accepted: pl.DataFrame
    positions: NDArray[np.int64]  # (accepted,) where the accepted ones are among the block's records
    reasons: dict[int, str]
    records: int


class Replay:
    """Rows of a file in its own order; the event times are the file's."""

    finite: ClassVar[bool]

    def __init__(self, path: Path, tokens: Tokenizer, loop: bool, cursor: str = "") -> None:
        self.finite = not loop  # type: ignore[misc]
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
            elif self.finite or not at.accepted:
                return None
            else:
                at.turn, at.place, at.line, at.skip = at.turn + 1, 0, 0, 0
                self._blocks = self._layout.blocks(0, 0)

    def _check(self, block: Block) -> _Checked:
        records = len(block.lines)
        checked = edge.check(block.rows)
        good = np.array([i for i in range(records) if i not in block.malformed], np.int64)
        if not block.malformed:
            good = np.arange(records, dtype=np.int64)
        refused = checked.reason.is_not_null().arg_true().to_list()
        reasons = {int(good[i]): checked.reason[i] for i in refused} | block.malformed
        return _Checked(block, checked.accepted, good[checked.positions], reasons, records)

    def _cut(self, checked: _Checked, rows: int) -> tuple[pl.DataFrame, list[Reject], int]:
        """Up to ``rows`` records from the cursor on: those accepted, those refused, and how many are then done."""
        start = self._at.skip
        if self._at.turn == 0:
            end = min(start + rows, checked.records)
            refused = [self._reject(checked, i) for i in sorted(checked.reasons) if start <= i < end]
        else:  # refused in turn 0 already
            rank = int(np.searchsorted(checked.positions, start)) + rows
            end = int(checked.positions[rank - 1]) + 1 if rank <= len(checked.positions) else checked.records
            refused = []
        low, high = np.searchsorted(checked.positions, [start, end])
        return self._in_turn(checked.accepted.slice(int(low), int(high - low))), refused, end - start

    def _reject(self, checked: _Checked, i: int) -> Reject:
        block = checked.block
        if block.texts is not None:
            text = block.texts[i]
        else:
            text = ",".join("" if value is None else value for value in block.rows.row(i))
        return Reject(block.lines[i], checked.reasons[i], text)

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
        assert at.first_time is not None
        shift = at.turn * (at.last_time - at.first_time + GAP_US)
        at.watermark = max(high + shift, at.watermark)
        return accepted.with_columns(
            pl.col("event_time") + pl.duration(microseconds=shift), pl.col("trans_num") + f".{at.turn}"
        )
