"""A pipeline in one process, for tests of drift: the generator's rows through prep's and inference's own code."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import xgboost as xgb

from services.generator.population import population
from services.generator.traffic import START_US, Traffic
from services.prep.work import attach
from services.train import fit
from services.train.reference import reference
from spearhead import binning, codes, drift, scoring
from spearhead.aggregate import DAY_US, HOUR_US, Aggregate, add_hour, merge, prune_days
from spearhead.features import FEATURES, STATELESS, History
from spearhead.model import Model, _trees

START_DAY = START_US // DAY_US
LABEL_DELAY_DAYS = 7
SEGMENT_ROWS = 2_000
FRAUD_RATE = 0.005
COLUMNS = ("event_time", "amt_cents", "category", "label", "scenario")
Change = Callable[[pa.RecordBatch], pa.RecordBatch]
OPTIONS = fit.Options(names=FEATURES, stateless=STATELESS, threshold=0.52)


class Pipeline:
    """Traffic of ``cards`` cards from day 0 on. ``totals`` is what the ledger would hold, ``model`` the champion."""

    def __init__(self, cards: int = 4_000, merchants: int = 500, seed: int = 11) -> None:
        self._population, self._seed = population(cards, merchants, seed), seed
        self.source = Traffic(self._population, seed, 0, FRAUD_RATE)
        self.rows_per_day = cards * 3
        self.history = History()
        self.totals = Aggregate(first_scored_at=1, first_event_day=START_DAY)  # as if a backlog had been scored
        self.model: Model | None = None
        self.models = 0
        self._segments = 0
        self._sample: list[fit.Rows] = []

    def branch(self) -> Pipeline:
        """Another pipeline that goes on from here; the model is the same object."""
        other = copy(self)
        other.source = Traffic(self._population, self._seed, 0, FRAUD_RATE, self.source.cursor)
        other.history = History.restore(self.history.arrays())
        other.totals = msgspec.json.decode(msgspec.json.encode(self.totals), type=Aggregate)
        other._sample = list(self._sample)
        return other

    def run(self, days: float, change: Change = lambda batch: batch) -> None:
        """``days`` more event days; ``change`` alters what the generator gives."""
        for _ in range(round(days * self.rows_per_day / SEGMENT_ROWS)):
            self._segments += 1
            batch = change(self.source.take(SEGMENT_ROWS).batch)
            features = codes.encode(self.history.transform(batch))
            features.flags.writeable = False
            columns = {name: scoring._numbers(batch, name) for name in COLUMNS}
            weight = np.ones(batch.num_rows, np.float32)
            self._sample.append(fit.Rows(*columns.values(), weight, codes.decode(features)))
            if self.model is not None:
                self._score(batch, features, columns["event_time"])

    def train(self, window_days: float = 7.0) -> Model:
        """A new champion of the newest ``window_days`` whose labels have matured."""
        rows = fit.in_order(fit.Rows(*(np.concatenate(parts) for parts in zip(*self._sample, strict=True))))
        end = rows.event_time[-1] - LABEL_DELAY_DAYS * DAY_US
        start = end - round(window_days * DAY_US)
        self._sample = [rows.take(rows.event_time > start)]
        rows = rows.take((rows.event_time > start) & (rows.event_time <= end))
        booster, _ = fit._grow(rows, parts := fit.split(rows), list(range(len(FEATURES))), OPTIONS)
        test = rows.take(parts.test)
        line = fit._calibrate(booster, rows.take(parts.valid), test)
        scores = fit.predict(booster, test.features, *line)
        began = self.totals.first_event_day if self.totals.first_scored_at else None
        known = self.model.reference if self.model else None
        found = reference(rows, FEATURES, scores, test, known, began)
        self.models += 1
        self.model = self._model(booster, fit._window(rows, parts), line, found)
        return self.model

    def _model(self, booster: xgb.Booster, window: Any, line: Any, found: drift.Reference) -> Model:
        version = f"v{self.models:06d}"
        return Model(version, booster, len(FEATURES), window, _trees(booster, version), 2, *line, reference=found)

    def _score(self, batch: pa.RecordBatch, features: codes.Codes, event_time: Any) -> None:
        assert self.model is not None
        assert self.model.reference is not None
        scores = self.model.score(features)
        found = attach(batch, codes.decode(features))
        _, aggregate = scoring.decide(
            found, scores, producer="g00", threshold=0.52, train_end=self.model.train_end,
            scored_at=self._segments, model=self.model.version,
        )  # fmt: skip
        aggregate.drift = binning.count(
            binning.bins_of(self.model.reference), features, scores, event_time,
            number=self._segments, model=self.model.version, scored_at=self._segments,
        )  # fmt: skip
        merge(self.totals, [aggregate])
        mature = (int(event_time[-1]) - LABEL_DELAY_DAYS * DAY_US) // HOUR_US
        for key in [key for key in self.totals.pending_labels if int(key.rpartition("/")[2]) < mature]:
            add_hour(self.totals.label_days, int(key.rpartition("/")[2]), self.totals.pending_labels.pop(key))
        prune_days(self.totals.label_days, self.totals.drift)

    def drift(self) -> drift.Drift:
        assert self.model is not None
        assert self.model.reference is not None
        totals = self.totals
        return drift.assess(
            self.model.reference, self.model.version, totals.drift, totals.label_days, totals.first_event_day
        )
