"""What it costs to bring a file's rows in, in ns of CPU time a row: cutting the CSV, checking, coding, and all of it.

``python -m bench.edge FILE [--rows 200000]`` prints one JSON object. One thread; each figure is the best of its runs.
FILE is in the Sparkov layout; its rows are repeated until there are enough.
"""

from __future__ import annotations

import os

os.environ["POLARS_MAX_THREADS"] = "1"  # before Polars is loaded: CPU time is compared, not luck

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from services.generator.replay import Replay
from spearhead import edge
from spearhead.delimited import cut
from spearhead.tokens import Tokenizer

RUNS = 5
BLOCK_ROWS = 30_000


def best(work: Callable[[], object], rows: int) -> float:
    """CPU time of ``work`` in ns a row: the best of RUNS, after one that warms up."""
    work()
    times = []
    for _ in range(RUNS):
        began = time.process_time_ns()
        work()
        times.append((time.process_time_ns() - began) / rows)
    return round(min(times), 1)


def repeated(path: Path, rows: int) -> tuple[bytes, list[bytes]]:
    """The header line of ``path``, and ``rows`` lines."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    lines[-1] = lines[-1].rstrip() + b"\n"
    return header, (lines * (rows // len(lines) + 1))[:rows]


def drain(path: Path, tokens: Tokenizer) -> None:
    """Replay the whole file."""
    source = Replay(path, tokens, loop=False)
    while not source.take(edge.MAX_ROWS).ended:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    arguments = parser.parse_args()
    header, lines = repeated(arguments.file, arguments.rows)
    names = next(csv.reader([header.decode().strip()]))
    wanted = [name for name in names if name in (*edge.REQUIRED, *edge.OPTIONAL)]
    block = b"".join(lines[:BLOCK_ROWS])
    tokens = Tokenizer(b"a key for the bench only")
    rows = cut(block, names, wanted).rows
    accepted = edge.check(rows).accepted
    figures: dict[str, float] = {
        "cut_ns": best(lambda: cut(block, names, wanted), rows.height),
        "check_ns": best(lambda: edge.check(rows), rows.height),
        "code_ns": best(lambda: edge.to_batch(accepted, tokens), accepted.height),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        path.write_bytes(header + b"".join(lines))
        figures["replay_ns"] = best(lambda: drain(path, tokens), len(lines))
    figures["rows_per_second_and_core"] = round(1e9 / figures["replay_ns"])
    print(json.dumps({"rows": len(lines), "bytes_a_row": round(len(block) / rows.height), **figures}))


if __name__ == "__main__":
    main()
