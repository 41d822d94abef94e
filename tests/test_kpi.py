"""The 17 KPIs against the result files, by another road: polars over every row."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import DELAY_US, Scorer

from spearhead import kpi
from spearhead.aggregate import AmountBucket, amount_bucket, latency_bucket
from spearhead.ledger import LedgerFile, empty_ledger, read_ledger
from spearhead.volume import Volume

START_US = 1_760_000_000_000_000


@pytest.fixture
def scored(volume: Volume) -> tuple[LedgerFile, pl.DataFrame]:
    """A finite run of 5 segments over 3 minutes, the first two in sample, labels of the last hour not mature."""
    scorer = Scorer(volume)
    for number, rows in enumerate((1500, 1, 900, 2000, 777)):
        scorer.score(
            rows, scored_at=START_US + number * 40_000_000, train_end=1_700_000_000_000_000 + 1501 * 60_000_000
        )
    scorer.fold()
    ledger = read_ledger(volume)
    assert ledger is not None
    return ledger, results(volume)


def results(volume: Volume) -> pl.DataFrame:
    """Every row of a volume's results."""
    paths = sorted(Path(volume.results / "ready").rglob("*.arrow"))
    return pl.concat([pl.read_ipc(path).with_columns(pl.col(pl.Categorical).cast(pl.String)) for path in paths])


def test_sums_equal_a_recomputation(scored: tuple[LedgerFile, pl.DataFrame]) -> None:
    ledger, rows = scored
    values = kpi.values(ledger, newest_minute(rows), None)
    flagged = rows.filter(pl.col("risk_score").cast(pl.Float64) >= 0.52)
    assert 100 < flagged.height < rows.height
    assert values["transactions_analyzed"] == rows.height == 5178
    assert values["high_risk_flagged"] == flagged.height
    assert values["fraud_exposure_identified"] == round(flagged["amt"].sum(), 2)
    assert values["fraud_rate"] == pytest.approx(flagged["amt"].sum() / rows["amt"].sum(), rel=1e-12)
    assert values["alerts_per_million"] == pytest.approx(flagged.height / rows.height * 1e6, rel=1e-12)
    assert values["high_risk_txn_rate"] == pytest.approx(flagged.height / rows.height, rel=1e-12)
    hours = (rows["scored_at"].max() - rows["scored_at"].min()).total_seconds() / 3600
    assert hours == pytest.approx(160 / 3600)
    assert values["projected_annual_savings"] == pytest.approx(flagged["amt"].sum() / hours * 8760, rel=1e-9)


def test_latency_equals_a_recomputation(scored: tuple[LedgerFile, pl.DataFrame]) -> None:
    ledger, rows = scored
    waited = (rows["scored_at"] - rows["ingested_at"]).dt.total_microseconds() / 1000
    assert kpi.mean_latency_ms(ledger) == pytest.approx(waited.mean(), rel=1e-9)
    for name, value in kpi.latency_quantiles_ms(ledger.latency).items():
        exact = waited.quantile(kpi.QUANTILES[name], interpolation="higher")
        assert value == pytest.approx(exact, rel=0.0101)


def test_labels_equal_a_recomputation(scored: tuple[LedgerFile, pl.DataFrame]) -> None:
    ledger, rows = scored
    hour = 3_600_000_000
    watermark = rows["event_time"].dt.timestamp("us").max()
    matured = rows.with_columns(
        end=(pl.col("event_time").dt.timestamp("us") // hour + 1) * hour,
        flagged=pl.col("risk_score").cast(pl.Float64) >= 0.52,
    ).filter(pl.col("end") + DELAY_US <= watermark)
    out = matured.filter(pl.col("event_time").dt.timestamp("us") > 1_700_000_000_000_000 + 1501 * 60_000_000)
    assert 0 < out.height < matured.height < rows.height
    tp = out.filter(pl.col("flagged") & pl.col("is_fraud")).height
    fp = out.filter(pl.col("flagged") & ~pl.col("is_fraud")).height
    fn = out.filter(~pl.col("flagged") & pl.col("is_fraud")).height
    tn = out.filter(~pl.col("flagged") & ~pl.col("is_fraud")).height
    assert kpi.precision(ledger) == tp / (tp + fp)
    assert kpi.recall(ledger) == tp / (tp + fn)
    assert kpi.false_positive_rate(ledger) == fp / (fp + tn)
    assert kpi.accuracy(ledger) == (tp + tn) / out.height
    assert ledger.labelled.pending == rows.height - matured.height


def test_tables_equal_a_recomputation(scored: tuple[LedgerFile, pl.DataFrame]) -> None:
    ledger, rows = scored
    values = kpi.values(ledger, newest_minute(rows), None)
    flagged = rows.filter(pl.col("decision") == "flagged")
    for key, column in (("category_risk", "category"), ("state_risk", "state")):
        table = values[key]
        assert isinstance(table, list)
        assert {row[column] for row in table} == set(rows[column])  # complete, not only the top
        exact = {name: (round(amount, 2), count) for name, amount, count in
                 flagged.group_by(column).agg(pl.col("amt").sum(), pl.len()).iter_rows()}  # fmt: skip
        assert {row[column]: (row["amount"], row["count"]) for row in table if row["count"]} == exact
        amounts = [row["amount"] for row in table]
        assert amounts == sorted(amounts, reverse=True)


def test_distribution_and_velocity_equal_a_recomputation(scored: tuple[LedgerFile, pl.DataFrame]) -> None:
    ledger, rows = scored
    values = kpi.values(ledger, newest_minute(rows), None)
    scores = [min(int(score * 20), 19) for score in rows["risk_score"].cast(pl.Float64)]
    distribution = values["risk_distribution"]
    assert isinstance(distribution, dict)
    assert [row["count"] for row in distribution["bins"]] == [Counter(scores)[number] for number in range(20)]
    assert [row["bin"] for row in distribution["bins"]][:2] == ["0.00-0.05", "0.05-0.10"]
    score = pl.col("risk_score").cast(pl.Float64)
    bands = [
        rows.filter(score < 0.6).height,
        rows.filter((score >= 0.6) & (score < 0.9)).height,
        rows.filter(score >= 0.9).height,
    ]
    assert list(distribution["bands"].values()) == bands
    minutes = (
        rows.filter(pl.col("decision") == "flagged")
        .group_by(pl.col("scored_at").dt.timestamp("us") // 60_000_000)
        .len()
    )
    exact = {minute * 60: count for minute, count in minutes.iter_rows()}
    velocity = values["fraud_velocity"]
    assert isinstance(velocity, list)
    assert len(velocity) == 30
    assert {row["minute"]: row["count"] for row in velocity if row["count"]} == exact
    assert len(exact) == 4  # the run crosses three minute boundaries


def test_concentration_is_within_one_percent(scored: tuple[LedgerFile, pl.DataFrame]) -> None:
    ledger, rows = scored
    amounts = sorted(rows.filter(pl.col("decision") == "flagged")["amt"], reverse=True)
    top = math.ceil(len(amounts) / 100)
    assert kpi.values(ledger, 0, None)["risk_concentration"] == pytest.approx(
        sum(amounts[:top]) / sum(amounts), rel=0.01
    )


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=400))
def test_concentration_of_any_amounts(cents: list[int]) -> None:
    buckets: dict[str, AmountBucket] = {}
    for amount in cents:
        bucket = buckets.setdefault(str(amount_bucket(amount)), AmountBucket())
        bucket.count += 1
        bucket.cents += amount
    found = kpi.concentration(buckets)
    top = sorted(cents, reverse=True)[: math.ceil(len(cents) / 100)]
    assert found.top_count == len(top)
    assert found.total_amount == sum(cents) / 100
    assert found.top_amount == pytest.approx(sum(top) / 100, rel=0.01, abs=0.01)
    assert found.share == pytest.approx(sum(top) / sum(cents), rel=0.01)


@given(st.lists(st.integers(2, 10**10), min_size=1, max_size=300))
def test_latency_quantiles_of_any_latencies(waited: list[int]) -> None:
    found = kpi.latency_quantiles_ms(Counter(str(latency_bucket(us)) for us in waited))
    for name, quantile in kpi.QUANTILES.items():
        exact = sorted(waited)[math.ceil(quantile * len(waited)) - 1]
        assert found[name] == pytest.approx(exact / 1000, rel=0.011)


def test_nothing_scored_is_zero_or_null_never_made_up() -> None:
    values = kpi.values(empty_ledger(1), 29_000_000, None)
    assert values["transactions_analyzed"] == 0
    assert values["fraud_exposure_identified"] == 0
    undefined = ("fraud_rate", "alerts_per_million", "high_risk_txn_rate", "projected_annual_savings", "precision",
                 "recall", "false_positive_rate", "decision_latency_ms", "risk_concentration",
                 "flashblade_util")  # fmt: skip
    assert {key: values[key] for key in undefined} == dict.fromkeys(undefined)
    assert kpi.latency_quantiles_ms({}) == {"p50": None, "p95": None, "p99": None}


def test_one_moment_is_no_time_to_project_from(volume: Volume) -> None:
    scorer = Scorer(volume)
    scorer.score(500)
    scorer.fold()
    ledger = read_ledger(volume)
    assert ledger is not None
    assert ledger.flagged_count > 0
    assert kpi.projected_annual_savings(ledger) is None


def test_there_are_seventeen_in_order() -> None:
    assert [one.id for one in kpi.KPIS] == list(range(1, 18))
    assert set(kpi.unknown()) == {one.key for one in kpi.KPIS} == set(kpi.values(empty_ledger(1), 0, 12.5))
    assert kpi.values(empty_ledger(1), 0, 12.5)["flashblade_util"] == 12.5


def newest_minute(rows: pl.DataFrame) -> int:
    newest = rows["scored_at"].dt.timestamp("us").max()
    assert isinstance(newest, int)
    return newest // 60_000_000
