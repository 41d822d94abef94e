"""The model card: what a version was made of and what it is worth, for people (card.md) and programs (card.json).

Mitchell et al., "Model cards for model reporting" (2019). Everything in it is measured; what is not known is null, in
the text a dash.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.train import plots
from spearhead.model import Artifact, Part

FEATURES_SHOWN = 15


def pictures(artifact: Artifact) -> dict[str, bytes]:
    """``calibration.png`` and ``pr_curve.png``; none where the test part has no fraud."""
    metrics = artifact.metrics
    if not metrics["pr_curve"]:
        return {}
    cheapest = _at(artifact.thresholds, metrics["cost_optimal_threshold"])
    points = {"operating point": metrics["at_threshold"], "least cost": cheapest}
    return {
        "calibration.png": plots.reliability(metrics["calibration"]["bins"]),
        "pr_curve.png": plots.precision_recall(metrics["pr_curve"], points),
    }


def texts(artifact: Artifact) -> dict[str, bytes]:
    """``card.json`` and ``card.md``, which shows what pictures there are."""
    content = _content(artifact)
    return {"card.json": msgspec.json.encode(content), "card.md": _markdown(content, artifact.card.keys()).encode()}


def _content(artifact: Artifact) -> dict[str, Any]:
    metrics, window = artifact.metrics, artifact.window
    names = ("average_precision", "auc", "logloss", "at_threshold", "stateless", "by_scenario", "by_scenario_stateless",
             "by_category")  # fmt: skip
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "train_seconds": metrics["train_seconds"],
        "trees": metrics["trees"],
        "data": {
            "parts": {name: _part(getattr(window, name)) for name in ("train", "valid", "test")},
            "rows": metrics["rows"],
            "source_rows": metrics["source_rows"],
            "frauds": metrics["frauds"],
            "fraud_rate": metrics["base_rate"],
        },
        "features": [{"feature": name, "importance": share} for name, share in metrics["importances"].items()],
        "metrics": {name: metrics[name] for name in names},
        "calibration": metrics["calibration"],
        "cost_optimal_threshold": _at(artifact.thresholds, metrics["cost_optimal_threshold"]),
        "verdict": metrics.get("verdict"),
        "parameters": dict(artifact.params),
    }


def _part(part: Part | None) -> dict[str, Any] | None:
    if part is None:
        return None
    start, end = (datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for us in (part.start, part.end))
    return {"start": start, "end": end, "rows": part.rows, "frauds": part.frauds}


def _at(table: Sequence[Mapping[str, float | None]], threshold: float | None) -> Mapping[str, float | None] | None:
    return next((row for row in table if row["threshold"] == threshold), None)


def _markdown(content: Mapping[str, Any], drawn: Collection[str]) -> str:
    sections = [
        _head(content),
        _data(content["data"]),
        _worth(content["metrics"]),
        _thresholds(content) + _picture("pr_curve.png", "Precision against recall on the test part", drawn),
        _calibration(content["calibration"])
        + _picture("calibration.png", "Fraud rate against mean score on the test part", drawn),
        _groups(content["metrics"]),
        _features(content["features"]),
        "## Parameters\n\n" + _table(("parameter", "value"), [(k, str(v)) for k, v in content["parameters"].items()]),
    ]
    return "\n\n".join(sections) + "\n"


def _head(content: Mapping[str, Any]) -> str:
    return (
        "# Model card\n\nScores card transactions with the probability that they are fraud. "
        f"Made {content['made_at']} in {content['train_seconds']:.1f} s: {content['trees']} boosted trees. "
        + _went(content["verdict"] or {})
    )


def _data(data: Mapping[str, Any]) -> str:
    parts = [
        (name, *_shown(part, "start", "end", "rows", "frauds")) if part else (name, *"––––")
        for name, part in data["parts"].items()
    ]
    return (
        "## Data\n\nMatured labels only, split by event time: trees are grown on the first part, stopped and "
        f"calibrated by the second, judged on the third. {data['rows']:,} rows stand for {data['source_rows']:,.0f}; "
        f"{data['fraud_rate']:.2%} are fraud.\n\n" + _table(("part", "from", "to", "rows", "frauds"), parts)
    )


def _worth(metrics: Mapping[str, Any]) -> str:
    names = (("average precision", "average_precision"), ("AUC", "auc"), ("log loss", "logloss"))
    rows = [(name, *_shown(metrics, key), *_shown(metrics["stateless"], key)) for name, key in names]
    heading = "## What it is worth, on the test part\n\n"
    return heading + _table(("figure", "this model", "the same without history"), rows)


def _thresholds(content: Mapping[str, Any]) -> str:
    rows = {"operating point": content["metrics"]["at_threshold"], "least cost": content["cost_optimal_threshold"]}
    columns = ("threshold", "precision", "recall", "alerts_per_million", "cost")
    return "## Thresholds\n\nCost is $ per million transactions; all thresholds are in `thresholds.json`.\n\n" + _table(
        ("", *columns), [(name, *_shown(row, *columns)) for name, row in rows.items() if row]
    )


def _calibration(found: Mapping[str, Any]) -> str:
    error, brier, slope, intercept = _shown(found, "ece", "brier", "slope", "intercept")
    bins = [
        (f"{b['low']:g}–{b['high']:g}", *_shown(b, "rows", "frauds", "mean_score", "fraud_rate")) for b in found["bins"]
    ]
    return (
        f"## Calibration\n\nExpected calibration error {error}, Brier score {brier}. A score is the sigmoid of the "
        f"trees' log-odds times {slope} plus {intercept}.\n\n"
        + _table(("scores", "rows", "frauds", "mean score", "fraud rate"), bins)
    )


def _groups(metrics: Mapping[str, Any]) -> str:
    columns = ("rows", "frauds", "average_precision", "precision", "recall")
    categories = [(name, *_shown(row, *columns)) for name, row in metrics["by_category"].items()]
    alone = metrics["by_scenario_stateless"]
    scenarios = [(name, _show(value), _show(alone[name])) for name, value in metrics["by_scenario"].items()]
    return (
        "## By scenario\n\nEach scenario's frauds among all genuine rows: average precision.\n\n"
        + _table(("scenario", "this model", "the same without history"), scenarios)
        + "\n\n## By category\n\nEach category among itself; precision and recall at the operating point.\n\n"
        + _table(("category", *columns), categories)
    )


def _features(features: Sequence[Mapping[str, Any]]) -> str:
    rows = [(f["feature"], f"{f['importance']:.2%}") for f in features[:FEATURES_SHOWN]]
    return (
        f"## Features\n\nThe first {len(rows)} of {len(features)} by their share of the trees' gain. All: `card.json`; "
        "what they mean: docs/FEATURES.md.\n\n" + _table(("feature", "share"), rows)
    )


def _went(verdict: Mapping[str, Any]) -> str:
    if not verdict:
        return "Whether it went into service is not known."
    against = f", judged against {verdict['version']} on {verdict['frauds']} frauds" if verdict["version"] else ""
    return f"{'It went into service' if verdict['promoted'] else 'It stayed a shadow'}: {verdict['reason']}{against}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[head.replace("_", " ") for head in heads], ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _picture(name: str, text: str, drawn: Collection[str]) -> str:
    return f"\n\n![{text}]({name})" if name in drawn else ""


def _shown(row: Mapping[str, Any], *keys: str) -> list[str]:
    return [_show(row[key]) for key in keys]


def _show(value: float | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
