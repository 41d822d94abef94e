"""queue/inference-results/archive: unlabelled decisions whose result file is gone, for labels that come weeks later.

Whoever removes result files puts their unlabelled decisions here first (``Archive.put``), sorted by the hash of
``trans_num``: a look-up is a binary search in each file. ``tidy`` merges small files of a day and removes the oldest
beyond the limits. A decision may be in two files, for all of this may be done again after a kill, or by two workers at
once; it is the same in both, and a merge keeps one.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spearhead.decided import DECISION, Decided
from spearhead.hashing import hash_strings
from spearhead.rejects import Reason, move_aside
from spearhead.schema import UNKNOWN_LABEL
from spearhead.segment import SUFFIX, SegmentError, SegmentInfo, SegmentName, read_segment, write_segment
from spearhead.volume import Volume

FULL_ROWS: Final = 524_288  # a file of so many is merged no more
MAX_SMALL: Final = 16  # files of one day that are not full
LOOKS: Final = 8  # listings of the folder, if files are merged under a reader's eyes
ABANDONED_SECONDS: Final = 3600.0  # age of a temporary file that is nobody's any more
NAMES: Final = pa.dictionary(pa.int32(), pa.string())
ARCHIVE: Final = pa.schema(
    [
        pa.field("trans", pa.uint64(), nullable=False),  # hash of trans_num, ascending
        *(
            pa.field(field.name, NAMES, nullable=False) if field.name in ("merchant", "producer") else field
            for field in DECISION
            if field.name not in ("trans_num", "own_label")
        ),
        pa.field("amt_cents", pa.int32(), nullable=False),
        pa.field("risk_score", pa.float32(), nullable=False),
    ]
)
ARCHIVED: Final = pa.schema([*DECISION, ARCHIVE.field("amt_cents"), ARCHIVE.field("risk_score")])
"""What is told of an archived decision, by its ``trans_num``."""
_NAME = re.compile(r"^e(\d{4,})-(\d{8})-(\d+)-[0-9a-f]{12}\.arrow$")
_log = logging.getLogger(__name__)


class _File(NamedTuple):
    """What a file's name says."""

    epoch: int
    day: str  # UTC, on which its decisions left the results, such as 20240131
    rows: int
    name: str

    @classmethod
    def parse(cls, name: str) -> _File | None:
        match = _NAME.match(name)
        return cls(int(match[1]), match[2], int(match[3]), name) if match else None


class Archive:
    """One process's view of the archive."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._decided = Decided(volume)

    def put(self, epoch: int, results: Sequence[Path], now: float) -> int:
        """Add the unlabelled decisions of result files, durable on return; how many. ``now`` is the server's time.

        A file that is gone was put by another worker; of one that can't be read nothing can be kept. Raises OSError.
        """
        batches = [batch for path in results if (batch := self._unlabelled(path, epoch)) is not None]
        if batches:
            self._write(epoch, _day(now), pa.Table.from_batches(batches, ARCHIVE))
        return sum(batch.num_rows for batch in batches)

    def find(self, epoch: int, trans_nums: Sequence[str]) -> pa.Table:
        """Of schema ARCHIVED, the archived decisions on ``trans_nums``, each once. Raises OSError."""
        search = _Search(trans_nums)
        searched: set[str] = set()
        for _ in range(LOOKS):
            names = {file.name for file in self._files(epoch)} - searched
            gone = [name for name in names if not self._search(name, search)]  # what they held is in others by now
            if not gone:
                break
            searched |= names
        return pa.Table.from_batches(search.found, ARCHIVED)

    def tidy(self, epoch: int, now: float, max_seconds: float, max_bytes: int) -> None:
        """Remove what is over the limits (0: none), oldest day first, and other epochs' files; merge small ones.

        Raises OSError.
        """
        self._volume.files.remove_temporaries(self._volume.archive, now - ABANDONED_SECONDS)
        for name in self._volume.files.list(self._volume.archive):
            file = _File.parse(name)
            if file is None or file.epoch < epoch:
                self._volume.files.remove(self._volume.archive / name)
        self._limit(epoch, now, max_seconds, max_bytes)
        self._merge_days(epoch, _day(now))

    # Writing

    def _unlabelled(self, path: Path, epoch: int) -> pa.RecordBatch | None:
        try:
            batch, info = read_segment(path)
        except FileNotFoundError:
            return None
        except SegmentError as error:
            _log.warning("decisions of a damaged result file are not archived: %s", error)
            return None
        name = SegmentName.parse(info.name)
        if name is None or name.epoch != epoch or not batch.column("is_fraud").null_count:
            return None
        rows = batch.filter(pc.is_null(batch.column("is_fraud")))
        decisions = self._decided.of(rows, name.producer)
        made = {
            "trans": pa.array(hash_strings(decisions.column("trans_num"))),
            "merchant": decisions.column("merchant").dictionary_encode(),
            "producer": decisions.column("producer").dictionary_encode(),
            "amt_cents": pa.array(np.round(np.asarray(rows.column("amt")) * 100).astype(np.int32)),
            "risk_score": rows.column("risk_score"),
        }
        arrays = [made[field.name] if field.name in made else decisions.column(field.name) for field in ARCHIVE]
        return pa.RecordBatch.from_arrays(arrays, schema=ARCHIVE)

    def _write(self, epoch: int, day: str, table: pa.Table) -> None:
        batch = _sorted_once(table)
        files, folder = self._volume.files, self._volume.archive
        token = secrets.token_hex(6)
        name = f"e{epoch:04d}-{day}-{batch.num_rows}-{token}"
        staged = folder / f".{name}.tmp"
        files.make_folder(folder)
        write_segment(files, staged, batch, SegmentInfo(name=name, rows=batch.num_rows, rows_before=0))
        files.rename(staged, folder / f"{name}{SUFFIX}")
        files.sync_folders([folder])

    # Looking up

    def _files(self, epoch: int) -> list[_File]:
        parsed = map(_File.parse, self._volume.files.list(self._volume.archive))
        return [file for file in parsed if file is not None and file.epoch == epoch]

    def _search(self, name: str, search: _Search) -> bool:
        batch = self._read(name)
        if batch is not None:
            search.look_into(batch)
        return batch is not None

    def _read(self, name: str) -> pa.RecordBatch | None:
        """A file's decisions; None if it is gone, as a damaged one is from here on."""
        path = self._volume.archive / name
        try:
            return read_segment(path)[0]
        except FileNotFoundError:
            return None
        except SegmentError as error:
            _log.error("a file of archived decisions is damaged and set aside: %s", error)
            move_aside(self._volume.files, path, self._volume.results / "dead", Reason(reason=str(error)), name)
            return None

    # Keeping it small

    def _limit(self, epoch: int, now: float, max_seconds: float, max_bytes: int) -> None:
        files = sorted(self._files(epoch), key=lambda file: (file.day, file.rows))
        sizes = {file.name: self._size(file.name) for file in files}
        total = sum(sizes.values())
        oldest = _day(now - max_seconds) if max_seconds else ""
        for file in files:
            if file.day >= oldest and not (max_bytes and total > max_bytes):
                break
            total -= sizes[file.name]
            self._volume.files.remove(self._volume.archive / file.name)

    def _size(self, name: str) -> int:
        try:
            return (self._volume.archive / name).stat().st_size
        except FileNotFoundError:
            return 0

    def _merge_days(self, epoch: int, today: str) -> None:
        days: dict[str, list[_File]] = {}
        for file in self._files(epoch):
            if file.rows < FULL_ROWS:
                days.setdefault(file.day, []).append(file)
        for day, small in days.items():
            if len(small) > (MAX_SMALL if day == today else 1):
                self._merge(epoch, day, sorted(small, key=lambda file: file.rows))

    def _merge(self, epoch: int, day: str, small: list[_File]) -> None:
        """Put the smallest files of a day together, up to a full one."""
        chosen: list[_File] = []
        while small and (len(chosen) < 2 or sum(file.rows for file in chosen) + small[0].rows <= FULL_ROWS):
            chosen.append(small.pop(0))
        batches = [self._read(file.name) for file in chosen]
        if any(batch is None for batch in batches):  # another worker merges
            return
        self._write(epoch, day, pa.Table.from_batches(batches, ARCHIVE))
        for file in chosen:
            self._volume.files.remove(self._volume.archive / file.name)


def _sorted_once(table: pa.Table) -> pa.RecordBatch:
    """Ascending by hash, each once, in one batch."""
    whole = table.unify_dictionaries().combine_chunks()
    _, first = np.unique(np.asarray(whole.column("trans")), return_index=True)
    chosen = whole.take(pa.array(first))
    columns = [chosen.column(field.name).combine_chunks() for field in ARCHIVE]
    arrays = [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=ARCHIVE)


class _Search:
    """Decisions wanted, and those found so far (of schema ARCHIVED)."""

    def __init__(self, trans_nums: Sequence[str]) -> None:
        self._wanted = np.array(trans_nums, object)
        self._hashes = hash_strings(pa.array(trans_nums, pa.string()))
        self._left = np.ones(len(trans_nums), np.bool_)
        self.found: list[pa.RecordBatch] = []

    def look_into(self, batch: pa.RecordBatch) -> None:
        """Take what a file of schema ARCHIVE has of what is still wanted."""
        kept = np.asarray(batch.column("trans"))
        if not len(kept):
            return
        place = np.minimum(np.searchsorted(kept, self._hashes), len(kept) - 1)
        hits = np.flatnonzero(self._left & (kept[place] == self._hashes))
        if len(hits):
            self._left[hits] = False
            self.found.append(_archived(batch.take(pa.array(place[hits])), self._wanted[hits].tolist()))


def _archived(rows: pa.RecordBatch, trans_nums: list[str]) -> pa.RecordBatch:
    """Rows of schema ARCHIVE as ARCHIVED."""
    made = {
        "trans_num": pa.array(trans_nums, pa.string()),
        "merchant": rows.column("merchant").cast(pa.string()),
        "producer": rows.column("producer").cast(pa.string()),
        "own_label": pa.array([UNKNOWN_LABEL] * len(trans_nums), pa.int8()),
    }
    arrays = [made[field.name] if field.name in made else rows.column(field.name) for field in ARCHIVED]
    return pa.RecordBatch.from_arrays(arrays, schema=ARCHIVED)


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%d")
