"""Which decision a label is about: in the archive by hash, and in the result files, newest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.api.lookups import CLOCK_SLACK_SECONDS, Place, StoppedError, places
from spearhead.archive import Archive
from spearhead.decided import DECISION, Decided
from spearhead.segment import SegmentError, SegmentName, read_segment
from spearhead.volume import Volume

NANOSECONDS: Final = 1e9


class Decisions:
    """Finds decisions."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._archive = Archive(volume)
        self._decided = Decided(volume)

    def find(self, epoch: int, trans_nums: Iterable[str], since_ns: int, stopped: Callable[[], bool]) -> pa.Table:
        """Of schema DECISION, the decisions on ``trans_nums``, each once.

        With ``since_ns`` only in result files that are not older; what comes into the archive was among them before.
        Raises StoppedError, OSError.
        """
        wanted = list(trans_nums)
        archived = self._in_archive(epoch, wanted if not since_ns else [])
        wanted = _without(wanted, archived)
        results = self._in_results(epoch, wanted, since_ns, stopped)
        left = _without(wanted, results)
        # A file that retention took while the others were read is in the archive by now.
        again = self._in_archive(epoch, left if not since_ns else [])
        return pa.concat_tables([archived, results, again])

    def _in_archive(self, epoch: int, trans_nums: list[str]) -> pa.Table:
        if not trans_nums:
            return DECISION.empty_table()
        return self._archive.find(epoch, trans_nums).select(DECISION.names)

    def _in_results(self, epoch: int, trans_nums: list[str], since_ns: int, stopped: Callable[[], bool]) -> pa.Table:
        wanted = pa.array(trans_nums, pa.string())
        found: list[pa.RecordBatch] = []
        for place in self._places(epoch, since_ns) if trans_nums else ():
            if stopped():
                raise StoppedError
            if not len(wanted):
                break
            batch = self._in_file(place, wanted)
            if batch is not None:
                found.append(batch)
                wanted = wanted.filter(pc.invert(pc.is_in(wanted, value_set=batch.column("trans_num"))))
        return pa.Table.from_batches(found, DECISION)

    def _places(self, epoch: int, since_ns: int) -> list[Place]:
        slack = int(CLOCK_SLACK_SECONDS * NANOSECONDS)
        return [place for place in places(self._volume, epoch) if place.mtime_ns >= since_ns - slack]

    def _in_file(self, place: Place, wanted: pa.Array) -> pa.RecordBatch | None:
        try:
            batch, info = read_segment(place.path)
        except (FileNotFoundError, SegmentError):  # retention removed it; a damaged one is `verify`'s to tell
            return None
        rows = np.flatnonzero(pc.is_in(batch.column("trans_num"), value_set=wanted).to_numpy(zero_copy_only=False))
        name = SegmentName.parse(info.name)
        if not len(rows) or name is None:
            return None
        return self._decided.of(batch.take(pa.array(rows)), name.producer)


def _without(trans_nums: list[str], found: pa.Table) -> list[str]:
    known = set(found.column("trans_num").to_pylist())
    return [trans_num for trans_num in trans_nums if trans_num not in known] if known else trans_nums
