"""What a synthetic row costs: ``python -m bench.generator`` prints JSON, in ns a row of one core.

``take`` makes a full segment's columns and Arrow arrays, ``write`` puts it into a file on the volume's disk (no fsync).
CPU time is what the process used; wall time also holds what others took from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from services.generator import warm
from services.generator.population import population
from services.generator.traffic import BLOCK_ROWS, Traffic
from spearhead.files import Files
from spearhead.narrow import narrow
from spearhead.segment import SegmentInfo, write_segment


def timed(work: Callable[[], object], times: int) -> dict[str, float]:
    """Median CPU and wall time of ``work`` in ns a row, and the shortest wall time."""
    cpu, wall = [], []
    for _ in range(times):
        before = time.process_time_ns(), time.perf_counter_ns()
        work()
        cpu.append((time.process_time_ns() - before[0]) / BLOCK_ROWS)
        wall.append((time.perf_counter_ns() - before[1]) / BLOCK_ROWS)
    middle = times // 2
    return {
        "cpu_ns_per_row": round(sorted(cpu)[middle], 1),
        "wall_ns_per_row": round(sorted(wall)[middle], 1),
        "best_ns_per_row": round(min(wall), 1),
    }


def measure(cards: int, merchants: int, times: int, folder: Path) -> dict[str, object]:
    """Figures of one population."""
    began = time.perf_counter()
    pop = population(cards, merchants, 1)
    built = time.perf_counter() - began
    source = Traffic(pop, 1, 0, 0.005)
    batch = source.take(BLOCK_ROWS).batch
    path, info = folder / "segment.arrow", SegmentInfo(name="bench", rows=BLOCK_ROWS, rows_before=0)
    return {
        "cards": cards,
        "merchants": merchants,
        "population_seconds": round(built, 3),
        "population_bytes": int(pop.cards.nbytes + pop.merchants.nbytes),
        "take": timed(lambda: source.take(BLOCK_ROWS), times),
        "write": timed(lambda: write_segment(Files(fsync=False), path, narrow(batch), info), times),
        "bytes_per_row": round(path.stat().st_size / BLOCK_ROWS, 1),
    }


def main() -> None:
    """Measure the default population and larger ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, nargs="+", default=[50_000, 1_000_000, 5_000_000])
    parser.add_argument("--merchants", type=int, default=2_000)
    parser.add_argument("--times", type=int, default=60, help="segments of each measurement")
    args = parser.parse_args()
    warm.run()
    with tempfile.TemporaryDirectory() as folder:
        figures = [measure(cards, args.merchants, args.times, Path(folder)) for cards in args.cards]
    json.dump({"rows_per_segment": BLOCK_ROWS, "populations": figures}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
