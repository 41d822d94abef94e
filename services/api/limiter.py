"""What takes long runs in few threads of its own; few more may wait, whoever comes then is told to come back."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

NICENESS: Final = 10  # the pipeline and other requests go first
LOOK_SECONDS: Final = 0.5  # between two looks whether the caller is still there
T = TypeVar("T")
Stopped = Callable[[], bool]


class SaturatedError(RuntimeError):
    """All threads are taken and as many wait as may."""


class Limiter:
    """Used from one event loop. ``threads`` run at once, ``waiting`` may wait."""

    def __init__(self, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "limited", _yield_to_others)
        self._most = threads + waiting
        self._inside = 0
        self._closed = threading.Event()

    async def run(self, work: Callable[[Stopped], T], gone: Callable[[], Awaitable[bool]]) -> T:
        """``work`` in a thread; it should end early once what it is given says so: the caller is gone, or we close.

        Raises SaturatedError, and what ``work`` raises.
        """
        if self._inside >= self._most:
            raise SaturatedError
        stop = threading.Event()
        self._inside += 1
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, work, lambda: stop.is_set() or self._closed.is_set()
        )
        future.add_done_callback(self._left)
        try:
            while not (await asyncio.wait({future}, timeout=LOOK_SECONDS))[0]:
                if await gone():
                    stop.set()
            return future.result()
        finally:
            stop.set()

    def close(self) -> None:
        """Work that goes on is asked to end, what waits is not begun."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _left(self, _: object) -> None:
        self._inside -= 1


def _yield_to_others() -> None:
    """Linux counts niceness by thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
