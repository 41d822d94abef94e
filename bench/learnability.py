"""How well the generator's fraud can be learnt, by scenario: ``python -m bench.learnability`` prints JSON.

Rows of the default generator go through the product's own features. A model is trained on the rows whose labels have
matured by day T, and measured on all rows of the days from T on: what a model of the pipeline meets.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import NamedTuple

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from services.generator.places import DAY_US
from services.generator.population import population
from services.generator.traffic import START_US, Traffic
from spearhead.features import FEATURES, STATELESS, History
from spearhead.schema import SCENARIOS

DELAY_DAYS = 7
TRAIN_DAYS = 14
TEST_DAYS = 3
PARAMS = {
    "objective": "binary:logistic", "tree_method": "hist", "max_depth": 6, "eta": 0.15, "subsample": 0.8,
    "colsample_bytree": 0.8, "min_child_weight": 5.0, "nthread": 2, "seed": 0,
}  # fmt: skip
TREES = 120


class Table(NamedTuple):
    features: NDArray[np.float32]  # (rows, WIDTH)
    label: NDArray[np.int8]
    scenario: NDArray[np.int8]

    def select(self, rows: NDArray[np.bool_]) -> Table:
        return Table(*(column[rows] for column in self))


def average_precision(label: NDArray[np.int8], score: NDArray[np.float32]) -> float:
    """Mean precision at each fraud, by falling score."""
    hits = label[np.argsort(-score, kind="stable")] > 0
    found = np.cumsum(hits)
    return float((found / np.arange(1, len(hits) + 1))[hits].mean()) if hits.any() else float("nan")


def area_under_curve(label: NDArray[np.int8], score: NDArray[np.float32]) -> float:
    """Chance that a fraud scores above a genuine row; ties count half."""
    order, inverse = np.unique(score, return_inverse=True)
    count = np.bincount(inverse, minlength=len(order))
    rank = np.cumsum(count) - (count - 1) / 2
    positive = label > 0
    wins = rank[inverse][positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum()))


def tables(args: argparse.Namespace, days: list[int]) -> dict[int, tuple[Table, Table]]:
    """By day T: the training sample and the test rows."""
    source = Traffic(population(args.cards, args.merchants, args.seed), args.seed, 0, args.fraud_rate)
    history = History(6_000_000, 1_000_000, DELAY_DAYS * DAY_US)
    rng = np.random.default_rng(0)
    parts: dict[int, tuple[list[Table], list[Table]]] = {day: ([], []) for day in days}
    watermark = START_US
    while watermark < START_US + (max(days) + TEST_DAYS) * DAY_US:
        chunk = source.take(65_536)
        watermark = chunk.watermark
        batch = chunk.batch
        table = Table(history.transform(batch), batch["label"].to_numpy(), batch["scenario"].to_numpy())
        at = (batch["event_time"].cast("int64").to_numpy() - START_US) / DAY_US
        sampled = rng.random(len(at)) < args.sample
        for day, (train, test) in parts.items():
            train.append(table.select(sampled & (at >= day - DELAY_DAYS - TRAIN_DAYS) & (at < day - DELAY_DAYS)))
            test.append(table.select((at >= day) & (at < day + TEST_DAYS)))
    return {day: (_joined(train), _joined(test)) for day, (train, test) in parts.items()}


def _joined(parts: list[Table]) -> Table:
    return Table(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def scores(train: Table, test: Table, columns: list[int]) -> tuple[NDArray[np.float32], xgb.Booster]:
    """Scores of the test rows by a model on some of the features."""
    data = xgb.QuantileDMatrix(train.features[:, columns], train.label)
    model = xgb.train(PARAMS, data, TREES)
    return model.inplace_predict(np.ascontiguousarray(test.features[:, columns])), model


def report(train: Table, test: Table) -> dict[str, object]:
    """Figures of one day."""
    every = list(range(len(FEATURES)))
    score, model = scores(train, test, every)
    alone, _ = scores(train, test, [FEATURES.index(name) for name in STATELESS])
    gain = model.get_score(importance_type="total_gain")
    top = sorted(gain, key=lambda name: -gain[name])[:12]
    genuine = test.label == 0
    return {
        "train_rows": len(train.label),
        "train_frauds": int(train.label.sum()),
        "test_rows": len(test.label),
        "fraud_share": float(test.label.mean()),
        "ap": average_precision(test.label, score),
        "auc": area_under_curve(test.label, score),
        "ap_stateless": average_precision(test.label, alone),
        "ap_by_scenario": {
            name: average_precision(test.label[rows], score[rows])
            for code, name in enumerate(SCENARIOS[1:], 1)
            for rows in [genuine | (test.scenario == code)]
        },
        "scenario_rows": {name: int((test.scenario == code).sum()) for code, name in enumerate(SCENARIOS) if code},
        "top_features": [FEATURES[int(name[1:])] for name in top],
    }


def main() -> None:
    """Print the figures of a first model (day 10) and of later ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=50_000)
    parser.add_argument("--merchants", type=int, default=2_000)
    parser.add_argument("--fraud-rate", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=float, default=0.2, help="share of the training days' rows that are used")
    parser.add_argument("--days", type=int, nargs="+", default=[10, 32])
    args = parser.parse_args()
    found = {f"day_{day}": report(train, test) for day, (train, test) in tables(args, args.days).items()}
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
