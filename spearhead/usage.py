"""What this process uses: CPU seconds, resident memory, bytes read from and written to storage."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """Totals since the process started; ``read_bytes`` and ``write_bytes`` are None where the kernel doesn't say."""

    cpu_seconds: float
    rss_bytes: int
    read_bytes: int | None
    write_bytes: int | None


def usage() -> Usage:
    """Of this process and the children it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    return Usage(cpu, rss, *_storage_bytes())


def give_memory_back() -> None:
    """Free what only cycles hold, and hand freed memory to the system: after large work of a thread glibc keeps it.

    It takes some 100 ms, most of it for a look at all objects: nothing for a stage to do often. Where there is no glibc
    nothing is handed over.
    """
    gc.collect()  # Python's own turn comes by the number of objects: a few with arrays of 100 MB wait for minutes
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _storage_bytes() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:  # hidden in some containers
        return None, None
    fields = dict(line.split(": ", 1) for line in lines)
    return int(fields["read_bytes"]), int(fields["write_bytes"])
