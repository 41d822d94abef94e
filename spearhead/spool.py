"""training-queue: a bounded sample of features-ready, ``ready/*.arrow``, oldest dropped first.

Many small files are merged into one of producer ``m00``: its metadata's ``cursor`` lists the names it holds. A kill may
leave both: whoever reads skips a file whose name a merged one holds (``spool_files``). A file may vanish at any time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import pyarrow as pa

from spearhead.segment import SegmentError, SegmentInfo, SegmentName, read_info, read_segment, write_segment
from spearhead.volume import Volume

MERGED: Final = "m00"
MAX_FILES: Final = 512
MERGE_FILES: Final = 256
FULL_ROWS: Final = 16_384  # a file of so many rows is not small
FULL_SHARE: Final = 16  # nor is one of this part of the sample: what is dropped is dropped file by file


class SpoolFile(NamedTuple):
    """One file of the sample."""

    name: SegmentName
    path: Path
    info: SegmentInfo


class SpoolReader:
    """Lists the sample; each footer is read once."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._infos: dict[str, SegmentInfo] = {}

    def files(self) -> list[SpoolFile]:
        """The files of the epoch in force, oldest event time first, without those that a merged file holds.

        Damaged ones are left out: they are dropped in time like all others.
        """
        listed = self._list()
        held = held_names(listed)
        return [file for file in listed if str(file.name) not in held]

    def _list(self) -> list[SpoolFile]:
        folder, epoch = self._volume.training / "ready", self._volume.epoch()
        found = []
        infos = {}
        for file in self._volume.files.list(folder):
            name = SegmentName.parse(file)
            if name is None or name.epoch != epoch:
                continue
            try:
                infos[file] = self._infos.get(file) or read_info(folder / file)
            except (FileNotFoundError, SegmentError):
                continue
            found.append(SpoolFile(name, folder / file, infos[file]))
        self._infos = infos
        return sorted(found, key=lambda file: (file.info.watermark, file.name))

    def all_files(self) -> list[SpoolFile]:
        """As ``files``, with those that a merged file holds."""
        return self._list()


def held_names(files: list[SpoolFile]) -> set[str]:
    """Names of segments that are in a merged file."""
    return {name for file in files if file.name.producer == MERGED for name in file.info.cursor.split()}


def origins(files: list[SpoolFile]) -> tuple[tuple[str, int], ...]:
    """Producers of the files' rows, one after another: whose labels mature is for each producer to say."""
    runs: list[tuple[str, int]] = []
    for file in files:
        for producer, rows in file.info.origins or ((file.name.producer, file.info.rows),):
            if runs and runs[-1][0] == producer:
                rows += runs.pop()[1]
            runs.append((producer, rows))
    return tuple(runs)


class Spool:
    """Keeps the sample within its bounds. Exactly one worker should, but two do no harm worth a protocol."""

    def __init__(self, volume: Volume, worker: str, max_rows: int, max_files: int = MAX_FILES) -> None:
        self._volume = volume
        self._files = volume.files
        self._reader = SpoolReader(volume)
        self._staging = volume.training / "staged" / f"{worker}.merge"
        self._max_rows = max_rows
        self._max_files = max_files
        self._full_rows = min(FULL_ROWS, max(1, max_rows // FULL_SHARE))

    def tidy(self) -> int:
        """Finish a merge that was cut short, drop the oldest beyond the bound, merge small files; rows that are kept.

        Raises OSError.
        """
        self._drop_garbage()
        files = self._finish_merge(self._reader.all_files())
        rows = sum(file.info.rows for file in files)
        while rows > self._max_rows and len(files) > 1:
            rows -= files[0].info.rows
            self._files.remove(files.pop(0).path)
        if len(files) > self._max_files:
            self._merge(files)
        return rows

    def _drop_garbage(self) -> None:
        """Files of earlier epochs, and what is no segment at all: nobody reads them."""
        folder, epoch = self._volume.training / "ready", self._volume.epoch()
        for file in self._files.list(folder):
            name = SegmentName.parse(file)
            if name is None or name.epoch < epoch:
                self._files.remove(folder / file)

    def _finish_merge(self, files: list[SpoolFile]) -> list[SpoolFile]:
        held = held_names(files)
        for file in files:
            if str(file.name) in held:
                self._files.remove(file.path)
        return [file for file in files if str(file.name) not in held]

    def _merge(self, files: list[SpoolFile]) -> None:
        """Put the oldest small files together, up to full ones. Until they are removed their rows are there twice, by
        name once.
        """
        seq, before = max(
            ((file.name.seq, file.info.rows_before + file.info.rows) for file in files if file.name.producer == MERGED),
            default=(0, 0),
        )
        for group in self._groups([file for file in files if file.info.rows < self._full_rows][:MERGE_FILES]):
            seq += 1
            before += self._merge_group(group, seq, before)

    def _groups(self, small: list[SpoolFile]) -> list[list[SpoolFile]]:
        """Runs of files that make a full one each, the last perhaps less; a file alone is left as it is."""
        groups: list[list[SpoolFile]] = [[]]
        for file in small:
            if sum(each.info.rows for each in groups[-1]) >= self._full_rows:
                groups.append([])
            groups[-1].append(file)
        return [group for group in groups if len(group) > 1]

    def _merge_group(self, group: list[SpoolFile], seq: int, rows_before: int) -> int:
        """Make one file of several; its rows."""
        batches = []
        merged = []
        for file in group:
            try:
                batches.append(read_segment(file.path)[0].replace_schema_metadata(None))
            except (FileNotFoundError, SegmentError):
                continue
            merged.append(file)
        if len(merged) < 2:
            return 0
        name = SegmentName(self._volume.epoch(), MERGED, 0, seq)
        batch = pa.concat_batches(batches)
        newest = max(merged, key=lambda file: file.info.watermark).info
        info = msgspec.structs.replace(
            newest,
            name=str(name),
            rows=batch.num_rows,
            rows_before=rows_before,
            cursor=" ".join(str(file.name) for file in merged),
            origins=origins(merged),
        )
        self._publish(name, batch, info)
        for file in merged:
            self._files.remove(file.path)
        return int(batch.num_rows)

    def _publish(self, name: SegmentName, batch: pa.RecordBatch, info: SegmentInfo) -> None:
        self._files.make_folder(self._staging)
        staged = self._staging / name.file
        ready = self._volume.training / "ready"
        try:
            write_segment(self._files, staged, batch, info)
            self._files.rename(staged, ready / name.file)
        finally:
            self._files.remove(staged)
            self._files.remove_folder(self._staging)
        self._files.sync_folders([ready])
