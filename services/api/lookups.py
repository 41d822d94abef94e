"""Looking up decisions: one by its number, or flagged ones page by page, newest first.

These read the volume, unlike all other answers. Files are memory-mapped and only the columns asked about are touched.
One that is archived is told from the archive, which has less to tell but is searched by hash.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.api.explainer import Explainer
from services.api.limiter import Stopped
from services.api.snapshot import iso_us
from spearhead import evidence, label_files
from spearhead.archive import Archive
from spearhead.evidence import Entry
from spearhead.reasons import shown
from spearhead.schema import RESULTS, TIME
from spearhead.segment import SUFFIX, SegmentError, SegmentName, read_segment_notes
from spearhead.volume import Volume

FILE_GONE: Final = "its result file is gone, and with it what it could be explained from"
CLOCK_SLACK_SECONDS: Final = 60.0  # a file's time is its server's, a decision's that of the host that made it


class StoppedError(Exception):
    """Nobody waits for the answer any more."""


class Place(NamedTuple):
    """A result file; they sort by when they were published."""

    mtime_ns: int
    name: str
    path: Path


class _Kept:
    """A result file that is open."""

    def __init__(self, place: Place, batch: pa.RecordBatch, notes: bytes) -> None:
        self.place = place
        self.batch = batch
        self._notes = notes

    def entry(self, row: int) -> Entry | None:
        """What is kept to explain a row; None where nothing is."""
        return self._entries.get(row)

    @cached_property
    def _entries(self) -> dict[int, Entry]:
        if not self._notes:
            return {}
        flagged = pc.equal(self.batch.column("decision").cast(pa.string()), "flagged").to_numpy(zero_copy_only=False)
        try:
            return dict(zip(np.flatnonzero(flagged).tolist(), evidence.decode(self._notes), strict=True))
        except ValueError:  # damaged: the decisions are not, and are shown without reasons, which says so
            return {}


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


def find(volume: Volume, epoch: int, trans_num: str, explainer: Explainer, stopped: Stopped) -> dict[str, Any] | None:
    """The decision on one transaction; None if it is not made, or no longer kept anywhere.

    The archive is asked first, for that costs no pass over the results, and once more after them: retention may have
    archived a file while the others were read. Raises StoppedError, OSError.
    """
    found = (
        _in_archive(volume, epoch, trans_num)
        or _in_results(volume, epoch, trans_num, explainer, stopped)
        or _in_archive(volume, epoch, trans_num)
    )
    return _with_labels(volume, epoch, [found])[0] if found else None


def _in_results(
    volume: Volume, epoch: int, trans_num: str, explainer: Explainer, stopped: Stopped
) -> dict[str, Any] | None:
    for kept in _segments(places(volume, epoch), stopped):
        row = pc.index(kept.batch.column("trans_num"), trans_num).as_py()
        if row >= 0:
            return _decision(kept, row, explainer) | {"segment": kept.place.name.removesuffix(SUFFIX)}
    return None


def _in_archive(volume: Volume, epoch: int, trans_num: str) -> dict[str, Any] | None:
    """What the archive has of a decision, and null for what it has not."""
    table = Archive(volume).find(epoch, [trans_num])
    if not table.num_rows:
        return None
    flagged = table.column("flagged")[0].as_py()
    return {
        "source": "archive",
        "trans_num": trans_num,
        "decision": "flagged" if flagged else "approved",
        "risk_score": table.column("risk_score")[0].as_py(),
        "model_version": None,
        "amount": table.column("amt_cents")[0].as_py() / 100,
        "merchant": table.column("merchant")[0].as_py(),
        "category": None,
        "state": None,
        "cc_num_masked": None,
        "event_time": iso_us(table.column("event_time")[0].value),
        "ingested_at": None,
        "timestamp": None,
        "is_fraud": None,
        "reasons": [],
        "reasons_note": FILE_GONE if flagged else None,
        "segment": None,
    }


def signals(
    volume: Volume,
    epoch: int,
    wanted: Filter,
    limit: int,
    after: Cursor | None,
    explainer: Explainer,
    stopped: Stopped,
) -> tuple[list[dict[str, Any]], Cursor | None]:
    """At most ``limit`` flagged transactions, newest file first, and where the next page begins (None: no more).

    Raises StoppedError.
    """
    chosen = [place for place in places(volume, epoch) if _may_hold(place, wanted, after)]
    page: list[dict[str, Any]] = []
    last: Cursor | None = None
    for kept in _segments(chosen, stopped):
        place = kept.place
        rows = _matching(kept.batch, wanted)[::-1]
        if after is not None and (place.mtime_ns, place.name) == after[:2]:
            rows = rows[rows < after.row]
        for row in rows.tolist():
            if len(page) == limit:
                return _with_labels(volume, epoch, page), last
            if stopped():
                raise StoppedError
            page.append(_decision(kept, row, explainer))
            last = Cursor(place.mtime_ns, place.name, row)
    return _with_labels(volume, epoch, page), None


def _with_labels(volume: Volume, epoch: int, decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with the newest label that came on its own."""
    found = label_files.latest(volume, epoch, (decision["trans_num"] for decision in decisions))
    for decision in decisions:
        label = found.get(decision["trans_num"])
        decision["label"] = label and {"is_fraud": label[0], "labelled_at": iso_us(label[1])}
    return decisions


def _may_hold(place: Place, wanted: Filter, after: Cursor | None) -> bool:
    if after is not None and (place.mtime_ns, place.name) > after[:2]:
        return False
    return wanted.since is None or place.mtime_ns / 1000 >= wanted.since - CLOCK_SLACK_SECONDS * 1e6


def _segments(found: Iterable[Place], stopped: Stopped) -> Iterator[_Kept]:
    for place in found:
        if stopped():
            raise StoppedError
        try:
            batch, _, notes = read_segment_notes(place.path)
        except (FileNotFoundError, SegmentError):  # retention removed it; a damaged one is `verify`'s to tell
            continue
        yield _Kept(place, batch, notes)


def _matching(batch: pa.RecordBatch, wanted: Filter) -> NDArray[np.int64]:
    mask = pc.equal(batch.column("decision").cast(pa.string()), "flagged")
    mask = pc.and_(mask, pc.greater_equal(batch.column("risk_score").cast(pa.float64()), wanted.min_score))
    for name, value in (("category", wanted.category), ("state", wanted.state)):
        if value is not None:
            mask = pc.and_(mask, pc.equal(batch.column(name).cast(pa.string()), value))
    if wanted.since is not None:
        mask = pc.and_(mask, pc.greater_equal(batch.column("scored_at").cast(TIME).view(pa.int64()), wanted.since))
    rows: NDArray[np.int64] = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
    return rows


def _decision(kept: _Kept, row: int, explainer: Explainer) -> dict[str, Any]:
    """One row of a result file as the API shows it."""
    batch = kept.batch

    def value(name: str) -> Any:
        column = batch.column(name).slice(row, 1)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_timestamp(column.type):
            return iso_us(column.view(pa.int64())[0].as_py())
        return column[0].as_py()

    assert batch.schema.names == RESULTS.names
    return {
        "source": "results",
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
        **_why(kept, row, explainer),
    }


def _why(kept: _Kept, row: int, explainer: Explainer) -> dict[str, Any]:
    """Why a row was flagged, and if nobody can say why not."""
    if kept.batch.column("decision")[row].as_py() != "flagged":
        return {"reasons": [], "reasons_note": None}
    found = explainer.explain(kept.batch.column("model_version")[row].as_py(), kept.entry(row))
    amount = kept.batch.column("amt")[row].as_py()
    return {"reasons": [shown(reason, amount) for reason in found.reasons], "reasons_note": found.note}


def _epoch(file: str) -> int | None:
    name = SegmentName.parse(file)
    return name.epoch if name else None
