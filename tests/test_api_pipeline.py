"""The api on top of the real pipeline: KPIs of a finite run against its result files, ingest to decision."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from processes import Up, verified, wait_until
from sparkov import rows
from test_api import Api
from test_api_server import free_port
from test_kpi import results

from spearhead.volume import Volume


@pytest.fixture(scope="module")
def finite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume on which the real slice was replayed to its end, in several segments."""
    source = Path(__file__).parent.parent.parent / "shared" / "data" / "sparkov_slice.csv"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    root = tmp_path_factory.mktemp("finite") / "volume"
    pipeline = Up(root, "--source", str(source), "--once", "--no-api", SEGMENT_ROWS=2_000)
    assert pipeline.wait() == 0, pipeline.output
    return root


def test_every_kpi_of_a_finite_run_equals_a_recomputation(finite: Path) -> None:
    volume = Volume(finite)
    api = Api(volume)
    with api.client:
        answer = api.get("/api/business/metrics")
    found = {kpi["key"]: kpi["value"] for kpi in answer["kpis"]}
    scored = results(volume).with_columns(pl.col("risk_score").cast(pl.Float64))
    flagged = scored.filter(pl.col("risk_score") >= 0.52)
    total, exposure = round(scored["amt"].sum(), 2), round(flagged["amt"].sum(), 2)
    assert found["transactions_analyzed"] == scored.height == 13_614
    assert found["high_risk_flagged"] == flagged.height > 0
    assert found["fraud_exposure_identified"] == exposure
    assert answer["metadata"]["total_amount"] == total == 994_152.17
    assert found["fraud_rate"] == pytest.approx(exposure / total, rel=1e-12)
    assert found["alerts_per_million"] == pytest.approx(flagged.height / scored.height * 1e6, rel=1e-12)
    assert found["high_risk_txn_rate"] == pytest.approx(flagged.height / scored.height, rel=1e-12)
    waited = (scored["scored_at"] - scored["ingested_at"]).dt.total_microseconds().clip(0)
    assert found["decision_latency_ms"] == pytest.approx(waited.mean() / 1000, rel=1e-9)
    hours = (scored["scored_at"].max() - scored["scored_at"].min()).total_seconds() / 3600
    expected = exposure / hours * 8760 if hours else None
    assert found["projected_annual_savings"] == (expected if expected is None else pytest.approx(expected, rel=1e-6))
    bins = [0] * 20
    for score in scored["risk_score"]:
        bins[min(int(score * 20), 19)] += 1
    assert [row["count"] for row in found["risk_distribution"]["bins"]] == bins
    for key, column in (("category_risk", "category"), ("state_risk", "state")):
        exact = {
            name: round(amount, 2) for name, amount in flagged.group_by(column).agg(pl.col("amt").sum()).iter_rows()
        }
        assert {row[column]: row["amount"] for row in found[key] if row["count"]} == exact
        assert {row[column] for row in found[key]} == set(scored[column])
    amounts = sorted(flagged["amt"], reverse=True)
    share = sum(amounts[: math.ceil(len(amounts) / 100)]) / exposure
    assert found["risk_concentration"] == pytest.approx(share, rel=0.01)
    # The model was trained on all of this event time: nothing is out of sample, nothing can be said.
    assert (found["precision"], found["recall"], found["false_positive_rate"]) == (None, None, None)
    assert answer["ml_details"]["labels"]["in_sample"] == 13_614


def test_rows_sent_by_a_client_that_dies_and_a_dropped_file_are_all_decided(
    finite: Path, up: Callable[..., Up], tmp_path: Path
) -> None:
    port = free_port()
    pipeline = up("--rate", "0", "--model", str(finite / "models"), "--no-train", "--port", str(port),
                  API_TOKEN="secret", CARDS=100, MERCHANTS=20)  # fmt: skip
    wait_until(lambda: answers(port, "/readyz"), f"the api is ready\n{pipeline.output}")
    sent = [record | {"trans_num": f"http-{i}"} for i, record in enumerate(rows(500))]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/transactions",
        json.dumps(sent).encode(),
        {"Authorization": "Bearer secret", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 202
    dropped = [record | {"trans_num": f"file-{i}"} for i, record in enumerate(rows(300))]
    part = pipeline.root / "raw-data" / "inbox" / "rows.ndjson.part"
    part.write_text("".join(json.dumps(record) + "\n" for record in dropped))
    part.rename(part.with_suffix(""))
    wait_until(
        lambda: (answers(port, "/api/business/metrics") or {}).get("transactions_analyzed") == 800,
        f"every row is counted\n{pipeline.output}",
    )
    for number in ("http-0", "http-499", "file-0", "file-299"):
        assert answers(port, f"/api/transactions/{number}")["decision"] in ("approved", "flagged")
    assert list((pipeline.root / "raw-data" / "inbox").iterdir()) == []
    assert pipeline.stop() == 0
    assert verified(pipeline.root)["ok"]
    assert results(Volume(pipeline.root))["trans_num"].n_unique() == 800


def answers(port: int, path: str) -> Any:
    """The answer, or None where there is none yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return json.load(answer)
    except (urllib.error.HTTPError, OSError):
        return None
