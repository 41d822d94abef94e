"""``make bench``: throughput and latency of the whole pipeline on this machine, beside the in-memory floor.

Fresh local volumes; fsync, training and API on. In one run, one after the other: flat out (rows scored and in the
ledger a second, the median of three windows); the floor with the model that run trained (``bench.floor``); at 100,000
and at 10,000 rows a second with that model (ingest to decision). One JSON object on standard output:
``tx_per_s``, ``floor_tx_per_s``, ``ratio`` and ``p99_ms_at_100k`` first. The warm-up covers the first minute, in which
trainings follow one another while history fills; ``bench.hold`` has those in it that come every so often after.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import psutil

from bench import floor, machine
from spearhead.files import Files
from spearhead.heartbeat import Roster
from spearhead.ledger import LedgerFile, LedgerReader
from spearhead.settings import Settings
from spearhead.status import latency_quantile
from spearhead.volume import Volume

PATIENCE_SECONDS: Final = 180.0
LATENCY_RATES: Final = {"100k": 100_000, "10k": 10_000}
MIB: Final = 2**20
STAND_INS: Final = {"without_history": "prep", "variant": "supervisor"}  # programs of bench/ in the place of others


class Used(NamedTuple):
    """What a stage's processes have used since they started, and hold."""

    cpu_seconds: float
    written_bytes: int
    rss_bytes: int
    pss_bytes: int  # resident memory, each shared page divided by the processes that share it


class Window(NamedTuple):
    """A stretch of a run. The clock is that of the ledger's own versions."""

    rows: int  # counted in it
    seconds: float
    latency: dict[str, int]  # buckets of the ledger's histogram


class Pipeline:
    """``up`` on a fresh volume, and its ledger."""

    def __init__(
        self, root: Path, *options: str, environment: dict[str, str] | None = None, program: str = "spearhead"
    ) -> None:
        self.root = root
        self.log = root.with_suffix(".log")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", program, "up", "--volume", str(root), "--port", str(self.port), *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (environment or {})
            )
        self.volume = Volume(root, Files())
        self.reader = LedgerReader(self.volume)

    def prepared(self) -> bool:
        """Whether the volume has its first epoch. Raises RuntimeError if the pipeline has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the pipeline ended:\n{self.log.read_text()}")
        return bool(self.volume.files.list(self.volume.epochs))

    def ledger(self) -> LedgerFile | None:
        """Raises RuntimeError if the pipeline has ended."""
        return self.reader.read() if self.prepared() else None

    def wait_for_rows(self) -> None:
        """Until rows are scored and counted."""
        until = time.monotonic() + PATIENCE_SECONDS
        while (ledger := self.ledger()) is None or not ledger.transactions_analyzed:
            if time.monotonic() > until:
                raise RuntimeError(f"nothing was scored in {PATIENCE_SECONDS:.0f} s:\n{self.log.read_text()}")
            time.sleep(0.2)

    def window(self, seconds: float) -> Window:
        before = self._next_version()
        time.sleep(seconds)
        after = self._next_version()
        elapsed = (after.updated_at - before.updated_at).total_seconds()
        latency = {bucket: rows - before.latency.get(bucket, 0) for bucket, rows in after.latency.items()}
        return Window(after.transactions_analyzed - before.transactions_analyzed, elapsed, latency)

    def _next_version(self) -> LedgerFile:
        """The next version of the ledger to appear: its time is when its rows were counted."""
        before = self.ledger()
        while (ledger := self.ledger()) is None or (before is not None and ledger.key == before.key):
            time.sleep(0.01)
        return ledger

    def used(self) -> dict[str, Used]:
        """By stage, summed over its processes; ``up`` itself is the supervisor."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(Used._fields))
        top = psutil.Process(self.process.pid)
        for process in (top, *top.children(recursive=True)):
            try:
                found = _stage(process), _used(process)
            except psutil.NoSuchProcess:
                continue
            sums[found[0]] = [a + b for a, b in zip(sums[found[0]], found[1], strict=True)]
        return {stage: Used(cpu, int(written), int(rss), int(pss)) for stage, (cpu, written, rss, pss) in sums.items()}

    def fsyncs_per_s(self) -> float:
        """Flushes a second of all workers, as their latest heartbeats say."""
        roster = Roster(self.volume, 15.0)
        try:
            return sum(beat.fsyncs_per_s for beat in roster.alive().values())
        finally:
            roster.close()

    def stop(self) -> bool:
        """End it; whether it ended cleanly."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(120) == 0

    def verify(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "spearhead", "verify", "--volume", str(self.root), "--json"]
        report: dict[str, Any] = msgspec.json.decode(subprocess.run(command, capture_output=True, check=False).stdout)
        return {key: report[key] for key in ("published", "ledger", "lost", "duplicated", "dead", "ok")}


def throughput(root: Path, windows: int, seconds: float, warm_up: float, *options: str) -> dict[str, Any]:
    """Flat out, and what it costs."""
    pipeline = Pipeline(root, "--rate", "max", *options)
    try:
        pipeline.wait_for_rows()
        time.sleep(warm_up)
        before, began = pipeline.used(), time.monotonic()
        taken, fsyncs = [], []
        for _ in range(windows):
            taken.append(pipeline.window(seconds))
            fsyncs.append(pipeline.fsyncs_per_s())
        after, ended = pipeline.used(), time.monotonic()
    finally:
        clean = pipeline.stop()
    rates = [window.rows / window.seconds for window in taken]
    mean = sum(window.rows for window in taken) / sum(window.seconds for window in taken)
    rows = mean * (ended - began)
    return {
        "tx_per_s": round(statistics.median(rates)),
        "tx_per_s_windows": [round(rate) for rate in rates],
        **percentiles(_merged(window.latency for window in taken), "max"),
        "stages_at_max": costs(before, after, rows, ended - began),
        "bytes_written_per_row": round(sum(_difference(before, after, "written_bytes").values()) / rows, 1),
        "fsyncs_per_s": round(statistics.mean(fsyncs), 1),
        "rss_mib": round(sum(used.rss_bytes for used in after.values()) / MIB, 1),
        "pss_mib": round(sum(used.pss_bytes for used in after.values()) / MIB, 1),
        "clean_exit": clean,
        "verify_at_max": pipeline.verify(),
    }


def latency(root: Path, name: str, models: Path, seconds: float, warm_up: float, *options: str) -> dict[str, Any]:
    """Ingest to decision at a set rate."""
    pipeline = Pipeline(root, "--rate", str(LATENCY_RATES[name]), "--model", str(models), *options)
    try:
        pipeline.wait_for_rows()
        time.sleep(warm_up)
        before, began = pipeline.used(), time.monotonic()
        window = pipeline.window(seconds)
        after, ended = pipeline.used(), time.monotonic()
    finally:
        pipeline.stop()
    rate = window.rows / window.seconds
    return {
        f"tx_per_s_at_{name}": round(rate),
        **percentiles(window.latency, name),
        f"stages_at_{name}": costs(before, after, rate * (ended - began), ended - began),
        f"verify_at_{name}": pipeline.verify(),
    }


def _stage(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for package in ("services", "bench"):
        if name := command.partition(f"-m {package}.")[2].split(" ")[0]:
            return STAND_INS.get(name, name)
    return "supervisor"


def _used(process: psutil.Process) -> Used:
    with process.oneshot():
        cpu, memory = process.cpu_times(), process.memory_full_info()
        return Used(cpu.user + cpu.system, process.io_counters().write_bytes, memory.rss, memory.pss)


def _difference(before: dict[str, Used], after: dict[str, Used], field: str) -> dict[str, float]:
    return {stage: getattr(used, field) - getattr(before[stage], field) for stage, used in after.items()}


def costs(before: dict[str, Used], after: dict[str, Used], rows: float, seconds: float) -> dict[str, dict[str, float]]:
    cpu, written = _difference(before, after, "cpu_seconds"), _difference(before, after, "written_bytes")
    return {
        stage: {
            "cpu_ns_per_row": round(cpu[stage] / rows * 1e9, 1),
            "cpu_cores": round(cpu[stage] / seconds, 3),
            "written_bytes_per_row": round(written[stage] / rows, 1),
            "rss_mib": round(used.rss_bytes / MIB, 1),
            "pss_mib": round(used.pss_bytes / MIB, 1),
        }
        for stage, used in sorted(after.items())
    }


def _merged(histograms: Any) -> dict[str, int]:
    merged: dict[str, int] = defaultdict(int)
    for histogram in histograms:
        for bucket, rows in histogram.items():
            merged[bucket] += rows
    return dict(merged)


def percentiles(buckets: dict[str, int], name: str) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for percent in (50, 95, 99):
        milliseconds = latency_quantile(buckets, percent / 100)
        figures[f"p{percent}_ms_at_{name}"] = None if milliseconds is None else round(milliseconds, 1)
    return figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, the headline first."""
    replicas = ("--inference", str(options.inference))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="spearhead-bench-") as folder:
        first = Path(folder) / "max"
        figures = throughput(first, options.windows, options.seconds, options.warm_up, *replicas)
        figures |= floor.run(first / "models", options.seconds, Settings())
        for name in LATENCY_RATES:
            figures |= latency(Path(folder) / name, name, first / "models", options.seconds, options.warm_up, *replicas)
    place = options.folder or Path(tempfile.gettempdir())
    figures["ratio"] = round(figures["tx_per_s"] / figures["floor_tx_per_s"], 3)
    headline = ("tx_per_s", "floor_tx_per_s", "ratio", "p99_ms_at_100k")
    return {name: figures[name] for name in headline} | figures | {"machine": machine.describe(place)}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the volumes are made (a local disk)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds from the first scored row")
    parser.add_argument("--inference", type=int, default=1, help="inference processes")
    return parser.parse_args(words)


def text(figures: dict[str, Any]) -> str:
    """The headline and what each stage costs, for people."""
    lines = [
        f"{figures['tx_per_s']:,} transactions a second, {figures['ratio']:.0%} of the in-memory floor of "
        f"{figures['floor_tx_per_s']:,}",
        f"{figures['bytes_written_per_row']} bytes written a row, {figures['fsyncs_per_s']} fsyncs a second, "
        f"{figures['rss_mib']:,} MiB resident",
    ]
    for name in ("max", *LATENCY_RATES):
        p50, p95, p99 = (figures[f"p{percent}_ms_at_{name}"] for percent in (50, 95, 99))
        lines.append(f"latency at {name}: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms")
    for stage, cost in figures["stages_at_max"].items():
        lines.append(f"{stage:<12}{cost['cpu_ns_per_row']:>8} ns of CPU a row, {cost['rss_mib']:>7,} MiB")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(measure(arguments(words))), indent=2).decode() + "\n")


if __name__ == "__main__":
    main()
