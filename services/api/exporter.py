"""``/metrics``: Prometheus series made at each scrape from one snapshot; docs/METRICS.md lists them.

All counters but one come from the ledger, from producers' newest segments and from prep's commits, not from this
process: they are the same whichever API process answers, and go back only when ``reset`` begins a new epoch, which
Prometheus takes for a restart. That one, of reasons at look-up, is in the API servers' heartbeats. Cardinality is
bounded: by vocabularies (categories, states, bins), queues, steps and states of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from services.api.business import volume_util_percent
from services.api.infrastructure import recommended_replicas, thresholds
from services.api.reader import total
from services.api.snapshot import QUEUES, STEPS, Snapshot, Version
from spearhead import __version__, kpi
from spearhead.aggregate import LATENCY_GROWTH, MICRO
from spearhead.heartbeat import Heartbeat
from spearhead.ledger import LedgerFile
from spearhead.settings import Settings

LATENCY_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
PRODUCERS: Final = {"g": "generator", "h": "http", "i": "inbox"}
STATES: Final = (
    "starting", "running", "idle", "paused", "back_pressure", "disk_low", "no_model", "stopped",
)  # fmt: skip


def exposition(snapshot: Snapshot, settings: Settings, accept: str) -> tuple[bytes, str]:
    """The series as text in the format that ``accept`` asks for, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot, settings))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        self._snapshot = snapshot
        self._settings = settings

    def collect(self) -> Iterable[Metric]:
        snapshot, settings = self._snapshot, self._settings
        yield from _health(snapshot)
        if snapshot.ledger is not None:
            yield from _totals(snapshot.ledger)
            yield from _groups(snapshot.ledger)
            yield from _labels(snapshot.ledger)
            yield from _dead(snapshot.ledger)
            yield _latency(snapshot.ledger)
        yield from _drift(snapshot)
        yield from _gauge("labels_waiting", "Labels that wait for their decision", snapshot.labels_waiting)
        yield from _flow(snapshot)
        yield from _backlogs(snapshot, settings)
        yield from _workers(snapshot)
        yield from _looked_up(snapshot)
        yield from _volume(snapshot, settings)
        yield from _model(snapshot)
        yield from _control(snapshot, settings)


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """A gauge; no series where the value is not known."""
    if value is not None:
        yield GaugeMetricFamily(f"spearhead_{name}", text, value)


def _counter(name: str, text: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield CounterMetricFamily(f"spearhead_{name}", text, value)


def _labelled(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Iterable[tuple[str, float | None]],
) -> Iterator[Metric]:
    family = kind(f"spearhead_{name}", text, labels=(label,))
    for key, value in values:
        if value is not None:
            family.add_metric((key,), value)
    if family.samples:
        yield family


def _health(snapshot: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily("spearhead_build", "Version of the software", {"version": __version__})
    yield from _gauge("volume_readable", "1 if the volume can be read", float(snapshot.readable))
    yield from _gauge("ledger_readable", "1 if totals can be read", float(snapshot.ledger is not None))
    yield from _gauge(
        "ledger_parse_error", "1 if .metrics.json is there and can't be parsed", float(snapshot.ledger_damaged)
    )
    yield from _gauge("read_problems", "Parts of the volume that can't be read", float(len(snapshot.problems)))
    yield from _gauge("ledger_age_seconds", "Time since the ledger was written", snapshot.ledger_age)
    yield from _gauge("ledger_stale", "1 if rows wait to be counted in an old ledger", float(snapshot.stale))
    yield from _gauge("decision_age_seconds", "Time since the newest decision that is counted", snapshot.data_age)
    yield from _gauge("epoch", "Raised by each reset; all counters then begin at zero", snapshot.epoch)
    if snapshot.ledger is not None:
        yield from _gauge("ledger_version", "Version of the ledger that was read", snapshot.ledger.version)
        yield from _counter(
            "ledger_damaged_versions", "Versions of the ledger lost to damage", snapshot.ledger.damaged_versions
        )


def _totals(ledger: LedgerFile) -> Iterator[Metric]:
    yield from _counter("transactions", "Transactions scored", ledger.transactions_analyzed)
    yield from _counter("transactions_amount_dollars", "Amount of all transactions", ledger.amount_total)
    yield from _counter("flagged", "Transactions at or above the threshold", ledger.flagged_count)
    yield from _counter("flagged_amount_dollars", "Amount of flagged transactions", ledger.flagged_amount)
    yield from _counter(
        "reasons_computed", "Flagged transactions explained as they were scored", ledger.reasons_computed
    )
    yield from _counter(
        "reasons_deferred", "Flagged transactions beyond the budget of reasons", ledger.reasons_deferred
    )
    unlabelled = ledger.unlabelled + ledger.feedback.applied
    yield from _counter("unlabelled", "Transactions that came without a label", unlabelled)
    found = kpi.concentration(ledger.flagged_amounts)
    yield from _gauge("risk_concentration_ratio", "Share of flagged amount in the dearest 1 % of flagged", found.share)
    yield from _labelled(
        CounterMetricFamily, "band_transactions", "Transactions by risk band", "band",
        zip(kpi.BANDS, ledger.bands, strict=True),
    )  # fmt: skip
    yield from _labelled(
        CounterMetricFamily, "score_bin_transactions", "Transactions by risk score", "bin",
        ((kpi.bin_label(number), count) for number, count in enumerate(ledger.score_bins)),
    )  # fmt: skip


def _groups(ledger: LedgerFile) -> Iterator[Metric]:
    for label, groups in (("category", ledger.categories), ("state", ledger.states)):
        for name, text, value in (
            ("transactions", "Transactions", lambda group: group.count),
            ("flagged", "Flagged transactions", lambda group: group.flagged),
            ("flagged_amount_dollars", "Amount of flagged transactions", lambda group: group.flagged_cents / 100),
            ("flagged_score", "Sum of the scores of flagged transactions", lambda group: group.flagged_score / MICRO),
        ):
            yield from _labelled(
                CounterMetricFamily, f"{label}_{name}", f"{text} by {label}", label,
                ((key, value(group)) for key, group in sorted(groups.items())),
            )  # fmt: skip


def _labels(ledger: LedgerFile) -> Iterator[Metric]:
    """Decisions against labels that have matured. A corrected one counts twice: counters never go back."""
    family = CounterMetricFamily(
        "spearhead_labelled", "Decisions whose labels have matured, corrections once more", labels=("outcome", "sample")
    )
    back = ledger.feedback.taken_back
    for sample, outcomes, corrected in (
        ("out", ledger.labelled, back.out_of_sample),
        ("in", ledger.labelled.in_sample, back.in_sample),
    ):
        for outcome in ("tp", "fp", "tn", "fn"):
            family.add_metric((outcome, sample), getattr(outcomes, outcome) + getattr(corrected, outcome))
    yield family
    yield from _gauge("labels_pending", "Decisions whose labels will mature", ledger.labelled.pending)
    for name, text in (
        ("received", "Labels that came on their own and were joined or given up"),
        ("applied", "First labels of their transactions, of those that came on their own"),
        ("corrected", "Labels that said otherwise than the one before"),
        ("duplicate", "Labels that changed nothing"),
        ("unmatched", "Labels given up: no decision was found"),
    ):
        yield from _counter(f"labels_{name}", text, getattr(ledger.feedback, name))
    yield from _gauge("precision_ratio", "Precision out of sample", kpi.precision(ledger))
    yield from _gauge("recall_ratio", "Recall out of sample", kpi.recall(ledger))
    yield from _gauge("false_positive_ratio", "False positive rate out of sample", kpi.false_positive_rate(ledger))


def _drift(snapshot: Snapshot) -> Iterator[Metric]:
    """Recent traffic against the training window of the model in service."""
    found = snapshot.drift
    if found is None:
        return
    yield from _labelled(
        GaugeMetricFamily, "drift_psi", "Population stability index against the champion's training window", "feature",
        sorted((feature.feature, feature.psi) for feature in found.features),
    )  # fmt: skip
    yield from _gauge("drift_score_psi", "The same of the risk score", found.score_psi)
    for name, text, ratio in (
        ("drift_label_ratio", "Fraud rate of matured labels over training's", found.label_rate),
        ("drift_calibration_ratio", "Matured frauds over the sum of their scores", found.calibration),
    ):
        yield from _gauge(name, text, ratio.ratio)
        yield from _gauge(f"{name}_low", "Lower end of the interval that chance leaves to that ratio", ratio.low)
        yield from _gauge(f"{name}_high", "Upper end of the interval that chance leaves to that ratio", ratio.high)


def _dead(ledger: LedgerFile) -> Iterator[Metric]:
    for field, name, text in (
        ("segments", "dead_segments", "Segments set aside"),
        ("rows", "dead_rows", "Rows in segments set aside"),
        ("rejected_rows", "rejected_rows", "Single rows refused"),
    ):
        yield from _labelled(
            CounterMetricFamily, name, f"{text} by queue", "queue",
            ((queue, getattr(dead, field)) for queue, dead in sorted(ledger.dead.items())),
        )  # fmt: skip


def _latency(ledger: LedgerFile) -> Metric:
    """Ingest to decision. A row counts under a bound if its whole ledger bucket (2 % wide) lies under it."""
    rows = sorted((int(bucket), count) for bucket, count in ledger.latency.items())
    buckets, position, seen = [], 0, 0
    for bound in LATENCY_SECONDS:
        while position < len(rows) and LATENCY_GROWTH ** (rows[position][0] + 1) <= bound * 1e6:
            seen += rows[position][1]
            position += 1
        buckets.append((str(bound), float(seen)))
    buckets.append(("+Inf", float(ledger.transactions_analyzed)))
    return HistogramMetricFamily(
        "spearhead_decision_latency_seconds", "Ingest to decision", buckets, sum_value=ledger.latency_us / 1e6
    )


def _flow(snapshot: Snapshot) -> Iterator[Metric]:
    flow = snapshot.flow
    yield from _labelled(
        CounterMetricFamily, "step_rows", "Rows that a step has passed on", "step",
        (("generation", flow.published), ("preprocessing", flow.emitted), ("inference", flow.scored)),
    )  # fmt: skip
    if snapshot.heads is not None:
        published: Counter[str] = Counter()
        for producer, head in snapshot.heads.items():
            published[PRODUCERS.get(producer[:1], "other")] += head.rows
        yield from _labelled(
            CounterMetricFamily, "published_rows", "Rows published", "source", sorted(published.items())
        )
    latest = snapshot.latest
    yield from _labelled(
        GaugeMetricFamily, "step_rows_per_second", "Rows a second over the last seconds", "step",
        ((step, getattr(latest, step, None)) for step in ("generation", "preprocessing", "inference")),
    )  # fmt: skip


def _backlogs(snapshot: Snapshot, settings: Settings) -> Iterator[Metric]:
    yield from _labelled(
        GaugeMetricFamily, "backlog_rows", "Rows that wait", "queue",
        ((queue, getattr(snapshot.backlogs, queue, None)) for queue in QUEUES),
    )  # fmt: skip
    family = GaugeMetricFamily(
        "spearhead_backlog_threshold_rows", "Backlog at which a queue presses", labels=("queue", "severity")
    )
    for queue, (warning, critical) in thresholds(settings).items():
        family.add_metric((queue, "warning"), warning)
        family.add_metric((queue, "critical"), critical)
    yield family
    yield from _labelled(
        GaugeMetricFamily, "recommended_workers", "Workers that would keep up and drain in a minute", "step",
        recommended_replicas(snapshot).items(),
    )  # fmt: skip


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    if snapshot.workers is None:
        return
    by_step = {step: snapshot.of(step) for step in STEPS}
    yield from _labelled(
        GaugeMetricFamily, "workers", "Live workers", "step", ((step, len(beats)) for step, beats in by_step.items())
    )
    states = GaugeMetricFamily("spearhead_workers_in_state", "Live workers by state", labels=("step", "state"))
    for step, beats in by_step.items():
        for state in STATES:
            states.add_metric((step, state), sum(beat.state == state for beat in beats))
    yield states
    figures: tuple[tuple[str, str, Callable[[Heartbeat], float | None]], ...] = (
        ("worker_cpu_cores", "CPU that live workers use", lambda beat: beat.cpu_cores),
        ("worker_resident_memory_bytes", "Memory that live workers hold", lambda beat: beat.rss_bytes),
        ("worker_read_bytes_per_second", "Bytes a second read from storage", lambda beat: beat.read_bytes_per_s),
        ("worker_written_bytes_per_second", "Bytes a second written to storage", lambda beat: beat.write_bytes_per_s),
        ("workers_with_error", "Live workers that report an error", lambda beat: float(beat.last_error is not None)),
    )
    for name, text, value in figures:
        yield from _labelled(
            GaugeMetricFamily, name, text, "step",
            ((step, total(value(beat) for beat in beats)) for step, beats in by_step.items()),
        )  # fmt: skip


def _looked_up(snapshot: Snapshot) -> Iterator[Metric]:
    """All live servers' together: each counts from its start."""
    text = "Flagged transactions explained when they were looked up"
    yield from _counter("reasons_at_look_up", text, snapshot.reasons_at_look_up)


def _volume(snapshot: Snapshot, settings: Settings) -> Iterator[Metric]:
    if snapshot.disk is not None:
        yield from _gauge("volume_free_bytes", "Free space on the volume", snapshot.disk.free)
        yield from _gauge("volume_size_bytes", "Size of the volume", snapshot.disk.total)
    yield from _gauge("volume_low_watermark_bytes", "Free space below which producers pause", settings.disk_low_bytes)
    percent = volume_util_percent(snapshot, settings)
    yield from _gauge(
        "volume_utilization_ratio",
        "Measured throughput against the maximum",
        None if percent is None else percent / 100,
    )


def _model(snapshot: Snapshot) -> Iterator[Metric]:
    models = snapshot.models
    for name, key, text in (
        ("training_matured_rows", "matured_rows", "Rows whose labels have matured, for training"),
        ("training_needed_rows", "needed_rows", "Matured rows that the first model waits for"),
    ):
        values = [beat.figures.get(key) for beat in snapshot.of("training")]
        yield from _gauge(name, text, next((float(value) for value in values if value is not None), None))
    if models is None:
        return
    yield from _gauge("model_in_service", "1 if there is a model", float(models.current is not None))
    if models.versions:
        yield from _counter("models_trained", "Models made, promoted or not", int(models.versions[-1].name[1:]))
        yield from _gauge("model_newest_timestamp_seconds", "When the newest was made", models.versions[-1].made_at)
    current = next((version for version in models.versions if version.name == models.current), None)
    if current is None:
        return
    yield InfoMetricFamily("spearhead_model", "The model in service", {"version": current.name})
    yield from _gauge("model_timestamp_seconds", "When the model in service was made", current.made_at)
    for name, key, text in (
        ("model_average_precision_ratio", "average_precision", "Average precision on later event time"),
        ("model_auc_ratio", "auc", "Area under the ROC curve on later event time"),
        ("model_logloss", "logloss", "Log loss on later event time"),
        ("model_train_seconds", "train_seconds", "Time that its training took"),
    ):
        yield from _gauge(name, f"{text}, of the model in service", current.metrics.get(key))
    yield from _judgement(current.metrics, models.challenger)


def _judgement(metrics: Mapping[str, Any], challenger: Version | None) -> Iterator[Metric]:
    """How true the scores of the model in service are, where its threshold were cheapest, and what challenges it."""
    yield from _gauge(
        "model_calibration_error_ratio",
        "Expected calibration error on later event time, of the model in service",
        (metrics.get("calibration") or {}).get("ece"),
    )
    yield from _gauge(
        "model_threshold_cost_optimal_ratio",
        "Threshold of least cost on later event time, of the model in service",
        metrics.get("cost_optimal_threshold"),
    )
    if challenger is None:
        return
    yield InfoMetricFamily(
        "spearhead_model_challenger", "The newest model, if it did not go into service", {"version": challenger.name}
    )
    verdict = challenger.metrics.get("verdict") or {}
    for name, key, text in (
        ("average_precision_ratio", "challenger_average_precision", "Average precision of the challenger"),
        ("champion_average_precision_ratio", "champion_average_precision", "The same of its champion"),
        ("calibration_error_ratio", "challenger_ece", "Expected calibration error of the challenger"),
    ):
        yield from _gauge(f"model_challenger_{name}", f"{text}, on the rows of its verdict", verdict.get(key))


def _control(snapshot: Snapshot, settings: Settings) -> Iterator[Metric]:
    control = snapshot.control
    if control is None:
        return
    yield from _gauge("running", "0 if an operator has stopped the pipeline", float(control.running))
    rate = control.rate or settings.generation_rate
    yield from _gauge("generation_rate_limit", "Rows a second; +Inf: flat out", float(rate.replace("max", "inf")))
    yield InfoMetricFamily("spearhead_priority", "Who has the right of way", {"priority": control.priority})
    yield from _gauge("threshold_ratio", "Risk score from which a transaction is flagged", settings.fraud_threshold)
