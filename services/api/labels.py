"""Labels of live traffic, as senders give them: ``trans_num, is_fraud, labelled_at``, checked and put into the folder.

``POST /api/labels`` answers once its labels are durable in ``raw-data/labels/``, where joiner.py takes them as it takes
files that are dropped there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from services.api import ingest
from services.api.rows import JSON, MAX_ROWS, NDJSON, BodyError
from spearhead.mask import is_card, mask
from spearhead.schema import LAST_TIME_US
from spearhead.volume import Volume

API_PREFIX: Final = "api-"  # of the files that requests leave
COLUMNS: Final = ("trans_num", "is_fraud", "labelled_at")
MAX_FILES: Final = 1_000  # waiting in the folder: more are not taken over HTTP
_TRANS_NUM: Final = re.compile(r"^[A-Za-z0-9_.:-]{1,64}$")
_FRAUD: Final = {"1": 1, "true": 1, "0": 0, "false": 0}


class Label(NamedTuple):
    """A label that can be what it says."""

    trans_num: str
    is_fraud: int  # 1 or 0
    labelled_at: int  # us since 1970


class Accepted(msgspec.Struct, frozen=True):
    """What a sender is told."""

    accepted: int
    rejected: int
    rejections: list[ingest.Rejection]


def check(cells: Sequence[str | None]) -> Label | str:
    """A label from its texts in the order of COLUMNS, or why it is none."""
    trans_num, is_fraud, labelled_at = ((text or "").strip() for text in cells)
    if not _TRANS_NUM.match(trans_num):
        return "trans_num is not 1 to 64 letters, digits or any of _.:-"
    if is_fraud.lower() not in _FRAUD:
        return "is_fraud is not true, false, 1 or 0"
    time = _microseconds(labelled_at)
    if time is None:
        return "labelled_at is not an ISO 8601 time between 1970 and 7000"
    return Label(trans_num, _FRAUD[is_fraud.lower()], time)


def _microseconds(text: str) -> int | None:
    """us since 1970 of an ISO 8601 time, in UTC where it names no zone."""
    try:
        time = datetime.fromisoformat(text)
        delta = (time if time.tzinfo else time.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    us = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    return us if 0 <= us < LAST_TIME_US else None


def parse(body: bytes, content_type: str) -> list[list[str | None]]:
    """The texts of each label of a request, in the order of COLUMNS. Raises BodyError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON:
        records = _decode(body, list[dict[str, Any]])
    elif kind in NDJSON:
        records = [_decode(line, dict[str, Any]) for line in body.splitlines() if line.strip()]
    else:
        raise BodyError(f"content type must be {JSON} or {NDJSON[0]}", 415)
    if len(records) > MAX_ROWS:
        raise BodyError(f"a request takes {MAX_ROWS:,} labels at most", 413)
    return [[_text(record.get(name)) for name in COLUMNS] for record in records]


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError(f"not the JSON that was expected: {error}") from error


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


def answered(volume: Volume, key: str, body: bytes) -> Accepted | None:
    """What was answered to this key before. Raises ConflictError if that was for other labels."""
    before = ingest.answer_of(volume, _hashed(volume, key))
    if before is None:
        return None
    told = ingest.same(before, hashlib.sha256(body).hexdigest())
    return Accepted(told.accepted, told.rejected, told.rejections)


def take(volume: Volume, cells: Iterable[Sequence[str | None]], body: bytes, key: str | None) -> Accepted:
    """Put the labels that are good into the folder; durable on return. Raises BusyError, ConflictError, OSError.

    With a key the file is named after key and body: sent again before it was answered it is the same file, or, where
    that was taken already, its labels are duplicates and change nothing.
    """
    folder = volume.raw_data / "labels"
    if len(volume.files.list(folder)) > MAX_FILES:
        raise ingest.BusyError("too many labels wait to be taken")
    good: list[Label] = []
    rejections: list[ingest.Rejection] = []
    for row, texts in enumerate(cells):
        label = check(texts)
        if isinstance(label, Label) and is_card(label.trans_num):
            label = "trans_num is a card number"
        if isinstance(label, str):
            rejections.append(ingest.Rejection(row, None if texts[0] is None else mask(texts[0])[:64], label))
        else:
            good.append(label)
    digest = hashlib.sha256(body).hexdigest()
    if good:
        name = secrets.token_hex(16) if key is None else f"{_hashed(volume, key)[:32]}-{digest[:16]}"
        volume.files.replace(folder / f"{API_PREFIX}{name}.ndjson", b"".join(map(_line, good)))
    told = Accepted(len(good), len(rejections), rejections[: ingest.SHOWN_REJECTS])
    if key is not None:
        outcome = ingest.Outcome(told.accepted, told.rejected, told.rejections, None)
        ingest.settle(volume, _hashed(volume, key), ingest.Answered(digest, outcome))
    return told


def _hashed(volume: Volume, key: str) -> str:
    return hashlib.sha256(f"{volume.epoch()}:labels:{key}".encode()).hexdigest()


def _line(label: Label) -> bytes:
    time = datetime.fromtimestamp(label.labelled_at // 1_000_000, UTC).replace(
        microsecond=label.labelled_at % 1_000_000
    )
    record: Mapping[str, Any] = {
        "trans_num": label.trans_num,
        "is_fraud": label.is_fraud,
        "labelled_at": time.isoformat(),
    }
    return msgspec.json.encode(record) + b"\n"
