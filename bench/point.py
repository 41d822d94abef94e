"""One measured pipeline: a fresh volume, its queue filled, a warm-up, one window, an audit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import psutil

from bench.pipeline import MIB, Pipeline, costs, percentiles
from bench.setups import Setup
from spearhead.backlog import Backlog
from spearhead.heartbeat import Roster
from spearhead.ledger import LedgerFile
from spearhead.volume import Volume

WARM_SHARE: Final = 0.5  # of the window, before it
MANY_CARDS: Final = 1_000_000  # from here on prep's history is still growing after a warm-up as short as that
MANY_CARDS_SECONDS: Final = 20.0
LARGE_SEGMENT: Final = 500_000  # rows: one more or less shows in a window that sees ten
FILL_SECONDS: Final = 60.0
FILLED: Final = 0.9  # of the backlog: producers go on below 0.8


def measure(setup: Setup, root: Path, models: Path, seconds: float) -> dict[str, Any]:
    """Figures of a window of ``seconds``, twice that for large segments.

    Raises RuntimeError, saying why, if the pipeline does not run.
    """
    program = "spearhead" if setup.history else "bench.variant"
    common = ["--model", str(models)]
    if setup.flat_out:
        fill(setup, root, *common)
    pipeline = Pipeline(
        root, "--rate", setup.rate, *common, *setup.options(), environment=setup.environment(), program=program
    )
    try:
        pipeline.wait_for_rows()
        if setup.segment_rows >= LARGE_SEGMENT:
            seconds *= 2
        time.sleep(WARM_SHARE * seconds + (MANY_CARDS_SECONDS if setup.cards >= MANY_CARDS else 0))
        figures = _window(pipeline, seconds)
    finally:
        clean = pipeline.stop()
    return figures | {"clean_exit": clean, "verify": pipeline.verify()}


def fill(setup: Setup, root: Path, *options: str) -> None:
    """Have the generator alone fill raw-transactions to the brim. Raises RuntimeError if it takes too long."""
    none = ["--prep", "0", "--inference", "0", "--no-train", "--no-api"]
    pipeline = Pipeline(root, "--rate", "max", *options, *none, environment=setup.environment())
    try:
        backlog, until = Backlog(pipeline.volume), time.monotonic() + FILL_SECONDS
        while not pipeline.prepared() or backlog.raw_transactions() < FILLED * setup.backlog:
            if time.monotonic() > until:
                raise RuntimeError(f"the queue was not full in {FILL_SECONDS:.0f} s: {pipeline.log.read_text()}")
            time.sleep(0.05)
    finally:
        pipeline.stop()


def _window(pipeline: Pipeline, seconds: float) -> dict[str, Any]:
    busy = _busy()
    first, before, began = _ledger(pipeline), pipeline.used(), time.monotonic()
    window = pipeline.window(seconds)
    last, after, ended = _ledger(pipeline), pipeline.used(), time.monotonic()
    busy = (_busy() - busy) / (ended - began)
    elapsed, rate = ended - began, window.rows / window.seconds
    segments = _segments(last) - _segments(first)
    counted = last.transactions_analyzed - first.transactions_analyzed
    stages = costs(before, after, rate * elapsed, elapsed)
    return {
        "tx_per_s": round(rate),
        **percentiles(window.latency, "window"),
        "rows_per_segment": round(counted / segments) if segments else None,
        "segments_per_s": round(rate * segments / counted, 3) if counted else None,
        "reasons_per_s": round((last.reasons_computed - first.reasons_computed) / elapsed, 1),
        "cpu_cores": round(sum(stage["cpu_cores"] for stage in stages.values()), 3),
        "other_cores": round(busy - sum(stage["cpu_cores"] for stage in stages.values()), 3),
        "bytes_per_row": round(sum(stage["written_bytes_per_row"] for stage in stages.values()), 1),
        "fsyncs_per_s": round(pipeline.fsyncs_per_s(), 1),
        "rss_mib": round(sum(used.rss_bytes for used in after.values()) / MIB, 1),
        "pss_mib": round(sum(used.pss_bytes for used in after.values()) / MIB, 1),
        "stages": stages,
        **_standing(pipeline.volume),
    }


def _busy() -> float:
    """CPU seconds that this machine's processors were not idle, or not ours."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _ledger(pipeline: Pipeline) -> LedgerFile:
    ledger = pipeline.ledger()
    if ledger is None:
        raise RuntimeError("the pipeline has no ledger")
    return ledger


def _segments(ledger: LedgerFile) -> int:
    return sum(counted.segments for counted in ledger.producers.values())


def _standing(volume: Volume) -> dict[str, Any]:
    """What waits, how long counting it takes (footers unread, then known), and how many cards prep remembers."""
    backlog, marks = Backlog(volume), [time.perf_counter()]
    for _ in range(2):
        waiting = backlog.rows()
        marks.append(time.perf_counter())
    roster = Roster(volume, 15.0)
    try:
        cards = sum(int(beat.figures.get("cards") or 0) for beat in roster.alive().values() if beat.stage == "prep")
    finally:
        roster.close()
    return {
        "waiting_rows": {"raw_transactions": waiting.raw_transactions, "features_ready": waiting.features_ready},
        "count_ms_first": round((marks[1] - marks[0]) * 1e3, 2),
        "count_ms_again": round((marks[2] - marks[1]) * 1e3, 2),
        "cards_remembered": cards,
    }
