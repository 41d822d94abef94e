"""File operations where the system lacks what Linux has: hints are left out, what keeps data safe is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT_HINTS = """
import ctypes, os, sys
from pathlib import Path
del os.posix_fadvise, os.POSIX_FADV_DONTNEED
ctypes.CDLL = lambda name: object()
from spearhead.files import Files
files, path = Files(), Path(sys.argv[1])
files.create(path, b"kept")
files.begin_sync(path)
files.sync_file(path)
files.forget(path)
assert (path.read_bytes(), files.fsyncs) == (b"kept", 2)
"""


def test_a_system_without_hints_to_its_cache_writes_all_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_HINTS, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
