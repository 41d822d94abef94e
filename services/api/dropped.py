"""Folders that users drop files into: which files are complete, and how one is told from another of its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spearhead.files import Files

LOOK_SECONDS: Final = 2.0  # a file that is the same at two looks is complete
UNFINISHED: Final = (".tmp", ".part", ".crdownload")


class Dropped:
    """The files below ``folder``, those in folders in it included: what is dropped there must not stay.

    Links lead nowhere. ``aside`` is a folder in it that is not the users'. Names are relative to ``folder``.
    """

    def __init__(self, files: Files, folder: Path, aside: str = "") -> None:
        self._files = files
        self.folder = folder
        self._aside = folder / aside if aside else None
        self.seen: dict[str, str] = {}  # files and what they were like at the newest look

    def complete(self) -> list[str]:
        """One look: files that are as they were at the look before."""
        now = {name: self.identity(name) for name in self._names(self.folder) if not name.endswith(UNFINISHED)}
        ready = [name for name, identity in now.items() if self.seen.get(name) == identity]
        self.seen = now
        return ready

    def identity(self, name: str) -> str:
        """Inode, bytes and time of change (ns since 1970) with a dash between; "" if it is gone."""
        try:
            status = (self.folder / name).stat()
        except FileNotFoundError:
            return ""
        return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"

    def _names(self, folder: Path) -> Iterator[str]:
        for name in self._files.list(folder):
            path = folder / name
            if path == self._aside:
                continue
            if path.is_dir() and not path.is_symlink():
                yield from self._names(path)
            elif path.is_file():
                yield path.relative_to(self.folder).as_posix()
