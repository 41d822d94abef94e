"""What it costs to write raw-transactions narrow: CPU of a segment's way through the files, wide and narrow in turn.

``python -m bench.narrow`` prints one JSON object: ns a row of this process, medians; ``ratio`` is the median of the
pairs' own. A segment of the generator is written and fsynced, read and validated as prep does, each column touched,
and its columns in features-ready read as inference does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from services.generator.population import population
from services.generator.traffic import Traffic
from spearhead.files import Files
from spearhead.narrow import column_of, narrow, widen
from spearhead.schema import IDENTITY
from spearhead.segment import SegmentInfo, read_segment, write_segment
from spearhead.settings import Settings

Part = dict[str, float]  # ns a row


def through(batch: pa.RecordBatch, path: Path, narrowed: bool) -> Part:
    """CPU of the steps of one segment."""
    rows = batch.num_rows
    info = SegmentInfo(name="bench", rows=rows, rows_before=0)
    part: Part = {}

    def timed(name: str, action: Callable[[], object]) -> None:
        began = time.process_time_ns()
        action()
        part[name] = (time.process_time_ns() - began) / rows

    timed("write", lambda: write_segment(Files(), path, narrow(batch) if narrowed else batch, info))
    timed("prep", lambda: _prep(path, narrowed))
    timed("inference", lambda: _inference(path, narrowed))
    part["bytes"] = path.stat().st_size / rows
    part["all"] = part["write"] + part["prep"] + part["inference"]
    path.unlink()
    return part


def _prep(path: Path, narrowed: bool) -> None:
    batch = read_segment(path)[0]
    batch = widen(batch) if narrowed else batch
    batch.validate(full=True)
    for column in batch.columns:
        _touch(column)


def _inference(path: Path, narrowed: bool) -> None:
    batch = read_segment(path)[0]
    for field in IDENTITY:
        _touch(column_of(batch, field.name) if narrowed else batch.column(field.name))


def _touch(column: pa.Array) -> None:
    """Every cache line of a column once."""
    indices = column.indices if pa.types.is_dictionary(column.type) else column
    for buffer in indices.buffers():
        if buffer is not None:
            np.frombuffer(buffer, np.uint8)[::64].max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    settings = Settings()
    source = Traffic(population(settings.cards, settings.merchants, 1), 1, 0, settings.fraud_rate)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "segment.arrow"
        pairs = []
        for turn in range(options.pairs + 2):
            batch = source.take(settings.segment_rows).batch
            order = (False, True) if turn % 2 else (True, False)
            pair = {narrowed: through(batch, path, narrowed) for narrowed in order}
            pairs.append((pair[False], pair[True]))
    pairs = pairs[2:]
    told = {
        name: {
            "wide": round(statistics.median(wide[name] for wide, _ in pairs), 2),
            "narrow": round(statistics.median(narrowed[name] for _, narrowed in pairs), 2),
            "difference": round(statistics.median(narrowed[name] - wide[name] for wide, narrowed in pairs), 2),
            "ratio": round(statistics.median(narrowed[name] / wide[name] for wide, narrowed in pairs), 3),
        }
        for name in pairs[0][0]
    }
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")


if __name__ == "__main__":
    main()
