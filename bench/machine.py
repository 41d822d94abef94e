"""What figures hold for: processor, memory, kernel, and what the disk does."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any, Final

import psutil

FLUSH_BYTES: Final = 4096
WRITE_BYTES: Final = 2**28
FLUSH_SECONDS: Final = 1.0


def describe(folder: Path | None = None) -> dict[str, Any]:
    """The machine. With a folder also its disk: flushes of 4 KiB a second, MB/s of one long write."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    found = {
        "cores": os.cpu_count(), "processor": processor, "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(), "python": platform.python_version(),
    }  # fmt: skip
    if folder is None:
        return found
    return found | {"fsyncs_per_s": flushes(folder), "write_mb_per_s": writing(folder)}


def flushes(folder: Path) -> int:
    """Appends of 4 KiB, each flushed, that one thread gets done a second."""
    path, done, began = folder / "flushes", 0, time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while time.perf_counter() - began < FLUSH_SECONDS:
            file.write(b"x" * FLUSH_BYTES)
            os.fsync(file.fileno())
            done += 1
    path.unlink()
    return round(done / (time.perf_counter() - began))


def writing(folder: Path) -> int:
    """MB/s of writing 256 MiB in one go, flushed at the end."""
    path, block = folder / "writing", os.urandom(2**22)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(WRITE_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return round(WRITE_BYTES / seconds / 1e6)
