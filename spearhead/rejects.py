"""Rows and files that were set aside in a topic's ``dead/``, with card numbers masked and the reason beside them.

``<segment>.rows.jsonl`` holds rows refused at the edge while that segment was made, ``<segment>.prep.rows.jsonl`` those
that prep refused in it: one JSON object a line, ``{"line", "reason", "row"}``. ``<file>.reason.json`` says why a whole
file is there. Texts are masked by mask.py; what can't be masked is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from spearhead.files import Files
from spearhead.mask import mask, mask_bytes, mask_start
from spearhead.segment import SUFFIX, SegmentName

EDGE_SUFFIX: Final = ".rows.jsonl"
PREP_SUFFIX: Final = ".prep.rows.jsonl"
REASON_SUFFIX: Final = ".reason.json"

KEPT_BYTES: Final = 16 * 1024**2  # of a text that was set aside
LONGEST_NAME: Final = 60  # characters: of up to four bytes each, and a suffix comes to it

_NOT_IN_TEXT: Final = bytes(code for code in range(32) if code not in b"\t\n\v\f\r")


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


def encode_rejects(rejects: Iterable[RejectedRow]) -> bytes:
    """The lines of a ``.rows.jsonl`` file, masked."""
    lines = ({"line": r.line, "reason": mask(r.reason), "row": mask(r.row)} for r in rejects)
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def set_aside(files: Files, source: Path, dead: Path, reason: Reason, name: str | None = None) -> None:
    """Leave a masked copy of ``source`` and the reason in the folder ``dead``, both durable; ``source`` itself stays.

    Of a text the first KEPT_BYTES are kept; of what is no text (Parquet, an archive) and no segment nothing is, for
    card numbers could not be found in it: then the reason says so. The copy is called ``name``, or as ``dead_name``
    says. Done again after a crash it gives the same files. Raises FileNotFoundError if ``source`` is gone.
    """
    name = dead_name(source.name) if name is None else name
    content = _masked(source)
    text = mask(reason.reason)
    if content is None:
        text += f"; its {source.stat().st_size:,} bytes are no text that could be masked, and were not kept"
    else:
        files.replace(dead / name, content)
    told = msgspec.structs.replace(reason, reason=text)
    files.replace(dead / f"{name.removesuffix(SUFFIX)}{REASON_SUFFIX}", msgspec.json.encode(told))


def move_aside(files: Files, source: Path, dead: Path, reason: Reason, name: str | None = None) -> None:
    """As ``set_aside``, and ``source`` is removed; of a folder all that is in it. Links are removed, not followed.

    Raises FileNotFoundError if ``source`` is gone.
    """
    if source.is_dir() and not source.is_symlink():
        for inside in sorted(source.iterdir()):
            move_aside(files, inside, dead, reason, dead_name(f"{source.name if name is None else name}~{inside.name}"))
        files.remove_folder(source)
    else:
        if not source.is_symlink():
            set_aside(files, source, dead, reason, name)
        files.remove(source)
    files.sync_folders([source.parent])


def stray_name(epoch: int, file: str) -> str:
    """What a file that nobody asked for is called in ``dead/``: of this epoch, so that a reset forgets it."""
    return f"e{epoch:04d}-stray-{dead_name(file)}"


def dead_name(file: str) -> str:
    """The name of a file once set aside: its own if it is a segment's, else masked as its content is, and bounded."""
    if SegmentName.parse(file) is not None:
        return file
    name = mask(file.encode("utf-8", "replace").decode())
    return name if len(name) <= LONGEST_NAME else f"{name[:20]}~{name[21 - LONGEST_NAME :]}"


def _masked(source: Path) -> bytes | None:
    """The masked content to keep; None if it can't be masked."""
    if SegmentName.parse(source.name) is not None:
        return mask_bytes(source.read_bytes())
    with source.open("rb") as file:
        start = file.read(KEPT_BYTES + 1)
    if start.translate(None, _NOT_IN_TEXT) != start:
        return None
    text = start.decode(errors="replace")
    return (mask(text) if len(start) <= KEPT_BYTES else mask_start(text, len(text) - 1)).encode()
