"""The companion of a features segment: the raw segment that it was made of, for the columns that both have.

Where prep passes every row of raw segment X on, features X holds only what is new. ``shared`` in its metadata names the
columns that are to be taken, in this order and before its own, from ``features-ready/rows/X.arrow``: a hard link of the
raw segment, row for row the same. prep publishes it before X and whoever publishes X's results removes it after, so it
is there for as long as X may be read, whatever becomes of the raw segment. Where prep refused rows, X has all columns.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from msgspec.structs import replace

from spearhead.narrow import column_of
from spearhead.schema import RAW
from spearhead.segment import SUFFIX, SegmentError, SegmentInfo, read_segment
from spearhead.volume import Volume

STAGED_SUFFIX = ".rows"  # beside the features that it belongs to, while they are staged


def companion(volume: Volume, name: str) -> Path:
    """Where the companion of segment ``name`` lies while features ``name`` wait."""
    return volume.companions / f"{name}{SUFFIX}"


def read_features(volume: Volume, path: Path) -> tuple[pa.RecordBatch, SegmentInfo]:
    """All columns of a features segment (over memory maps of one or two files), and its metadata as if it had all.

    Raises SegmentError if it or its companion is damaged or the two don't fit, FileNotFoundError if it is gone.
    """
    own, info = read_segment(path)
    if not info.shared:
        return own, info
    try:
        rows, made_of = read_segment(companion(volume, info.name))
    except FileNotFoundError as error:
        raise SegmentError(f"{info.name}: its companion in features-ready/rows is gone") from error
    if made_of.name != info.name or rows.num_rows != own.num_rows:
        raise SegmentError(f"{info.name}: its companion holds {rows.num_rows} rows of {made_of.name}")
    columns = _shared(rows, info)
    fields = [RAW.field(name) for name in info.shared]
    schema = pa.schema([*fields, *own.schema], metadata=own.schema.metadata)
    return pa.RecordBatch.from_arrays([*columns, *own.columns], schema=schema), replace(info, shared=())


def _shared(rows: pa.RecordBatch, info: SegmentInfo) -> list[pa.Array]:
    """The columns that features of ``info`` leave to their companion ``rows``. Raises SegmentError if they lack."""
    try:
        columns = [column_of(rows, name) for name in info.shared]
    except SegmentError as error:
        raise SegmentError(f"{info.name}: its companion's {error}") from error
    for name, column in zip(info.shared, columns, strict=True):
        if column.type != RAW.field(name).type:
            raise SegmentError(f"{info.name}: its companion has {name} as {column.type}")
    return columns
