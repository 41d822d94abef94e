"""The results under their limits: the oldest files go first. Any replica may do it, all at once too.

Unlabelled decisions go to the archive before their file is removed, so that a label which comes later finds them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from spearhead.archive import Archive
from spearhead.backlog import RawHeads
from spearhead.volume import Volume

CHUNK_BYTES: Final = 64 * 1024**2  # of results that go to the archive together


class Pruned(NamedTuple):
    files: int = 0
    bytes: int = 0


class _Result(NamedTuple):
    written: float  # by the server's clock
    path: Path
    bytes: int


class Limits(NamedTuple):
    """In bytes and seconds; 0 is no limit."""

    bytes: int = 0
    seconds: float = 0

    def __bool__(self) -> bool:
        return bool(self.bytes or self.seconds)


class Retention:
    """Keeps inference-results and its archive within their limits."""

    def __init__(self, volume: Volume, heads: RawHeads, results: Limits, archive: Limits) -> None:
        self._volume = volume
        self._heads = heads
        self._limits = results
        self._archive_limits = archive
        self._archive = Archive(volume)
        self._probe = volume.workers / f".probe.{secrets.token_hex(6)}"

    def prune(self, epoch: int) -> Pruned:
        """Remove what is over the limits, oldest first, and folders left empty.

        A finite run keeps all its results, and so does a segment whose aggregates wait for the ledger.
        """
        if not self._limits:
            return Pruned()
        if all(head.finite for head in self._heads.producers(epoch).values()):
            return Pruned()
        now = self._server_time()
        files = freed = 0
        for chunk in self._chunks(self._over(now)):
            self._archive.put(epoch, [result.path for result in chunk], now)
            for result in chunk:
                self._volume.files.remove(result.path)
            files, freed = files + len(chunk), freed + sum(result.bytes for result in chunk)
        self._remove_empty_folders()
        self._archive.tidy(epoch, now, self._archive_limits.seconds, self._archive_limits.bytes)
        return Pruned(files, freed)

    def _over(self, now: float) -> list[_Result]:
        """What is over the limits and counted, oldest first."""
        found = sorted(self._results())
        waiting = {name.removesuffix(".json") for name in self._volume.files.list(self._volume.pending)}
        total = sum(result.bytes for result in found)
        oldest = now - self._limits.seconds if self._limits.seconds else -float("inf")
        over = []
        for result in found:
            if not (self._limits.bytes and total > self._limits.bytes) and result.written >= oldest:
                break
            if result.path.stem not in waiting:
                over.append(result)
                total -= result.bytes
        return over

    def _chunks(self, results: list[_Result]) -> Iterator[list[_Result]]:
        chunk: list[_Result] = []
        size = 0
        for result in results:
            chunk.append(result)
            size += result.bytes
            if size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

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
