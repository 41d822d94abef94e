"""Bytes written a row, by topic: what the product's own code writes of one segment of the generator.

``python -m bench.bytes`` prints one JSON object. Checkpoints, heartbeats and the ledger are not in it, nor what a
result segment keeps of flagged rows (some 1 byte a row): what a whole pipeline writes is what ``make bench`` says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from services.generator.population import population
from services.generator.traffic import Traffic
from services.prep.work import FeatureWork
from spearhead import scoring
from spearhead.files import Files
from spearhead.narrow import narrow
from spearhead.schema import RAW
from spearhead.segment import SegmentInfo, write_segment
from spearhead.settings import Settings


def measure(settings: Settings, warm: int, folder: Path) -> dict[str, float]:
    """Bytes a row of the segment after ``warm`` others, with the share sampled that the traffic asks for by then."""
    source = Traffic(
        population(settings.cards, settings.merchants, settings.seed), settings.seed, 0, settings.fraud_rate
    )
    work = FeatureWork(settings)
    work.sampling = True
    for _ in range(warm):
        work.sample(work.apply(source.take(settings.segment_rows).batch))
    raw = source.take(settings.segment_rows).batch
    outcome = work.apply(raw)
    features = outcome.features
    scored, _ = scoring.decide(
        features, np.zeros(raw.num_rows, np.float32), producer="g00", threshold=settings.fraud_threshold, train_end=0,
        scored_at=0, model="v000001",
    )  # fmt: skip
    written = {
        "raw-transactions": narrow(raw),
        "features-ready": features.select([name for name in features.schema.names if name not in RAW.names]),
        "training-queue": work.sample(outcome),
        "inference-results": scoring.results(scored),
    }
    sizes = {topic: _size(batch, raw.num_rows, folder) for topic, batch in written.items() if batch is not None}
    return {topic: round(size, 1) for topic, size in (sizes | {"all": sum(sizes.values())}).items()}


def _size(batch: pa.RecordBatch, rows: int, folder: Path) -> float:
    info = SegmentInfo(name="e0001-g00-p00-000000000001", rows=batch.num_rows, rows_before=0)
    return write_segment(Files(fsync=False), folder / "segment.arrow", batch, info) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--warm",
        type=int,
        default=70,
        help="segments before the one that is measured: the sample's window is full by then",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Settings(), options.warm, Path(folder))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
