"""What a decision has to tell of itself when its label comes late: rows of result files as ``DECISION``."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spearhead.schema import LABELS, UNKNOWN_LABEL
from spearhead.volume import Volume

DECISION: Final = pa.schema(
    [
        # Not as codes of a segment: decisions of many segments may be at more merchants than those have codes for.
        pa.field("merchant", pa.string(), nullable=False) if field.name == "merchant" else field
        for field in LABELS
        if field.name not in ("labelled_at", "is_fraud", "matched")
    ]
)
_UNKNOWN_END: Final = np.iinfo(np.int64).max


class Decided:
    """Turns results into decisions; remembers until when each model's training reached."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._ends: dict[str, int] = {}

    def of(self, results: pa.RecordBatch, producer: str) -> pa.RecordBatch:
        """Rows of schema.RESULTS, of a segment of ``producer``, as DECISION."""
        versions = results.column("model_version")
        by_version = np.array([self._train_end(version) for version in versions.dictionary.to_pylist()], np.int64)
        ends = by_version[np.asarray(versions.indices)]
        event_time = results.column("event_time").view(pa.int64()).to_numpy()
        columns: dict[str, Any] = {
            "card": results.column("card_token"),
            "merchant": results.column("merchant").cast(pa.string()),
            "producer": pa.repeat(producer, results.num_rows),
            "own_label": pc.fill_null(results.column("is_fraud").cast(pa.int8()), UNKNOWN_LABEL),
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
