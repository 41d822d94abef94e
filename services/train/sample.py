"""The training sample in memory: mirrors the files of training-queue, which prep bounds, and says what has matured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.train.fit import Rows, in_order
from spearhead import codes
from spearhead.backlog import Head
from spearhead.schema import UNKNOWN_LABEL
from spearhead.segment import SegmentError, SegmentInfo, SegmentName, read_segment
from spearhead.spool import MERGED, SpoolFile, SpoolReader, held_names
from spearhead.volume import Volume

_NEVER: Final = int(np.iinfo(np.int64).min)
_ALWAYS: Final = int(np.iinfo(np.int64).max)
_log = logging.getLogger(__name__)


class _File(NamedTuple):
    """Rows of one file, and the producers they come from as runs of rows."""

    rows: Rows
    producers: list[str]
    lengths: list[int]
    info: SegmentInfo


class Sample:
    """Rows of one epoch in training-queue. ``refresh`` follows the folder; files may come and go at any time."""

    def __init__(self, volume: Volume, epoch: int, width: int) -> None:
        self._reader = SpoolReader(volume)
        self._epoch = epoch
        self._width = width
        self._files: dict[str, _File] = {}
        self._refused: set[str] = set()
        self._arrived = 0.0  # source rows that ever came into the sample
        self._dropped_early = 0.0  # of those, the ones that left it before their label matured
        self._begun = False
        self._counted: tuple[object, float] = (None, 0.0)  # what the last count was made of, and the count

    @property
    def rows(self) -> int:
        """Rows in the sample, matured or not."""
        return sum(len(file.rows.label) for file in self._files.values())

    @property
    def refused(self) -> int:
        """Files left out because they could not be read."""
        return len(self._refused)

    def refresh(self, heads: Mapping[str, Head], delay_us: int) -> None:
        """Read what is new, forget what has gone. A merged file takes the place of those that it holds."""
        listed = {str(file.name): file for file in self._reader.files()}
        merged = held_names(list(listed.values()))
        for gone in set(self._files) - set(listed):
            file = self._files.pop(gone)
            if gone not in merged:
                self._dropped_early += _weight(file.rows, ~_mature(file, heads, delay_us))
        for name, spooled in listed.items():
            if name not in self._files and name not in self._refused and spooled.name.epoch == self._epoch:
                self._read(name, spooled)
        self._refused &= set(listed)
        self._begun = True

    def matured(self, heads: Mapping[str, Head], delay_us: int) -> float:
        """Source rows whose label may be used by now, counted since this object was made."""
        state = (dict(heads), delay_us, list(self._files), self._arrived, self._dropped_early)
        if self._counted[0] != state:  # an idle pipeline costs no pass over the sample
            immature = sum(_weight(file.rows, ~_mature(file, heads, delay_us)) for file in self._files.values())
            self._counted = (state, max(0.0, self._arrived - self._dropped_early - immature))
        return self._counted[1]

    def take(self, heads: Mapping[str, Head], delay_us: int) -> Rows:
        """The matured rows in the sample, in order."""
        kept = [file.rows.take(_mature(file, heads, delay_us)) for file in self._files.values()]
        if not kept:
            return _no_rows(self._width)
        return in_order(Rows(*(np.concatenate(columns) for columns in zip(*kept, strict=True))))

    def _read(self, name: str, spooled: SpoolFile) -> None:
        try:
            file = _open(spooled.path, self._width)
        except FileNotFoundError:  # dropped as the oldest, or merged, since the listing
            return
        except (SegmentError, ValueError) as error:  # a sample may lack rows: nothing else depends on them
            self._refused.add(name)
            _log.warning("training file %s left out: %s", name, error)
            return
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
        codes.values(batch.column("features")),
    )
    name = SegmentName.parse(path.name)
    runs = info.origins or ((name.producer if name else "", info.rows),)
    if sum(count for _, count in runs) != info.rows:
        raise SegmentError(f"{path.name}: origins of {sum(count for _, count in runs)} rows, it has {info.rows}")
    return _File(rows, [producer for producer, _ in runs], [count for _, count in runs], info)


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    return np.array(column.to_numpy(zero_copy_only=True))


def _mature(file: _File, heads: Mapping[str, Head], delay_us: int) -> NDArray[np.bool_]:
    """Which rows carry a label that may be used: their producer has published past them by the delay, or has ended."""
    usable = [_newest_usable(heads.get(producer), delay_us) for producer in file.producers]
    newest = np.repeat(np.array(usable, np.int64), file.lengths)
    return (file.rows.event_time <= newest) & (file.rows.label >= 0)


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
