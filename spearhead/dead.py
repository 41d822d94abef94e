"""How much lies in the topics' ``dead/`` folders: segments and rows that were set aside, their reasons beside them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from spearhead.rejects import EDGE_SUFFIX, PREP_SUFFIX, REASON_SUFFIX, Reason
from spearhead.volume import Volume

TICK_SECONDS: Final = 1.0
TOPICS: Final = ("raw_transactions", "features_ready", "inference_results", "training_queue", "metrics")
_EPOCH: Final = re.compile(r"e(\d{4,})-(?:[a-z]\d{2,}-p\d{2,}-\d{12}\.|inbox-|stray-)")  # other names tell of no epoch


class DeadRows(msgspec.Struct):
    """What one topic has set aside in this epoch."""

    segments: int = 0
    rows: int = 0  # in those segments, as far as known
    unknown_segments: int = 0  # of them, those whose rows nobody knows (yet)
    rejected_rows: int = 0  # single rows refused while the rest of their segment went on


class DeadCounter:
    """Counts ``dead/`` folders; a folder that did not change costs one system call, a file is read once."""

    def __init__(self, volume: Volume, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._volume = volume
        folders = (volume.raw, volume.features, volume.results, volume.training, volume.metrics)
        self._folders = {topic: folder / "dead" for topic, folder in zip(TOPICS, folders, strict=True)}
        self._times: dict[str, tuple[int, float]] = {}  # topic -> folder's time, when we first saw it
        self._counts: dict[str, tuple[int, int, DeadRows]] = {}  # topic -> folder's time, epoch, counts
        self._known: dict[Path, DeadRows] = {}

    def count(self, epoch: int) -> dict[str, DeadRows]:
        """Counts of an epoch by topic."""
        return {topic: self._count(topic, folder, epoch) for topic, folder in self._folders.items()}

    def _count(self, topic: str, folder: Path, epoch: int) -> DeadRows:
        try:
            changed = os.stat(folder).st_mtime_ns
        except FileNotFoundError:
            return DeadRows()
        seen = self._counts.get(topic)
        if seen is not None and seen[:2] == (changed, epoch):
            return seen[2]
        total = DeadRows()
        for file in self._volume.files.list(folder):
            if file.endswith((REASON_SUFFIX, EDGE_SUFFIX, PREP_SUFFIX)) and _epoch_of(file, epoch) == epoch:
                _add(total, self._read(folder / file))
        if self._settled(topic, changed):
            self._counts[topic] = (changed, epoch, total)
        return total

    def _settled(self, topic: str, changed: int) -> bool:
        """Whether the folder's time has stood still for longer than a file system's clock takes to tick."""
        now = self._clock()
        seen = self._times.get(topic)
        if seen is None or seen[0] != changed:
            self._times[topic] = seen = (changed, now)
        return now - seen[1] > TICK_SECONDS

    def _read(self, path: Path) -> DeadRows:
        known = self._known.get(path)
        if known is not None and not known.unknown_segments:
            return known
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # removed since it was listed
            return DeadRows()
        if path.name.endswith(REASON_SUFFIX):
            rows = _reason_rows(content)
            known = DeadRows(segments=1, rows=rows or 0, unknown_segments=int(rows is None))
        else:
            known = DeadRows(rejected_rows=content.count(b"\n"))
        self._known[path] = known
        return known


def _reason_rows(content: bytes) -> int | None:
    try:
        return msgspec.json.decode(content, type=Reason).rows
    except msgspec.DecodeError:  # a reason that can't be read says nothing; the segment is dead all the same
        return None


def _epoch_of(file: str, default: int) -> int:
    name = _EPOCH.match(file)
    return int(name[1]) if name else default


def _add(total: DeadRows, one: DeadRows) -> None:
    total.segments += one.segments
    total.rows += one.rows
    total.unknown_segments += one.unknown_segments
    total.rejected_rows += one.rejected_rows
