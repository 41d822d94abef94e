"""raw-transactions as they are written: schema.RAW, but ``trans_num`` without offsets where all texts have one length.

Then it is fixed_size_binary(w): w bytes a row, 1 or more. Texts of several lengths, or with nulls, are written as they
are, as is a segment without rows; a reader takes both forms. docs/decisions/0017-bytes-per-row.md says why no other
column has a narrow form.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead.schema import RAW
from spearhead.segment import SegmentError, SegmentInfo, read_segment

_ID: Final = RAW.get_field_index("trans_num")
_OFFSET_MAX: Final = np.iinfo(np.int32).max


def narrow(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of schema.RAW as it is to be written, over its own memory."""
    column = _same_length(batch.column(_ID)) if batch.num_rows else None
    return batch if column is None else batch.set_column(_ID, RAW.field(_ID).with_type(column.type), column)


def widen(batch: pa.RecordBatch) -> pa.RecordBatch:
    """What ``narrow`` was given, over the memory of ``batch``. Raises SegmentError if the narrow column is damaged."""
    column = column_of(batch, "trans_num")
    return batch.set_column(_ID, RAW.field(_ID).with_type(column.type), column)


def read_raw(path: Path) -> tuple[pa.RecordBatch, SegmentInfo]:
    """As ``read_segment``, the columns as schema.RAW has them; a batch that has others is given as it is.

    Raises as ``read_segment`` does.
    """
    batch, info = read_segment(path)
    if batch.schema.names != RAW.names:
        return batch, info
    try:
        return widen(batch), info
    except SegmentError as error:
        raise SegmentError(f"{path.name}: {error}") from error


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of a batch as it was written, widened; one that is not narrow as it is.

    Raises SegmentError if there is none of that name, or a narrow one is damaged.
    """
    try:
        column = batch.column(name)
    except KeyError as error:
        raise SegmentError(f"{name} is not there") from error
    if name != "trans_num" or not pa.types.is_fixed_size_binary(column.type):
        return column
    return _texts(column)


def texts_of(data: pa.Buffer, width: int, rows: int) -> pa.StringArray:
    """``rows`` texts of ``width`` bytes each, which lie one after the other in ``data``: over its memory.

    ``narrow`` knows them without a look at their offsets, which all such texts share.
    """
    return pa.StringArray.from_buffers(rows, pa.py_buffer(_every(width, rows)), data)


def _same_length(texts: pa.StringArray) -> pa.Array | None:
    """Texts of one length without their offsets; None if they are not."""
    rows = len(texts)
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + rows + 1]
    first, last = int(ends[0]), int(ends[-1])
    width = (last - first) // rows
    if not width or texts.null_count:
        return None
    expected = _every(width, rows)
    if ends.ctypes.data != expected.ctypes.data and not np.array_equal(ends - first, expected):
        return None
    return pa.Array.from_buffers(pa.binary(width), rows, [None, data.slice(first, last - first)])


def _texts(column: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Texts of one length with their offsets. Raises SegmentError if some are missing or beyond the file."""
    try:
        column.validate()
    except pa.ArrowInvalid as error:
        raise SegmentError(f"trans_num is damaged: {error}") from error
    rows, width = len(column), column.type.byte_width
    if column.null_count or rows * width > _OFFSET_MAX:
        raise SegmentError(f"trans_num is {rows:,} texts of {width:,} bytes with {column.null_count:,} nulls")
    return texts_of(column.buffers()[1].slice(column.offset * width, rows * width), width, rows)


def _every(width: int, rows: int) -> NDArray[np.int32]:
    """0, width, ... up to rows * width: a part of one array for all that ask for as many, or a few less."""
    return _multiples(width, max(rows - 1, 0).bit_length())[: rows + 1]


@lru_cache(maxsize=8)
def _multiples(width: int, bits: int) -> NDArray[np.int32]:
    # What is beyond the largest offset wraps, and nobody takes it.
    multiples = (np.arange((1 << bits) + 1, dtype=np.int64) * width).astype(np.int32)
    multiples.flags.writeable = False
    return multiples
