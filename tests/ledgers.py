"""A volume with scored transactions: raw segments, result files and the ledger, by the product's own code."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pyarrow as pa
from numpy.random import Generator
from segments import ingested, raw_batch

from spearhead import codes, scoring
from spearhead.files import Files
from spearhead.ledger import Ledger
from spearhead.producer import Producer
from spearhead.schema import features_schema
from spearhead.segment import SegmentInfo, SegmentName, write_segment
from spearhead.volume import Volume

DELAY_US = 3_600_000_000
MODEL = "v000001"


class Scorer:
    """Publishes rows, scores them at random (but reproducibly), writes results and folds the ledger."""

    def __init__(self, volume: Volume, seed: int = 1, threshold: float = 0.52, labelled: bool = True) -> None:
        self.volume = volume
        self.labelled = labelled
        self.threshold = threshold
        self.random: Generator = np.random.default_rng(seed)
        self.producer = Producer(volume, "g00", 1, "scorer")
        self.producer.resume()
        self.ledger = Ledger(volume, DELAY_US)
        self.rows = 0

    def score(self, rows: int, ended: bool = False, scored_at: int | None = None, train_end: int = 0) -> str:
        """One segment of ``rows``; the name. ``scored_at`` in us since 1970, now if not given."""
        scored_at = time.time_ns() // 1000 if scored_at is None else scored_at
        return self.take(self._raw(rows, scored_at), scored_at, ended, train_end)

    def take(self, raw: pa.RecordBatch, scored_at: int, ended: bool = False, train_end: int = 0) -> str:
        """One segment of these rows; the name."""
        rows = raw.num_rows
        watermark = raw.column("event_time")[rows - 1].value if rows else self.producer.position.watermark
        position = self.producer.publish(raw, watermark=watermark, ended=ended, finite=True, cursor=str(self.rows))
        name = SegmentName(self.volume.epoch(), "g00", 0, position.seq)
        info = SegmentInfo(name=str(name), rows=rows, rows_before=self.rows, watermark=watermark)
        self.rows += rows
        self._decide(name, raw, info, scored_at, train_end)
        return str(name)

    def fold(self) -> None:
        self.ledger.fold()
        self.ledger.close()

    def _raw(self, rows: int, scored_at: int) -> pa.RecordBatch:
        cents = np.minimum(self.random.lognormal(8.5, 1.4, rows).astype(np.int64) + 1, 1_000_000)
        raw = raw_batch(self.rows, rows, cents=cents.tolist())
        waited = self.random.lognormal(9.5, 0.8, rows).astype(np.int64)
        if not self.labelled:  # as live traffic is
            place = raw.schema.get_field_index("label")
            raw = raw.set_column(place, raw.schema.field(place), pa.array(np.full(rows, -1, np.int8)))
        index = raw.schema.get_field_index("ingested_at")
        return raw.set_column(index, raw.schema.field(index), ingested(scored_at - waited))

    def _decide(
        self, name: SegmentName, raw: pa.RecordBatch, info: SegmentInfo, scored_at: int, train_end: int
    ) -> None:
        rows = raw.num_rows
        schema = features_schema(2)
        features = codes.column(np.zeros((rows, 2), np.float32))
        columns = [features if field.name == "features" else raw.column(field.name) for field in schema]
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        fraud = np.asarray(raw.column("label")) > 0
        scores = np.where(fraud, self.random.beta(4, 2, rows), self.random.beta(1, 8, rows)).astype(np.float32)
        scored, aggregate = scoring.decide(
            batch,
            scores,
            producer="g00",
            threshold=self.threshold,
            train_end=train_end,
            scored_at=scored_at,
            model=MODEL,
        )
        path = self.volume.result_file(str(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_segment(Files(fsync=False), path, scoring.results(scored), info)
        (self.volume.pending / f"{name}.json").write_bytes(msgspec.json.encode(aggregate))
