"""What a process says that it uses, and that it hands back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref

import pytest

from spearhead.usage import give_memory_back

# 160 MB in blocks of 40 kB, from the heap; one in 400 stays, so that no end of the heap is free.
CHURN = """
from concurrent.futures import ThreadPoolExecutor
from spearhead.usage import give_memory_back, usage

def work():
    blocks = [bytearray(40_000) for _ in range(4_000)]
    return blocks[::400]

before = usage().rss_bytes
with ThreadPoolExecutor(1) as pool:
    kept = pool.submit(work).result()
after = usage().rss_bytes
give_memory_back()
print(after - before, usage().rss_bytes - before, len(kept))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library keeps no freed memory")
def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    kept, left, _ = map(int, done.stdout.split())
    assert kept > 100e6
    assert left < 20e6


def test_what_only_a_cycle_holds_is_freed() -> None:
    """A training leaves some (figures, callbacks), with its rows."""

    class Held:
        pass

    gc.disable()
    try:
        held = Held()
        held.itself = held  # type: ignore[attr-defined]
        gone = weakref.ref(held)
        del held
        assert gone() is not None
        give_memory_back()
        assert gone() is None
    finally:
        gc.enable()
