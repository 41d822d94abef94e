"""Files that fail on purpose: crash at a call, lose its reply, tear a write, freeze while others go on, or take turns.

``FaultingFiles`` counts the calls that change the volume. ``Turns`` runs several workers, each in a thread, one call at
a time in an order that the test chooses, so that every interleaving of system calls can be had, and had again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from spearhead.files import Files

Mode = Literal["before", "torn", "reply lost"]


class Crash(BaseException):
    """The process was killed. No ``except Exception`` of the product may see it."""


class FaultingFiles(Files):
    """Crashes at the k-th changing call (from 1) and stays dead: no clean-up of the product runs after a kill.

    ``before``: before the call. ``torn``: a write leaves a part of its bytes, other calls as ``before``.
    ``reply lost``: nobody dies; a rename or link is done and reports what NFS reports for a repeated request.
    ``frozen`` is called before the k-th call, which then goes on: what the others did while this one was stopped.
    """

    def __init__(
        self,
        crash_at: int = 0,
        mode: Mode = "before",
        frozen: Callable[[], None] | None = None,
        log: list[tuple[str, Path]] | None = None,
    ) -> None:
        super().__init__(fsync=True)
        self.calls = 0
        self.dead = False
        self.log = log if log is not None else []
        self._crash_at = crash_at
        self._mode = mode
        self._frozen = frozen

    def step(self, call: str, path: Path) -> None:
        if self.dead:
            raise Crash
        self.calls += 1
        if self.calls == self._crash_at and self._frozen is not None:
            self._frozen()
        elif self.calls == self._crash_at and self._mode != "reply lost":
            if self._mode == "torn" and call == "write":
                path.write_bytes(b"ARROW1\0\0torn")
            self.dead = True
            raise Crash
        self.log.append((call, path))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        if self._loses_reply():
            raise FileNotFoundError(2, "No such file or directory (repeated request)", str(source))

    def link(self, source: Path, target: Path, sync: bool = True) -> bool:
        if self.calls + 1 == self._crash_at and self._mode == "reply lost" and not target.exists():
            target.hardlink_to(source)
        return super().link(source, target, sync)

    def _loses_reply(self) -> bool:
        return self._mode == "reply lost" and self.calls == self._crash_at

    def _sync(self, path: Path) -> None:
        """Only the call: what a power cut would take is not what these tests are about."""
        self.step("fsync", path)
        path.stat()


class Turns:
    """Workers in threads, of which one runs at a time, from one changing call to the next."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    def add(self, work: Callable[[Files], None], log: list[tuple[str, Path]] | None = None) -> None:
        self._workers.append(_Worker(work, log if log is not None else []))

    def go(self, index: int) -> bool:
        """Let a worker make its next call; whether it has more to do. Raises what it raised."""
        return self._workers[index].go(kill=False)

    def kill(self, index: int) -> None:
        """Kill a worker before its next call."""
        self._workers[index].go(kill=True)

    @property
    def count(self) -> int:
        return len(self._workers)

    def running(self) -> list[int]:
        return [index for index, worker in enumerate(self._workers) if not worker.done]

    def close(self) -> None:
        for index in self.running():
            self.kill(index)


class _TurnFiles(FaultingFiles):
    def __init__(self, worker: _Worker, log: list[tuple[str, Path]]) -> None:
        super().__init__(log=log)
        self._worker = worker

    def step(self, call: str, path: Path) -> None:
        if not self.dead:
            self._worker.pause()
            self.dead = self._worker.killed
        super().step(call, path)


class _Worker:
    def __init__(self, work: Callable[[Files], None], log: list[tuple[str, Path]]) -> None:
        self.done = False
        self.killed = False
        self._error: BaseException | None = None
        self._mine = threading.Semaphore(0)
        self._theirs = threading.Semaphore(0)
        self._work = work
        self._files = _TurnFiles(self, log)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self.killed:
                self._work(self._files)
        except Crash:
            pass
        except BaseException as error:
            self._error = error
        self.done = True
        self._theirs.release()

    def pause(self) -> None:
        self._theirs.release()
        self._mine.acquire()

    def go(self, kill: bool) -> bool:
        if not self.done:
            self.killed = self.killed or kill
            self._mine.release()
            self._theirs.acquire()
        if self.done:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return not self.done
