"""``make bench``: throughput and latency of the whole pipeline on this machine, one JSON object on standard output.

A fresh local volume, fsync, training and API on. First flat out: rows scored and in the ledger a second, the median of
three windows. Then at 100,000 rows a second, with the model of the first run: ingest to decision.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from spearhead.files import Files
from spearhead.heartbeat import Roster
from spearhead.ledger import LedgerFile, LedgerReader
from spearhead.status import latency_quantile
from spearhead.volume import Volume

PATIENCE_SECONDS = 180.0
LATENCY_RATE = 100_000


class Pipeline:
    """``up`` on a fresh volume, and its ledger."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self.log = root.with_suffix(".log")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "spearhead", "up", "--volume", str(root), "--port", str(port), *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.volume = Volume(root, Files())
        self.reader = LedgerReader(self.volume)

    def ledger(self) -> LedgerFile | None:
        """Raises RuntimeError if the pipeline has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the pipeline ended:\n{self.log.read_text()}")
        return self.reader.read() if self.volume.epochs.is_dir() else None

    def wait_for_rows(self) -> None:
        """Until rows are scored and counted."""
        until = time.monotonic() + PATIENCE_SECONDS
        while (ledger := self.ledger()) is None or not ledger.transactions_analyzed:
            if time.monotonic() > until:
                raise RuntimeError(f"nothing was scored in {PATIENCE_SECONDS:.0f} s:\n{self.log.read_text()}")
            time.sleep(0.2)

    def window(self, seconds: float) -> tuple[float, dict[str, int]]:
        """Rows counted a second, and their latency buckets. The clock is that of the ledger's own versions."""
        before = self._next_version()
        time.sleep(seconds)
        after = self._next_version()
        elapsed = (after.updated_at - before.updated_at).total_seconds()
        latency = {bucket: rows - before.latency.get(bucket, 0) for bucket, rows in after.latency.items()}
        return (after.transactions_analyzed - before.transactions_analyzed) / elapsed, latency

    def _next_version(self) -> LedgerFile:
        """The next version of the ledger to appear: its time is when its rows were counted."""
        before = self.ledger()
        while (ledger := self.ledger()) is None or (before is not None and ledger.key == before.key):
            time.sleep(0.01)
        return ledger

    def stages(self) -> dict[str, dict[str, float]]:
        """Cores and resident memory of each stage, summed over its processes."""
        roster = Roster(self.volume, 15.0)
        used: dict[str, dict[str, float]] = {}
        for beat in roster.alive().values():
            sums = used.setdefault(beat.stage, {"cpu_cores": 0.0, "rss_mib": 0.0})
            sums["cpu_cores"] += round(beat.cpu_cores, 3)
            sums["rss_mib"] += round(beat.rss_bytes / 2**20, 1)
        roster.close()
        return used

    def stop(self) -> bool:
        """End it; whether it ended cleanly."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(120) == 0

    def verify(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "spearhead", "verify", "--volume", str(self.root), "--json"]
        report: dict[str, Any] = msgspec.json.decode(subprocess.run(command, capture_output=True, check=False).stdout)
        return {key: report[key] for key in ("published", "ledger", "lost", "duplicated", "dead", "ok")}


def throughput(root: Path, windows: int, seconds: float, warm_up: float, inference: int) -> dict[str, Any]:
    """Flat out."""
    pipeline = Pipeline(root, "--rate", "max", "--inference", str(inference))
    try:
        pipeline.wait_for_rows()
        time.sleep(warm_up)
        rates = [pipeline.window(seconds)[0] for _ in range(windows)]
        stages = pipeline.stages()
    finally:
        clean = pipeline.stop()
    return {
        "tx_per_s": round(statistics.median(rates)),
        "tx_per_s_windows": [round(rate) for rate in rates],
        "stages_at_max": stages,
        "clean_exit": clean,
        "verify_at_max": pipeline.verify(),
    }


def latency(root: Path, model: Path, seconds: float, warm_up: float, inference: int) -> dict[str, Any]:
    """At 100,000 rows a second."""
    options = ("--rate", str(LATENCY_RATE), "--model", str(model), "--inference", str(inference))
    pipeline = Pipeline(root, *options)
    try:
        pipeline.wait_for_rows()
        time.sleep(warm_up)
        rate, buckets = pipeline.window(seconds)
        stages = pipeline.stages()
    finally:
        pipeline.stop()
    figures: dict[str, Any] = {"tx_per_s_at_100k": round(rate)}
    for percent in (50, 95, 99):
        milliseconds = latency_quantile(buckets, percent / 100)
        figures[f"p{percent}_ms_at_100k"] = None if milliseconds is None else round(milliseconds, 1)
    return {**figures, "stages_at_100k": stages, "verify_at_100k": pipeline.verify()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the volumes are made (a local disk)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument(
        "--warm-up", type=float, default=15.0, help="seconds from the first scored row to the first window"
    )
    parser.add_argument("--inference", type=int, default=1, help="inference processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="spearhead-bench-") as folder:
        first, second = Path(folder) / "max", Path(folder) / "latency"
        figures = throughput(first, options.windows, options.seconds, options.warm_up, options.inference)
        figures |= latency(second, first / "models", options.seconds, options.warm_up, options.inference)
    figures["machine"] = {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}
    print(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
