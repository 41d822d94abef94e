"""training-queue/labels: labels that came on their own, in the order of the log, for training and look-ups.

Prep leaves a file for each segment of labels that changed anything, named as that is. Many of them are merged into one
of producer ``m00``: of number n it holds what the partition's files up to n held, which a reader then skips.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from spearhead.segment import SegmentError, SegmentInfo, SegmentName, read_segment, write_segment
from spearhead.volume import Volume

MERGED: Final = "m00"
MAX_FILES: Final = 256  # of a partition: more are merged
KEPT: Final = 1_000_000  # labels of a partition; those that came first go first
_log = logging.getLogger(__name__)


def listed(volume: Volume, epoch: int) -> list[SegmentName]:
    """The files of an epoch that count, by partition and then in the order of the log."""
    return [name for names in _by_partition(volume, epoch).values() for name in _counting(names)]


def latest(volume: Volume, epoch: int, trans_nums: Iterable[str]) -> dict[str, tuple[bool, int]]:
    """Of these transactions the newest label that came on its own: whether it is fraud, and when it was said (us).

    Reads the files, newest first; a transaction has all its labels in one partition, in order.
    """
    wanted = pa.array(list(dict.fromkeys(trans_nums)), pa.string())
    found: dict[str, tuple[bool, int]] = {}
    for name in sorted(listed(volume, epoch), key=lambda name: name.seq, reverse=True):
        try:
            batch, _ = read_segment(volume.labels / name.file)
        except (FileNotFoundError, SegmentError):  # merged meanwhile; a damaged one tells nothing
            continue
        rows = batch.filter(pc.is_in(batch.column("trans_num"), value_set=wanted))
        times = rows.column("labelled_at").view(pa.int64()).to_pylist()
        here = zip(rows.column("trans_num").to_pylist(), rows.column("is_fraud").to_pylist(), times, strict=True)
        found = {trans_num: (bool(fraud), at) for trans_num, fraud, at in here} | found
    return found


def tidy(volume: Volume, worker: str, max_files: int = MAX_FILES, kept: int = KEPT) -> None:
    """Merge the files of partitions that have many, and remove those that are merged. Raises OSError.

    Killed anywhere, or done by two workers at once, it leaves every label where a reader finds it.
    """
    epoch = volume.epoch()
    for partition, names in _by_partition(volume, epoch).items():
        if len(_counting(names)) > max_files:
            # A listing may lack a file that was put there while it was made, but none older than one made before it.
            again = _by_partition(volume, epoch).get(partition, [])
            _merge(volume, worker, [name for name in _counting(again) if name.seq <= max(names, key=_order).seq], kept)
    _remove_merged(volume, epoch)


def _merge(volume: Volume, worker: str, names: list[SegmentName], kept: int) -> None:
    if len(names) < 2:
        return
    batches = []
    for name in names:
        try:
            batches.append(read_segment(volume.labels / name.file)[0].replace_schema_metadata(None))
        except FileNotFoundError:  # another worker has merged them
            return
        except SegmentError as error:
            _log.warning("labels left out of training and look-ups: %s", error)
    if not batches:
        return
    batch = pa.concat_batches(batches)
    batch = batch.slice(max(0, batch.num_rows - kept))
    merged = names[-1]._replace(producer=MERGED)
    _publish(volume, volume.training / "staged" / f"{worker}.labels", merged, batch)


def _publish(volume: Volume, staging: Path, name: SegmentName, batch: pa.RecordBatch) -> None:
    staged = staging / name.file
    volume.files.make_folder(staging)
    try:
        write_segment(volume.files, staged, batch, SegmentInfo(name=str(name), rows=batch.num_rows, rows_before=0))
        volume.files.rename(staged, volume.labels / name.file)
    except FileNotFoundError:  # swept as what a dead worker had staged: the files are still there, to be merged later
        return
    finally:
        volume.files.remove(staged)
        volume.files.remove_folder(staging)
    volume.files.sync_folders([volume.labels])


def _remove_merged(volume: Volume, epoch: int) -> None:
    for names in _by_partition(volume, epoch).values():
        for name in set(names) - set(_counting(names)):
            volume.files.remove(volume.labels / name.file)


def _by_partition(volume: Volume, epoch: int) -> dict[int, list[SegmentName]]:
    found: dict[int, list[SegmentName]] = {}
    for file in volume.files.list(volume.labels):
        name = SegmentName.parse(file)
        if name is not None and name.epoch == epoch:
            found.setdefault(name.partition, []).append(name)
    return found


def _counting(names: list[SegmentName]) -> list[SegmentName]:
    """Of a partition's files those that no merged one holds, in the order of the log."""
    merged = max((name.seq for name in names if name.producer == MERGED), default=0)
    newer = [name for name in names if name.seq > merged]
    return [name for name in names if name.producer == MERGED and name.seq == merged] + sorted(newer, key=_order)


def _order(name: SegmentName) -> int:
    return name.seq
