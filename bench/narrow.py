"""What it costs to write raw-transactions narrow: CPU of a segment's way through the files, wide and narrow in turn.

``python -m bench.narrow`` prints one JSON object: ns a row of this process, medians; ``ratio`` is the median of the
segments' own. A segment of the generator gets its ids, is written and fsynced, read and validated as prep does, each
column touched, and its columns in features-ready are read as inference does: wide, narrow, narrow, wide, or the other
way round, so that neither gains by its place. Wide, ids have offsets of their own.
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
from services.generator.traffic import ID_BYTES, Traffic
from spearhead.files import Files
from spearhead.narrow import column_of, narrow, texts_of, widen
from spearhead.schema import IDENTITY, RAW
from spearhead.segment import SegmentInfo, read_segment, write_segment
from spearhead.settings import Settings

WARM = 2  # segments that are not counted
Part = dict[str, float]  # ns a row


def through(batch: pa.RecordBatch, path: Path, narrowed: bool) -> Part:
    """CPU of the steps of one segment."""
    rows = batch.num_rows
    info = SegmentInfo(name="bench", rows=rows, rows_before=0)
    part: Part = {}
    made: list[pa.RecordBatch] = []

    def timed(name: str, action: Callable[[], object]) -> None:
        began = time.process_time_ns()
        action()
        part[name] = (time.process_time_ns() - began) / rows

    timed("ids", lambda: made.append(_with_ids(batch, narrowed)))
    timed("write", lambda: write_segment(Files(), path, narrow(made[0]) if narrowed else made[0], info))
    timed("prep", lambda: _prep(path, narrowed))
    timed("inference", lambda: _inference(path, narrowed))
    part["all"] = sum(part.values())
    part["bytes"] = path.stat().st_size / rows
    path.unlink()
    return part


def _with_ids(batch: pa.RecordBatch, narrowed: bool) -> pa.RecordBatch:
    """The batch with ids made of their texts: with the offsets that all share, or with new ones."""
    rows, data = batch.num_rows, batch.column("trans_num").buffers()[2]
    if narrowed:
        return batch.set_column(0, RAW.field(0), texts_of(data, ID_BYTES, rows))
    offsets = np.arange(0, (rows + 1) * ID_BYTES, ID_BYTES, dtype=np.int32)
    return batch.set_column(0, RAW.field(0), pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), data))


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


def _mean(parts: list[tuple[bool, Part]], form: bool) -> Part:
    chosen = [part for narrowed, part in parts if narrowed is form]
    return {name: statistics.mean(part[name] for part in chosen) for name in chosen[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=150)
    options = parser.parse_args()
    settings = Settings()
    source = Traffic(population(settings.cards, settings.merchants, 1), 1, 0, settings.fraud_rate)
    pairs: list[tuple[Part, Part]] = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "segment.arrow"
        for turn in range(options.segments + WARM):
            batch = source.take(settings.segment_rows).batch
            first = bool(turn % 2)
            parts = [(form, through(batch, path, form)) for form in (first, not first, not first, first)]
            pairs.append((_mean(parts, False), _mean(parts, True)))
    pairs = pairs[WARM:]
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
