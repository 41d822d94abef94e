"""Prep that computes no features: reads, checks, writes and commits as ever, all features zero. For ``bench.full``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.prep import work
from services.prep.stage import Prep
from spearhead.features import WIDTH, History
from spearhead.stage import run_stage


class NoHistory(History):
    """Knows nothing, ever."""

    def transform(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        return np.zeros((batch.num_rows, WIDTH), np.float32)


if __name__ == "__main__":
    work.History = NoHistory
    run_stage(Prep)
