"""What scoring costs, in ns of CPU time a row: prediction, decisions with aggregates, building and writing results.

``python -m bench.scoring [--rows 65536]`` prints one JSON object. One thread; each figure is the median of its runs.
The model has random labels to learn from: its trees are as deep as they get, so prediction is not flattered.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import xgboost as xgb

from spearhead import codes, reasons, scoring
from spearhead.features import WIDTH
from spearhead.files import Files
from spearhead.model import Model
from spearhead.schema import CATEGORIES, STATES, came_together, features_schema
from spearhead.segment import SegmentInfo, read_segment, write_segment
from spearhead.shap import compile_paths, tabulate
from spearhead.trees import compile_trees

TREES = 100
DEPTH = 6
EXPLAINED = 250  # rows


def feature_batch(rows: int, seed: int = 1) -> pa.RecordBatch:
    """A features-ready segment like the generator's: 2,000 merchants, sorted times, one ingest time."""
    rng = np.random.default_rng(seed)
    columns = {
        "trans_num": pa.array([f"{i:032x}" for i in rng.integers(0, 2**63, rows)]),
        "event_time": 1_700_000_000_000_000 + np.sort(rng.integers(0, 3_600_000_000 * 10, rows)),
        "ingested_at": came_together(rows, time.time_ns() // 1000 - 100_000),
        "card": rng.integers(0, 2**63, rows, dtype=np.uint64),
        "last4": rng.integers(0, 10_000, rows).astype(np.uint16),
        "amt_cents": rng.integers(1, 50_000, rows).astype(np.int32),
        "category": rng.integers(0, len(CATEGORIES), rows).astype(np.uint8),
        "state": rng.integers(0, len(STATES), rows).astype(np.uint8),
        "merchant": pa.DictionaryArray.from_arrays(
            pa.array(rng.integers(0, 2_000, rows).astype(np.uint16)),
            [f"Merchant number {i} and Sons" for i in range(2_000)],
        ),
        "first": pa.DictionaryArray.from_arrays(
            pa.array(rng.integers(0, 200, rows).astype(np.int16)), [f"Name{i}" for i in range(200)]
        ),
        "last_initial": np.full(rows, ord("B"), np.uint8),
        "label": (rng.random(rows) < 0.005).astype(np.int8),
        "scenario": np.zeros(rows, np.int8),
        "features": codes.column(rng.random((rows, WIDTH), dtype=np.float32)),
    }  # fmt: skip
    schema = features_schema(WIDTH)
    arrays = [columns[f.name] if isinstance(columns[f.name], pa.Array) else pa.array(columns[f.name], f.type)
              for f in schema]  # fmt: skip
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def deep_model() -> Model:
    """TREES full trees of DEPTH whose scores spread around the base rate, so that some rows are flagged."""
    rng = np.random.default_rng(0)
    features = rng.random((50_000, WIDTH), dtype=np.float32)
    label = rng.random(50_000) < 0.05
    parameter = {"objective": "binary:logistic", "max_depth": DEPTH, "tree_method": "hist", "nthread": 1, "seed": 1}
    booster = xgb.train(parameter, xgb.QuantileDMatrix(features, label), num_boost_round=TREES)
    document = bytes(booster.save_raw("json"))
    tables = tabulate(compile_paths(msgspec.json.decode(document)))
    return Model("v000001", booster, WIDTH, None, compile_trees(document), tables=tables)


def explain_figures(model: Model, matrix: codes.Codes, seconds: float) -> dict[str, float]:
    """What reasons cost, in us a row explained: contributions of our kernel and of XGBoost, and words of both."""
    values = codes.decode(matrix)
    added = model.contributions(matrix)
    rows = xgb.DMatrix(values, nthread=1)
    us = {
        "contributions": ns_per_row(lambda: model.contributions(matrix), len(matrix), seconds) / 1000,
        "contributions_by_xgboost": ns_per_row(
            lambda: model.booster.predict(rows, pred_contribs=True), len(matrix), seconds
        )
        / 1000,
        "strongest": ns_per_row(lambda: reasons.strongest(values, added), len(matrix), seconds) / 1000,
    }
    return {f"{name}_us_per_explained_row": round(value, 2) for name, value in us.items()} | {
        "contributions_times_faster": round(us["contributions_by_xgboost"] / us["contributions"], 1)
    }


def ns_per_row(work: Callable[[], object], rows: int, seconds: float) -> float:
    """Median over runs of the CPU time of ``work``, for at least ``seconds`` and seven runs."""
    taken: list[int] = []
    until = time.perf_counter() + seconds
    work()
    while len(taken) < 7 or time.perf_counter() < until:
        began = time.process_time_ns()
        work()
        taken.append(time.process_time_ns() - began)
    return statistics.median(taken) / rows


def measure(rows: int, seconds: float, folder: Path) -> dict[str, float | int]:
    files = Files(fsync=False)
    info = SegmentInfo(name="e0001-g00-p00-000000000001", rows=rows, rows_before=0)
    write_segment(files, folder / "features.arrow", feature_batch(rows), info)
    batch, _ = read_segment(folder / "features.arrow")
    model = deep_model()
    matrix = codes.of(batch.column("features"))
    values = codes.decode(matrix)
    scores = model.score(matrix)

    def decide(flags: np.ndarray) -> tuple[scoring.Scored, object]:
        return scoring.decide(
            batch, flags, producer="g00", threshold=0.52, train_end=0, scored_at=time.time_ns() // 1000, model="v000001"
        )

    scored, aggregate = decide(scores)
    made = scoring.results(scored)
    all_flagged = np.ones(rows, np.float32)
    size = write_segment(files, folder / "results.arrow", made, info)
    figures: dict[str, float | int] = {
        "predict": ns_per_row(lambda: model.score(matrix), rows, seconds),
        "predict_by_xgboost": ns_per_row(lambda: model.booster.inplace_predict(values), rows, seconds),
        "decide_and_aggregate": ns_per_row(lambda: decide(scores), rows, seconds),
        "decide_and_aggregate_all_flagged": ns_per_row(lambda: decide(all_flagged), rows, seconds),
        "aggregate_json": ns_per_row(lambda: msgspec.json.encode(aggregate), rows, seconds),
        "build_results": ns_per_row(lambda: scoring.results(scored), rows, seconds),
        "write_results": ns_per_row(lambda: write_segment(files, folder / "results.arrow", made, info), rows, seconds),
    }
    besides = ("decide_and_aggregate", "aggregate_json", "build_results", "write_results")
    return {
        "rows": rows,
        "features": WIDTH,
        "flagged": int(scored.decisions.sum()),
        "result_bytes_per_row": size / rows,
        **explain_figures(model, matrix[:EXPLAINED], seconds),
        **{f"{name}_ns_per_row": round(value, 1) for name, value in figures.items()},
        "besides_predict_ns_per_row": round(sum(figures[name] for name in besides), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each figure")
    arguments = parser.parse_args()
    scoring.warm()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments.rows, arguments.seconds, Path(folder))))


if __name__ == "__main__":
    main()
