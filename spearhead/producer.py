"""A producer of raw-transactions: publishes its flushes once each, and resumes from what is on disk.

Flush ``seq`` is one segment in every partition (some may be empty), published by ``link`` from a private folder to
``ready/pNN/``, partition 0 first. The newest segment of a producer and partition stays in ``ready/`` even when it is
consumed, so a stale link of a producer thought dead either collides with a name or finds a higher one beside it: it
was superseded, and what it linked is skipped by its sequence number.

The link in partition 0 decides: all parts were staged before it, and whoever resumes links the others, so a flush is in
all partitions or in none. docs/decisions/0003-partition-log.md has more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from spearhead.files import Files
from spearhead.narrow import narrow
from spearhead.rejects import EDGE_SUFFIX, RejectedRow, encode_rejects
from spearhead.segment import LABEL_LETTER, SEQ_DIGITS, SegmentError, SegmentInfo, SegmentName, read_info, write_segment
from spearhead.volume import Volume


class SupersededError(RuntimeError):
    """Another process publishes as this producer: drop all state, then ``resume`` if the slot is still one's own."""


class Position(NamedTuple):
    """Where a producer stands: everything up to flush ``seq`` is published; counts are over all partitions."""

    seq: int = 0  # 0: nothing yet
    cursor: str = ""  # where the source goes on
    rows: int = 0  # rows published
    rejected: int = 0  # rows set aside
    watermark: int = 0  # us since 1970
    ended: bool = False
    redo_rows: int | None = None  # the next flush was cut short by a kill: it must take exactly so many rows again


class Producer:
    """Publishes as ``producer`` (such as ``g00``) in the volume's epoch; lease.py gives each slot one live owner."""

    def __init__(self, volume: Volume, producer: str, partitions: int, worker: str) -> None:
        self._volume = volume
        self._files: Files = volume.files
        self._producer = producer
        self._labels = producer.startswith(LABEL_LETTER)
        self._partitions = partitions
        self._worker = worker
        self._attempts = 0
        self._epoch = 0
        self._staging = Path()
        self._position: Position | None = None
        self._before: list[int] = []  # rows published before the next flush, by partition
        self._linked: set[int] = set()  # partitions that have the next flush already
        self._staged: set[int] = set()  # partitions whose staged file of the next flush is whole

    @property
    def position(self) -> Position:
        """The position after the last publish. Raises RuntimeError before ``resume``."""
        if self._position is None:
            raise RuntimeError("resume() comes first")
        return self._position

    def resume(self) -> Position:
        """Take up where this producer's segments on disk end, in the epoch in force.

        A flush that a kill left in some partitions only is linked in the others. Where its staged parts are gone
        (removed by hand, or of a version that staged them one by one) ``redo_rows`` says how many rows (accepted and
        rejected together) the next ``publish`` must bring again, from ``cursor`` on.
        Raises SegmentError if segments are damaged beyond what the others can tell, OSError.
        """
        self._epoch = self._volume.epoch()
        self._attempts += 1
        self._staging = self._volume.raw / "staged" / f"{self._worker}.{self._attempts}"
        self._settle()
        newest = [self._newest(partition) for partition in range(self._partitions)]
        top = max((end.seq for end in newest), default=0)
        self._linked = {p for p, end in enumerate(newest) if end.seq == top} if top else set()
        self._staged = set()
        whole = len(self._linked) in (0, self._partitions)
        if whole:
            self._linked = set()
        self._before = [end.rows if whole or end.seq < top else end.rows_before for end in newest]
        self._position = _position(newest) if whole else self._cut_short(newest, top)
        return self._position

    def publish(
        self,
        batch: pa.RecordBatch,
        *,
        rejected: Sequence[RejectedRow] = (),
        cursor: str = "",
        watermark: int = 0,
        ended: bool = False,
        finite: bool = False,
    ) -> Position:
        """Publish the next flush, durable on return: ``batch`` of schema.RAW, and the rows set aside with it.

        Of a producer of labels: ``batch`` of schema.LABELS.

        ``watermark`` is the newest event time so far in us since 1970. Raises SupersededError if this producer goes on
        elsewhere, ValueError if a redo does not bring the rows it must, OSError if nothing or not all could be written
        (a full disk): then call again with the same arguments.
        """
        before = self.position
        flush_rows = batch.num_rows + len(rejected)
        if before.redo_rows not in (None, flush_rows):
            raise ValueError(f"the flush cut short had {before.redo_rows} rows, its redo has {flush_rows}")
        position = Position(
            before.seq + 1, cursor, before.rows + batch.num_rows, before.rejected + len(rejected), watermark, ended
        )
        if rejected:
            path = self._volume.raw / "dead" / f"{self._name(0, position.seq)}{EDGE_SUFFIX}"
            self._files.replace(path, encode_rejects(rejected))
        parts = split(batch, self._partitions)
        for partition, part in enumerate(parts):
            if partition not in self._linked | self._staged:
                count, before_it = part.num_rows, self._before[partition]
                info = SegmentInfo(
                    name=str(self._name(partition, position.seq)),
                    rows=0 if self._labels else count,
                    rows_before=0 if self._labels else before_it,
                    labels=count if self._labels else 0,
                    labels_before=before_it if self._labels else 0,
                    rejected_before=before.rejected if partition == 0 else 0,
                    rejected=len(rejected) if partition == 0 else 0,
                    watermark=watermark,
                    ended=ended,
                    finite=finite,
                    cursor=cursor,
                    flush_rows=flush_rows,
                    staged=self._staging.name,
                )
                self._stage(part, info, self._staging / self._name(partition, position.seq).file)
                self._staged.add(partition)
        self._files.sync_folders([self._staging])
        for partition in range(self._partitions):
            if partition not in self._linked:
                self._link(partition, position.seq)
        self._before = [rows + part.num_rows for rows, part in zip(self._before, parts, strict=True)]
        self._linked.clear()
        self._staged.clear()
        self._position = position
        return position

    def close(self) -> None:
        """Remove the private folder."""
        if self._position is not None:
            self._settle()
            self._files.remove_folder(self._staging)

    def _name(self, partition: int, seq: int) -> SegmentName:
        return SegmentName(self._epoch, self._producer, partition, seq)

    def _stage(self, part: pa.RecordBatch, info: SegmentInfo, staged: Path) -> None:
        self._files.make_folder(self._staging)
        try:
            write_segment(self._files, staged, part if self._labels else narrow(part), info)
        except OSError:
            self._files.remove(staged)
            raise

    def _link(self, partition: int, seq: int) -> None:
        """Link what is staged, look again. Once partition 0 has it, others may have linked the rest for us."""
        name = self._name(partition, seq)
        staged = self._staging / name.file
        decided = partition > 0 and 0 in self._linked
        try:
            linked = self._files.link(staged, self._volume.raw_ready(partition) / name.file)
        except FileNotFoundError as error:  # the next owner of this slot has cleared what was staged
            if not decided:
                raise self._superseded(name) from error
            linked = True
        if not linked or (not decided and self._published(partition)[-1:] > [name]):  # look again
            raise self._superseded(name)
        self._files.remove(staged)
        self._linked.add(partition)

    def _superseded(self, name: SegmentName) -> SupersededError:
        self._position = None
        return SupersededError(f"producer {self._producer} goes on elsewhere: {name} is not this process's to publish")

    def _published(self, partition: int) -> list[SegmentName]:
        """This producer's segments on disk, in order."""
        prefix = str(self._name(partition, 0))[:-SEQ_DIGITS]
        files = self._files.list(self._volume.raw_ready(partition))
        names = (SegmentName.parse(file) for file in files if file.startswith(prefix))
        return [name for name in names if name is not None]

    def _newest(self, partition: int) -> _End:
        """The newest segment of a partition.

        Where the newest file is damaged the one before it that can be read says where the source goes on: rows of the
        damaged one are made again, under a higher number. Neither is ever removed (partition.py).
        """
        names = self._published(partition)
        for name in reversed(names):
            try:
                info = read_info(self._volume.raw_ready(partition) / name.file)
            except SegmentError:
                if self._partitions > 1:
                    raise
                continue
            except FileNotFoundError:  # consumed since the listing: then it is not the newest
                continue
            return _End(names[-1].seq, info)
        return _End(names[-1].seq if names else 0, SegmentInfo(name="", rows=0, rows_before=0))

    def _cut_short(self, newest: Sequence[_End], top: int) -> Position:
        """The position before flush ``top``, which only some partitions have."""
        done = next(end for end in newest if end.seq == top)
        earlier = next(end for end in newest if end.seq < top)
        if earlier.seq != top - 1:
            raise SegmentError(
                f"producer {self._producer} has published {top} in one partition and only {earlier.seq} in another: "
                "was the partition count changed? see docs/OPERATIONS.md"
            )
        position = _position([earlier])
        rejected = newest[0].info.rejected_before if newest[0].seq == top else newest[0].rejected
        return position._replace(rows=sum(self._before), rejected=rejected, redo_rows=done.info.flush_rows)

    def _settle(self) -> None:
        """Finish or drop what this producer's earlier processes have staged, so that nothing of theirs is left."""
        root = self._volume.raw / "staged"
        for folder in self._files.list(root):
            names = [name for file in self._files.list(root / folder) if (name := SegmentName.parse(file)) is not None]
            for name in names:
                if name.epoch < self._epoch:
                    self._files.remove(root / folder / name.file)
            own = {name.seq for name in names if name.producer == self._producer and name.epoch == self._epoch}
            for seq in sorted(own):
                self._settle_flush(root / folder, seq)

    def _settle_flush(self, folder: Path, seq: int) -> None:
        """Without its staged file partition 0 can't be linked any more: now it shows whether it was."""
        first = self._name(0, seq)
        self._files.remove(folder / first.file)
        if self._partitions == 1:
            return
        decided = self._published(0)[-1:] == [first] and self._staged_in(first) == folder.name
        for partition in range(1, self._partitions):
            name = self._name(partition, seq)
            if decided:
                try:
                    self._files.link(folder / name.file, self._volume.raw_ready(partition) / name.file)
                except FileNotFoundError:  # it was linked before, or this moment by its owner
                    continue
            self._files.remove(folder / name.file)

    def _staged_in(self, name: SegmentName) -> str | None:
        try:
            return read_info(self._volume.raw_ready(name.partition) / name.file).staged
        except FileNotFoundError:  # consumed since the listing: then it is not the newest
            return None


class _End(NamedTuple):
    """The newest number of a partition and the newest readable segment's metadata."""

    seq: int
    info: SegmentInfo

    @property
    def rows(self) -> int:
        return self.info.items_before + self.info.items

    @property
    def rows_before(self) -> int:
        return self.info.items_before

    @property
    def rejected(self) -> int:
        return self.info.rejected_before + self.info.rejected


def _position(newest: Sequence[_End]) -> Position:
    """The position after a flush that every partition has."""
    info = newest[0].info
    return Position(
        newest[0].seq, info.cursor, sum(end.rows for end in newest), newest[0].rejected, info.watermark, info.ended
    )


def split(batch: pa.RecordBatch, partitions: int) -> list[pa.RecordBatch]:
    """``batch`` by ``card % partitions``, order kept; the batch itself, not a copy, for one partition."""
    if partitions == 1:
        return [batch]
    owner = np.asarray(batch.column("card")) % np.uint64(partitions)
    return [batch.take(pa.array(np.flatnonzero(owner == np.uint64(p)))) for p in range(partitions)]
