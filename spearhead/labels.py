"""Labels that come on their own: which one is known of a transaction, and what the next one changes.

The one with the later ``labelled_at`` counts; of two of the same time the later in the log. What a label changes is
told as an ``Aggregate``: the outcome of its decision, less the outcome that an earlier label had given it. So the sum
over all labels, in any order, is what the labels that count come to. docs/decisions/0011-late-labels.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spearhead.aggregate import HOUR_US, Aggregate, HourOutcomes
from spearhead.schema import KNOWN_LABELS, UNKNOWN_LABEL

KEPT: Final = 1_000_000  # transactions whose label is remembered; those labelled longest ago go first


class Change(NamedTuple):
    """What a segment of labels came to."""

    aggregate: Aggregate
    known: pa.RecordBatch  # of schema.KNOWN_LABELS: labels that differ from what was known
    rows: NDArray[np.int64]  # their rows in the segment
    before: NDArray[np.int8]  # what was known of them: 1, 0, or -1


class KnownLabels:
    """The last label of every transaction that was given one, by the 64-bit hash of its number; bounded."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._known: dict[int, int] = {}  # hash -> labelled_at * 2 + is_fraud, labelled longest ago first

    def __len__(self) -> int:
        return len(self._known)

    def apply(self, batch: pa.RecordBatch, trans: NDArray[np.uint64]) -> Change:
        """Take labels (schema.LABELS) in order; ``trans``, uint64 (n,), are the hashes of their ``trans_num``."""
        aggregate = Aggregate()
        feedback = aggregate.feedback
        feedback.received = batch.num_rows
        rows: list[int] = []
        befores: list[int] = []
        for row, (key, label) in enumerate(zip(trans.tolist(), _labels(batch), strict=True)):
            if not label.matched:
                feedback.unmatched += 1
                continue
            known = self._known.get(key)
            before = label.own_label if known is None else known & 1
            if known is not None and label.labelled_at < known >> 1:
                feedback.duplicate += 1
                continue
            self._remember(key, label.labelled_at * 2 + label.is_fraud)
            if before == label.is_fraud:
                feedback.duplicate += 1
                continue
            if before == UNKNOWN_LABEL:
                feedback.applied += 1
                aggregate.unlabelled -= 1
            else:
                feedback.corrected += 1
            _count(aggregate, label, before)
            rows.append(row)
            befores.append(before)
        return Change(aggregate, _known_batch(batch, trans, rows), np.array(rows, np.int64), np.array(befores, np.int8))

    def _remember(self, key: int, value: int) -> None:
        self._known.pop(key, None)
        self._known[key] = value
        while len(self._known) > self._kept:
            del self._known[next(iter(self._known))]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state for a checkpoint."""
        return {
            "label_trans": np.fromiter(self._known.keys(), np.uint64, len(self._known)),
            "label_known": np.fromiter(self._known.values(), np.int64, len(self._known)),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> KnownLabels:
        """What ``arrays`` was called on; empty from a checkpoint of a version without such labels."""
        labels = cls()
        if "label_trans" in arrays:
            keys, values = arrays["label_trans"].tolist(), arrays["label_known"].tolist()
            labels._known = dict(zip(keys, values, strict=True))
        return labels


class _Label(NamedTuple):
    """One row of schema.LABELS."""

    labelled_at: int  # us since 1970
    is_fraud: int
    matched: bool
    event_time: int  # us since 1970
    producer: str
    own_label: int
    flagged: bool
    in_sample: bool


def _labels(batch: pa.RecordBatch) -> list[_Label]:
    columns = []
    for name in _Label._fields:
        column = batch.column(name)
        columns.append((column.view(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist())
    return [_Label._make(values) for values in zip(*columns, strict=True)]


def _count(aggregate: Aggregate, label: _Label, before: int) -> None:
    """Add the outcome under this label, and take the one under the label before back.

    A row that carried a label counts when that matures; its correction goes to the same place, to mature with it.
    """
    if label.own_label == UNKNOWN_LABEL:
        hour = aggregate.feedback.outcomes
    else:
        key = f"{label.producer}/{label.event_time // HOUR_US}"
        hour = aggregate.pending_labels.setdefault(key, HourOutcomes())
    _add(hour, label, label.is_fraud, 1)
    if before != UNKNOWN_LABEL:
        _add(hour, label, before, -1)
        _add(aggregate.feedback.taken_back, label, before, 1)


def _add(hour: HourOutcomes, label: _Label, is_fraud: int, count: int) -> None:
    outcomes = hour.in_sample if label.in_sample else hour.out_of_sample
    kind = ("tp" if is_fraud else "fp") if label.flagged else ("fn" if is_fraud else "tn")
    setattr(outcomes, kind, getattr(outcomes, kind) + count)


def _known_batch(batch: pa.RecordBatch, trans: NDArray[np.uint64], rows: list[int]) -> pa.RecordBatch:
    some = batch.take(pa.array(rows, pa.int64()))
    hashes = pa.array(trans[np.array(rows, np.int64)])
    columns = [hashes if field.name == "trans" else some.column(field.name) for field in KNOWN_LABELS]
    return pa.RecordBatch.from_arrays(columns, schema=KNOWN_LABELS)
