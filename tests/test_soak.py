"""A week in miniature: many thousand small segments leave no growth in files, descriptors or memory."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from processes import Up, verified, wait_until

from spearhead.heartbeat import Heartbeat
from spearhead.ledger import LedgerFile

Start = Callable[..., Up]
SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
STAGES = ("generator", "prep", "train", "inference", "api")
IDLE_SECONDS = 20.0
SETTINGS = {
    "SEGMENT_ROWS": 100, "FLUSH_SECONDS": 0.02, "CARDS": 2_000, "MERCHANTS": 200, "LABEL_DELAY_DAYS": 1,
    "TRAIN_FIRST_ROWS": 5_000, "TRAIN_INTERVAL_SECONDS": 20, "TRAIN_MAX_ROWS": 20_000, "CHECKPOINT_SECONDS": 1,
    "RESULTS_RETENTION_SECONDS": 20, "FSYNC": "false", "HEARTBEAT_SECONDS": 0.5,
}  # fmt: skip
MIB = 2**20


def segments(root: Path) -> int:
    """Segments that the ledger has counted."""
    try:
        ledger = msgspec.json.decode((root / "metrics" / ".metrics.json").read_bytes(), type=LedgerFile)
    except FileNotFoundError:
        return 0
    return sum(counted.segments for counted in ledger.producers.values())


def files(root: Path) -> Counter[str]:
    """Files and folders by place, attempts and workers taken together."""
    found: Counter[str] = Counter()
    for folder, folders, names in os.walk(root):
        place = Path(folder).relative_to(root)
        parts = [part for part in place.parts if "." not in part and not part.startswith("e0")]
        found["/".join(parts[:4])] += len(folders) + len(names)
    return found


def peaks(root: Path, seconds: float) -> Counter[str]:
    """The most files by place that are seen in a while: between two checkpoints or sweeps they pile up."""
    most: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        most |= files(root)
        time.sleep(1)
    return most


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(root: Path) -> dict[str, int]:
    """Resident bytes by stage."""
    sums: Counter[str] = Counter()
    for path in (root / "metrics" / "workers").glob("*.json"):
        beat = msgspec.json.decode(path.read_bytes(), type=Heartbeat)
        sums[beat.stage] += beat.rss_bytes
    return dict(sums)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.soak
def test_thousands_of_segments_leave_nothing_behind(up: Start) -> None:
    pipeline = up("--rate", "4000", "--port", "8765", **SETTINGS)
    root = pipeline.root
    wait_until(lambda: segments(root) > 1_000, f"a thousand segments\n{pipeline.output}")
    time.sleep(SECONDS / 6)  # every bound is reached: retention, sample, logs, models
    pids = {stage: pipeline.stages(stage)[0] for stage in STAGES}
    begun, memory_then = segments(root), memory(root)
    open_then = {stage: descriptors(pid) for stage, pid in pids.items()}
    files_then = peaks(root, SECONDS / 6)
    time.sleep(SECONDS * 3 / 6)
    files_now, memory_now = peaks(root, SECONDS / 6), memory(root)
    done = segments(root) - begun
    assert pids == {stage: pipeline.stages(stage)[0] for stage in STAGES}, pipeline.output
    assert done > SECONDS * 10
    for place, count in files_now.items():  # a file that is left of every tenth segment would be seen
        assert count <= 1.5 * files_then[place] + done / 10, (place, files_then[place], count, done)
    for stage, pid in pids.items():
        assert descriptors(pid) <= open_then[stage] + 20, stage
    for stage in STAGES:
        assert memory_now[stage] <= 1.25 * memory_then[stage] + 64 * MIB, (stage, memory_then, memory_now)
    assert pipeline.stop() == 0
    assert verified(root)["ok"]


@pytest.mark.soak
def test_an_idle_pipeline_costs_next_to_nothing(up: Start) -> None:
    """CPU time, not wall-clock time: under 5 % of a core in all."""
    pipeline = up("--rate", "0", "--port", "8766")
    for stage in STAGES:
        wait_until(lambda stage=stage: pipeline.stages(stage), f"{stage}\n{pipeline.output}")
    time.sleep(15)
    pids = [pipeline.process.pid, *pipeline.any()]
    pids += [
        int(pid) for parent in pids[1:] for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    ]
    before = {pid: cpu_seconds(pid) for pid in pids}
    time.sleep(IDLE_SECONDS)
    used = {pid: cpu_seconds(pid) - before[pid] for pid in pids}
    assert sum(used.values()) < 0.05 * IDLE_SECONDS, used
    assert pipeline.stop(signal.SIGTERM) == 0
