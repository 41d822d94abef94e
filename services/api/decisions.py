"""Which decision a label is about: the rows of result files whose ``trans_num`` is wanted, newest file first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.api.lookups import CLOCK_SLACK_SECONDS, Place, StoppedError, places
from spearhead.schema import LABELS, UNKNOWN_LABEL
from spearhead.segment import SegmentError, SegmentName, read_segment
from spearhead.volume import Volume

_UNKNOWN_END: Final = np.iinfo(np.int64).max
DECISION: Final = pa.schema([field for field in LABELS if field.name not in ("labelled_at", "is_fraud", "matched")])


class Decisions:
    """Finds decisions; remembers until when each model's training reached."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._ends: dict[str, int] = {}

    def find(self, epoch: int, trans_nums: Iterable[str], since_ns: int, stopped: Callable[[], bool]) -> pa.Table:
        """Of schema DECISION, the decisions on ``trans_nums``, each once. Looks at files not older than ``since_ns``.

        Raises StoppedError, OSError.
        """
        wanted = pa.array(list(trans_nums), pa.string())
        found: list[pa.RecordBatch] = []
        for place in self._places(epoch, since_ns):
            if stopped():
                raise StoppedError
            if not len(wanted):
                break
            batch = self._in_file(place, wanted)
            if batch is not None:
                found.append(batch)
                wanted = wanted.filter(pc.invert(pc.is_in(wanted, value_set=batch.column("trans_num"))))
        return pa.Table.from_batches(found, DECISION).unify_dictionaries()

    def _places(self, epoch: int, since_ns: int) -> list[Place]:
        slack = int(CLOCK_SLACK_SECONDS * 1e9)
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
        return self._decisions(batch.take(pa.array(rows)), name.producer)

    def _decisions(self, results: pa.RecordBatch, producer: str) -> pa.RecordBatch:
        """Rows of schema.RESULTS as DECISION."""
        ends = np.array([self._train_end(version) for version in results.column("model_version").to_pylist()], np.int64)
        event_time = results.column("event_time").view(pa.int64()).to_numpy()
        own = pc.fill_null(results.column("is_fraud").cast(pa.int8()), UNKNOWN_LABEL)
        columns: dict[str, Any] = {
            "card": results.column("card_token"),
            "producer": pa.array([producer] * results.num_rows, pa.string()),
            "own_label": own,
            "flagged": pc.equal(results.column("decision").cast(pa.string()), "flagged"),
            "in_sample": pa.array(event_time <= ends),
        }
        arrays = [columns[name] if name in columns else results.column(name) for name in DECISION.names]
        return pa.RecordBatch.from_arrays(arrays, schema=DECISION)

    def _train_end(self, version: str) -> int:
        """Newest event time that a model was trained on, us; of one that nothing is known of, the end of time."""
        if version not in self._ends:
            try:
                window = msgspec.json.decode((self._volume.models / version / "window.json").read_bytes())
                self._ends[version] = int(window["train_end"])
            except (FileNotFoundError, msgspec.DecodeError, KeyError, TypeError):
                return int(_UNKNOWN_END)
        return self._ends[version]
