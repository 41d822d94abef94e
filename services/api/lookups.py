"""Looking up decisions in the result files: one by its number, or flagged ones page by page, newest first.

These read the volume, unlike all other answers. Files are memory-mapped and only the columns asked about are touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.api.limiter import Stopped
from services.api.snapshot import iso_us
from spearhead import labels
from spearhead.schema import RESULTS
from spearhead.segment import SUFFIX, SegmentError, SegmentName, read_segment
from spearhead.volume import Volume

CLOCK_SLACK_SECONDS: Final = 60.0  # a file's time is its server's, a decision's that of the host that made it


class StoppedError(Exception):
    """Nobody waits for the answer any more."""


class Place(NamedTuple):
    """A result file; they sort by when they were published."""

    mtime_ns: int
    name: str
    path: Path


class Filter(NamedTuple):
    """Which flagged transactions are wanted. ``since`` is in us since 1970."""

    category: str | None = None
    state: str | None = None
    min_score: float = 0.0
    since: int | None = None


class Cursor(NamedTuple):
    """Where the next page begins: below this row of this file."""

    mtime_ns: int
    name: str
    row: int

    def __str__(self) -> str:
        return f"{self.mtime_ns}~{self.name}~{self.row}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises ValueError if it is none of ours."""
        mtime, name, row = text.split("~")
        return cls(int(mtime), name, int(row))


def places(volume: Volume, epoch: int) -> list[Place]:
    """All result files of the epoch, newest first."""
    root = volume.results / "ready"
    found = []
    for folder in volume.files.list(root):
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and _epoch(entry.name) in (epoch, None):
                        found.append(Place(entry.stat().st_mtime_ns, entry.name, Path(entry.path)))
        except (FileNotFoundError, NotADirectoryError):  # retention removes folders
            continue
    return sorted(found, reverse=True)


def find(volume: Volume, epoch: int, trans_num: str, stopped: Stopped) -> dict[str, Any] | None:
    """The decision on one transaction; None if it is not made, or its file is no longer kept. Raises StoppedError."""
    for place, batch in _batches(places(volume, epoch), stopped):
        row = pc.index(batch.column("trans_num"), trans_num).as_py()
        if row >= 0:
            found = _decision(batch, row) | {"segment": place.name.removesuffix(SUFFIX)}
            return _with_labels(volume, epoch, [found])[0]
    return None


def signals(
    volume: Volume, epoch: int, wanted: Filter, limit: int, after: Cursor | None, stopped: Stopped
) -> tuple[list[dict[str, Any]], Cursor | None]:
    """At most ``limit`` flagged transactions, newest file first, and where the next page begins (None: no more).

    Raises StoppedError.
    """
    chosen = [place for place in places(volume, epoch) if _may_hold(place, wanted, after)]
    page: list[dict[str, Any]] = []
    last: Cursor | None = None
    for place, batch in _batches(chosen, stopped):
        rows = _matching(batch, wanted)[::-1]
        if after is not None and (place.mtime_ns, place.name) == after[:2]:
            rows = rows[rows < after.row]
        for row in rows.tolist():
            if len(page) == limit:
                return _with_labels(volume, epoch, page), last
            page.append(_decision(batch, row))
            last = Cursor(place.mtime_ns, place.name, row)
    return _with_labels(volume, epoch, page), None


def _with_labels(volume: Volume, epoch: int, decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with the newest label that came on its own."""
    found = labels.latest(volume, epoch, (decision["trans_num"] for decision in decisions))
    for decision in decisions:
        label = found.get(decision["trans_num"])
        decision["label"] = label and {"is_fraud": label[0], "labelled_at": iso_us(label[1])}
    return decisions


def _may_hold(place: Place, wanted: Filter, after: Cursor | None) -> bool:
    if after is not None and (place.mtime_ns, place.name) > after[:2]:
        return False
    return wanted.since is None or place.mtime_ns / 1000 >= wanted.since - CLOCK_SLACK_SECONDS * 1e6


def _batches(found: Iterable[Place], stopped: Stopped) -> Iterator[tuple[Place, pa.RecordBatch]]:
    for place in found:
        if stopped():
            raise StoppedError
        try:
            batch, _ = read_segment(place.path)
        except (FileNotFoundError, SegmentError):  # retention removed it; a damaged one is `verify`'s to tell
            continue
        yield place, batch


def _matching(batch: pa.RecordBatch, wanted: Filter) -> NDArray[np.int64]:
    mask = pc.equal(batch.column("decision").cast(pa.string()), "flagged")
    mask = pc.and_(mask, pc.greater_equal(batch.column("risk_score").cast(pa.float64()), wanted.min_score))
    for name, value in (("category", wanted.category), ("state", wanted.state)):
        if value is not None:
            mask = pc.and_(mask, pc.equal(batch.column(name).cast(pa.string()), value))
    if wanted.since is not None:
        mask = pc.and_(mask, pc.greater_equal(batch.column("scored_at").view(pa.int64()), wanted.since))
    rows: NDArray[np.int64] = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
    return rows


def _decision(batch: pa.RecordBatch, row: int) -> dict[str, Any]:
    """One row of a result file as the API shows it."""

    def value(name: str) -> Any:
        column = batch.column(name)
        if pa.types.is_timestamp(column.type):
            return iso_us(column.view(pa.int64())[row].as_py())
        return column[row].as_py()

    assert batch.schema.names == RESULTS.names
    return {
        "trans_num": value("trans_num"),
        "decision": value("decision"),
        "risk_score": value("risk_score"),
        "model_version": value("model_version"),
        "amount": value("amt"),
        "merchant": value("merchant"),
        "category": value("category"),
        "state": value("state"),
        "cc_num_masked": f"***{value('last4'):04d}",
        "event_time": value("event_time"),
        "ingested_at": value("ingested_at"),
        "timestamp": value("scored_at"),
        "is_fraud": value("is_fraud"),
        "reasons": [],
    }


def _epoch(file: str) -> int | None:
    name = SegmentName.parse(file)
    return name.epoch if name else None
