"""CSV text cut into columns, one line at a time: whatever a line holds, it can't spoil another.

A record is a line (LF or CRLF), cut as RFC 4180 says and as ``csv.reader(strict=True)`` does, but for one thing: a line
break inside quotes ends the line all the same, so that a stray quote costs one record and not the rest of the file.
Lines of nothing but white space are no records.
"""

# numba's decorator is untyped, and what its kernels are given is typed by numba.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numba as nb
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

LONGEST_LINE: Final = 1 << 16  # bytes; a line of so many is refused
MOST_BYTES: Final = 1 << 30  # in one cut: places are 32 bits

_COMMA, _QUOTE, _LF, _CR, _SPACE = (ord(c) for c in ',"\n\r ')
_FINE, _COUNT, _OPEN, _AFTER, _RETURN, _LONG, _ENCODING = range(7)
_REASONS: Final = {
    _OPEN: "line has a quote that is never closed",
    _AFTER: "line has text after a closing quote",
    _RETURN: "line has a carriage return in its middle",
    _LONG: f"line has {LONGEST_LINE:,} bytes or more",
    _ENCODING: "line is not UTF-8",
}
_INLINE: Final = 12  # a string view holds texts up to so many bytes itself


class Cut(NamedTuple):
    """The records of a text. ``rows`` has those that could be cut, in order; the others are in ``faults``."""

    rows: pl.DataFrame  # one String column for each wanted field
    start: NDArray[np.int64]  # (records,) first byte of each record in the text
    end: NDArray[np.int64]  # (records,) byte after its last, the line break not counted
    line: NDArray[np.int64]  # (records,) its line in the text, from 0
    faults: dict[int, str]  # record -> what is wrong with it
    lines: int  # in the text, a last one without line break too


def cut(data: bytes, names: Sequence[str], wanted: Sequence[str]) -> Cut:
    """Cut ``data``, lines with the fields ``names``, into the columns ``wanted``, which share the memory of ``data``.

    Raises ValueError if ``data`` has more than MOST_BYTES.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes at once, at most {MOST_BYTES} can be cut")
    if data and not data.endswith(b"\n"):
        data += b"\n"
    text = np.frombuffer(data, np.uint8)
    lines = int(np.count_nonzero(text == _LF))  # a fifth of what bytes.count takes
    slots = np.array([wanted.index(name) if name in wanted else -1 for name in names], np.int64)
    views = np.zeros((len(wanted), lines, 4), np.uint32)
    spans = np.empty((5, lines), np.int64)
    unescaped = np.empty(len(data), np.uint8)  # costs nothing until it is used
    records = _cut(text, slots, views, views.view(np.uint8), spans, unescaped)
    start, end, line, fault, fields = spans[:, :records]
    if not data.isascii():
        _find_undecodable(data, start, end, fault)
    bad = np.flatnonzero(fault)
    views = np.delete(views[:, :records], bad, axis=1) if len(bad) else views[:, :records]
    columns = (_texts(view, data, unescaped) for view in views)
    faults = {int(i): _reason(int(fault[i]), int(fields[i]), len(names)) for i in bad}
    return Cut(pl.DataFrame(dict(zip(wanted, columns, strict=True))), start, end, line, faults, lines)


def _texts(views: NDArray[np.uint32], data: bytes, unescaped: NDArray[np.uint8]) -> pl.Series:
    """A String column of ``views`` (rows, 4) into the buffers 0, ``data``, and 1, ``unescaped``."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(views)), pa.py_buffer(data), pa.py_buffer(unescaped)]
    return pl.Series(pa.Array.from_buffers(pa.string_view(), len(views), buffers))


def _find_undecodable(data: bytes, start: NDArray[np.int64], end: NDArray[np.int64], fault: NDArray[np.int64]) -> None:
    """Mark the records that are not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        for i in np.flatnonzero(fault == _FINE):
            record = data[start[i] : end[i]]
            try:
                record.decode()
            except UnicodeDecodeError:
                fault[i] = _ENCODING


def _reason(fault: int, fields: int, expected: int) -> str:
    if fault == _COUNT:
        return f"line has {fields} field{'s' * (fields != 1)}, the header has {expected}"
    return _REASONS[fault]


@nb.njit(cache=True, nogil=True)
def _cut(data: Any, slots: Any, views: Any, inline: Any, spans: Any, unescaped: Any) -> int:  # noqa: PLR0912
    """Cut all lines; the number of records.

    ``data`` uint8 (bytes,), ends with LF, so no look at the next byte goes beyond it; ``slots`` int64 (fields,): output
    column of each field or -1; ``views`` uint32 (columns, lines, 4), zeros, gets Arrow string views; ``inline`` is its
    memory as uint8 (columns, lines, 16); ``spans`` int64 (5, lines) gets start, end, line, fault and fields of each
    record; ``unescaped`` uint8 (bytes,): room for the texts in which quotes were doubled.
    """
    fields = len(slots)
    at = record = used = line = 0
    while at < len(data):
        start, field, fault = at, 0, _FINE
        while True:
            slot = slots[field] if field < fields else -1
            if data[at] == _QUOTE:
                begin = at + 1
                at, doubled, found = _end_of_quoted(data, begin)
                end = at - 1
                if found == _FINE and data[at] == _CR and data[at + 1] == _LF:
                    at += 1
                if found == _FINE and data[at] != _COMMA and data[at] != _LF:
                    found = _AFTER
                if found == _FINE and doubled and slot >= 0:
                    end = _unescape(data, begin, end, unescaped, used)
                    _view(unescaped, used, end, 1, views, inline, slot, record)
                    used = end
                elif found == _FINE and slot >= 0:
                    _view(data, begin, end, 0, views, inline, slot, record)
            else:
                begin = at
                at, end, found = _end_of_plain(data, begin)
                if found == _FINE and slot >= 0:
                    _view(data, begin, end, 0, views, inline, slot, record)
            fault = max(fault, found)
            field += 1
            if fault != _FINE or data[at] == _LF:
                break
            at += 1
        while data[at] != _LF:
            at += 1
        end = at - 1 if at > start and data[at - 1] == _CR else at
        at += 1
        if not (field == 1 and _is_blank(data, start, end)):
            if end - start >= LONGEST_LINE:
                fault = _LONG
            elif fault == _FINE and field != fields:
                fault = _COUNT
            spans[0, record], spans[1, record], spans[2, record] = start, end, line
            spans[3, record], spans[4, record] = fault, field
            record += 1
        line += 1
    return record


@nb.njit(cache=True, nogil=True)
def _end_of_quoted(data: Any, at: int) -> tuple[int, bool, int]:
    """From the byte after the opening quote: where the field's closing quote is left behind, whether there are doubled
    quotes in it, and its fault."""
    doubled = False
    while data[at] != _LF:
        if data[at] == _QUOTE:
            at += 1
            if data[at] != _QUOTE:
                return at, doubled, _FINE
            doubled = True
        at += 1
    return at, doubled, _OPEN


@nb.njit(cache=True, nogil=True)
def _end_of_plain(data: Any, at: int) -> tuple[int, int, int]:
    """From a field's first byte: where its comma or line break is, where its text ends, and its fault."""
    while data[at] > _COMMA or (data[at] != _COMMA and data[at] != _LF and data[at] != _CR):
        at += 1
    if data[at] != _CR:
        return at, at, _FINE
    return at + 1, at, _FINE if data[at + 1] == _LF else _RETURN


@nb.njit(cache=True, nogil=True)
def _unescape(data: Any, begin: int, end: int, into: Any, at: int) -> int:
    """Copy a quoted text with each doubled quote made single; the byte after the copy."""
    while begin < end:
        into[at] = data[begin]
        at += 1
        begin += 2 if data[begin] == _QUOTE else 1
    return at


@nb.njit(cache=True, nogil=True)
def _view(text: Any, begin: int, end: int, buffer: int, views: Any, inline: Any, slot: int, record: int) -> None:
    """Write the Arrow string view of ``text[begin:end]``: its length, then itself, or its head and where it is."""
    length = end - begin
    views[slot, record, 0] = length
    for i in range(length if length <= _INLINE else 4):
        inline[slot, record, 4 + i] = text[begin + i]
    if length > _INLINE:
        views[slot, record, 2] = buffer
        views[slot, record, 3] = begin


@nb.njit(cache=True, nogil=True)
def _is_blank(data: Any, start: int, end: int) -> bool:
    return not np.any(data[start:end] > _SPACE)
