"""Who works on what: an owner file that holds a worker's name, for producer slots and partitions.

Liveness only. That two workers believe they own the same thing does no harm: a producer's links and prep's commits
decide what counts (producer.py, partition.py). A worker beats before it takes, so no heartbeat means dead.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from spearhead.files import Files


class Lease:
    """One owner file, put there by ``link`` and taken from the dead by renaming it away first."""

    def __init__(self, files: Files, path: Path, worker: str) -> None:
        self._files = files
        self._worker = worker
        self.path = path

    def owner(self) -> str | None:
        """The worker named in the file; None if there is no file."""
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None

    def held(self) -> bool:
        return self.owner() == self._worker

    def take(self, alive: Container[str]) -> bool:
        """Own it if nobody alive does (``alive``: names of the workers that beat); whether it is ours now."""
        owner = self.owner()
        if owner == self._worker:
            return True
        if owner is not None and (owner in alive or not self._evict(owner)):
            return False
        self._sweep(alive)
        return self._put()

    def release(self) -> None:
        """Give it up, if it is ours."""
        if self.held():
            self._files.remove(self.path)

    def _private(self, kind: str) -> Path:
        return self.path.parent / f".{self.path.name}.{self._worker}.{kind}"

    def _put(self) -> bool:
        self._files.make_folder(self.path.parent)
        new = self._private("new")
        self._files.remove(new)
        self._files.create(new, self._worker.encode())
        try:
            return self._files.link(new, self.path)
        except FileNotFoundError:  # we were taken for dead and swept
            return False
        finally:
            self._files.remove(new)

    def _evict(self, dead: str) -> bool:
        """Rename the owner file away; put it back if by now it is another worker's."""
        away = self._private("old")
        try:
            self._files.rename(self.path, away)
            evicted = away.read_text() == dead
        except FileNotFoundError:  # someone else is about it
            return True
        if not evicted:
            self._files.link(away, self.path)
        self._files.remove(away)
        return evicted

    def _sweep(self, alive: Container[str]) -> None:
        """Remove the private files of workers that were killed between two of these steps."""
        prefix = f".{self.path.name}."
        for path in self.path.parent.glob(f"{prefix}*"):
            worker = path.name.removeprefix(prefix).split(".")[0]
            if worker != self._worker and worker not in alive:
                self._files.remove(path)
