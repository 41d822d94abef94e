"""How many rows may be explained now: a token bucket, so that reasons never hold decisions up for long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

BURST_SECONDS: Final = 0.5  # of the rate: the most that gathers
STEP_SECONDS: Final = 0.02  # that one step may take to explain, going by what a row took before


class Budget:
    """Fills at ``rate`` tokens a second up to BURST_SECONDS of it; a rate above 0 always lets one token gather.

    A step gets as many rows as it can explain in STEP_SECONDS, or one: that depends on the model and on who explains.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._tokens = self._most
        self._at = clock()
        self._model = ""
        self._row_seconds = 0.0
        self._rows, self._seconds = 0, 0.0  # explained in this step

    def expect(self, model: str, row_seconds: float) -> None:
        """What a row of ``model`` takes, as long as nothing was measured of it."""
        if model != self._model:
            self._model, self._row_seconds = model, row_seconds
            self._rows, self._seconds = 0, 0.0

    def take(self, wanted: int) -> int:
        """Begin a step: spend at most ``wanted`` tokens; returns how many were there and fit into it."""
        self._learn()
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self.rate)
        self._at = now
        taken = min(wanted, int(self._tokens), self._fitting)
        self._tokens -= taken
        return taken

    @contextmanager
    def explaining(self, rows: int) -> Iterator[None]:
        """Around the explanation of ``rows`` rows: how long it takes tells how many the next step gets."""
        began = self._clock()
        yield
        self._rows += rows
        self._seconds += self._clock() - began

    def _learn(self) -> None:
        """Half of what was known, half of what the last step took: one that was held up doesn't tell of all."""
        if self._rows:
            self._row_seconds = (self._row_seconds + self._seconds / self._rows) / 2
            self._rows, self._seconds = 0, 0.0

    @property
    def _fitting(self) -> int:
        return max(1, int(STEP_SECONDS / self._row_seconds)) if self._row_seconds > 0 else int(self._most)

    @property
    def _most(self) -> float:
        return max(1.0, self.rate * BURST_SECONDS) if self.rate > 0 else 0.0
