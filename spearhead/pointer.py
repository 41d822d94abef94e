"""``models/current``: which version is in service, which were before it, and which were withdrawn.

A text file that is replaced as a whole, so that all of it changes at once:

    v000004
    before v000002
    before v000001
    withdrawn v000003
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

REMEMBERED: Final = 10  # versions before, and as many that were withdrawn
VERSION: Final = re.compile(r"^v\d{6,}$")


class Pointer(NamedTuple):
    """What the file says. Both lists newest first."""

    version: str
    before: tuple[str, ...] = ()  # in service before; what rollback goes back to
    withdrawn: tuple[str, ...] = ()  # rolled back, and not chosen again since

    def promoted(self, version: str) -> Pointer:
        """The pointer after ``version`` took over."""
        if version == self.version:
            return self
        before = (self.version, *(name for name in self.before if name != version))
        return Pointer(version, before[:REMEMBERED], tuple(name for name in self.withdrawn if name != version))

    def rolled_back(self) -> Pointer | None:
        """The pointer after the version before took over again and the present one was withdrawn; None if none was."""
        if not self.before:
            return None
        withdrawn = (self.version, *(name for name in self.withdrawn if name != self.version))
        return Pointer(self.before[0], self.before[1:], withdrawn[:REMEMBERED])

    def encode(self) -> bytes:
        """The file's contents."""
        lines = [self.version, *(f"before {name}" for name in self.before)]
        lines += [f"withdrawn {name}" for name in self.withdrawn]
        return "".join(f"{line}\n" for line in lines).encode()


def parse(text: str) -> Pointer | None:
    """What a file says, None if its first line names no version."""
    version, *lines = text.strip().splitlines() or [""]
    if not VERSION.match(version.strip()):
        return None
    words = [line.split() for line in lines]
    named = [(word[0], word[1]) for word in words if len(word) == 2 and VERSION.match(word[1])]
    before, withdrawn = (tuple(name for kind, name in named if kind == wanted) for wanted in ("before", "withdrawn"))
    return Pointer(version.strip(), before, withdrawn)


def in_service(models: Path) -> str | None:
    """The version in service of a ``models`` folder; None if there is none, or the file names none. Raises OSError."""
    try:
        found = parse((models / "current").read_text(errors="replace"))
    except FileNotFoundError:
        return None
    return found.version if found else None
