"""How many rows are due: a rate that may change at any time, with bounded catch-up."""

from __future__ import annotations

import math
from typing import Final

CATCH_UP_SECONDS: Final = 1.0  # of rows may fall due at once: after a pause no second sees more than twice the rate


class Pacer:
    """Counts the rows that have fallen due. Times are seconds of a monotonic clock."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate  # rows a second; infinity for flat out
        self._now = now
        self._due = 0.0

    def set_rate(self, rate: float, now: float) -> None:
        """From ``now`` on ``rate`` rows a second; what is due by the old rate is at most what the new one allows."""
        self.due(now)
        self.rate = rate
        self._due = min(self._due, rate * CATCH_UP_SECONDS)

    def due(self, now: float) -> float:
        """Rows due and not taken yet: a whole number, or infinity."""
        since, self._now = max(0.0, now - self._now), now
        if math.isinf(self.rate):
            return math.inf
        self._due = min(self._due + self.rate * since, max(self.rate * CATCH_UP_SECONDS, 1.0))
        return math.floor(self._due)

    def taken(self, rows: int) -> None:
        """``rows`` of the due ones were taken."""
        self._due = max(0.0, self._due - rows)

    def restart(self, now: float) -> None:
        """Nothing is due: production was paused for a reason."""
        self._due, self._now = 0.0, now

    def seconds_due(self) -> float:
        """How long ago the first of the due rows fell due; 0 when flat out."""
        return self._due / self.rate if self.rate > 0 and math.isfinite(self.rate) else 0.0
