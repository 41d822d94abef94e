"""raw-transactions as they are written: columns of schema.RAW in fewer bytes, wherever their values allow it, exactly.

| column | is written as | where |
| --- | --- | --- |
| ``trans_num`` | fixed_size_binary(w), without offsets | all texts have w bytes, 1 or more |

Any other column, one with nulls, and one whose values don't allow it are written as they are, so a reader takes either
form of each column. A segment without rows is written as it is.
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

_OFFSET_MAX: Final = np.iinfo(np.int32).max


def narrow(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of schema.RAW as it is to be written; columns that stay as they are keep their memory."""
    if not batch.num_rows:
        return batch
    fields, columns = [], []
    for field, column in zip(RAW, batch.columns, strict=True):
        made = None if column.null_count else _narrowed(field, column)
        fields.append(field if made is None else made[0])
        columns.append(column if made is None else made[1])
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


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


def widen(batch: pa.RecordBatch) -> pa.RecordBatch:
    """What ``narrow`` was given, and the metadata of ``batch``. Raises SegmentError if a narrow column is damaged."""
    columns = [column_of(batch, name) for name in RAW.names]
    fields = [field.with_type(column.type) for field, column in zip(RAW, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, batch.schema.metadata))


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of schema.RAW of a batch as it is written, widened, at no cost for the others.

    One that is neither as in RAW nor narrow is given as it is. Raises SegmentError if a narrow one is damaged.
    """
    column = batch.column(name)
    if name == "trans_num" and pa.types.is_fixed_size_binary(column.type):
        return _texts(_sound(name, column))
    return column


def _narrowed(field: pa.Field, column: pa.Array) -> tuple[pa.Field, pa.Array] | None:
    """A column without nulls, of at least one row, in fewer bytes; None if it stays as it is."""
    made = _same_length(column) if field.name == "trans_num" else None
    return None if made is None else (field.with_type(made.type), made)


def _sound(name: str, column: pa.Array) -> pa.Array:
    """The column. Raises SegmentError if its buffers are too short, or a value is missing."""
    try:
        column.validate()
    except pa.ArrowInvalid as error:
        raise SegmentError(f"{name} is damaged: {error}") from error
    if column.null_count:
        raise SegmentError(f"{name} is {column.type} with {column.null_count} nulls")
    return column


def _same_length(texts: pa.Array) -> pa.Array | None:
    """Texts of one length without their offsets."""
    rows = len(texts)
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + rows + 1]
    first, last = int(ends[0]), int(ends[-1])
    width = (last - first) // rows
    if not width or not np.array_equal(ends - ends[0] if first else ends, _every(width, rows)):
        return None
    return pa.Array.from_buffers(pa.binary(width), rows, [None, data.slice(first, last - first)])


def _texts(column: pa.Array) -> pa.Array:
    """Texts of one length over their own memory, with offsets."""
    rows, width = len(column), column.type.byte_width
    if rows * width > _OFFSET_MAX:
        raise SegmentError(f"trans_num holds {rows:,} texts of {width:,} bytes, more than offsets can say")
    offsets = pa.py_buffer(_every(width, rows))
    data = column.buffers()[1].slice(column.offset * width, rows * width)
    return pa.StringArray.from_buffers(rows, offsets, data)


def _every(width: int, rows: int) -> NDArray[np.int32]:
    """0, width, ... up to rows * width; kept, for segments are mostly alike."""
    return _multiples(width, max(rows - 1, 0).bit_length())[: rows + 1]


@lru_cache(maxsize=8)
def _multiples(width: int, bits: int) -> NDArray[np.int32]:
    # What is beyond the largest offset wraps, and nobody takes it.
    return (np.arange((1 << bits) + 1, dtype=np.int64) * width).astype(np.int32)
