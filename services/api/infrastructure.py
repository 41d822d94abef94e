"""``/api/dashboard``, the backlogs and the pressure on them: how the pipeline itself is doing, from one snapshot."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Final

import msgspec
import psutil

from services.api.business import read_bytes_per_s, status, volume_util_percent, write_bytes_per_s
from services.api.reader import total
from services.api.snapshot import QUEUES, STEPS, Snapshot, assess, iso, model_progress
from spearhead import kpi
from spearhead.settings import Settings

Payload = dict[str, Any]
TARGET_UTILIZATION: Final = 0.8  # of a replica, when replicas are recommended
DRAIN_SECONDS: Final = 60.0  # in which recommended replicas work a backlog off
BUSY_CORES: Final = 0.01  # a worker that uses less can't be measured
CAUSES: Final = {
    "raw_transactions": "throttle generation",
    "features_ready": "scale inference",
    "inference_results": "the ledger falls behind: look at inference workers and the volume's latency",
}
_RAM: Final = psutil.virtual_memory().total


def dashboard(snapshot: Snapshot, settings: Settings) -> Payload:
    """The whole answer of ``/api/dashboard``."""
    assessment = assess(snapshot)
    return {
        "status": status(assessment, snapshot),
        "pipeline": {
            "status": pipeline_status(snapshot),
            "uptime_seconds": uptime_seconds(snapshot),
            "current_stage": current_stage(snapshot),
        },
        "progress": progress(snapshot),
        "utilization": utilization(snapshot),
        "throughput": throughput(snapshot),
        "business_metrics": totals(snapshot),
        "queue_backlogs": queue_backlogs(snapshot),
        "pod_counts": pod_counts(snapshot),
        "system_config": system_config(snapshot, settings),
        "flashblade": flashblade(snapshot, settings),
        "latency_ms": latency(snapshot),
        "model": model_state(snapshot),
        "workers": None if snapshot.workers is None else [worker(beat) for beat in snapshot.workers],
        "dead": None
        if snapshot.ledger is None
        else {topic: msgspec.structs.asdict(dead) for topic, dead in snapshot.ledger.dead.items()},
        "flow": snapshot.flow._asdict(),
        "timestamp": iso(snapshot.time),
    }


def message(snapshot: Snapshot, settings: Settings) -> Payload:
    """What every client of ``/ws/metrics`` gets each second."""
    latest = snapshot.latest
    return {
        "timestamp": iso(snapshot.time),
        "status": status(assess(snapshot), snapshot),
        "throughput": throughput(snapshot),
        "queue_backlogs": queue_backlogs(snapshot),
        "pod_counts": pod_counts(snapshot),
        "utilization": utilization(snapshot),
        "business_metrics": totals(snapshot),
        "latency_ms": latency(snapshot),
        "model": model_state(snapshot),
        "system_config": system_config(snapshot, settings),
        "sample": latest._asdict() if latest else None,
    }


def pipeline_status(snapshot: Snapshot) -> str:
    state = assess(snapshot).state
    if state == "stopped":
        return "stopped"
    if state in ("unavailable", "degraded", "starting"):
        return "degraded"
    held = [beat for beat in snapshot.of("generation") if beat.state in ("back_pressure", "disk_low")]
    if (held and len(held) == len(snapshot.of("generation"))) or _rate_is_zero(snapshot):
        return "paused"
    return "running"


def _rate_is_zero(snapshot: Snapshot) -> bool:
    rate = snapshot.control.rate if snapshot.control else None
    return rate is not None and rate != "max" and float(rate) == 0


def current_stage(snapshot: Snapshot) -> str | None:
    """The furthest step that rows reach now; training while the first model is awaited; None when all is still."""
    latest = snapshot.latest
    if latest is None:
        return None
    if latest.inference:
        return "inference"
    if snapshot.models is not None and snapshot.models.current is None and snapshot.of("training"):
        return "training"
    for step in ("preprocessing", "generation"):
        if getattr(latest, step):
            return step
    return None


def uptime_seconds(snapshot: Snapshot) -> float | None:
    """Since the longest-running live worker started."""
    started = [beat.started_at for beat in snapshot.workers or () if beat.started_at and beat.stage != "api"]
    if not started:
        return None
    first = min(_parse(text) for text in started)
    return max(0.0, snapshot.time.timestamp() - first)


def _parse(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def progress(snapshot: Snapshot) -> Payload:
    """Rows out over rows in of each step, 0 to 100; None where nothing went in yet."""
    flow = snapshot.flow
    taken = None if flow.published is None or flow.rejected is None else flow.published + flow.rejected
    return {
        "data_ingestion": _percent(flow.published, taken),
        "preprocessing": _percent(flow.emitted, flow.published),
        "training": _training_progress(snapshot),
        "inference": _percent(flow.scored, flow.emitted),
    }


def _training_progress(snapshot: Snapshot) -> float | None:
    """Before the first model: matured rows of those it waits for. Then: rows the newest model saw of those matured."""
    figures = [beat.figures for beat in snapshot.of("training")]
    matured = next((int(f["matured_rows"]) for f in figures if f.get("matured_rows") is not None), None)  # type: ignore[arg-type]
    needed = next((int(f["needed_rows"]) for f in figures if f.get("needed_rows") is not None), None)  # type: ignore[arg-type]
    models = snapshot.models
    if models is None or not models.versions:
        return _percent(matured, needed)
    seen = models.versions[-1].metrics.get("source_rows")
    return _percent(seen, matured)


def _percent(out: float | None, into: float | None) -> float | None:
    """Counters are read one after the other: a step may seem ahead of the one before by what went through since."""
    return min(100.0, out / into * 100) if out is not None and into else None


def utilization(snapshot: Snapshot) -> Payload:
    """CPU and memory of all live workers."""
    resident = total(beat.rss_bytes for beat in snapshot.workers or ())
    return {
        "cpu_cores": total(beat.cpu_cores for beat in snapshot.workers or ()),
        "ram_percent": None if resident is None else resident / _RAM * 100,
        "ram_gb": None if resident is None else resident / 1e9,
    }


def throughput(snapshot: Snapshot) -> Payload:
    """``current``: rows counted a second over the last seconds. ``peak``: that, or the busiest minute's mean."""
    current = snapshot.latest.inference if snapshot.latest else None
    minutes = [group.count / 60 for group in snapshot.ledger.minutes.values()] if snapshot.ledger else []
    known = [*minutes, *([] if current is None else [current])]
    return {"current": current, "peak": max(known) if known else None, "unit": "rows/sec"}


def totals(snapshot: Snapshot) -> Payload:
    ledger = snapshot.ledger
    return {
        "total_transactions": ledger.transactions_analyzed if ledger else None,
        "fraud_detected": ledger.flagged_count if ledger else None,
        "fraud_rate": kpi.fraud_rate(ledger) if ledger else None,
        "total_amount": ledger.amount_total if ledger else None,
        "fraud_amount": ledger.flagged_amount if ledger else None,
    }


def queue_backlogs(snapshot: Snapshot) -> Payload:
    return {queue: getattr(snapshot.backlogs, queue, None) for queue in QUEUES}


def backlog_status(snapshot: Snapshot) -> Payload:
    return queue_backlogs(snapshot) | {
        "timestamp": iso(snapshot.time),
        "status": status(assess(snapshot), snapshot),
    }


def pod_counts(snapshot: Snapshot) -> Payload:
    return {step: None if snapshot.workers is None else len(snapshot.of(step)) for step in STEPS}


def system_config(snapshot: Snapshot, settings: Settings) -> Payload:
    control = snapshot.control
    rate = control.rate if control and control.rate is not None else settings.generation_rate
    return {
        "generation_rate": rate_value(rate),
        "system_priority": control.priority if control else None,
        "running": control.running if control else None,
        "threshold": settings.fraud_threshold,
        "control_enabled": settings.api_token is not None,
    }


def rate_value(rate: str) -> float | str:
    """Rows a second, or ``"max"``."""
    return "max" if rate.strip().lower() == "max" else float(rate)


def flashblade(snapshot: Snapshot, settings: Settings) -> Payload:
    return {
        "read_bytes_per_s": read_bytes_per_s(snapshot),
        "write_bytes_per_s": write_bytes_per_s(snapshot),
        "util_percent": volume_util_percent(snapshot, settings),
        "free_bytes": snapshot.disk.free if snapshot.disk else None,
        "total_bytes": snapshot.disk.total if snapshot.disk else None,
    }


def latency(snapshot: Snapshot) -> Payload:
    """Ingest to decision, in ms: since the start, and of the rows counted in the last seconds."""
    latest = snapshot.latest
    return {
        "mean": kpi.mean_latency_ms(snapshot.ledger) if snapshot.ledger else None,
        **kpi.latency_quantiles_ms(snapshot.ledger.latency if snapshot.ledger else {}),
        "recent": {
            "p50": latest.p50_ms if latest else None,
            "p95": latest.p95_ms if latest else None,
            "p99": latest.p99_ms if latest else None,
        },
    }


def model_state(snapshot: Snapshot) -> Payload:
    """The model in service, or how far the first one is."""
    models = snapshot.models
    current = models.current if models else None
    figures = [beat.figures for beat in snapshot.of("training")]
    return {
        "version": current,
        "progress": None if current or models is None else model_progress(snapshot),
        "matured_rows": next((f["matured_rows"] for f in figures if f.get("matured_rows") is not None), None),
        "needed_rows": next((f["needed_rows"] for f in figures if f.get("needed_rows") is not None), None),
    }


def worker(beat: Any) -> Payload:
    return {
        "stage": beat.stage,
        "worker": beat.worker,
        "state": beat.state,
        "detail": beat.detail,
        "rows": beat.rows,
        "rows_per_s": beat.rows_per_s,
        "cpu_cores": beat.cpu_cores,
        "rss_bytes": beat.rss_bytes,
        "started_at": beat.started_at,
        "last_error": beat.last_error,
    }


def thresholds(settings: Settings) -> dict[str, tuple[int, int]]:
    """Rows at which a queue warns and is critical. training-queue is a bounded sample: it never presses back."""
    return {
        "raw_transactions": (settings.raw_transactions_warning, settings.raw_transactions_critical),
        "features_ready": (settings.features_ready_warning, settings.features_ready_critical),
        "inference_results": (settings.inference_results_warning, settings.inference_results_critical),
    }


def pressure(snapshot: Snapshot, settings: Settings) -> Payload:
    """The whole answer of ``/api/backlog/pressure``."""
    queues: Payload = {}
    alerts: list[Payload] = []
    for queue, (warning, critical) in thresholds(settings).items():
        backlog = getattr(snapshot.backlogs, queue, None)
        severity = _severity(backlog, warning, critical)
        queues[queue] = {
            "backlog": backlog,
            "threshold_warning": warning,
            "threshold_critical": critical,
            "pressure_percent": None if backlog is None else backlog / critical * 100,
            "status": severity,
        }
        if backlog is not None and severity is not None and severity != "normal":
            alerts.append(_alert(queue, backlog, severity, warning if severity == "warning" else critical, snapshot))
    replicas = recommended_replicas(snapshot)
    return {
        "overall_pressure": _overall(queues),
        "queues": queues,
        "alerts": alerts,
        "recommendations": recommendations(snapshot, alerts, replicas),
        "recommended_replicas": replicas,
        "timestamp": iso(snapshot.time),
        "status": status(assess(snapshot), snapshot),
    }


def _severity(backlog: int | None, warning: int, critical: int) -> str | None:
    if backlog is None:
        return None
    return "critical" if backlog >= critical else "warning" if backlog >= warning else "normal"


def _alert(queue: str, backlog: int, severity: str, threshold: int, snapshot: Snapshot) -> Payload:
    return {
        "severity": severity,
        "queue": queue,
        "message": f"{queue.replace('_', '-')}: {backlog:,} rows wait, {severity} from {threshold:,}: {CAUSES[queue]}",
        "backlog": backlog,
        "threshold": threshold,
        "timestamp": iso(snapshot.time),
    }


def _overall(queues: Payload) -> str | None:
    """normal; medium from half way to a warning; high at a warning; critical at a critical one. None: not known."""
    if any(queue["backlog"] is None for queue in queues.values()):
        return None
    states = {queue["status"] for queue in queues.values()}
    if "critical" in states:
        return "critical"
    if "warning" in states:
        return "high"
    half = any(queue["backlog"] >= queue["threshold_warning"] / 2 for queue in queues.values())
    return "medium" if half else "normal"


def recommended_replicas(snapshot: Snapshot) -> Payload:
    """Replicas that keep up with what arrives and drain what waits in a minute, at most 80 % busy.

    A replica's service rate is its rows a second for each core that it used: what it would do without waiting.
    None where nothing was measured.
    """
    latest, backlogs = snapshot.latest, snapshot.backlogs
    return {
        "preprocessing": _replicas(
            snapshot,
            "preprocessing",
            latest.generation if latest else None,
            getattr(backlogs, "raw_transactions", None),
        ),
        "inference": _replicas(
            snapshot, "inference", latest.preprocessing if latest else None, getattr(backlogs, "features_ready", None)
        ),
    }


def _replicas(snapshot: Snapshot, step: str, arriving: float | None, waiting: int | None) -> int | None:
    rates = [beat.rows_per_s / beat.cpu_cores for beat in snapshot.of(step) if beat.cpu_cores >= BUSY_CORES]
    rates = [rate for rate in rates if rate > 0]
    if not rates or arriving is None or waiting is None:
        return None
    service = sum(rates) / len(rates)
    return max(1, math.ceil((arriving + waiting / DRAIN_SECONDS) / (TARGET_UTILIZATION * service)))


def recommendations(snapshot: Snapshot, alerts: list[Payload], replicas: Payload) -> list[str]:
    """What to do, in sentences; empty when nothing needs doing."""
    found = []
    pressed = {alert["queue"] for alert in alerts}
    if "raw_transactions" in pressed:
        found.append("Throttle generation, or add preprocessing: raw transactions arrive faster than they are taken.")
    if "features_ready" in pressed and snapshot.models is not None and snapshot.models.current is None:
        found.append("Wait for the first model: features can't be scored before it.")
    elif "features_ready" in pressed:
        found.append("Scale inference: features arrive faster than they are scored.")
    if "inference_results" in pressed:
        found.append("Look at the inference workers and at the volume's latency: scored rows wait for the ledger.")
    for step, wanted in replicas.items():
        alive = len(snapshot.of(step))
        if wanted is not None and wanted > alive:
            found.append(f"Run {wanted} {step} replicas instead of {alive}.")
    return found
