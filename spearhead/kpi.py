"""The 17 KPIs, from one version of the ledger: pure functions, each value from data or None.

Money is dollars, rates are fractions, times are milliseconds or hours as the names say. ``docs/KPIS.md`` has the
formulas, and which clock each uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from spearhead.aggregate import (
    LATENCY_GROWTH,
    MICRO,
    SCORE_BINS,
    AmountBucket,
    Group,
)
from spearhead.ledger import LedgerFile

HOURS_A_YEAR: Final = 8_760
HOUR_US: Final = 3_600_000_000
TOP_SHARE: Final = 0.01  # of the flagged transactions, by amount: KPI 13
BANDS: Final = ("low", "medium", "high")  # score < 0.6 <= medium < 0.9 <= high
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

Value = float | int | None | list[dict[str, object]] | dict[str, object]


class Kpi(NamedTuple):
    """One of the 17: what it is. ``unit`` is that of its value."""

    id: int
    key: str
    name: str
    unit: str
    formula: str


KPIS: Final = (
    Kpi(1, "fraud_exposure_identified", "Fraud exposure identified", "USD", "Σ amount of flagged transactions"),
    Kpi(2, "transactions_analyzed", "Transactions analysed", "transactions", "count of scored transactions"),
    Kpi(3, "high_risk_flagged", "High-risk flagged", "transactions", "count with risk score ≥ threshold"),
    Kpi(4, "decision_latency_ms", "Decision latency", "ms", "mean of (decision time − ingest time)"),
    Kpi(5, "precision", "Precision at threshold", "ratio", "TP / (TP + FP), matured labels, out of sample"),
    Kpi(6, "fraud_rate", "Fraud rate ($)", "ratio", "Σ amount flagged / Σ amount"),
    Kpi(7, "alerts_per_million", "Alerts per 1 M", "alerts per million", "flagged / count × 10⁶"),
    Kpi(8, "high_risk_txn_rate", "High-risk transaction rate", "ratio", "flagged / count"),
    Kpi(
        9,
        "projected_annual_savings",
        "Annual savings",
        "USD per year",
        "fraud exposure / hours elapsed × 8,760; hours of wall time from the first decision to the last",
    ),
    Kpi(
        10,
        "risk_distribution",
        "Risk distribution",
        "transactions",
        "count per score bin (20), and low < 0.6 ≤ medium < 0.9 ≤ high",
    ),
    Kpi(11, "fraud_velocity", "Fraud velocity", "transactions per minute", "flagged per wall-clock minute"),
    Kpi(12, "category_risk", "Category risk", "USD", "Σ amount flagged, by category"),
    Kpi(
        13,
        "risk_concentration",
        "Risk concentration",
        "ratio",
        "Σ amount of the top 1 % of flagged by amount / Σ amount flagged",
    ),
    Kpi(14, "state_risk", "State risk", "USD", "Σ amount flagged, by state"),
    Kpi(15, "recall", "Recall", "ratio", "TP / (TP + FN), matured labels, out of sample"),
    Kpi(16, "false_positive_rate", "False positive rate", "ratio", "FP / (FP + TN), matured labels, out of sample"),
    Kpi(17, "flashblade_util", "Volume utilisation", "percent", "measured bytes/s / configured maximum × 100"),
)


class Concentration(NamedTuple):
    """KPI 13. ``top_amount`` is exact but for one bucket of 1 % width."""

    top_count: int
    top_amount: float | None  # dollars
    total_amount: float  # dollars
    share: float | None


class GroupRisk(NamedTuple):
    """Flagged transactions of one category or state."""

    name: str
    amount: float  # dollars
    flagged: int
    avg_score: float | None  # 0 to 1
    transactions: int


def ratio(part: float, whole: float) -> float | None:
    """``part / whole``; None where that is not defined."""
    return part / whole if whole else None


def dollars(cents: int) -> float:
    """To the cent."""
    return cents / 100


def fraud_rate(ledger: LedgerFile) -> float | None:
    return ratio(ledger.flagged_amount_cents, ledger.amount_total_cents)


def high_risk_txn_rate(ledger: LedgerFile) -> float | None:
    return ratio(ledger.flagged_count, ledger.transactions_analyzed)


def alerts_per_million(ledger: LedgerFile) -> float | None:
    return ratio(ledger.flagged_count * 1_000_000, ledger.transactions_analyzed)


def elapsed_hours(ledger: LedgerFile) -> float | None:
    """Wall-clock hours between the first and the last decision; None without rows."""
    return (ledger.last_scored_at - ledger.first_scored_at) / HOUR_US if ledger.first_scored_at else None


def projected_annual_savings(ledger: LedgerFile) -> float | None:
    """Dollars a year at the pace so far; None before any wall time has passed."""
    hours = elapsed_hours(ledger)
    return dollars(ledger.flagged_amount_cents) / hours * HOURS_A_YEAR if hours else None


def precision(ledger: LedgerFile) -> float | None:
    labelled = ledger.labelled
    return ratio(labelled.tp, labelled.tp + labelled.fp)


def recall(ledger: LedgerFile) -> float | None:
    labelled = ledger.labelled
    return ratio(labelled.tp, labelled.tp + labelled.fn)


def false_positive_rate(ledger: LedgerFile) -> float | None:
    labelled = ledger.labelled
    return ratio(labelled.fp, labelled.fp + labelled.tn)


def accuracy(ledger: LedgerFile) -> float | None:
    labelled = ledger.labelled
    return ratio(labelled.tp + labelled.tn, labelled.tp + labelled.fp + labelled.tn + labelled.fn)


def mean_latency_ms(ledger: LedgerFile) -> float | None:
    return ratio(ledger.latency_us / 1000, ledger.transactions_analyzed)


def latency_quantiles_ms(buckets: Mapping[str, int]) -> dict[str, float | None]:
    """p50, p95 and p99 of a latency histogram, in ms, each within 1 % of the true quantile.

    The quantile q of n rows is the ceil(q n)-th smallest; it is told as the geometric middle of its bucket.
    """
    rows = sorted((int(bucket), count) for bucket, count in buckets.items() if count > 0)
    total = sum(count for _, count in rows)
    found: dict[str, float | None] = {}
    for name, quantile in QUANTILES.items():
        wanted = math.ceil(quantile * total)
        value = None
        for bucket, count in rows:
            wanted -= count
            if wanted <= 0:
                value = LATENCY_GROWTH ** (bucket + 0.5) / 1000
                break
        found[name] = value
    return found


def concentration(buckets: Mapping[str, AmountBucket]) -> Concentration:
    """The dearest 1 % (rounded up) of flagged transactions, from the histogram of their amounts.

    Buckets are 1 % wide: all amounts but those of the bucket that the limit falls into are summed exactly, and that
    one's rows are taken at its mean, so the error is below 1 %.
    """
    flagged = sum(bucket.count for bucket in buckets.values())
    total = sum(bucket.cents for bucket in buckets.values())
    top = math.ceil(flagged * TOP_SHARE)
    cents, left = 0.0, top
    for _, bucket in sorted(buckets.items(), key=lambda item: -int(item[0])):
        taken = min(left, bucket.count)
        cents += bucket.cents if taken == bucket.count else bucket.cents / bucket.count * taken
        left -= taken
        if not left:
            break
    if not flagged:
        return Concentration(0, None, 0.0, None)
    return Concentration(top, round(cents) / 100, dollars(total), ratio(cents, total))


def by_flagged_amount(groups: Mapping[str, Group]) -> list[GroupRisk]:
    """All groups, the most flagged dollars first."""
    risks = [
        GroupRisk(
            name,
            dollars(group.flagged_cents),
            group.flagged,
            ratio(group.flagged_score / MICRO, group.flagged),
            group.count,
        )
        for name, group in groups.items()
    ]
    return sorted(risks, key=lambda risk: (-risk.amount, -risk.flagged, risk.name))


def bin_label(number: int) -> str:
    """``0.05-0.10`` for bin 1 of 20."""
    return f"{number / SCORE_BINS:.2f}-{(number + 1) / SCORE_BINS:.2f}"


def flagged_by_minute(ledger: LedgerFile, newest: int, minutes: int) -> list[tuple[int, int]]:
    """(minute since 1970, flagged) of the ``minutes`` up to and with ``newest``, oldest first."""
    wanted = range(newest - minutes + 1, newest + 1)
    return [(minute, group.flagged if (group := ledger.minutes.get(str(minute))) else 0) for minute in wanted]


def values(ledger: LedgerFile, newest_minute: int, volume_util_percent: float | None) -> dict[str, Value]:
    """The value of every KPI by its key. Tables are complete; ``newest_minute`` ends the velocity's 30 minutes."""
    return {
        "fraud_exposure_identified": dollars(ledger.flagged_amount_cents),
        "transactions_analyzed": ledger.transactions_analyzed,
        "high_risk_flagged": ledger.flagged_count,
        "decision_latency_ms": mean_latency_ms(ledger),
        "precision": precision(ledger),
        "fraud_rate": fraud_rate(ledger),
        "alerts_per_million": alerts_per_million(ledger),
        "high_risk_txn_rate": high_risk_txn_rate(ledger),
        "projected_annual_savings": projected_annual_savings(ledger),
        "risk_distribution": {
            "bins": [{"bin": bin_label(number), "count": count} for number, count in enumerate(ledger.score_bins)],
            "bands": dict(zip(BANDS, ledger.bands, strict=True)),
        },
        "fraud_velocity": [
            {"minute": minute * 60, "count": flagged}
            for minute, flagged in flagged_by_minute(ledger, newest_minute, 30)
        ],
        "category_risk": _table("category", ledger.categories),
        "risk_concentration": concentration(ledger.flagged_amounts).share,
        "state_risk": _table("state", ledger.states),
        "recall": recall(ledger),
        "false_positive_rate": false_positive_rate(ledger),
        "flashblade_util": volume_util_percent,
    }


def unknown() -> dict[str, Value]:
    """The values where nothing is known: None for a number, an empty list or table for the others."""
    lists: dict[str, Value] = {"fraud_velocity": [], "category_risk": [], "state_risk": []}
    lists["risk_distribution"] = {"bins": [], "bands": {}}
    return {kpi.key: lists.get(kpi.key) for kpi in KPIS}


def _table(what: str, groups: Mapping[str, Group]) -> list[dict[str, object]]:
    return [{what: risk.name, "amount": risk.amount, "count": risk.flagged} for risk in by_flagged_amount(groups)]
