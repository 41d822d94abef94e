"""Writes ``dashboards/*.json`` from what stands here: ``python grafana/boards.py``. A test holds the two together.

Every figure comes from the exporter (docs/METRICS.md) or the recording rules. Replicas of the API tell the same, so
each query takes the greatest of them. The Runbook board is docs/RUNBOOK.md, a panel an alert.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import common as cm
from grafana_foundation_sdk.models import dashboard as dm
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

HERE: Final = Path(__file__).parent
RUNBOOK: Final = HERE.parent / "docs" / "RUNBOOK.md"
PROMETHEUS: Final = cm.DataSourceRef(type_val="prometheus", uid="prometheus")
BOARDS: Final = {
    "business": "Business",
    "pipeline": "Pipeline",
    "model": "Model",
    "volume": "Volume & host",
    "runbook": "Runbook",
}
WIDTH: Final = 24
DOLLARS: Final = "currencyUSD"
GOOD, FAIR, BAD = "green", "yellow", "red"
Steps = tuple[tuple[float | None, str], ...]  # from which value on, which colour


class Query(NamedTuple):
    """PromQL and how its series are called."""

    expr: str
    legend: str = ""


class Panel(NamedTuple):
    """One panel. ``kind``: stat, bars (bar gauge), lines, areas (stacked lines) or table."""

    kind: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 4
    height: int = 4
    steps: Steps = ()


def stat_of(title: str, description: str, unit: str, expr: str, steps: Steps = ()) -> Panel:
    return Panel("stat", title, description, unit, (Query(expr),), steps=steps)


def lines(title: str, description: str, unit: str, *queries: Query, steps: Steps = ()) -> Panel:
    return Panel("lines", title, description, unit, queries, 12, 8, steps)


def areas(title: str, description: str, unit: str, *queries: Query) -> Panel:
    return Panel("areas", title, description, unit, queries, 12, 8)


def bars(title: str, description: str, unit: str, expr: str, legend: str) -> Panel:
    return Panel("bars", title, description, unit, (Query(expr, legend),), 8, 10)


BUSINESS: Final = (
    stat_of(
        "Transactions analysed", "All transactions scored since the start or the last reset.", "short",
        "max(spearhead_transactions_total)",
    ),
    stat_of(
        "High-risk flagged", "Transactions whose risk score is at or above the threshold.", "short",
        "max(spearhead_flagged_total)",
    ),
    stat_of(
        "Fraud exposure identified", "Amount of all flagged transactions.", DOLLARS,
        "max(spearhead_flagged_amount_dollars_total)",
    ),
    stat_of(
        "Fraud rate", "Flagged amount over the whole amount.", "percentunit",
        "max(spearhead_flagged_amount_dollars_total) / max(spearhead_transactions_amount_dollars_total)",
        ((None, GOOD), (0.1, FAIR), (0.2, BAD)),
    ),
    stat_of(
        "Alerts per million", "Flagged among a million transactions.", "short",
        "1e6 * max(spearhead_flagged_total) / max(spearhead_transactions_total)",
        ((None, GOOD), (10_000, FAIR), (30_000, BAD)),
    ),
    stat_of(
        "Flagged a year", "The flagged amount of a year at the pace of the time range shown.", DOLLARS,
        "max(rate(spearhead_flagged_amount_dollars_total[$__range])) * 365 * 86400",
    ),
    stat_of(
        "Precision", "Share of fraud among what was flagged; matured labels, out of sample, since the start.",
        "percentunit", "max(spearhead_precision_ratio)", ((None, BAD), (0.5, FAIR), (0.8, GOOD)),
    ),
    stat_of(
        "Recall", "Share of the fraud that was flagged; matured labels, out of sample, since the start.",
        "percentunit", "max(spearhead_recall_ratio)", ((None, BAD), (0.5, FAIR), (0.7, GOOD)),
    ),
    stat_of(
        "False positive rate", "Share of good transactions that were flagged; matured labels, out of sample.",
        "percentunit", "max(spearhead_false_positive_ratio)", ((None, GOOD), (0.005, FAIR), (0.02, BAD)),
    ),
    stat_of(
        "Risk concentration", "Share of the flagged amount that lies in its dearest 1 %.", "percentunit",
        "max(spearhead_risk_concentration_ratio)", ((None, GOOD), (0.2, FAIR), (0.4, BAD)),
    ),
    stat_of(
        "Mean decision latency", "From ingest to decision, over the last 5 minutes.", "s",
        "sum(rate(spearhead_decision_latency_seconds_sum[5m]))"
        " / sum(rate(spearhead_decision_latency_seconds_count[5m]))",
        ((None, GOOD), (0.5, FAIR), (1, BAD)),
    ),
    stat_of(
        "Threshold", "Risk score from which a transaction is flagged.", "none", "max(spearhead_threshold_ratio)",
    ),
    lines(
        "Transactions", "Transactions scored a second.", "ops",
        Query("max(rate(spearhead_transactions_total[$__rate_interval]))", "transactions"),
    ),
    lines(
        "Fraud velocity", "Flagged transactions a minute.", "short",
        Query("60 * max(rate(spearhead_flagged_total[$__rate_interval]))", "flagged a minute"),
    ),
    areas(
        "Flagged amount by category", "Dollars a minute that were flagged, by merchant category.", DOLLARS,
        Query(
            '60 * max by (category) (rate(spearhead_category_flagged_amount_dollars_total{category=~"$category"}'
            "[$__rate_interval]))",
            "{{category}}",
        ),
    ),
    areas(
        "Transactions by risk band", "Transactions a second: low below 0.6, high from 0.9.", "ops",
        Query("max by (band) (rate(spearhead_band_transactions_total[$__rate_interval]))", "{{band}}"),
    ),
    bars(
        "Category risk", "Flagged amount by merchant category, since the start.", DOLLARS,
        'sort_desc(max by (category) (spearhead_category_flagged_amount_dollars_total{category=~"$category"}))',
        "{{category}}",
    ),
    bars(
        "State risk", "The eight states with the greatest flagged amount, since the start.", DOLLARS,
        'topk(8, max by (state) (spearhead_state_flagged_amount_dollars_total{state=~"$state"}))', "{{state}}",
    ),
    bars(
        "Risk distribution", "Transactions by risk score, in 20 bins, since the start.", "short",
        "max by (bin) (spearhead_score_bin_transactions_total)", "{{bin}}",
    ),
)  # fmt: skip

PIPELINE: Final = (
    stat_of(
        "Running", "1 while the pipeline runs, 0 when an operator has stopped it.", "none", "min(spearhead_running)",
        ((None, BAD), (1, GOOD)),
    ),
    stat_of(
        "Throughput", "Transactions scored and counted a second, over the last minute.", "ops",
        'spearhead:step_rows:rate1m{step="inference"}',
    ),
    stat_of(
        "Late decisions", "Share of decisions of the last 5 minutes that took over 1 s. The objective is 1 % a month.",
        "percentunit", "spearhead:late_decisions:ratio_rate5m", ((None, GOOD), (0.01, FAIR), (0.06, BAD)),
    ),
    stat_of(
        "Latency p99", "From ingest to decision, 99 % of the decisions of the last 5 minutes were faster.", "s",
        "spearhead:decision_latency_seconds:p99_rate5m", ((None, GOOD), (0.5, FAIR), (1, BAD)),
    ),
    stat_of(
        "Ledger age", "Time since the totals were last written. Old only matters while rows wait to be counted.", "s",
        "min(spearhead_ledger_age_seconds)", ((None, GOOD), (5, FAIR), (15, BAD)),
    ),
    stat_of(
        "Dead segments", "Segments set aside in this epoch because they could not be processed.", "short",
        "sum(max by (queue) (spearhead_dead_segments_total))", ((None, GOOD), (1, BAD)),
    ),
    lines(
        "Rows a second by step", "Rows that each step has passed on a second.", "ops",
        Query('max by (step) (rate(spearhead_step_rows_total{step=~"$step"}[$__rate_interval]))', "{{step}}"),
    ),
    lines(
        "Decision latency", "From ingest to decision, over 5 minutes.", "s",
        Query("spearhead:decision_latency_seconds:p50_rate5m", "p50"),
        Query("spearhead:decision_latency_seconds:p95_rate5m", "p95"),
        Query("spearhead:decision_latency_seconds:p99_rate5m", "p99"),
        steps=((None, GOOD), (1, BAD)),
    ),
    lines(
        "Backlogs", "Rows that wait in each queue. training_queue is a bounded sample, not a queue.", "short",
        Query('spearhead:backlog_rows{queue=~"$queue"}', "{{queue}}"),
    ),
    lines(
        "Pressure", "Backlog over the threshold at which its producer is paused.", "percentunit",
        Query('spearhead:backlog_rows:ratio_of_critical{queue=~"$queue"}', "{{queue}}"),
        steps=((None, GOOD), (0.5, FAIR), (1, BAD)),
    ),
    lines(
        "Error budget burn",
        "How many times faster than allowed late decisions come. 1 uses a month's budget in a month.", "none",
        Query("spearhead:late_decisions:ratio_rate5m / 0.01", "5 minutes"),
        Query("spearhead:late_decisions:ratio_rate1h / 0.01", "1 hour"),
        Query("spearhead:late_decisions:ratio_rate6h / 0.01", "6 hours"),
        steps=((None, GOOD), (6, FAIR), (14.4, BAD)),
    ),
    lines(
        "Workers", "Live workers of each step, and how many would keep up and drain what waits in a minute.", "short",
        Query('spearhead:workers{step=~"$step"}', "{{step}}"),
        Query('max by (step) (spearhead_recommended_workers{step=~"$step"})', "{{step}} recommended"),
    ),
    areas(
        "Workers by state", "What live workers say of themselves.", "short",
        Query(
            'max by (step, state) (spearhead_workers_in_state{step=~"$step"}) > 0', "{{step}} {{state}}",
        ),
    ),
    lines(
        "Refused and dead", "Rows refused one by one, and segments set aside, in this epoch.", "short",
        Query('max by (queue) (spearhead_rejected_rows_total{queue=~"$queue|metrics"})', "rows refused, {{queue}}"),
        Query('max by (queue) (spearhead_dead_segments_total{queue=~"$queue|metrics"})', "segments, {{queue}}"),
    ),
    areas(
        "CPU", "Cores that each step's workers use.", "none",
        Query('max by (step) (spearhead_worker_cpu_cores{step=~"$step"})', "{{step}}"),
    ),
    areas(
        "Memory", "Resident memory of each step's workers.", "bytes",
        Query('max by (step) (spearhead_worker_resident_memory_bytes{step=~"$step"})', "{{step}}"),
    ),
)  # fmt: skip

MODEL: Final = (
    stat_of(
        "Model in service", "1 if there is a model; its version is in the table below.", "none",
        "max(spearhead_model_in_service)", ((None, BAD), (1, GOOD)),
    ),
    stat_of(
        "Age of the model", "Time since the model in service was made. It stays until a better one is made.", "s",
        "time() - max(spearhead_model_timestamp_seconds)",
    ),
    stat_of(
        "Age of the newest", "Time since the newest model was made, in service or not.", "s",
        "time() - max(spearhead_model_newest_timestamp_seconds)", ((None, GOOD), (900, FAIR), (3600, BAD)),
    ),
    stat_of(
        "Average precision", "Of the model in service, on event time after its training, when it was made.", "none",
        "max(spearhead_model_average_precision_ratio)", ((None, BAD), (0.5, FAIR), (0.7, GOOD)),
    ),
    stat_of(
        "ROC AUC", "Of the model in service, on event time after its training, when it was made.", "none",
        "max(spearhead_model_auc_ratio)", ((None, BAD), (0.9, FAIR), (0.97, GOOD)),
    ),
    stat_of(
        "Log loss", "Of the model in service, on event time after its training, when it was made.", "none",
        "max(spearhead_model_logloss)",
    ),
    lines(
        "Precision and recall of late", "Decisions whose labels matured in the window, out of sample.", "percentunit",
        Query(
            'sum(max by (outcome) (increase(spearhead_labelled_total{sample="out",outcome="tp"}[$window])))'
            ' / sum(max by (outcome) (increase(spearhead_labelled_total{sample="out",outcome=~"tp|fp"}[$window])))',
            "precision",
        ),
        Query(
            'sum(max by (outcome) (increase(spearhead_labelled_total{sample="out",outcome="tp"}[$window])))'
            ' / sum(max by (outcome) (increase(spearhead_labelled_total{sample="out",outcome=~"tp|fn"}[$window])))',
            "recall",
        ),
        steps=((None, BAD), (0.5, FAIR), (0.8, GOOD)),
    ),
    lines(
        "Precision and recall since the start", "All decisions whose labels have matured, out of sample.",
        "percentunit",
        Query("max(spearhead_precision_ratio)", "precision"),
        Query("max(spearhead_recall_ratio)", "recall"),
    ),
    lines(
        "Flagged", "Share of transactions at or above the threshold: a shift is an attack, a drift or a bad model.",
        "percentunit",
        Query(
            "max(rate(spearhead_flagged_total[$window])) / max(rate(spearhead_transactions_total[$window]))", "flagged"
        ),
    ),
    areas(
        "Scores", "Share of transactions by risk score. A change of shape shows drift before labels do.", "percentunit",
        Query(
            "max by (bin) (rate(spearhead_score_bin_transactions_total[$window]))"
            " / scalar(max(rate(spearhead_transactions_total[$window])))",
            "{{bin}}",
        ),
    ),
    areas(
        "Labels", "Decisions a second whose labels matured. In sample: event time that the model was trained on.",
        "ops",
        Query(
            "max by (outcome, sample) (rate(spearhead_labelled_total[$__rate_interval]))",
            "{{outcome}} {{sample}} of sample",
        ),
    ),
    lines(
        "Labels to come", "Decisions whose labels have not matured yet, and those that carry none.", "short",
        Query("max(spearhead_labels_pending)", "pending"),
        Query("max(spearhead_unlabelled_total)", "without label"),
    ),
    lines(
        "Training", "Matured rows that training may use, and the number of models made.", "short",
        Query("max(spearhead_training_matured_rows)", "matured rows"),
        Query("max(spearhead_training_needed_rows)", "needed for the first model"),
        Query("max(spearhead_models_trained_total)", "models made"),
    ),
    lines(
        "Training time", "How long the training of the model in service took.", "s",
        Query("max(spearhead_model_train_seconds)", "training"),
    ),
    stat_of(
        "Challenger's lead", "Average precision of the newest model that did not go into service, less the champion's, "
        "on the same rows. No value: the newest one is in service.", "none",
        "max(spearhead_model_challenger_average_precision_ratio)"
        " - max(spearhead_model_challenger_champion_average_precision_ratio)",
    ),
    stat_of(
        "Calibration error", "Expected calibration error of the model in service on its test part: the mean distance "
        "of a score from the share of fraud among such scores.", "none",
        "max(spearhead_model_calibration_error_ratio)", ((None, GOOD), (0.005, FAIR), (0.02, BAD)),
    ),
    stat_of(
        "Cheapest threshold", "Where alerts and missed frauds cost least together, on the test part of the model in "
        "service. FRAUD_THRESHOLD is what decides.", "none", "max(spearhead_model_threshold_cost_optimal_ratio)",
    ),
    stat_of(
        "Largest drift", "The largest PSI of a feature against the champion's training window: warning from 0.1, alarm "
        "from 0.25.", "none", "max(spearhead_drift_psi)", ((None, GOOD), (0.1, FAIR), (0.25, BAD)),
    ),
    stat_of(
        "Frauds over expected", "Frauds found among matured labels, over the sum of their scores: 1 is calibrated. "
        "Few frauds move it by chance: the alert looks at the interval.",
        "none", "max(spearhead_drift_calibration_ratio)",
        ((None, BAD), (0.5, FAIR), (0.67, GOOD), (1.5, FAIR), (2.0, BAD)),
    ),
    stat_of(
        "Reasons deferred", "Share of the range's flagged transactions whose reasons are computed when "
        "they are looked up: more were flagged than REASONS_MAX_PER_S.", "percentunit",
        "max(increase(spearhead_reasons_deferred_total[$__range])) / (max(increase(spearhead_reasons_deferred_total"
        "[$__range])) + max(increase(spearhead_reasons_computed_total[$__range])))",
        ((None, GOOD), (0.2, FAIR), (0.5, BAD)),
    ),
    lines(
        "Champion and challenger", "Average precision of both on the same latest rows: the newest model that did not "
        "go into service, and the one it was judged against.", "none",
        Query("max(spearhead_model_challenger_champion_average_precision_ratio)", "champion"),
        Query("max(spearhead_model_challenger_average_precision_ratio)", "challenger"),
    ),
    lines(
        "Calibration", "Expected calibration error: of the model in service on its test part, of the challenger on the "
        "rows of its verdict.", "none",
        Query("max(spearhead_model_calibration_error_ratio)", "in service"),
        Query("max(spearhead_model_challenger_calibration_error_ratio)", "challenger"),
    ),
    lines(
        "Drift of features", "PSI of recent rows against the champion's training window, the ten largest. Warning from "
        "0.1, alarm from 0.25.", "none",
        Query("topk(10, max by (feature) (spearhead_drift_psi))", "{{feature}}"),
        steps=((None, GOOD), (0.1, FAIR), (0.25, BAD)),
    ),
    lines(
        "Drift of scores and labels", "PSI of the risk score; the fraud rate of matured labels over that of training; "
        "frauds found over the sum of scores; and between which ends chance leaves these two.", "none",
        Query("max(spearhead_drift_score_psi)", "score PSI"),
        Query("max(spearhead_drift_label_ratio)", "fraud rate over training's"),
        Query("max(spearhead_drift_label_ratio_low)", "fraud rate, at least"),
        Query("max(spearhead_drift_label_ratio_high)", "fraud rate, at most"),
        Query("max(spearhead_drift_calibration_ratio)", "frauds over expected"),
        Query("max(spearhead_drift_calibration_ratio_low)", "frauds, at least"),
        Query("max(spearhead_drift_calibration_ratio_high)", "frauds, at most"),
    ),
    lines(
        "Feedback", "Labels a second that came by POST /api/labels or raw-data/labels/, and what became of them.",
        "ops",
        Query("max(rate(spearhead_labels_received_total[$__rate_interval]))", "received"),
        Query("max(rate(spearhead_labels_applied_total[$__rate_interval]))", "applied"),
        Query("max(rate(spearhead_labels_corrected_total[$__rate_interval]))", "corrected"),
        Query("max(rate(spearhead_labels_duplicate_total[$__rate_interval]))", "duplicate"),
        Query("max(rate(spearhead_labels_unmatched_total[$__rate_interval]))", "unmatched"),
    ),
    lines(
        "Labels that wait", "Labels that came and are not joined to their decisions yet.", "short",
        Query("max(spearhead_labels_waiting)", "waiting"),
    ),
    lines(
        "Reasons", "Flagged transactions a second whose reasons were computed in the stream, left for look-ups, or "
        "computed at a look-up.", "ops",
        Query("max(rate(spearhead_reasons_computed_total[$__rate_interval]))", "computed"),
        Query("max(rate(spearhead_reasons_deferred_total[$__rate_interval]))", "deferred"),
        Query("max(rate(spearhead_reasons_at_look_up_total[$__rate_interval]))", "at look-up"),
    ),
    Panel(
        "table", "Challenger", "The newest model, if it did not go into service.", "none",
        (Query("max by (version) (spearhead_model_challenger_info)"),), 12, 8,
    ),
    Panel(
        "table", "Version in service", "The version that inference workers use.", "none",
        (Query("max by (version) (spearhead_model_info)"),), 12, 4,
    ),
    Panel(
        "stat", "False positive rate", "Share of good transactions that were flagged, out of sample, since the start.",
        "percentunit", (Query("max(spearhead_false_positive_ratio)"),), 12, 4,
        ((None, GOOD), (0.005, FAIR), (0.02, BAD)),
    ),
)  # fmt: skip

VOLUME: Final = (
    stat_of(
        "Volume readable", "1 if the API can read the volume.", "none", "max(spearhead_volume_readable)",
        ((None, BAD), (1, GOOD)),
    ),
    stat_of(
        "Free", "Free space on the volume.", "bytes", "min(spearhead_volume_free_bytes)",
    ),
    stat_of(
        "Free share", "Free space over the volume's size.", "percentunit", "spearhead:volume_free:ratio",
        ((None, BAD), (0.05, FAIR), (0.15, GOOD)),
    ),
    stat_of(
        "Above the low mark", "Free space over the mark below which producers pause.", "none",
        "min(spearhead_volume_free_bytes) / max(spearhead_volume_low_watermark_bytes)",
        ((None, BAD), (1, FAIR), (3, GOOD)),
    ),
    stat_of(
        "Utilisation", "Measured bytes a second over FLASHBLADE_MAX_BYTES_PER_S; empty where that is not set.",
        "percentunit", "max(spearhead_volume_utilization_ratio)", ((None, GOOD), (0.7, FAIR), (0.9, BAD)),
    ),
    stat_of(
        "Read problems", "Parts of the volume that can't be read now.", "short", "max(spearhead_read_problems)",
        ((None, GOOD), (1, BAD)),
    ),
    lines(
        "Free space", "Free space, its mark, and where it will be in four hours if the last hour's trend goes on.",
        "bytes",
        Query("min(spearhead_volume_free_bytes)", "free"),
        Query("max(spearhead_volume_low_watermark_bytes)", "producers pause below"),
        Query("min(predict_linear(spearhead_volume_free_bytes[1h], 4 * 3600))", "in four hours"),
    ),
    lines(
        "Bytes a transaction", "Bytes that all workers write to storage for each transaction scored.", "bytes",
        Query(
            "sum(max by (step) (spearhead_worker_written_bytes_per_second))"
            ' / sum(spearhead:step_rows:rate1m{step="inference"} > 0)',
            "written",
        ),
    ),
    areas(
        "Written", "Bytes a second that each step's workers write to storage.", "Bps",
        Query('max by (step) (spearhead_worker_written_bytes_per_second{step=~"$step"})', "{{step}}"),
    ),
    areas(
        "Read", "Bytes a second that each step's workers read from storage. What the page cache serves is not counted.",
        "Bps",
        Query('max by (step) (spearhead_worker_read_bytes_per_second{step=~"$step"})', "{{step}}"),
    ),
    areas(
        "CPU", "Cores that each step's workers use.", "none",
        Query('max by (step) (spearhead_worker_cpu_cores{step=~"$step"})', "{{step}}"),
    ),
    areas(
        "Memory", "Resident memory of each step's workers.", "bytes",
        Query('max by (step) (spearhead_worker_resident_memory_bytes{step=~"$step"})', "{{step}}"),
    ),
    lines(
        "Ledger versions", "Versions of the ledger made a second.", "ops",
        Query("max(deriv(spearhead_ledger_version[1m]))", "versions"),
    ),
    lines(
        "Scrapes", "How long a scrape of the exporter takes.", "s",
        Query('max(scrape_duration_seconds{job="spearhead"})', "scrape"),
        steps=((None, GOOD), (1, FAIR), (4, BAD)),
    ),
)  # fmt: skip

PANELS: Final = {"business": BUSINESS, "pipeline": PIPELINE, "model": MODEL, "volume": VOLUME}
VARIABLES: Final = {
    "business": (
        ("category", "Category", "Merchant categories", "spearhead_category_transactions_total"),
        ("state", "State", "States of cardholders", "spearhead_state_transactions_total"),
    ),
    "pipeline": (
        ("step", "Step", "Steps of the pipeline", "spearhead_workers"),
        ("queue", "Queue", "Queues between the steps", "spearhead_backlog_rows"),
    ),
    "model": (),
    "volume": (("step", "Step", "Steps of the pipeline", "spearhead_workers"),),
}
SUMMARIES: Final = {
    "business": "What was found, in transactions and dollars: the KPIs that are counted since the start or reset.",
    "pipeline": "Whether rows flow: throughput, latency, backlogs and workers.",
    "model": "Whether the model is still right.",
    "volume": "Space and traffic on the volume, CPU and memory of the workers.",
    "runbook": "What each alert means, how to confirm it and how to fix it: docs/RUNBOOK.md.",
}


def board(name: str) -> dict[str, Any]:
    """One board as Grafana's JSON."""
    built = (
        dashboard.Dashboard(BOARDS[name])
        .uid(f"spearhead-{name}")
        .description(SUMMARIES[name])
        .tags(["spearhead"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(dm.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .links([_links()])
        .annotations([_firing()])
    )
    for variable in VARIABLES.get(name, ()):
        built.with_variable(_variable(*variable))
    if name == "model":
        built.with_variable(_window())
    for number, panel in enumerate(_runbook() if name == "runbook" else _laid_out(PANELS[name]), start=1):
        built.with_panel(panel.id(number))
    made: dict[str, Any] = json.loads(JSONEncoder().encode(built.build()))
    register_default_plugins()
    made = json.loads(JSONEncoder().encode(dm.Dashboard.from_json(made)))  # with the defaults of each panel's type
    for annotation in made["annotations"]["list"]:  # Prometheus' own options, which the common type doesn't know
        annotation |= {
            "titleFormat": "{{alertname}}", "textFormat": "{{severity}} {{step}}{{queue}}", "tagKeys": "severity",
        }  # fmt: skip
    return made


def _links() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("Spearhead")
        .type(dm.DashboardLinkType.DASHBOARDS)
        .icon("dashboard")
        .tooltip("The other boards, and the runbook")
        .tags(["spearhead"])
        .as_dropdown(False)
        .keep_time(True)
        .include_vars(False)
    )


def _firing() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Firing alerts")
        .datasource(PROMETHEUS)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertname=~"Spearhead.+", alertstate="firing"}')
    )


def _variable(name: str, label: str, text_: str, metric: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .description(text_)
        .datasource(PROMETHEUS)
        .query({"query": f"label_values({metric}, {name})", "refId": "values"})
        .refresh(dm.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dm.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dm.VariableOption(selected=True, text="All", value="$__all"))
    )


def _window() -> dashboard.IntervalVariable:
    return (
        dashboard.IntervalVariable("window")
        .label("Window")
        .description("Over how long recent figures are taken")
        .values("5m,15m,30m,1h,6h")
        .current(dm.VariableOption(selected=True, text="30m", value="30m"))
    )


def _laid_out(panels: tuple[Panel, ...]) -> list[Any]:
    """Panels in rows, left to right, the alert list last."""
    made, x, y, tallest = [], 0, 0, 0
    for panel in panels:
        if x + panel.width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        made.append(_panel(panel).grid_pos(dm.GridPos(panel.height, panel.width, x, y)))
        x, tallest = x + panel.width, max(tallest, panel.height)
    return [*made, _alerts(dm.GridPos(8, WIDTH, 0, y + tallest))]


def _panel(panel: Panel) -> Any:
    made: Any = {"stat": _stat, "bars": _bars, "lines": _lines, "areas": _areas, "table": _table}[panel.kind]()
    made.title(panel.title).description(panel.description).unit(panel.unit).datasource(PROMETHEUS)
    if panel.steps:
        made.thresholds(
            dashboard.ThresholdsConfig()
            .mode(dm.ThresholdsMode.ABSOLUTE)
            .steps([dm.Threshold(value=value, color=color) for value, color in panel.steps])
        )
        if panel.kind == "lines":
            made.thresholds_style(common.GraphThresholdsStyleConfig().mode(cm.GraphThresholdsStyleMode.DASHED))
        else:
            made.color_scheme(dashboard.FieldColor().mode(dm.FieldColorModeId.THRESHOLDS))
    for ref, query in zip("ABCDEF", panel.queries, strict=False):
        made.with_target(_target(ref, query, panel.kind))
    return made


def _target(ref: str, query: Query, kind: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref).expr(query.expr).datasource(PROMETHEUS)
    if query.legend:
        target.legend_format(query.legend)
    if kind == "table":
        target.format(PromQueryFormat.TABLE)
    return target.instant() if kind in ("bars", "table") else target.range()


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(cm.BigValueColorMode.VALUE)
        .graph_mode(cm.BigValueGraphMode.AREA)
        .no_value("not known")
    )


def _bars() -> bargauge.Panel:
    return (
        bargauge.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(cm.VizOrientation.HORIZONTAL)
        .display_mode(cm.BarGaugeDisplayMode.GRADIENT)
        .color_scheme(dashboard.FieldColor().mode(dm.FieldColorModeId.CONTINUOUS_GR_YL_RD))
        .min(0)
    )


def _lines() -> timeseries.Panel:
    return (
        timeseries.Panel()
        .line_width(2)
        .fill_opacity(8)
        .show_points(cm.VisibilityMode.NEVER)
        .axis_soft_min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(cm.LegendDisplayMode.LIST)
            .placement(cm.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(cm.TooltipDisplayMode.MULTI).sort(cm.SortOrder.DESCENDING))
    )


def _areas() -> timeseries.Panel:
    return _lines().fill_opacity(35).stacking(common.StackingConfig().mode(cm.StackingMode.NORMAL).group("A"))


def _table() -> table.Panel:
    return table.Panel()


def _alerts(place: dm.GridPos) -> dashboard.Panel:
    """Alerts of Prometheus; each leads to where it can be silenced. The type of its options is not published."""
    return (
        dashboard.Panel()
        .type("alertlist")
        .title("Alerts")
        .description("Alerts that fire or are about to. Open one to see it, silence it, or go to its runbook.")
        .datasource(PROMETHEUS)
        .grid_pos(place)
        .options(
            {
                "alertInstanceLabelFilter": "",
                "alertName": "",
                "dashboardAlerts": False,
                "datasource": "Prometheus",
                "groupBy": [],
                "groupMode": "default",
                "maxItems": 50,
                "showInactiveAlerts": False,
                "sortOrder": 3,
                "stateFilter": {
                    "error": True,
                    "firing": True,
                    "noData": False,
                    "normal": False,
                    "pending": True,
                    "recovering": True,
                },
                "viewMode": "list",
            }
        )
    )  # fmt: skip


def sections(markdown: str) -> dict[str, str]:
    """The runbook's second-level sections by heading."""
    parts = re.split(r"^## (.+)$", markdown, flags=re.MULTILINE)
    return {title.strip(): body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def _runbook() -> list[Any]:
    made: list[Any] = [_alerts(dm.GridPos(8, WIDTH, 0, 0))]
    for number, (title, body) in enumerate(sections(RUNBOOK.read_text()).items()):
        panel = text.Panel().title(title).description("From docs/RUNBOOK.md").mode(TextMode.MARKDOWN).content(body)
        made.append(panel.grid_pos(dm.GridPos(10, 12, 12 * (number % 2), 8 + 10 * (number // 2))))
    return made


def render(name: str) -> str:
    """The content of a board's file."""
    return json.dumps(board(name), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> int:
    for name in BOARDS:
        (HERE / "dashboards" / f"{name}.json").write_text(render(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
