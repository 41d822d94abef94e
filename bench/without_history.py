"""Prep that computes no features: reads, checks, writes and commits as ever, all features zero. For ``bench.full``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from services.prep import work
from services.prep.stage import Prep
from spearhead.codes import OWN, Packed
from spearhead.features import WIDTH, History
from spearhead.stage import run_stage


class NoHistory(History):
    """Knows nothing, ever."""

    def encode(self, batch: pa.RecordBatch) -> Packed:
        n = batch.num_rows
        return Packed(np.zeros((n, OWN), np.uint16), np.zeros(n, np.uint16), np.zeros((1, WIDTH - OWN), np.uint16))


if __name__ == "__main__":
    work.History = NoHistory
    run_stage(Prep)
