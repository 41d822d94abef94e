"""A training in a thread of its own, so that the stage goes on looking at the queue, its orders and its heartbeat."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """Runs ``work(cancelled)`` at once, with ``niceness`` (0 to 19) or the process's own, whichever is meeker."""

    def __init__(self, work: Callable[[Callable[[], bool]], T], niceness: int) -> None:
        self._work = work
        self._niceness = niceness
        self._cancelled = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Ask it to stop at the next tree."""
        self._cancelled.set()

    def join(self) -> None:
        self._thread.join()

    def result(self) -> T:
        """What the work returned, once done. Raises what it raised."""
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("the training is not done")
        return self._result

    def _run(self) -> None:
        try:
            # On Linux niceness is a thread's own, and threads that XGBoost starts from this one inherit it.
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(own, self._niceness))
            self._result = self._work(self._cancelled.is_set)
        except BaseException as error:  # result() raises it again
            self._error = error
