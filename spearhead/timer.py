"""Something that is due every so often."""

from __future__ import annotations

import random
import time


class Timer:
    """``due`` is true at first, then once every ``seconds``, give or take a quarter so that replicas spread out."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._next = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.seconds * random.uniform(0.75, 1.25)  # noqa: S311, jitter
        return True
