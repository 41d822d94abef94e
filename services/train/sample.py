"""The training sample in memory: mirrors the files of training-queue, which prep bounds, and says what has matured.

Rows of live traffic come without a label and wait in the sample for the one that comes late. Until then they count as
nothing: neither as fraud nor as genuine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.train.fit import Rows, in_order
from services.train.late import LateLabels, Said
from spearhead import codes
from spearhead.backlog import Head
from spearhead.codes import Codes
from spearhead.schema import UNKNOWN_LABEL
from spearhead.segment import SegmentError, SegmentInfo, SegmentName, read_segment
from spearhead.spool import MERGED, SpoolFile, SpoolReader, held_names
from spearhead.volume import Volume

_NEVER: Final = int(np.iinfo(np.int64).min)
_ALWAYS: Final = int(np.iinfo(np.int64).max)
_log = logging.getLogger(__name__)


class Count(NamedTuple):
    """What the sample holds by now. Weights are in source rows, counted since the ``Sample`` was made."""

    matured: float = 0.0  # rows whose label may be used
    corrected: float = 0.0  # of those in the sample now, the ones whose own label another has overruled
    unlabelled: int = 0  # sampled rows that wait for a label


@dataclass
class _File:
    """Rows of one file, and the producers they come from as runs of rows.

    Features stay codes, half the size: flat out nearly all rows leave before a training has asked for them.
    """

    rows: Rows  # with no features
    codes: Codes
    trans: NDArray[np.uint64]
    producers: list[str]
    lengths: list[int]
    info: SegmentInfo
    late: list[tuple[NDArray[np.int64], Said]] = field(default_factory=list)  # rows and their labels, in order

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.trans, kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.uint64]:
        return self.trans[self._order]

    def match(self, said: Said) -> None:
        """Note the labels that are about rows of this file."""
        if not len(said.at) or not len(self.trans):
            return
        if len(said.at) <= len(self.trans):
            place, label = _pairs(self._sorted, said.trans)
        else:  # a million labels and a few rows
            label, place = _pairs(said.trans, self._sorted)
        if len(place):
            self.late.append((self._order[place], said.take(label)))


class Sample:
    """Rows of one epoch in training-queue. ``refresh`` follows the folder; files may come and go at any time."""

    def __init__(self, volume: Volume, epoch: int, width: int, clock: Callable[[], float] = time.time) -> None:
        self._reader = SpoolReader(volume)
        self._labels = LateLabels(volume, epoch)
        self._epoch = epoch
        self._width = width
        self._clock = clock
        self._now = _NEVER  # us since 1970, at the last refresh
        self._files: dict[str, _File] = {}
        self._refused: set[str] = set()
        self._arrived = 0.0  # source rows that ever came into the sample
        self._dropped_early = 0.0  # of those, the ones that left it before their label matured
        self._begun = False
        self._counted: tuple[object, Count] = (None, Count())  # what the last count was made of, and the count
        self.aged_out = 0  # sampled rows that have left without ever having had a label

    @property
    def rows(self) -> int:
        """Rows in the sample, matured or not."""
        return sum(len(file.rows.label) for file in self._files.values())

    @property
    def refused(self) -> int:
        """Files left out because they could not be read."""
        return len(self._refused)

    @property
    def late_labels(self) -> int:
        """Labels that came on their own and are kept, of rows in the sample or not."""
        return self._labels.count

    def refresh(self, heads: Mapping[str, Head], delay_us: int) -> None:
        """Read what is new, forget what has gone. A merged file takes the place of those that it holds."""
        self._now = int(self._clock() * 1e6)
        listed = {str(file.name): file for file in self._reader.files()}
        merged = held_names(list(listed.values()))
        for gone in set(self._files) - set(listed):
            file = self._files.pop(gone)
            if gone not in merged:
                self._forget(file, heads, delay_us)
        for said in self._labels.refresh():
            for file in self._files.values():
                file.match(said)
        for name, spooled in listed.items():
            if name not in self._files and name not in self._refused and spooled.name.epoch == self._epoch:
                self._read(name, spooled)
        self._refused &= set(listed)
        self._begun = True

    def matured(self, heads: Mapping[str, Head], delay_us: int) -> float:
        """Source rows whose label may be used by now, counted since this object was made."""
        return self.count(heads, delay_us).matured

    def count(self, heads: Mapping[str, Head], delay_us: int) -> Count:
        """What the sample holds, as of the last refresh."""
        labels = [(name, len(file.late)) for name, file in self._files.items()]
        state = (dict(heads), delay_us, labels, min(self._now, self._latest()), self._arrived, self._dropped_early)
        if self._counted[0] != state:  # an idle pipeline costs no pass over the sample
            self._counted = (state, self._count(heads, delay_us))
        return self._counted[1]

    def take(self, heads: Mapping[str, Head], delay_us: int) -> Rows:
        """The rows in the sample whose label may be used, with it, in order."""
        kept, features = [], []
        for file in self._files.values():
            label = _usable(file, heads, delay_us, self._now)
            kept.append(file.rows._replace(label=label).take(label >= 0))
            features.append(file.codes[label >= 0])
        if not kept:
            return _no_rows(self._width)
        rows = Rows(*(np.concatenate(columns) for columns in zip(*kept, strict=True)))
        return in_order(rows._replace(features=codes.decode(np.concatenate(features))))

    def _count(self, heads: Mapping[str, Head], delay_us: int) -> Count:
        immature = corrected = 0.0
        unlabelled = 0
        for file in self._files.values():
            label = _usable(file, heads, delay_us, self._now)
            own = file.rows.label
            immature += _weight(file.rows, label < 0)
            corrected += _weight(file.rows, (label >= 0) & (own >= 0) & (own != label))
            unlabelled += int(((label < 0) & (own == UNKNOWN_LABEL)).sum())
        return Count(max(0.0, self._arrived - self._dropped_early - immature), corrected, unlabelled)

    def _latest(self) -> int:
        """The latest time that a label of a row in the sample gives itself: later ones need no new count."""
        return max((int(said.at.max()) for file in self._files.values() for _, said in file.late), default=_NEVER)

    def _forget(self, file: _File, heads: Mapping[str, Head], delay_us: int) -> None:
        label = _usable(file, heads, delay_us, self._now)
        self._dropped_early += _weight(file.rows, label < 0)
        self.aged_out += int(((label < 0) & (file.rows.label == UNKNOWN_LABEL)).sum())

    def _read(self, name: str, spooled: SpoolFile) -> None:
        try:
            file = _open(spooled.path, self._width)
        except FileNotFoundError:  # dropped as the oldest, or merged, since the listing
            return
        except (SegmentError, ValueError) as error:  # a sample may lack rows: nothing else depends on them
            self._refused.add(name)
            _log.warning("training file %s left out: %s", name, error)
            return
        for said in self._labels.every():
            file.match(said)
        self._files[name] = file
        if spooled.name.producer != MERGED or not self._begun:  # what is merged later has arrived before
            self._arrived += _weight(file.rows, file.rows.label >= UNKNOWN_LABEL)


def _open(path: Path, width: int) -> _File:
    """One file's rows, copied, as the file may go. Raises SegmentError, ValueError for rows of another width."""
    batch, info = read_segment(path)
    found = batch.schema.field("features").type.list_size
    if found != width:
        raise ValueError(f"{found} features a row instead of {width}")
    rows = Rows(
        *(_numbers(batch, name) for name in ("event_time", "amt_cents", "category", "label", "scenario", "weight")),
        np.empty((batch.num_rows, 0), np.float32),
    )
    name = SegmentName.parse(path.name)
    runs = info.origins or ((name.producer if name else "", info.rows),)
    if sum(count for _, count in runs) != info.rows:
        raise SegmentError(f"{path.name}: origins of {sum(count for _, count in runs)} rows, it has {info.rows}")
    trans = _numbers(batch, "trans")
    own = codes.of(batch.column("features")).copy()
    return _File(rows, own, trans, [producer for producer, _ in runs], [count for _, count in runs], info)


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    return np.array(column.to_numpy(zero_copy_only=True))


def _usable(file: _File, heads: Mapping[str, Head], delay_us: int, now: int) -> NDArray[np.int8]:
    """Each row's label, int8 (n,), where one may be used, else -1.

    A row's own counts when its producer has published past the row by the delay, or has ended. One that came on its
    own counts once the moment at which it was given has come, by the clock or in what the row's producer has
    published; if it overrules the row's own, not before that one counts.
    """
    newest = _by_row(file, [_newest_usable(heads.get(producer), delay_us) for producer in file.producers])
    own = file.rows.label
    label = np.where(file.rows.event_time <= newest, own, UNKNOWN_LABEL).astype(np.int8)
    if file.late:
        clock = np.maximum(now, _by_row(file, [_watermark(heads.get(producer)) for producer in file.producers]))
        waits = (own != UNKNOWN_LABEL) & (label == UNKNOWN_LABEL)
        for rows, said in file.late:
            counts = (said.at <= clock[rows]) & ~waits[rows]
            label[rows[counts]] = said.fraud[counts]  # of one row's labels the last is kept
    return label


def _pairs(ascending: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All places in ``ascending`` of each of ``wanted``, in its order, and which of them it is; both (pairs,)."""
    first = np.searchsorted(ascending, wanted, side="left")
    counts = np.searchsorted(ascending, wanted, side="right") - first
    which = np.repeat(np.arange(len(wanted)), counts)
    begin = np.repeat(first - (np.cumsum(counts) - counts), counts)
    return begin + np.arange(len(which)), which


def _by_row(file: _File, by_run: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.array(by_run, np.int64), file.lengths)


def _watermark(head: Head | None) -> int:
    return _NEVER if head is None else head.watermark


def _weight(rows: Rows, which: NDArray[np.bool_]) -> float:
    return float(rows.weight[which].sum(dtype=np.float64))


def _newest_usable(head: Head | None, delay_us: int) -> int:
    """The newest event time whose labels may be used, us."""
    if head is None:
        return _NEVER
    return _ALWAYS if head.ended else head.watermark - delay_us


def _no_rows(width: int) -> Rows:
    kinds = (np.int64, np.int32, np.uint8, np.int8, np.int8, np.float32)
    return Rows(*(np.empty(0, kind) for kind in kinds), np.empty((0, width), np.float32))
