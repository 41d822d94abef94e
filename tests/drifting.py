"""A pipeline in one process, for tests of drift: the generator's rows through prep's and inference's own code.

python -m tests.drifting --seeds 21 22 23    the figures of docs/decisions/0016: what is said at the end of each day
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xgboost as xgb

from services.generator.population import population
from services.generator.traffic import START_US, Traffic
from services.prep.sample import FIRST_DAYS, Share, middle_event_time, sample
from services.train import fit
from services.train.reference import reference
from spearhead import binning, codes, drift, scoring
from spearhead.aggregate import DAY_US, HOUR_US, Aggregate, add_hour, merge, prune_days
from spearhead.features import FEATURES, STATELESS, History
from spearhead.model import Model, _trees
from spearhead.packing import attach
from spearhead.schema import MERCHANT
from spearhead.settings import Settings
from spearhead.trees import probabilities

START_DAY = START_US // DAY_US
LABEL_DELAY_DAYS = 7
WINDOW_DAYS: Final = Settings.model_fields["train_window_days"].default
SEGMENT_ROWS = 2_000
FRAUD_RATE = 0.005
COLUMNS = ("event_time", "amt_cents", "category", "label", "scenario")
Change = Callable[[pa.RecordBatch], pa.RecordBatch]
OPTIONS = fit.Options(names=FEATURES, stateless=STATELESS, threshold=0.52)
CHAMPION_DAYS: Final = 9  # that each of four champions is judged for on steady traffic
RAISED: Final = ("warn", "alarm")


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
        # As much as traffic of 50,000 cards has: each row of the first 14 days is sampled, later ones are shared out.
        self._most = round(FIRST_DAYS * self.rows_per_day)
        self._share = Share(self._most, WINDOW_DAYS)
        self._sample: list[fit.Rows] = []

    def branch(self) -> Pipeline:
        """Another pipeline that goes on from here; the model is the same object."""
        other = copy(self)
        other.source = Traffic(self._population, self._seed, 0, FRAUD_RATE, self.source.cursor)
        other.history = History.restore(self.history.arrays())
        other.totals = msgspec.json.decode(msgspec.json.encode(self.totals), type=Aggregate)
        other._share = copy(self._share)
        other._sample = list(self._sample)
        return other

    def run(self, days: float, change: Change = lambda batch: batch) -> None:
        """``days`` more event days; ``change`` alters what the generator gives."""
        for _ in range(round(days * self.rows_per_day / SEGMENT_ROWS)):
            self._segments += 1
            batch = change(self.source.take(SEGMENT_ROWS).batch)
            features = codes.encode(self.history.transform(batch))
            features.flags.writeable = False
            self._keep(batch, features)
            if self.model is not None:
                self._score(batch, features, scoring._numbers(batch, "event_time"))

    def _keep(self, batch: pa.RecordBatch, features: codes.Codes) -> None:
        """Rows for training, by prep's own sampling."""
        self._share.update(batch.num_rows, middle_event_time(batch))
        found = sample(attach(batch, codes.plain(features)), self._share.share)
        if found is not None:
            columns = (scoring._numbers(found, name) for name in (*COLUMNS, "weight"))
            self._sample.append(fit.Rows(*columns, codes.decode(codes.of(found.column("features")))))

    def train(self) -> Model:
        """A new champion of what has matured of the newest rows sampled, as many as the spool keeps."""
        rows = fit.in_order(fit.Rows(*(np.concatenate(parts) for parts in zip(*self._sample, strict=True))))
        rows = rows.take(slice(-self._most, None))
        self._sample = [rows]
        rows = rows.take(rows.event_time <= rows.event_time[-1] - LABEL_DELAY_DAYS * DAY_US)
        grown = fit._grow(rows, parts := fit.split(rows), list(range(len(FEATURES))), OPTIONS)
        test = rows.take(parts.test)
        margins = fit._margins(grown.booster, test.features)
        line = fit._calibrate(rows.take(parts.valid), grown.valid, test, margins)
        scores = probabilities(margins, *line)
        began = self.totals.first_event_day if self.totals.first_scored_at else None
        known = self.model.reference if self.model else None
        found = reference(rows, FEATURES, scores, test, known, began)
        self.models += 1
        self.model = self._model(grown.booster, fit._window(rows, parts), line, found)
        return self.model

    def _model(self, booster: xgb.Booster, window: Any, line: Any, found: drift.Reference) -> Model:
        version = f"v{self.models:06d}"
        return Model(version, booster, len(FEATURES), window, _trees(booster, version), 2, *line, reference=found)

    def _score(self, batch: pa.RecordBatch, features: codes.Codes, event_time: Any) -> None:
        assert self.model is not None
        assert self.model.reference is not None
        scores = self.model.score(features)
        found = attach(batch, codes.plain(features))
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


def settled(seed: int = 11) -> Pipeline:
    """A month of steady traffic, in which the fourth champion has come into service."""
    pipeline = Pipeline(seed=seed)
    pipeline.run(14)
    for _ in range(3):
        pipeline.train()
        pipeline.run(5)
    pipeline.train()
    return pipeline


# What is injected


def larger_amounts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Amounts half as large again."""
    cents = pc.cast(pc.multiply(pc.cast(batch.column("amt_cents"), pa.float64()), 1.5), pa.int32(), safe=False)
    return _replaced(batch, "amt_cents", cents)


def new_merchants(seed: int) -> Change:
    """Four rows in ten are at one of 2,000 merchants that nobody has seen."""
    rng = np.random.default_rng(seed)

    def change(batch: pa.RecordBatch) -> pa.RecordBatch:
        names = batch.column("merchant").cast(pa.string())
        new = pa.array([f"fraud_New Shop {number}" for number in rng.integers(0, 2_000, batch.num_rows)])
        chosen = pc.if_else(pa.array(rng.random(batch.num_rows) < 0.4), new, names)
        return _replaced(batch, "merchant", chosen.dictionary_encode().cast(MERCHANT))

    return change


def new_fraud(seed: int) -> Change:
    """Eight in a thousand purchases like any other turn out to be fraud."""
    rng = np.random.default_rng(seed)

    def change(batch: pa.RecordBatch) -> pa.RecordBatch:
        label = np.asarray(batch.column("label")) | (rng.random(batch.num_rows) < 0.008)
        return _replaced(batch, "label", pa.array(label.astype(np.int8)))

    return change


def _replaced(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), column)


# What is said of it


def said(seed: int) -> dict[str, list[dict[str, Any]]]:
    """By kind of traffic: what is said at the end of each event day, on steady traffic and of each injection."""
    start = settled(seed)
    steady = start.branch()
    found = list(_by_day(steady, CHAMPION_DAYS))
    for _ in range(3):
        steady.train()
        found += list(_by_day(steady, CHAMPION_DAYS))
    changes = {
        "amounts × 1.5": (9, larger_amounts),
        "40 % of rows at new merchants": (9, new_merchants(seed)),
        "0.8 % of ordinary purchases turn out to be fraud": (16, new_fraud(seed)),
    }
    return {"steady": found} | {
        name: list(_by_day(start.branch(), days, change)) for name, (days, change) in changes.items()
    }


def _by_day(pipeline: Pipeline, days: int, change: Change = lambda batch: batch) -> Iterator[dict[str, Any]]:
    for day in range(1, days + 1):
        pipeline.run(1, change)
        found = pipeline.drift()
        yield {"day": day, "status": found.status, "causes": _causes(found), "score_psi": found.score_psi}


def _causes(found: drift.Drift) -> dict[str, float | None]:
    """What warns or alarms: its PSI, or its ratio."""
    causes = {feature.feature: feature.psi for feature in found.features if feature.status in RAISED}
    if (found.score_psi or 0) >= drift.WARN:
        causes["score"] = found.score_psi
    ratios = {"label_rate": found.label_rate, "calibration": found.calibration}
    return causes | {name: ratio.ratio for name, ratio in ratios.items() if ratio.status in RAISED}


def summary(seeds: list[dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """By kind of traffic, over seeds: days judged, warned and alarmed on, and of each seed the first such day."""
    return {name: _summary([seed[name] for seed in seeds]) for name in seeds[0]}


def _summary(seeds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    every = [day for days in seeds for day in days]
    causes = [cause for day in every for cause in day["causes"]]
    return {
        "days": len(every),
        "warn": sum(day["status"] == "warn" for day in every),
        "alarm": sum(day["status"] == "alarm" for day in every),
        "first_warn": [_first(days, RAISED) for days in seeds],
        "first_alarm": [_first(days, ("alarm",)) for days in seeds],
        "causes": {cause: causes.count(cause) for cause in dict.fromkeys(causes)},
    }


def _first(days: list[dict[str, Any]], statuses: tuple[str, ...]) -> int | None:
    return next((day["day"] for day in days if day["status"] in statuses), None)


def main() -> None:
    """Print the summary over seeds, and each day that was raised, by seed, with what raised it."""
    parser = argparse.ArgumentParser(prog="tests.drifting", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23])
    options = parser.parse_args()
    seeds = {str(seed): said(seed) for seed in options.seeds}
    raised = {
        seed: {name: [day for day in days if day["status"] in RAISED] for name, days in kinds.items()}
        for seed, kinds in seeds.items()
    }
    figures = {"summary": summary(list(seeds.values())), "raised": raised}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(figures), indent=1).decode() + "\n")


if __name__ == "__main__":
    main()
