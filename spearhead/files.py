"""The few file operations that the protocols are made of; every change to the volume goes through here.

Only ``rename``, ``link``, ``O_EXCL``, ``fsync`` and listing are used, so it works on NFS and across hosts.
``Files.step`` is called before each system call that changes something; tests override it to crash there.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_START_WRITING: Final = 2  # SYNC_FILE_RANGE_WRITE
_sync_file_range: Final = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux has it, as the next one
_fadvise: Final = getattr(os, "posix_fadvise", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class Files:
    """File operations, durable when ``fsync`` is on. Every method raises OSError as the system call does."""

    def __init__(self, fsync: bool = True) -> None:
        self.fsync = fsync
        self.fsyncs = 0  # flushes so far

    def step(self, call: str, path: Path) -> None:
        """Called before each changing system call: ``call`` is its name, ``path`` what it is about."""

    def create(self, path: Path, data: bytes) -> None:
        """Write a new file; raises FileExistsError if there is one. Torn if killed: only for private places."""
        self.step("open", path)
        with open(path, "xb", buffering=0) as file:
            self.step("write", path)
            _write_all(file.fileno(), data)
            if self.fsync:
                self.step("fsync", path)
                os.fsync(file.fileno())
                self.fsyncs += 1

    def replace(self, path: Path, data: bytes) -> None:
        """Put ``data`` at ``path`` so that a reader sees the old content or the new, never a part."""
        temporary = self._temporary(path)
        try:
            self.create(temporary, data)
            self.rename(temporary, path)
        except OSError:
            self.remove(temporary)
            raise
        self.sync_folders([path.parent])

    def put_if_absent(self, path: Path, data: bytes) -> bool:
        """Put ``data`` at ``path`` unless something is there; whether it was put. The contents are whole."""
        temporary = self._temporary(path)
        try:
            self.create(temporary, data)
            return self.link(temporary, path)
        finally:
            if os.path.lexists(temporary):
                self.remove(temporary)

    def link(self, source: Path, target: Path, sync: bool = True) -> bool:
        """Hard-link ``source`` as ``target`` unless something is there; whether it was linked.

        Without ``sync`` the caller syncs the folder.

        On NFS the reply of a link that succeeded may be lost and the repeat fails with EEXIST: the link counts if
        both names are the same file.
        """
        self.step("link", target)
        try:
            os.link(source, target)
        except FileExistsError:
            try:
                if not os.path.samestat(os.stat(source), os.stat(target)):
                    return False
            except FileNotFoundError:  # the other one's file was removed meanwhile: it was there, ours is not
                return False
        if sync:
            self.sync_folders([target.parent])
        return True

    def rename(self, source: Path, target: Path) -> None:
        """Rename; the caller syncs the folders. Raises FileNotFoundError if ``source`` is gone."""
        self.step("rename", target)
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file; it may be gone already."""
        self.step("unlink", path)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def remove_folder(self, path: Path) -> bool:
        """Remove an empty folder; whether it is gone."""
        self.step("rmdir", path)
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def make_folder(self, path: Path) -> None:
        """Make a folder and its parents; it may exist."""
        if not path.is_dir():
            self.step("mkdir", path)
            path.mkdir(parents=True, exist_ok=True)

    def list(self, path: Path) -> list[str]:
        """Names in a folder, sorted, without hidden ones (temporary files); empty if there is no such folder."""
        try:
            return sorted(name for name in os.listdir(path) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def remove_temporaries(self, folder: Path, before: float) -> None:
        """Remove temporary files that a killed process left, last written before a time of the server's clock."""
        for path in folder.glob(".*.tmp"):
            try:
                if path.stat().st_mtime < before:
                    self.remove(path)
            except FileNotFoundError:  # its owner is alive after all
                continue

    def sync_file(self, path: Path) -> None:
        """fsync a file written by other means."""
        if self.fsync:
            self._sync(path)

    def begin_sync(self, path: Path) -> None:
        """Have the disk begin with a file that ``sync_file`` will wait for. Only a hint: it keeps nothing safe."""
        if not self.fsync or _sync_file_range is None:
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _sync_file_range(descriptor, 0, 0, _START_WRITING)
        finally:
            os.close(descriptor)

    def forget(self, path: Path) -> None:
        """Let the page cache drop a file that is durable and that nobody is expected to read soon.

        Only a hint: pages that someone has mapped stay. The file may be gone.
        """
        if not self.fsync or _fadvise is None:  # without fsync the hint would write pages that are to stay in memory
            return
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            _fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def sync_folders(self, paths: Iterable[Path]) -> None:
        """fsync folders, each once; a folder that is gone has nothing to keep."""
        if not self.fsync:
            return
        for path in dict.fromkeys(paths):
            try:
                self._sync(path)
            except FileNotFoundError:
                continue

    def _sync(self, path: Path) -> None:
        self.step("fsync", path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            self.fsyncs += 1
        finally:
            os.close(descriptor)

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
