"""Labels that came on their own and wait for their own time before they count in merchant risk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spearhead.history import History, Labels

KEPT: Final = 1_000_000  # labels that wait; beyond, those of the latest time are dropped
_NEVER: Final = int(np.iinfo(np.int64).min)
_EMPTY: Final = Labels(*(np.empty(0, kind) for kind in (np.uint64, np.int64, np.int8, np.int8)))


class WaitingLabels:
    """Labels whose ``labelled_at`` no row of the log has reached yet, in the order in which they will count.

    Part of prep's state: a function of the log alone. Until then a label changes no feature, so no row is told what
    nobody knew at its time.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._clock = _NEVER  # newest event time of a row taken, us
        self._at: NDArray[np.int64] = np.empty(0, np.int64)
        self._labels = _EMPTY
        self.used = 0  # labels that came into a merchant's risk
        self.lost = 0  # labels whose merchant, or whose row's place, was forgotten; or too many waited

    def __len__(self) -> int:
        return len(self._at)

    def advance(self, newest: int, history: History) -> None:
        """Rows up to event time ``newest``, us, are in the history: what was said by then counts from here on."""
        self._clock = max(self._clock, newest)
        self._release(history)

    def add(self, at: NDArray[np.int64], labels: Labels, history: History) -> None:
        """Labels in the order of the log, and when each was said (n,), us."""
        every = Labels(*(np.concatenate(both) for both in zip(self._labels, labels, strict=True)))
        times = np.concatenate([self._at, at])
        order = np.argsort(times, kind="stable")
        self.lost += max(0, len(order) - self._kept)
        self._at, self._labels = times[order[: self._kept]], every.take(order[: self._kept])
        self._release(history)

    def _release(self, history: History) -> None:
        due = int(np.searchsorted(self._at, self._clock, side="right"))
        if due:
            used = history.label(self._labels.take(slice(0, due)))
            self.used += used
            self.lost += due - used
            self._at, self._labels = self._at[due:], self._labels.take(slice(due, None))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state for a checkpoint."""
        columns = {f"late_{name}": column.copy() for name, column in self._labels._asdict().items()}
        numbers = np.array([self._clock, self.used, self.lost], np.int64)
        return {"late_numbers": numbers, "late_at": self._at.copy(), **columns}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> WaitingLabels:
        """What ``arrays`` was called on; empty from a checkpoint of a version without such labels."""
        waiting = cls()
        if "late_at" in arrays:
            waiting._clock, waiting.used, waiting.lost = arrays["late_numbers"].tolist()
            waiting._at = arrays["late_at"]
            waiting._labels = Labels(*(arrays[f"late_{name}"] for name in Labels._fields))
        return waiting
