"""``/api/business/metrics``: what the business tab needs, from one snapshot."""

from __future__ import annotations

from typing import Any, Final

from services.api.reader import total
from services.api.snapshot import Assessment, Snapshot, assess, iso, iso_us
from spearhead import kpi, reasons
from spearhead.aggregate import MICRO, Signal
from spearhead.ledger import LedgerFile
from spearhead.settings import Settings

VELOCITY_MINUTES: Final = 30
RECENT_SIGNALS: Final = 10
TOP_STATES: Final = 8
CONCENTRATED_SHARE: Final = 0.1  # of flagged dollars in 1 % of flagged transactions: a pattern worth a line

Payload = dict[str, Any]


def business_metrics(snapshot: Snapshot, settings: Settings) -> Payload:
    """The whole answer. Without a ledger numbers are None, lists empty, and ``status`` says why."""
    assessment = assess(snapshot)
    ledger = snapshot.ledger if assessment.state != "unavailable" else None
    known = kpi.unknown() if ledger is None else _values(ledger, snapshot, settings)
    return {
        "status": status(assessment, snapshot),
        **{key: known[key] for key in ("fraud_exposure_identified", "fraud_rate", "alerts_per_million")},
        **{key: known[key] for key in ("high_risk_txn_rate", "projected_annual_savings", "transactions_analyzed")},
        "risk_score_distribution": [] if ledger is None else score_distribution(ledger),
        "risk_bands": None if ledger is None else dict(zip(kpi.BANDS, ledger.bands, strict=True)),
        "fraud_velocity": [] if ledger is None else fraud_velocity(ledger, snapshot),
        "risk_signals_by_category": [] if ledger is None else by_category(ledger),
        "recent_risk_signals": [] if ledger is None else recent_signals(ledger, snapshot),
        "ml_details": ml_details(ledger, snapshot, settings),
        "risk_concentration": risk_concentration(ledger),
        "state_risk": [] if ledger is None else by_state(ledger)[:TOP_STATES],
        "state_risk_all": [] if ledger is None else by_state(ledger),
        "kpis": kpi_list(known, ledger),
        "metadata": metadata(ledger, snapshot, settings),
    }


def status(assessment: Assessment, snapshot: Snapshot) -> Payload:
    """How much the numbers beside it can be trusted."""
    return {
        "state": assessment.state,
        "reasons": list(assessment.reasons),
        "ledger_age_seconds": snapshot.ledger_age,
        "data_age_seconds": snapshot.data_age,
        "epoch": snapshot.epoch,
    }


def volume_util_percent(snapshot: Snapshot, settings: Settings) -> float | None:
    """KPI 17. None where no maximum is set or nothing is measured."""
    maximum = settings.flashblade_max_bytes_per_s
    rate = total((read_bytes_per_s(snapshot), write_bytes_per_s(snapshot)))
    return rate / maximum * 100 if maximum and rate is not None else None


def read_bytes_per_s(snapshot: Snapshot) -> float | None:
    return total(beat.read_bytes_per_s for beat in snapshot.workers or ())


def write_bytes_per_s(snapshot: Snapshot) -> float | None:
    return total(beat.write_bytes_per_s for beat in snapshot.workers or ())


def _values(ledger: LedgerFile, snapshot: Snapshot, settings: Settings) -> dict[str, kpi.Value]:
    return kpi.values(ledger, _minute(snapshot), volume_util_percent(snapshot, settings))


def _minute(snapshot: Snapshot) -> int:
    return int(snapshot.time.timestamp()) // 60


def score_distribution(ledger: LedgerFile) -> list[Payload]:
    tallest = max(ledger.score_bins)
    return [
        {
            "bin": kpi.bin_label(number),
            "count": count,
            "percentage": _percent(count, ledger.transactions_analyzed),
            "score": _percent(count, tallest),
        }
        for number, count in enumerate(ledger.score_bins)
    ]


def fraud_velocity(ledger: LedgerFile, snapshot: Snapshot) -> list[Payload]:
    """The last 30 wall-clock minutes, the running one included."""
    newest = _minute(snapshot)
    minutes = kpi.flagged_by_minute(ledger, newest, VELOCITY_MINUTES)
    tallest = max(count for _, count in minutes)
    return [
        {
            "timestamp": iso_us(minute * 60 * MICRO),
            "time": f"-{newest - minute}m",
            "count": count,
            "score": _percent(count, tallest),
        }
        for minute, count in minutes
    ]


def by_category(ledger: LedgerFile) -> list[Payload]:
    risks = kpi.by_flagged_amount(ledger.categories)
    return [
        {
            "category": risk.name,
            "amount": risk.amount,
            "count": risk.flagged,
            "avg_risk_score": risk.avg_score,
            "score": _percent(risk.amount, risks[0].amount),
            "transactions": risk.transactions,
        }
        for risk in risks
    ]


def by_state(ledger: LedgerFile) -> list[Payload]:
    return [
        {
            "rank": rank,
            "state": risk.name,
            "fraud_amount": risk.amount,
            "count": risk.flagged,
            "transactions": risk.transactions,
        }
        for rank, risk in enumerate(kpi.by_flagged_amount(ledger.states), start=1)
    ]


def recent_signals(ledger: LedgerFile, snapshot: Snapshot, limit: int = RECENT_SIGNALS) -> list[Payload]:
    return [signal(one, snapshot.time.timestamp()) for one in ledger.recent_signals[:limit]]


def signal(one: Signal, now: float) -> Payload:
    """A flagged transaction as the API shows it; ``now`` in seconds since 1970."""
    return {
        "trans_num": one.trans_num,
        "risk_score": one.score / MICRO,
        "merchant": one.merchant,
        "category": one.category,
        "cc_num_masked": f"***{one.last4:04d}",
        "state": one.state,
        "cardholder": one.cardholder,
        "amount": kpi.dollars(one.cents),
        "timestamp": iso_us(one.scored_at),
        "event_time": iso_us(one.event_time),
        "seconds_ago": max(0, int(now - one.scored_at / 1e6)),
        "model_version": one.model,
        "reasons": [reasons.shown(reason, one.cents / 100) for reason in one.reasons or ()],
    }


def ml_details(ledger: LedgerFile | None, snapshot: Snapshot, settings: Settings) -> Payload:
    labelled = ledger.labelled if ledger else None
    drift = snapshot.drift
    return {
        "precision": kpi.precision(ledger) if ledger else None,
        "recall": kpi.recall(ledger) if ledger else None,
        "accuracy": kpi.accuracy(ledger) if ledger else None,
        "false_positive_rate": kpi.false_positive_rate(ledger) if ledger else None,
        "threshold": settings.fraud_threshold,
        "decision_latency_ms": kpi.mean_latency_ms(ledger) if ledger else None,
        "latency_ms": kpi.latency_quantiles_ms(ledger.latency if ledger else {}),
        "model_version": snapshot.models.current if snapshot.models else None,
        "drift": {"status": drift.status if drift else None, "score_psi": drift.score_psi if drift else None},
        "labels": {
            "true_positives": labelled.tp if labelled else None,
            "false_positives": labelled.fp if labelled else None,
            "true_negatives": labelled.tn if labelled else None,
            "false_negatives": labelled.fn if labelled else None,
            "pending": labelled.pending if labelled else None,
            "in_sample": _outcomes(labelled.in_sample) if labelled else None,
            "unlabelled": ledger.unlabelled if ledger else None,
        },
    }


def _outcomes(outcomes: Any) -> int:
    return int(outcomes.tp + outcomes.fp + outcomes.tn + outcomes.fn)


def risk_concentration(ledger: LedgerFile | None) -> Payload:
    if ledger is None:
        return dict.fromkeys(
            ("top_1_percent_txns", "top_1_percent_fraud_amount", "total_fraud_amount",
             "concentration_percentage", "pattern_alert")
        )  # fmt: skip
    found = kpi.concentration(ledger.flagged_amounts)
    return {
        "top_1_percent_txns": found.top_count,
        "top_1_percent_fraud_amount": found.top_amount,
        "total_fraud_amount": found.total_amount,
        "concentration_percentage": None if found.share is None else found.share * 100,
        "pattern_alert": pattern_alert(ledger, found),
    }


def pattern_alert(ledger: LedgerFile, found: kpi.Concentration) -> str | None:
    """A line where the dearest 1 % of flagged transactions hold a tenth of the flagged dollars or more."""
    if found.share is None or found.share < CONCENTRATED_SHARE:
        return None
    line = (
        f"{found.top_count:,} of {ledger.flagged_count:,} flagged transactions hold "
        f"{found.share:.1%} of flagged dollars"
    )
    leaders = []
    for groups in (ledger.categories, ledger.states):
        risks = kpi.by_flagged_amount(groups)
        if risks and found.total_amount:
            leaders.append(f"{risks[0].name.replace('_', ' ')} ({risks[0].amount / found.total_amount:.0%})")
    return f"{line}; most by category and state: {', '.join(leaders)}" if leaders else line


def kpi_list(known: dict[str, kpi.Value], ledger: LedgerFile | None) -> list[Payload]:
    listed = [{**one._asdict(), "value": known[one.key]} for one in kpi.KPIS]
    listed[3]["details"] = kpi.latency_quantiles_ms(ledger.latency if ledger else {})
    return listed


def metadata(ledger: LedgerFile | None, snapshot: Snapshot, settings: Settings) -> Payload:
    return {
        "total_transactions": ledger.transactions_analyzed if ledger else None,
        "total_amount": ledger.amount_total if ledger else None,
        "high_risk_count": ledger.flagged_count if ledger else None,
        "threshold": settings.fraud_threshold,
        "elapsed_hours": kpi.elapsed_hours(ledger) if ledger else None,
        "timestamp": iso(snapshot.time),
        "data_source": f"ledger, epoch {ledger.epoch}, version {ledger.version}" if ledger else None,
        "dead_rows": sum(dead.rows + dead.rejected_rows for dead in ledger.dead.values()) if ledger else None,
    }


def _percent(part: float, whole: float) -> float | None:
    return part / whole * 100 if whole else None
