"""The archive of results under its limits: the oldest files go first. Any replica may do it, all at once too."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NamedTuple

from spearhead.backlog import RawHeads
from spearhead.volume import Volume


class Pruned(NamedTuple):
    files: int = 0
    bytes: int = 0


class _Result(NamedTuple):
    written: float  # by the server's clock
    path: Path
    bytes: int


class Retention:
    """Limits of inference-results in bytes and seconds; 0 is no limit."""

    def __init__(self, volume: Volume, heads: RawHeads, max_bytes: int, max_seconds: float) -> None:
        self._volume = volume
        self._heads = heads
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._probe = volume.workers / f".probe.{secrets.token_hex(6)}"

    def prune(self, epoch: int) -> Pruned:
        """Remove what is over the limits, oldest first, and folders left empty.

        A finite run keeps all its results, and so does a segment whose aggregates wait for the ledger.
        """
        if not (self._max_bytes or self._max_seconds):
            return Pruned()
        if all(head.finite for head in self._heads.producers(epoch).values()):
            return Pruned()
        found = sorted(self._results())
        waiting = {name.removesuffix(".json") for name in self._volume.files.list(self._volume.pending)}
        total = sum(result.bytes for result in found)
        oldest = self._server_time() - self._max_seconds if self._max_seconds else -float("inf")
        files = freed = 0
        for result in found:
            over = self._max_bytes and total - freed > self._max_bytes
            if not over and result.written >= oldest:
                break
            if result.path.stem not in waiting:
                self._volume.files.remove(result.path)
                files, freed = files + 1, freed + result.bytes
        self._remove_empty_folders()
        return Pruned(files, freed)

    def close(self) -> None:
        self._probe.unlink(missing_ok=True)

    def _results(self) -> list[_Result]:
        root = self._volume.results / "ready"
        found = []
        for folder in self._volume.files.list(root):
            try:
                with os.scandir(root / folder) as entries:
                    for entry in entries:
                        status = entry.stat()
                        found.append(_Result(status.st_mtime, Path(entry.path), status.st_size))
            except FileNotFoundError:  # another replica prunes too
                continue
        return found

    def _remove_empty_folders(self) -> None:
        """Whoever publishes into a folder that goes at this moment makes it again (Hop.publish)."""
        root = self._volume.results / "ready"
        for folder in self._volume.files.list(root):
            if not self._volume.files.list(root / folder):
                self._volume.files.remove_folder(root / folder)

    def _server_time(self) -> float:
        self._probe.touch()
        os.utime(self._probe)
        return self._probe.stat().st_mtime
