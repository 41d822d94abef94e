"""Rows in a request's body: a JSON list, NDJSON or an Arrow stream become a table of texts, as the edge takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import polars as pl
import pyarrow as pa

from spearhead import edge

JSON: Final = "application/json"
NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
ARROW: Final = "application/vnd.apache.arrow.stream"
MAX_ROWS: Final = 32_000  # of a request


class BodyError(ValueError):
    """A body that holds no rows at all; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def parse(body: bytes, content_type: str) -> pl.DataFrame:
    """The rows, columns edge.REQUIRED, every value text or null; other columns are dropped, ``is_fraud`` too: labels
    of live traffic come later. Raises BodyError.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == ARROW:
        return _arrow(body)
    if kind == JSON:
        return _table(_decode(body, list[dict[str, Any]]))
    if kind in NDJSON:
        return _table([_decode(line, dict[str, Any]) for line in body.splitlines() if line.strip()])
    raise BodyError(f"content type must be {JSON}, {NDJSON[0]} or {ARROW}", 415)


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError(f"not the JSON that was expected: {error}") from error


def _table(records: Sequence[dict[str, Any]]) -> pl.DataFrame:
    _bounded(len(records))
    columns = {name: [_text(record.get(name)) for record in records] for name in edge.REQUIRED}
    return pl.DataFrame(columns, schema=dict.fromkeys(edge.REQUIRED, pl.String))


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | dict | list):
        return ""  # no field is one: it is refused as missing
    return repr(value)


def _arrow(body: bytes) -> pl.DataFrame:
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                _bounded(rows)
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
        table.validate(full=True)
        names = table.column_names
        columns = {
            name: _column(table.column(names.index(name))) if name in names else pa.nulls(table.num_rows, pa.string())
            for name in edge.REQUIRED
        }
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OSError, ValueError) as error:
        if isinstance(error, BodyError):
            raise
        raise BodyError(f"not an Arrow stream of such rows: {error}") from error
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def _bounded(rows: int) -> None:
    if rows > MAX_ROWS:
        raise BodyError(f"a request takes {MAX_ROWS:,} rows at most", 413)
