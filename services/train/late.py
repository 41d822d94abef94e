"""Labels that came on their own, as the trainer knows them: the files of training-queue/labels, each read once."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spearhead import label_files
from spearhead.segment import SegmentError, SegmentName, read_segment
from spearhead.volume import Volume

_log = logging.getLogger(__name__)


class Said(NamedTuple):
    """Labels of a file, by transaction; of those of one transaction, in the order of the log, the last counts."""

    trans: NDArray[np.uint64]  # (n,) hash of trans_num, ascending
    at: NDArray[np.int64]  # (n,) labelled_at, us since 1970
    fraud: NDArray[np.int8]  # (n,) 1 or 0

    def take(self, which: NDArray[np.int64]) -> Said:
        return Said(*(column[which] for column in self))


class LateLabels:
    """All labels that are kept, of one epoch. A row may come into the sample after its label: they all stay."""

    def __init__(self, volume: Volume, epoch: int) -> None:
        self._volume = volume
        self._epoch = epoch
        self._files: dict[SegmentName, Said] = {}
        self._seen: dict[int, int] = {}  # partition -> number up to which its labels were told

    @property
    def count(self) -> int:
        return sum(len(said.at) for said in self._files.values())

    def refresh(self) -> list[Said]:
        """Follow the folder; what is new, in order. Labels told before may be among it again."""
        names = label_files.listed(self._volume, self._epoch)
        self._files = {name: self._files[name] for name in names if name in self._files}
        new = []
        for name in names:
            if name not in self._files and (said := self._read(name)) is not None:
                self._files[name] = said
                if name.seq > self._seen.get(name.partition, 0):
                    new.append(said)
                    self._seen[name.partition] = name.seq
        return new

    def every(self) -> list[Said]:
        """All of them; those of a transaction in order, as they are in one partition."""
        return [self._files[name] for name in sorted(self._files, key=lambda name: (name.partition, name.seq))]

    def _read(self, name: SegmentName) -> Said | None:
        try:
            batch, _ = read_segment(self._volume.labels / name.file)
        except FileNotFoundError:  # merged since the listing: the next look reads what holds it
            return None
        except SegmentError as error:
            if self._seen.get(name.partition, 0) < name.seq:
                _log.warning("labels %s left out of the sample: %s", name, error)
            return self._nothing()
        trans = np.array(batch.column("trans"))
        said = Said(trans, np.array(batch.column("labelled_at").view("int64")), np.array(batch.column("is_fraud")))
        return said.take(np.argsort(trans, kind="stable"))

    def _nothing(self) -> Said:
        return Said(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int8))
