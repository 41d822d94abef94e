"""How many rows may be explained now: a token bucket, so that reasons never hold decisions up for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 0.5  # of the rate: the most that one step may spend at once


class Budget:
    """Fills at ``rate`` tokens a second up to BURST_SECONDS of it; a rate above 0 always lets one token gather."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._tokens = self._most
        self._at = clock()

    def take(self, wanted: int) -> int:
        """Spend at most ``wanted`` tokens; returns how many were there."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self.rate)
        self._at = now
        taken = min(wanted, int(self._tokens))
        self._tokens -= taken
        return taken

    @property
    def _most(self) -> float:
        return max(1.0, self.rate * BURST_SECONDS) if self.rate > 0 else 0.0
