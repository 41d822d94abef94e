"""How well the generator's fraud can be learnt, by scenario: ``python -m bench.learnability`` prints JSON.

Rows of the default generator go through prep's own work and sampling, and the trainer's own ``fit`` makes a model of
the sampled rows whose labels have matured by day T. It is judged on all rows of the days from T on, as it would be
in service, beside a model fitted the same way to the features that need no history. Over several seeds:
one seed's scenarios hold few frauds, and their figures spread. Beside compromised merchants stands what a score
reaches that knows which of them leaked when the newest labels were made, and nothing else.

Settings come from the environment: ``TRAIN_MAX_ROWS=200000`` says what half the sample costs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.generator.names import merchant_names
from services.generator.places import DAY_US
from services.generator.population import population
from services.generator.traffic import START_US, Traffic
from services.prep.work import FeatureWork
from services.train import evaluation
from services.train.fit import Options, Rows, fit, in_order, predict
from spearhead import codes, packing
from spearhead.features import FEATURES, STATELESS
from spearhead.model import Artifact
from spearhead.schema import SCENARIOS
from spearhead.settings import Settings

TEST_DAYS: Final = 3
FLUSH_ROWS: Final = 65_536
HISTORY_FREE: Final = [FEATURES.index(name) for name in STATELESS]
LEAK: Final = "merchant_compromise"
KNOWN: Final = "known_leaks"
TITLES: Final = {"all": "all fraud", KNOWN: "compromised merchants known when labels were made"}


class Day(NamedTuple):
    """What a model of day T is made of and judged on."""

    train: Rows
    test: Rows
    leaked: NDArray[np.float32]  # (test rows,) chance of fraud at the row's merchant, when the newest labels were made


def days(settings: Settings, wanted: Sequence[int]) -> dict[int, Day]:
    """By day T: what has matured of the rows sampled before it that the spool keeps, and all rows from T on."""
    source = Traffic(
        population(settings.cards, settings.merchants, settings.seed), settings.seed, 0, settings.fraud_rate
    )
    work = FeatureWork(settings)
    work.sampling = True
    sampled: list[Rows] = []
    tests: dict[int, list[Rows]] = {day: [] for day in wanted}
    leaked: dict[int, list[NDArray[np.float32]]] = {day: [] for day in wanted}
    names = merchant_names(settings.merchants)
    watermark = START_US
    while watermark < START_US + (max(wanted) + TEST_DAYS) * DAY_US:
        chunk = source.take(FLUSH_ROWS)
        watermark = chunk.watermark
        outcome = work.apply(chunk.batch)
        features, sample = outcome.features, work.sample(outcome)
        if sample is not None:
            sampled.append(_rows(sample))
        for day, parts in tests.items():
            if watermark >= START_US + day * DAY_US:
                rows = _rows(features)
                inside = _inside(rows, day, day + TEST_DAYS)
                parts.append(rows.take(inside))
                leaked[day].append(_leaked(source, features, names, settings.label_delay_days)[inside])
    everything = _joined(sampled)
    return {
        day: Day(_matured(everything, day, settings), _joined(parts), np.concatenate(leaked[day]))
        for day, parts in tests.items()
    }


def _matured(sampled: Rows, day: int, settings: Settings) -> Rows:
    """Of the newest rows sampled before ``day``, as many as the spool keeps, those whose labels have matured."""
    kept = in_order(sampled.take(_inside(sampled, 0, day))).take(slice(-settings.train_max_rows, None))
    return kept.take(_inside(kept, 0, day - settings.label_delay_days))


def _leaked(source: Traffic, batch: pa.RecordBatch, names: pa.StringArray, delay_days: float) -> NDArray[np.float32]:
    """By row (n,), the chance that a purchase at its merchant was fraud ``delay_days`` before, by the leak itself."""
    merchant = pc.index_in(batch.column("merchant").cast(pa.string()), names).to_numpy()
    days, which = np.unique(_days(batch, delay_days), return_inverse=True)
    by_day = np.stack([source.leaking(int(day)) for day in days])
    chance: NDArray[np.float32] = by_day[which, merchant]
    return chance


def _days(batch: pa.RecordBatch, back: float) -> NDArray[np.int64]:
    """The event day of each row, ``back`` days before."""
    at = batch.column("event_time").cast(pa.int64()).to_numpy()
    return np.floor_divide(at - START_US - round(back * DAY_US), DAY_US)


def _rows(batch: pa.RecordBatch) -> Rows:
    """Rows of a batch with features; each stands for itself where the batch is no sample."""
    names = ("amt_cents", "category", "label", "scenario")
    sampled = "weight" in batch.schema.names
    weight = batch.column("weight").to_numpy() if sampled else np.ones(batch.num_rows, np.float32)
    return Rows(
        batch.column("event_time").cast(pa.int64()).to_numpy(),
        *(batch.column(name).to_numpy() for name in names),
        weight,
        codes.decode(packing.of(batch).matrix()),
    )


def _inside(rows: Rows, first: float, end: float) -> NDArray[np.bool_]:
    """Which are of event days ``first`` up to ``end``."""
    at = (rows.event_time - START_US) / DAY_US
    inside: NDArray[np.bool_] = (at >= first) & (at < end)
    return inside


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def report(day: Day, settings: Settings) -> dict[str, Any]:
    """Figures of one day of one seed."""
    options = Options(FEATURES, STATELESS, settings.fraud_threshold, threads=settings.train_threads)
    alone = Options(STATELESS, STATELESS, settings.fraud_threshold, threads=settings.train_threads)
    model = fit(day.train, options)
    without = fit(_columns(day.train, HISTORY_FREE), alone)
    scores = _scores(model, day.test)
    scores_alone = _scores(without, _columns(day.test, HISTORY_FREE))
    genuine = day.test.label == 0
    scenarios = {name: genuine | (day.test.scenario == code) for code, name in enumerate(SCENARIOS) if code}
    gains = evaluation.importances(model.booster.get_score(importance_type="total_gain"), FEATURES)
    return {
        "train_rows": len(day.train.label),
        "train_frauds": day.train.frauds,
        "test_rows": len(day.test.label),
        "fraud_share": float(day.test.label.mean()),
        "trees": model.metrics["trees"],
        "ap": _precision(day.test, scores),
        "ap_stateless": _precision(day.test, scores_alone),
        "auc": evaluation.auc(evaluation.rank(day.test.label, scores, day.test.weight)),
        "by_scenario": {
            name: {
                "frauds": int((rows & ~genuine).sum()),
                "ap": _precision(day.test.take(rows), scores[rows]),
                "ap_stateless": _precision(day.test.take(rows), scores_alone[rows]),
            }
            for name, rows in scenarios.items()
        },
        KNOWN: _precision(day.test.take(scenarios[LEAK]), day.leaked[scenarios[LEAK]]),
        "own_test": model.metrics["by_scenario"],
        "importances": dict(itertools.islice(gains.items(), 12)),
    }


def _columns(rows: Rows, columns: list[int]) -> Rows:
    return rows._replace(features=np.ascontiguousarray(rows.features[:, columns]))


def _scores(model: Artifact, rows: Rows) -> NDArray[np.float32]:
    return predict(model.booster, rows.features, model.slope, model.intercept)


def _precision(rows: Rows, scores: NDArray[np.float32]) -> float | None:
    return evaluation.average_precision(evaluation.rank(rows.label, scores, rows.weight))


def side_by_side(seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By day and scenario ("all": all fraud; KNOWN: see above): AP with history and without, mean; least and most."""
    days_asked = list(next(iter(seeds.values())))
    return {day: _scenarios([found[day] for found in seeds.values()]) for day in days_asked}


def _scenarios(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = list(figures[0]["by_scenario"])
    known = [{"ap": each[KNOWN], "ap_stateless": None} for each in figures]
    return (
        {"all": _spread(figures)}
        | {name: _spread([each["by_scenario"][name] for each in figures]) for name in names}
        | {KNOWN: _spread(known)}
    )


def _spread(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [each["ap"] for each in figures if each["ap"] is not None]
    alone = [each["ap_stateless"] for each in figures if each["ap_stateless"] is not None]
    return {
        "ap": round(statistics.mean(found), 3) if found else None,
        "least_ap": round(min(found), 3) if found else None,
        "most_ap": round(max(found), 3) if found else None,
        "ap_stateless": round(statistics.mean(alone), 3) if alone else None,
    }


def table(found: dict[str, Any]) -> str:
    """``side_by_side`` as the Markdown table of docs/GENERATOR.md."""
    lines = [
        "| average precision | " + " | ".join(f"{day.replace('_', ' ')} | without history" for day in found) + " |",
        "| --- " * (1 + 2 * len(found)) + "|",
    ]
    for name in next(iter(found.values())):
        cells = [_cells(day[name]) for day in found.values()]
        lines.append(f"| {TITLES.get(name, f'`{name}`')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(spread: dict[str, Any]) -> str:
    with_history = (
        "–" if spread["ap"] is None else f"{spread['ap']:.2f} ({spread['least_ap']:.2f} to {spread['most_ap']:.2f})"
    )
    return with_history + (" | –" if spread["ap_stateless"] is None else f" | {spread['ap_stateless']:.2f}")


def main() -> None:
    """Print figures by seed and day, and all of them side by side; the table for people on standard error."""
    parser = argparse.ArgumentParser(prog="bench.learnability", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--days", type=int, nargs="+", default=[17, 32, 46])
    options = parser.parse_args()
    seeds = {}
    for seed in options.seeds:
        settings = Settings(seed=seed)
        found = days(settings, options.days)
        seeds[str(seed)] = {f"day_{day}": report(rows, settings) for day, rows in found.items()}
    figures = {"scenarios": side_by_side(seeds), "seeds": seeds}
    sys.stderr.write(table(figures["scenarios"]) + "\n")
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(figures), indent=1).decode() + "\n")


if __name__ == "__main__":
    main()
