"""What the charts show: the last ten minutes by the second, and the models' own figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from services.api.business import status
from services.api.infrastructure import model_state
from services.api.snapshot import Sample, Snapshot, Version, assess, iso, iso_us
from spearhead.aggregate import outcomes_count
from spearhead.drift import ALARM, WARN

Payload = dict[str, Any]
CURVE_POINTS = 200


def history(snapshot: Snapshot) -> Payload:
    """Samples as columns, oldest first; all columns have the length of ``time`` (seconds since 1970)."""
    columns: dict[str, Sequence[Any]] = {
        name: [getattr(sample, name) for sample in snapshot.samples] for name in Sample._fields if name != "epoch"
    }
    return {"epoch": snapshot.epoch, **columns, "status": status(assess(snapshot), snapshot)}


def model(snapshot: Snapshot) -> Payload:
    """The model in service and the newest versions, oldest first."""
    models = snapshot.models
    versions = models.versions if models else ()
    current = models.current if models else None
    in_service = next((version for version in versions if version.name == current), None)
    metrics = in_service.metrics if in_service else {}
    return {
        "status": status(assess(snapshot), snapshot),
        "state": model_state(snapshot),
        "in_service": None if current is None else _in_service(current, in_service, snapshot),
        "champion": _champion(in_service),
        "challenger": _challenger(models.challenger if models else None),
        "versions": [_brief(version, current) for version in versions],
        "refresh_seconds": _cadence(versions),
        "pr_curve": list(metrics.get("pr_curve") or [])[:CURVE_POINTS],
        "loss": _loss(metrics),
        "loss_trees": _loss_trees(metrics),
        "calibration": _calibration(metrics),
        "drift": drift(snapshot),
        "thresholds": [{"cost": None} | row for row in models.thresholds] if models else [],
        "cost_optimal_threshold": metrics.get("cost_optimal_threshold"),
        "reasons_summary": _reasons(snapshot),
        "importances": [
            {"feature": name, "share": share} for name, share in (metrics.get("importances") or {}).items()
        ],
        "by_scenario": metrics.get("by_scenario") or {},
        "by_category": metrics.get("by_category") or {},
        "labels": _labels(snapshot),
        "timestamp": iso(snapshot.time),
    }


def drift(snapshot: Snapshot) -> Payload:
    """Recent traffic against the training window of the model in service; null where nothing can be said."""
    found = snapshot.drift
    known = snapshot.models.reference if snapshot.models and found else None
    rates = found.label_rate if found else None
    scores = found.calibration if found else None
    expected = known.base_rate if known else None
    return {
        "status": found.status if found else None,
        "warn": WARN,
        "alarm": ALARM,
        "reference": {
            "version": snapshot.models.current if snapshot.models else None,
            "rows": known.rows if known else None,
        },
        "window": {
            "from": iso_us(found.start) if found and found.start is not None else None,
            "to": iso_us(found.end) if found and found.end is not None else None,
            "rows": found.rows if found else None,
        },
        "score_psi": found.score_psi if found else None,
        "features": [feature._asdict() for feature in found.features] if found else [],
        "label_rate": {
            "reference": expected,
            "recent": rates.observed / rates.rows if rates and rates.rows else None,
            "ratio": rates.ratio if rates else None,
            "low": rates.low if rates else None,
            "high": rates.high if rates else None,
            "rows": rates.rows if rates else None,
            "status": rates.status if rates else None,
        },
        "calibration": {
            "expected_frauds": scores.expected if scores else None,
            "observed_frauds": scores.observed if scores else None,
            "ratio": scores.ratio if scores else None,
            "low": scores.low if scores else None,
            "high": scores.high if scores else None,
            "rows": scores.rows if scores else None,
            "status": scores.status if scores else None,
        },
    }


def _reasons(snapshot: Snapshot) -> Payload:
    """How many flagged rows were explained as they were scored, how many not, and how many when looked up."""
    ledger = snapshot.ledger
    return {
        "computed": None if ledger is None else ledger.reasons_computed,
        "deferred": None if ledger is None else ledger.reasons_deferred,
        "at_look_up": snapshot.reasons_at_look_up,
    }


def _champion(version: Version | None) -> Payload | None:
    if version is None:
        return None
    calibration = version.metrics.get("calibration") or {}
    return {
        "version": version.name,
        "average_precision": version.metrics.get("average_precision"),
        "ece": calibration.get("ece"),
        "brier": calibration.get("brier"),
        "cost_optimal_threshold": version.metrics.get("cost_optimal_threshold"),
        "verdict": version.metrics.get("verdict"),
    }


def _challenger(version: Version | None) -> Payload | None:
    if version is None:
        return None
    return {
        "version": version.name,
        "average_precision": version.metrics.get("average_precision"),
        "ece": (version.metrics.get("calibration") or {}).get("ece"),
        "verdict": version.metrics.get("verdict"),
    }


def _calibration(metrics: dict[str, Any]) -> Payload:
    """Of the champion's test part; weights trained elsewhere may bring none."""
    found = metrics.get("calibration") or {}
    return {name: found.get(name) for name in ("ece", "brier", "slope", "intercept")} | {
        "bins": found.get("bins") or []
    }


def _labels(snapshot: Snapshot) -> Payload:
    """Decisions by what is known of their labels, and what labels that came on their own did."""
    ledger = snapshot.ledger
    counts = ("received", "applied", "corrected", "duplicate", "unmatched")
    labelled = ledger.labelled if ledger else None
    return {
        "pending": labelled.pending if labelled else None,
        "unlabelled": ledger.unlabelled if ledger else None,
        "in_sample": outcomes_count(labelled.in_sample) if labelled else None,
        "out_of_sample": labelled.tp + labelled.fp + labelled.tn + labelled.fn if labelled else None,
        "feedback": {
            **{name: getattr(ledger.feedback, name) if ledger else None for name in counts},
            "waiting": snapshot.labels_waiting,
        },
    }


def _in_service(current: str, version: Version | None, snapshot: Snapshot) -> Payload:
    assert snapshot.models is not None
    metrics = version.metrics if version else {}
    window = snapshot.models.window or {}
    names = ("average_precision", "auc", "logloss", "rows", "frauds", "base_rate", "test_base_rate", "test_rows",
             "test_frauds", "trees", "train_seconds", "at_threshold", "stateless", "verdict")  # fmt: skip
    return {
        "version": current,
        "made_at": _time(version),
        "age_seconds": max(0.0, snapshot.time.timestamp() - version.made_at) if version else None,
        **{name: metrics.get(name) for name in names},
        "train_end": iso_us(window["train_end"]) if "train_end" in window else None,
        "parameters": snapshot.models.parameters,
    }


def _brief(version: Version, current: str | None) -> Payload:
    at_threshold = version.metrics.get("at_threshold") or {}
    return {
        "version": version.name,
        "made_at": _time(version),
        "in_service": version.name == current,
        "promoted": version.metrics.get("promoted"),
        "average_precision": version.metrics.get("average_precision"),
        "auc": version.metrics.get("auc"),
        "logloss": version.metrics.get("logloss"),
        "precision": at_threshold.get("precision"),
        "recall": at_threshold.get("recall"),
        "rows": version.metrics.get("rows"),
        "train_seconds": version.metrics.get("train_seconds"),
    }


def _time(version: Version | None) -> str | None:
    return iso(datetime.fromtimestamp(version.made_at, UTC)) if version else None


def _cadence(versions: Iterable[Version]) -> float | None:
    """Mean seconds between versions; None below two."""
    times = [version.made_at for version in versions]
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def _loss(metrics: dict[str, Any]) -> Payload:
    """Log loss of the training and validation part, by tree or by so many trees."""
    curves = metrics.get("curves") or {}
    return {part: list((curves.get(part) or {}).get("logloss") or []) for part in ("train", "valid")}


def _loss_trees(metrics: dict[str, Any]) -> list[int]:
    """After how many trees each log loss was measured; a version that does not say was measured after each."""
    longest = max(map(len, _loss(metrics).values()))
    return list((metrics.get("curves") or {}).get("trees") or range(1, longest + 1))
