"""A segment: an immutable Arrow IPC file of one record batch, and its name, the same in every topic.

``e0001-g00-p00-000000000123.arrow``: epoch, producer, partition, sequence number. Names of one producer and partition
sort in order of production. The schema's metadata holds one JSON object under ``spearhead`` (``SegmentInfo``).
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from spearhead.files import Files

SUFFIX = ".arrow"
SEQ_DIGITS = 12
LABEL_LETTER = "l"
_NAME = re.compile(r"^e(\d{4,})-([a-z]\d{2,})-p(\d{2,})-(\d{12})$")
_KEY = b"spearhead"


class SegmentName(NamedTuple):
    """What a segment's file name says; ``str()`` gives the name without suffix."""

    epoch: int
    producer: str  # a letter and digits: g00 a generator or replay, h00 HTTP ingest, i00 the inbox, l00 late labels
    partition: int
    seq: int

    def __str__(self) -> str:
        return f"e{self.epoch:04d}-{self.producer}-p{self.partition:02d}-{self.seq:012d}"

    @property
    def file(self) -> str:
        return f"{self}{SUFFIX}"

    @property
    def of_labels(self) -> bool:
        """Whether it holds labels (schema.LABELS), not transactions."""
        return self.producer.startswith(LABEL_LETTER)

    @classmethod
    def parse(cls, text: str) -> SegmentName | None:
        """The name in a file name (with or without suffix), or None if it is not a segment's."""
        return _parse(text)


@lru_cache(maxsize=16_384)  # every stage lists the same folders again and again
def _parse(text: str) -> SegmentName | None:
    match = _NAME.match(text.removesuffix(SUFFIX))
    return SegmentName(int(match[1]), match[2], int(match[3]), int(match[4])) if match else None


class SegmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a segment. Rows before a segment in its producer and partition are what makes gaps countable."""

    name: str
    rows: int
    rows_before: int  # rows that the producer published to this partition in segments of lower seq
    rejected_before: int = 0  # rows it set aside before this segment (counted in partition 0 only)
    rejected: int = 0  # rows it set aside while it made this one
    watermark: int = 0  # newest event time that the producer had published with this segment, us since 1970
    ended: bool = False  # the source is finite and this is its last segment
    finite: bool = False
    cursor: str = ""  # where the producer goes on after this segment; opaque to all others
    flush_rows: int = 0  # rows of this flush in all partitions, those set aside included: what a redo must take again
    staged: str = ""  # the folder below staged/ that held all parts of this flush before the first was linked
    shared: tuple[str, ...] = ()  # of features: the columns that are its companion's (spearhead/companion.py)
    origins: tuple[tuple[str, int], ...] = ()  # of merged files: the producers of its rows, (producer, rows) in order
    labels: int = 0  # of a segment of labels, which holds no rows that count as transactions
    labels_before: int = 0

    @property
    def items(self) -> int:
        """Rows or labels, whichever it holds."""
        return self.rows + self.labels

    @property
    def items_before(self) -> int:
        return self.rows_before + self.labels_before


class SegmentError(ValueError):
    """A file that is not a whole segment; the message says why."""


def write_segment(
    files: Files, path: Path, batch: pa.RecordBatch, info: SegmentInfo, notes: bytes = b"", sync: bool = True
) -> int:
    """Write a segment to a private place (it is torn if killed) and fsync it. Returns its bytes.

    ``notes``, UTF-8, are kept with the batch: unlike ``info`` once, and read only with it. Without ``sync`` the caller
    has it fsynced (``Files.sync_file``) when there was time for the disk to begin.
    """
    schema = batch.schema.with_metadata({_KEY: msgspec.json.encode(info)})
    files.step("open", path)
    with pa.OSFile(str(path), "wb") as sink:
        files.step("write", path)
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata), {_KEY: notes} if notes else None)
    if sync:
        files.sync_file(path)
    else:
        files.begin_sync(path)
    return path.stat().st_size


def read_segment(path: Path) -> tuple[pa.RecordBatch, SegmentInfo]:
    """The batch (zero-copy over a memory map) and metadata of a segment.

    Raises SegmentError if the file is damaged, FileNotFoundError if it is gone.
    """
    return read_segment_notes(path)[:2]


def read_segment_notes(path: Path) -> tuple[pa.RecordBatch, SegmentInfo, bytes]:
    """As ``read_segment``, and the notes that were written with it; b"" if none were."""
    reader, info = _open(path)
    try:
        batch, notes = reader.get_batch_with_custom_metadata(0)
    except (pa.ArrowException, OSError, IndexError) as error:
        raise SegmentError(f"{path.name}: damaged record batch: {error}") from error
    if batch.num_rows != info.items:
        raise SegmentError(f"{path.name}: has {batch.num_rows} rows, its metadata says {info.items}")
    return batch, info, notes.get(_KEY, b"") if notes is not None else b""


def read_info(path: Path) -> SegmentInfo:
    """Only the metadata of a segment. Raises as ``read_segment`` does."""
    return _open(path)[1]


def _open(path: Path) -> tuple[pa.ipc.RecordBatchFileReader, SegmentInfo]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = reader.schema.metadata or {}
        _ = reader.schema.names  # raises where one is no text
        info = msgspec.json.decode(metadata[_KEY], type=SegmentInfo)
    except FileNotFoundError:
        raise
    except KeyError as error:
        raise SegmentError(f"{path.name}: an Arrow file, but not a segment (no '{_KEY.decode()}' metadata)") from error
    except (pa.ArrowException, msgspec.DecodeError, OSError, ValueError) as error:
        raise SegmentError(f"{path.name}: not a readable segment: {error}") from error
    return reader, info
