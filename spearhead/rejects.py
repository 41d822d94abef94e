"""Rows and files that were set aside in a topic's ``dead/``, with card numbers masked and the reason beside them.

``<segment>.rows.jsonl`` holds rows refused at the edge while that segment was made, ``<segment>.prep.rows.jsonl`` those
that prep refused in it: one JSON object a line, ``{"line", "reason", "row"}``. ``<file>.reason.json`` says why a whole
file is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from spearhead.files import Files
from spearhead.segment import SUFFIX, SegmentName

EDGE_SUFFIX: Final = ".rows.jsonl"
PREP_SUFFIX: Final = ".prep.rows.jsonl"
REASON_SUFFIX: Final = ".reason.json"

_LONG_NUMBER = re.compile(r"\d{11,}")
_LONG_NUMBER_BYTES = re.compile(rb"\d{11,}")


class RejectedRow(Protocol):
    """What is known of a refused row."""

    @property
    def line(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def row(self) -> str: ...


class Reject(NamedTuple):
    """A refused row: where it is in its file or segment (from 1), why, and the row as text."""

    line: int
    reason: str
    row: str


class Reason(msgspec.Struct, kw_only=True):
    """Why a file was set aside. ``rows`` is None as long as nobody can know how many it held."""

    reason: str
    tries: int = 1
    rows: int | None = None


def mask(text: str) -> str:
    """``text`` with every run of 11 or more digits (it may be a card number) turned into stars."""
    return _LONG_NUMBER.sub(lambda match: "*" * len(match[0]), text)


def encode_rejects(rejects: Iterable[RejectedRow]) -> bytes:
    """The lines of a ``.rows.jsonl`` file, masked."""
    lines = ({"line": r.line, "reason": mask(r.reason), "row": mask(r.row)} for r in rejects)
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def set_aside(files: Files, source: Path, dead: Path, reason: Reason) -> None:
    """Leave a masked copy of ``source`` and the reason in the folder ``dead``; ``source`` itself stays.

    Done again after a crash it gives the same files. Raises FileNotFoundError if ``source`` is gone.
    """
    content = _LONG_NUMBER_BYTES.sub(lambda match: b"*" * len(match[0]), source.read_bytes())
    name = dead_name(source.name)
    files.replace(dead / name, content)
    files.replace(dead / f"{name.removesuffix(SUFFIX)}{REASON_SUFFIX}", msgspec.json.encode(reason))


def dead_name(file: str) -> str:
    """The name of a file once set aside: its own if it is a segment's, else masked as its content is."""
    return file if SegmentName.parse(file) is not None else mask(file)
