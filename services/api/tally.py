"""A count that all processes of one server add to: shared memory, a slot for each, so that none waits for another."""

from __future__ import annotations

import mmap
import threading
from typing import Final

SLOTS: Final = 256  # more than there are worker processes at once: each slot has one writer


class Tally:
    """Made before the processes are forked; each calls ``use`` with a number of its own, then ``add``."""

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * SLOTS)).cast("q")
        self._lock = threading.Lock()
        self._slot = 0

    def use(self, number: int) -> None:
        """Count in the slot of this process, the ``number``-th; one that ended before may have used it."""
        self._slot = number % SLOTS
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self._counts[self._slot] += 1

    def total(self) -> int:
        return sum(self._counts)
