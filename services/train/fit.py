"""From matured rows to a model and its figures: split by event time, boosted trees, early stopping, evaluation.

Same rows, settings and seed give the same model, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from services.train import calibration, evaluation
from services.train.cuts import cuts
from spearhead import trees
from spearhead.model import Artifact, Part, Window
from spearhead.schema import CATEGORIES, SCENARIOS

TRAIN_SHARE: Final = 0.6
VALID_SHARE: Final = 0.2  # the rest, latest in event time, is the test part
MAX_ROUNDS: Final = 100  # scoring costs what the trees cost
MIN_ROUNDS: Final = 50  # the first trees only lead from base_score to the base rate
PATIENCE: Final = 20  # rounds without a better average precision on the validation part
LOOK_EVERY: Final = 5  # rounds; MAX_ROUNDS and MIN_ROUNDS are multiples, so that the last tree is looked at
CURVE_ROWS: Final = 20_000  # training rows that the training curve is measured on
ROUNDS_UNCHECKED: Final = 60  # where the validation part has no fraud to stop by


class Rows(NamedTuple):
    """Matured, labelled rows. All arrays (n, ...), ascending in event time."""

    event_time: NDArray[np.int64]  # us since 1970
    cents: NDArray[np.int32]
    category: NDArray[np.uint8]
    label: NDArray[np.int8]  # 1 fraud, 0 genuine
    scenario: NDArray[np.int8]
    weight: NDArray[np.float32]  # source rows that a row stands for
    features: NDArray[np.float32]  # (n, width)

    def take(self, rows: slice | NDArray[Any]) -> Rows:
        """The rows of a slice, a mask or an order."""
        return Rows(*(column[rows] for column in self))

    @property
    def frauds(self) -> int:
        return int((self.label > 0).sum())


def in_order(rows: Rows) -> Rows:
    """The rows ascending in event time; ties by what they hold, so that the order of files has no say."""
    order = np.lexsort((rows.features[:, 0], rows.category, rows.cents, rows.event_time))
    return rows.take(order)


class CannotTrainError(ValueError):
    """These rows make no model; the message says why."""


class CancelledError(RuntimeError):
    """The training was told to stop."""


@dataclass(frozen=True)
class Options:
    """What a training depends on besides its rows."""

    names: Sequence[str]  # of the feature columns
    stateless: Sequence[str]  # those of them that need no history
    threshold: float
    seed: int = 1
    threads: int = 1
    device: str = "cpu"
    costs: evaluation.Costs | None = None  # None: what a threshold costs is not known
    cancelled: Callable[[], bool] = lambda: False


class Split(NamedTuple):
    train: slice
    valid: slice
    test: slice


def split(rows: Rows) -> Split:
    """Three parts, each later in event time than the one before; rows of one time stay together.

    Where the first part would lack a class, everything is training and the other two are empty.
    Raises CannotTrainError if all rows lack one.
    """
    n = len(rows.label)
    if rows.frauds in {0, n}:
        missing = "fraudulent" if rows.frauds == 0 else "genuine"
        raise CannotTrainError(f"none of the {n} matured rows is {missing}")
    first = _later(rows.event_time, int(n * TRAIN_SHARE))
    second = max(first, _later(rows.event_time, int(n * (TRAIN_SHARE + VALID_SHARE))))
    if not 0 < rows.take(slice(0, first)).frauds < first:
        return Split(slice(0, n), slice(n, n), slice(n, n))
    return Split(slice(0, first), slice(first, second), slice(second, n))


class Fitted(NamedTuple):
    """A model, and what it was judged on: spares whoever comes next scoring these rows again."""

    artifact: Artifact
    test: Rows
    scores: NDArray[np.float32]  # of ``test``, calibrated


def fit(rows: Rows, options: Options) -> Artifact:
    """``fitted``, and of it the model alone."""
    return fitted(rows, options).artifact


def fitted(rows: Rows, options: Options) -> Fitted:
    """Train, calibrate and evaluate. ``rows`` as ``in_order`` gives them.

    The model in the artifact is the one that was evaluated: trees grown on the first part, stopped and calibrated by
    the second, judged on the third. Raises CannotTrainError, and CancelledError when ``options.cancelled`` says so.
    """
    began = time.perf_counter()
    parts = split(rows)
    booster, valid_margins, curves = _grow(rows, parts, list(range(len(options.names))), options)
    test = rows.take(parts.test)
    margins = _margins(booster, test.features)
    line = _calibrate(rows.take(parts.valid), valid_margins, test, margins)
    scores = trees.probabilities(margins, *line)
    judged = (test.label, scores, test.weight)
    thresholds = evaluation.threshold_table(options.threshold, *judged, test.cents, options.costs)
    judgement = _figures(test, scores, options) | _stateless(rows, parts, options)
    figures = judgement | {
        "calibration": line._asdict() | evaluation.calibration(*judged),
        "cost_optimal_threshold": evaluation.cheapest(thresholds),
        "rows": len(rows.label),
        "source_rows": float(rows.weight.sum(dtype=np.float64)),
        "frauds": rows.frauds,
        "base_rate": float(np.average(rows.label > 0, weights=rows.weight)),
        "trees": booster.num_boosted_rounds(),
        "curves": curves,
        "importances": evaluation.importances(booster.get_score(importance_type="total_gain"), options.names),
        "train_seconds": time.perf_counter() - began,
    }
    artifact = Artifact(booster, _window(rows, parts), figures, thresholds, parameters(options), *line)
    return Fitted(artifact, test, scores)


def grow(rows: Rows, options: Options, rounds: int, changes: Mapping[str, Any]) -> xgb.Booster:
    """``rounds`` trees on all ``rows``, with the trainer's parameters but for ``changes``; nothing stops them early.

    For a benchmark that fixes the number of trees and judges them on rows of its own.
    """
    parameter = parameters(options) | dict(changes)
    return xgb.train(parameter, _matrix(rows, list(options.names), parameter), rounds)


def predict(
    booster: xgb.Booster, features: NDArray[np.float32], slope: float = 1.0, intercept: float = 0.0
) -> NDArray[np.float32]:
    """Scores (n,) of features (n, width), calibrated as ``Model.score`` does it."""
    return trees.probabilities(_margins(booster, features), slope, intercept)


def _to_predict(features: NDArray[np.float32], device: str) -> NDArray[np.float32] | xgb.DMatrix:
    """Features (n, width) that are predicted again and again: to another device XGBoost would copy them each time."""
    rows = np.ascontiguousarray(features)
    return rows if device == "cpu" or len(rows) == 0 else xgb.DMatrix(rows)


def _margins(
    booster: xgb.Booster, rows: NDArray[np.float32] | xgb.DMatrix, first: int = 0, end: int = 0
) -> NDArray[np.float32]:
    """Log-odds, float32 (n,), of all trees, or of ``first`` up to ``end``."""
    margins: NDArray[np.float32]
    if isinstance(rows, xgb.DMatrix):
        margins = booster.predict(rows, output_margin=True, iteration_range=(first, end), validate_features=False)
    elif len(rows) == 0:
        margins = np.empty(0, np.float32)
    else:
        margins = booster.inplace_predict(
            np.ascontiguousarray(rows), iteration_range=(first, end), predict_type="margin", validate_features=False
        )
    return margins


def _calibrate(
    valid: Rows, valid_margins: NDArray[np.float32], test: Rows, test_margins: NDArray[np.float32]
) -> calibration.Line:
    """The line that the validation part asks for, if the test part confirms it."""
    line = calibration.fit_line(valid.label, valid_margins, valid.weight)
    return calibration.confirmed(line, test.label, test_margins, test.weight)


def parameters(options: Options) -> dict[str, Any]:
    """XGBoost's parameters, each with its reason in docs/decisions/0007-model-and-training.md."""
    return {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "device": options.device,
        "max_depth": 6,
        "learning_rate": 0.1,
        "max_bin": 512,
        "base_score": 0.5,
        "colsample_bynode": 0.3,
        "min_child_weight": 1.0,
        "reg_lambda": 1.0,
        "seed": options.seed,
        "nthread": options.threads,
    }


def _later(event_time: NDArray[np.int64], row: int) -> int:
    """The first row whose event time is later than that of the row before ``row``."""
    return int(np.searchsorted(event_time, event_time[row - 1], side="right")) if row else 0


class _Grown(NamedTuple):
    booster: xgb.Booster
    valid: NDArray[np.float32]  # its log-odds of the validation part
    curves: dict[str, Any]


def _grow(rows: Rows, parts: Split, columns: list[int], options: Options) -> _Grown:
    """Trees on the training part, at most MAX_ROUNDS, the best by average precision on the validation part."""
    whole = len(columns) == len(options.names)
    seen = rows if whole else rows._replace(features=np.ascontiguousarray(rows.features[:, columns]))
    train, valid = seen.take(parts.train), seen.take(parts.valid)
    parameter = parameters(options)
    checked = 0 < valid.frauds < len(valid.label)
    watched = {"valid": _Watched(valid, options.device)} if checked else {}
    if whole:  # nobody looks at another one's curves
        watched["train"] = _Watched(train.take(_every(len(train.label), CURVE_ROWS)), options.device)
    look = _Look(watched, curves=whole)
    booster = xgb.train(
        parameter,
        _matrix(train, [options.names[i] for i in columns], parameter),
        num_boost_round=MAX_ROUNDS if checked else ROUNDS_UNCHECKED,
        callbacks=[_Cancel(options.cancelled), look],
        verbose_eval=False,
    )
    if options.cancelled():
        raise CancelledError
    if not checked:
        return _Grown(booster, _margins(booster, valid.features), look.curves)
    return _Grown(booster[: look.best], look.margins, look.curves)


def _matrix(rows: Rows, names: list[str], parameter: Mapping[str, Any]) -> xgb.QuantileDMatrix:
    """The rows in at most ``max_bin`` bins a feature."""
    shared = {"feature_names": names, "max_bin": parameter["max_bin"], "nthread": parameter["nthread"]}
    few = xgb.QuantileDMatrix(cuts(rows.features, parameter["max_bin"]), **shared)
    weight = rows.weight / rows.weight.mean(dtype=np.float64)
    return xgb.QuantileDMatrix(rows.features, rows.label, weight=weight, ref=few, **shared)


def _every(rows: int, wanted: int) -> slice:
    """About ``wanted`` of so many rows, evenly spread; all where there are fewer."""
    return slice(None, None, max(1, rows // wanted))


class _Cancel(xgb.callback.TrainingCallback):
    def __init__(self, cancelled: Callable[[], bool]) -> None:
        super().__init__()
        self._cancelled = cancelled

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        return self._cancelled()


class _Watched:
    """Rows that are looked at while trees are grown, and what these say of them."""

    def __init__(self, rows: Rows, device: str) -> None:
        self._rows = rows
        self._features = _to_predict(rows.features, device)
        self._trees = 0  # that have been added
        self.margins = np.zeros(len(rows.label), np.float32)  # base_score 0.5 is log-odds of 0

    def add(self, model: xgb.Booster, grown: int) -> None:
        """Take in what is new of ``grown`` trees."""
        self.margins += _margins(model, self._features, self._trees, grown)
        self._trees = grown

    def logloss(self) -> float | None:
        scores = trees.probabilities(self.margins.copy(), 1.0, 0.0)
        return evaluation.logloss(self._rows.label, scores, self._rows.weight)

    def average_precision(self) -> float | None:
        return evaluation.average_precision(evaluation.rank(self._rows.label, self.margins, self._rows.weight))


class _Look(xgb.callback.TrainingCallback):
    """Ends when the validation part's average precision has not risen for PATIENCE rounds; ``best`` is how many trees.

    Looks every LOOK_EVERY rounds, by the predictor: XGBoost's own evaluation goes through the rows once a tree, and
    sorts them, which takes two thirds of what the tree does.
    """

    def __init__(self, parts: Mapping[str, _Watched], *, curves: bool) -> None:
        super().__init__()
        self._parts = parts
        self._drawn = curves
        self._highest = -np.inf
        self.best = MIN_ROUNDS
        self.margins = np.empty(0, np.float32)  # log-odds of the validation part by the best trees
        self.curves: dict[str, Any] = {"trees": []} | {name: {"logloss": []} for name in parts}

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        grown = epoch + 1
        valid = self._parts.get("valid")
        judged = valid is not None and grown >= MIN_ROUNDS
        if grown % LOOK_EVERY or not (self._drawn or judged):
            return False
        for part in self._parts.values():
            part.add(model, grown)
        if self._drawn:
            self._draw(grown)
        return valid is not None and judged and self._judge(valid, grown)

    def _draw(self, grown: int) -> None:
        self.curves["trees"].append(grown)
        for name, part in self._parts.items():
            self.curves[name]["logloss"].append(part.logloss())

    def _judge(self, valid: _Watched, grown: int) -> bool:
        precision = valid.average_precision()
        if precision is not None and precision > self._highest:
            self.best, self._highest, self.margins = grown, precision, valid.margins.copy()
        return grown - self.best >= PATIENCE


def _figures(test: Rows, scores: NDArray[np.float32], options: Options) -> dict[str, Any]:
    """What the test part says."""
    judged = (test.label, scores, test.weight)
    ranking = evaluation.rank(*judged)
    return evaluation.summary(*judged) | {
        "by_scenario": evaluation.by_scenario(SCENARIOS, test.scenario, test.label, scores, test.weight),
        "by_category": evaluation.by_category(CATEGORIES, test.category, options.threshold, *judged),
        "pr_curve": evaluation.pr_curve(ranking),
        "at_threshold": evaluation.at_threshold(options.threshold, *judged, test.cents, options.costs)
        if len(scores)
        else None,
        "test_rows": len(scores),
        "test_frauds": test.frauds,
        "test_base_rate": float(np.average(test.label > 0, weights=test.weight)) if len(scores) else None,
    }


def _stateless(rows: Rows, parts: Split, options: Options) -> dict[str, Any]:
    """Figures of the same training on the same rows without history, for comparison: what is history worth?"""
    columns = [i for i, name in enumerate(options.names) if name in set(options.stateless)]
    booster = _grow(rows, parts, columns, options).booster
    test = rows.take(parts.test)
    scores = predict(booster, test.features[:, columns])
    return {
        "stateless": evaluation.summary(test.label, scores, test.weight) | {"features": len(columns)},
        "by_scenario_stateless": evaluation.by_scenario(SCENARIOS, test.scenario, test.label, scores, test.weight),
    }


def _window(rows: Rows, parts: Split) -> Window:
    train, valid, test = (_part(rows.take(part)) for part in parts)
    seen = [part.end for part in (train, valid) if part]
    return Window(train=train, valid=valid, test=test, fit_end=max(seen), train_end=int(rows.event_time[-1]))


def _part(rows: Rows) -> Part | None:
    if len(rows.label) == 0:
        return None
    return Part(start=int(rows.event_time[0]), end=int(rows.event_time[-1]), rows=len(rows.label), frauds=rows.frauds)
