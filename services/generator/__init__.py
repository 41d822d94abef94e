"""The generator stage: synthetic traffic or a replayed file, published at a set rate."""

from __future__ import annotations

from pathlib import Path

_IN_KERNELS = ("draws", "habits", "names", "places", "population", "scenarios", "traffic")


def _drop_stale_kernels() -> None:
    """Remove cached kernels older than any module whose code or constants are in them.

    numba compares a cached kernel with the one file that it is defined in, and would go on using the old code.
    """
    folder = Path(__file__).parent
    newest = max((folder / f"{name}.py").stat().st_mtime_ns for name in _IN_KERNELS)
    for index in (folder / "__pycache__").glob("*.nbi"):
        if index.stat().st_mtime_ns < newest:
            index.unlink(missing_ok=True)


_drop_stale_kernels()
