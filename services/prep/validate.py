"""Which rows of a raw segment are transactions, and why the others are not; a good segment is passed on as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead.rejects import Reject
from spearhead.schema import CATEGORIES, LAST_TIME_US, MAX_AMOUNT_CENTS, STATES

CITY_POP_MAX: Final = 100_000_000

Mask = NDArray[np.bool_]


class Check(NamedTuple):
    """A column, what its values must be (true where they are), and what to say of the others."""

    column: str
    holds: Callable[[NDArray[Any]], Mask]
    reason: str


def _between(low: float, high: float) -> Callable[[NDArray[Any]], Mask]:
    def holds(values: NDArray[Any]) -> Mask:
        return np.asarray((values >= low) & (values <= high))

    return holds


CHECKS: Final = (
    Check("amt_cents", _between(1, MAX_AMOUNT_CENTS), f"amount is not 0.01 to {MAX_AMOUNT_CENTS // 100} dollars"),
    Check("event_time", _between(0, LAST_TIME_US - 1), "event time is not between 1970 and 7000"),
    Check("category", _between(0, len(CATEGORIES) - 1), "category is not known"),
    Check("state", _between(0, len(STATES) - 1), "state is not known"),
    Check("label", _between(-1, 1), "label is not 1, 0 or -1"),
    Check("last4", _between(0, 9_999), "last4 has more than four digits"),
    Check("city_pop", _between(0, CITY_POP_MAX), "city population is out of range"),
    Check("home_lat", _between(-90, 90), "home latitude is not within -90 to 90"),
    Check("home_long", _between(-180, 180), "home longitude is not within -180 to 180"),
    Check("merch_lat", _between(-90, 90), "merchant latitude is not within -90 to 90"),
    Check("merch_long", _between(-180, 180), "merchant longitude is not within -180 to 180"),
)


def validate(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
    """The rows of ``batch`` (schema.RAW) that are transactions, in order, and the others with the first reason found.

    The batch itself is returned where all rows are good. NaN and infinities are out of every range.
    """
    reasons: dict[int, str] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if column.null_count:
            _note(reasons, np.asarray(column.is_null()), f"{field.name} is missing")
    for check in CHECKS:
        good = check.holds(values(batch.column(check.column)))
        if not good.all():
            _note(reasons, ~good, check.reason)
    if not reasons:
        return batch, []
    keep = np.ones(batch.num_rows, np.bool_)
    keep[list(reasons)] = False
    rejects = [Reject(row + 1, reason, _text(batch, row)) for row, reason in sorted(reasons.items())]
    return batch.filter(pa.array(keep)), rejects


def values(column: pa.Array) -> NDArray[Any]:
    """A fixed-width column without copying; times as int64 microseconds; nulls hold whatever the buffer does."""
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    width = column.type.bit_width // 8
    dtype = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * width)


def _note(reasons: dict[int, str], bad: Mask, reason: str) -> None:
    for row in np.flatnonzero(bad).tolist():
        reasons.setdefault(row, reason)


def _text(batch: pa.RecordBatch, row: int) -> str:
    one = batch.slice(row, 1)
    # Python's dates end with the year 9999, so times are turned into text by Arrow.
    texts = (c.cast(pa.string()) if pa.types.is_temporal(c.type) else c for c in one.columns)
    return msgspec.json.encode(
        {field.name: text[0].as_py() for field, text in zip(one.schema, texts, strict=True)}
    ).decode()
