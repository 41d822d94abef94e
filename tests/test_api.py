"""Every answer of the API: its fields, its states, and that a request never waits for the volume."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient
from ledgers import Scorer
from pydantic import BaseModel
from starlette.routing import Route

from services.api import schemas
from services.api.app import create_app
from spearhead.aggregate import MICRO, Aggregate, DriftDay, LabelDay
from spearhead.control import Control, read_control, write_control
from spearhead.drift import Edges, Reference, interval, psi
from spearhead.files import Files
from spearhead.heartbeat import Heartbeat, Roster
from spearhead.log import worker_logger
from spearhead.reasons import Reason
from spearhead.runner import iso_now
from spearhead.settings import Settings
from spearhead.volume import Volume

READS: dict[str, type[BaseModel]] = {
    "/api/business/metrics": schemas.BusinessMetrics,
    "/api/dashboard": schemas.Dashboard,
    "/api/backlog/status": schemas.BacklogStatus,
    "/api/backlog/pressure": schemas.BacklogPressure,
    "/api/history": schemas.History,
    "/api/model": schemas.ModelDetails,
}


class Api:
    """The application of one process on a volume, and a client of it."""

    def __init__(self, volume: Volume, **settings: Any) -> None:
        self.volume = volume
        self.settings = Settings(flashblade_path=volume.root, fsync=False, **settings)
        log = worker_logger(volume, "api", "test", "info", stdout=False)
        self.app = create_app(self.settings, volume, log)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def look(self) -> None:
        """Wait for a look at the volume that begins now."""
        self.app.state.context.reader.fresh(30.0)

    def get(self, path: str, **options: Any) -> Any:
        self.look()
        answer = self.client.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, token: str | None = "secret", body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return self.client.post(f"/api/control/{path}", json=body, headers=headers)


@pytest.fixture
def api(volume: Volume) -> Iterator[Api]:
    made = Api(volume, api_token="secret", flashblade_max_bytes_per_s=1_000_000)
    with made.client:
        yield made


@pytest.fixture
def scorer(volume: Volume) -> Scorer:
    """Two segments scored and folded; workers of all stages alive."""
    made = Scorer(volume)
    made.score(3000)
    made.score(2000)
    made.fold()
    beat_all(volume)
    return made


def beat_all(volume: Volume, *stages: str, **fields: Any) -> None:
    roster = Roster(volume, 15.0)
    for stage in stages or ("generator", "prep", "train", "inference"):
        roster.beat(
            Heartbeat(
                **{
                    "stage": stage, "worker": f"{stage}00", "epoch": volume.epoch(), "state": "running",
                    "rows_per_s": 1000.0, "cpu_cores": 0.5, "rss_bytes": 100_000_000, "started_at": iso_now(),
                    "read_bytes_per_s": 100_000.0, "write_bytes_per_s": 25_000.0,
                }
                | fields
            )
        )  # fmt: skip
    roster.close()


@pytest.mark.parametrize("path", READS)
def test_answers_have_every_field_with_its_type(api: Api, scorer: Scorer, path: str) -> None:
    READS[path].model_validate(api.get(path), strict=True)


@pytest.mark.parametrize("path", READS)
def test_answers_keep_their_shape_when_nothing_is_known(tmp_path: Path, path: str) -> None:
    away = Api(Volume(tmp_path / "nowhere"))
    with away.client:
        answer = away.get(path)
    READS[path].model_validate(answer, strict=True)
    assert answer["status"]["state"] == "unavailable"
    assert "volume" in answer["status"]["reasons"][0]


# What API.md promises; the names are copied from there.
CONTRACT = {
    "/api/business/metrics": (
        "fraud_exposure_identified fraud_rate alerts_per_million high_risk_txn_rate projected_annual_savings "
        "transactions_analyzed risk_score_distribution.bin risk_score_distribution.count "
        "risk_score_distribution.percentage risk_score_distribution.score fraud_velocity.timestamp fraud_velocity.time "
        "fraud_velocity.count fraud_velocity.score risk_signals_by_category.category risk_signals_by_category.amount "
        "risk_signals_by_category.count risk_signals_by_category.avg_risk_score risk_signals_by_category.score "
        "recent_risk_signals.risk_score recent_risk_signals.merchant recent_risk_signals.category "
        "recent_risk_signals.cc_num_masked recent_risk_signals.state recent_risk_signals.cardholder "
        "recent_risk_signals.amount recent_risk_signals.timestamp recent_risk_signals.seconds_ago "
        "recent_risk_signals.reasons ml_details.precision ml_details.recall ml_details.accuracy "
        "ml_details.false_positive_rate ml_details.threshold ml_details.decision_latency_ms ml_details.model_version "
        "risk_concentration.top_1_percent_txns risk_concentration.top_1_percent_fraud_amount "
        "risk_concentration.total_fraud_amount risk_concentration.concentration_percentage "
        "risk_concentration.pattern_alert state_risk.rank state_risk.state state_risk.fraud_amount state_risk.count "
        "kpis.id kpis.key kpis.name kpis.value kpis.unit kpis.formula metadata.total_transactions "
        "metadata.high_risk_count metadata.threshold metadata.elapsed_hours metadata.timestamp metadata.data_source"
    ),
    "/api/dashboard": (
        "pipeline.status pipeline.uptime_seconds pipeline.current_stage progress.data_ingestion progress.preprocessing "
        "progress.training progress.inference utilization.cpu_cores utilization.ram_percent utilization.ram_gb "
        "throughput.current throughput.peak throughput.unit business_metrics.total_transactions "
        "business_metrics.fraud_detected business_metrics.fraud_rate business_metrics.total_amount "
        "business_metrics.fraud_amount queue_backlogs.raw_transactions queue_backlogs.features_ready "
        "queue_backlogs.inference_results queue_backlogs.training_queue pod_counts.generation "
        "pod_counts.preprocessing pod_counts.training pod_counts.inference system_config.generation_rate "
        "system_config.system_priority flashblade.read_bytes_per_s flashblade.write_bytes_per_s "
        "flashblade.util_percent flashblade.free_bytes"
    ),
    "/api/backlog/status": "raw_transactions features_ready inference_results training_queue timestamp",
    "/api/backlog/pressure": (
        "overall_pressure queues.raw_transactions.backlog queues.raw_transactions.threshold_warning "
        "queues.raw_transactions.threshold_critical queues.raw_transactions.pressure_percent "
        "queues.raw_transactions.status queues.features_ready.backlog queues.inference_results.backlog alerts "
        "recommendations recommended_replicas.preprocessing recommended_replicas.inference"
    ),
}


@pytest.mark.parametrize("path", CONTRACT)
def test_every_field_of_the_contract_is_there(api: Api, scorer: Scorer, path: str) -> None:
    answer = api.get(path)
    for field in CONTRACT[path].split():
        value = answer
        for name in field.split("."):
            value = value[0] if isinstance(value, list) else value
            assert name in value, field
            value = value[name]


def test_business_numbers_are_those_of_the_ledger(api: Api, scorer: Scorer) -> None:
    answer = api.get("/api/business/metrics")
    assert answer["transactions_analyzed"] == 5000
    assert answer["status"] == answer["status"] | {"state": "no_model", "epoch": 1}
    assert sum(row["count"] for row in answer["risk_score_distribution"]) == 5000
    assert sum(row["count"] for row in answer["fraud_velocity"]) == answer["metadata"]["high_risk_count"]
    assert [row["time"] for row in answer["fraud_velocity"]] == [f"-{n}m" for n in range(29, -1, -1)]
    assert len(answer["recent_risk_signals"]) == 10
    assert len(answer["state_risk"]) == 8
    assert [row["rank"] for row in answer["state_risk_all"]] == list(range(1, 52))
    assert answer["ml_details"]["latency_ms"]["p50"] < answer["ml_details"]["latency_ms"]["p99"]
    signal = answer["recent_risk_signals"][0]
    assert signal["cc_num_masked"].startswith("***")
    assert len(signal["cc_num_masked"]) == 7
    assert signal["cardholder"].endswith(".")


def test_utilisation_is_null_without_a_maximum_and_measured_with_one(volume: Volume, api: Api, scorer: Scorer) -> None:
    assert api.get("/api/dashboard")["flashblade"]["util_percent"] == pytest.approx(4 * 125_000 / 1_000_000 * 100)
    unlimited = Api(volume)
    with unlimited.client:
        assert unlimited.get("/api/business/metrics")["kpis"][16]["value"] is None


def test_requests_do_not_touch_the_volume(api: Api, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    api.look()
    api.app.state.context.reader.stop()
    loop_thread: list[str] = []
    real = os.stat

    def watched(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(api.volume.root)):
            loop_thread.append(f"{threading.current_thread().name}: {path}")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", watched)
    monkeypatch.setattr(Path, "read_bytes", lambda path: loop_thread.append(str(path)))
    for path in READS:
        assert api.client.get(path).status_code == 200
    assert loop_thread == []


def test_an_answer_is_serialised_once_for_a_snapshot(api: Api, scorer: Scorer) -> None:
    api.look()
    api.app.state.context.reader.stop()
    context = api.app.state.context
    assert context.answers().bytes("business") is context.answers().bytes("business")


# States


def test_a_corrupt_metrics_file_is_said_and_the_totals_come_from_a_version(api: Api, scorer: Scorer) -> None:
    api.volume.metrics_json.write_bytes(b'{"format": 1, "epoch"')
    answer = api.get("/api/business/metrics")
    assert answer["transactions_analyzed"] == 5000
    assert ".metrics.json is damaged" in " ".join(answer["status"]["reasons"])
    api.volume.metrics_json.write_bytes(b"\x00" * 100)
    for version in api.volume.ledger.iterdir():
        version.write_bytes(b"\xff\x00")
    with (blind := Api(api.volume)).client:
        answer = blind.get("/api/business/metrics")
    assert answer["status"]["state"] == "unavailable"
    assert answer["transactions_analyzed"] is None
    assert answer["recent_risk_signals"] == []


def test_before_the_first_model_the_way_to_it_is_told(api: Api, scorer: Scorer) -> None:
    beat_all(api.volume, "train", figures={"matured_rows": 12_400, "needed_rows": 20_000})
    answer = api.get("/api/dashboard")
    assert answer["status"]["reasons"] == ["no model yet: 12,400 of 20,000 matured rows"]
    assert answer["model"] == {
        "version": None, "progress": "no model yet: 12,400 of 20,000 matured rows", "matured_rows": 12_400,
        "needed_rows": 20_000,
    }  # fmt: skip
    assert answer["progress"]["training"] == pytest.approx(62.0)


def test_an_outage_of_a_stage_is_said(api: Api, scorer: Scorer) -> None:
    put_model(api.volume)
    assert api.get("/api/dashboard")["status"]["state"] == "ok"
    (api.volume.workers / "inference-inference00.json").unlink()
    answer = api.get("/api/dashboard")
    assert answer["status"]["state"] == "degraded"
    assert answer["status"]["reasons"] == ["no inference worker is alive"]
    assert answer["pipeline"]["status"] == "degraded"
    assert answer["pod_counts"]["inference"] == 0


def test_an_unmounted_volume_is_said_and_comes_back(api: Api, scorer: Scorer) -> None:
    assert api.get("/api/business/metrics")["transactions_analyzed"] == 5000
    away = api.volume.root.with_name("away")
    api.volume.root.rename(away)
    answer = api.get("/api/business/metrics")
    assert answer["status"]["state"] == "unavailable"
    assert answer["transactions_analyzed"] is None
    assert api.client.get("/readyz").status_code == 503
    assert api.client.get("/healthz").json() == {"status": "alive"}
    away.rename(api.volume.root)
    assert api.get("/api/business/metrics")["transactions_analyzed"] == 5000
    assert api.client.get("/readyz").json() == {"ready": True, "reasons": []}


def test_a_volume_of_another_format_is_not_read(api: Api, scorer: Scorer) -> None:
    (api.volume.control / "format").write_text("99\n")
    assert "format '99'" in api.get("/api/dashboard")["status"]["reasons"][0]


def test_a_look_that_hangs_makes_the_numbers_unknown(api: Api, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    api.look()
    reader = api.app.state.context.reader
    reader.stop()
    old = reader.snapshot.at
    monkeypatch.setattr("services.api.reader.time.monotonic", lambda: old + 7.0)
    answer = api.client.get("/api/business/metrics").json()
    assert answer["status"]["reasons"] == ["volume: it has not answered for 7 s"]
    assert answer["transactions_analyzed"] is None


def test_not_ready_before_there_is_a_ledger(api: Api) -> None:
    api.look()
    answer = api.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"][0].startswith("no ledger yet")


def test_a_stale_ledger_is_said_and_not_ready(api: Api, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    put_model(api.volume)
    scorer.score(50)  # scored, and nobody folds
    monkeypatch.setattr("services.api.snapshot.STALE_SECONDS", -1.0)
    answer = api.get("/api/dashboard")
    assert answer["status"]["state"] == "degraded"
    assert "old while rows wait to be counted" in answer["status"]["reasons"][0]
    assert api.client.get("/readyz").status_code == 503
    scorer.fold()
    assert api.get("/api/dashboard")["status"]["state"] == "ok"  # old, but nothing waits
    assert api.client.get("/readyz").status_code == 200


# Pressure


@pytest.mark.parametrize(
    ("rows", "overall", "status"),
    [(0, "normal", "normal"), (60, "medium", "normal"), (100, "high", "warning"), (200, "critical", "critical")],
)
def test_pressure_by_threshold(volume: Volume, rows: int, overall: str, status: str) -> None:
    api = Api(volume, inference_results_warning=100, inference_results_critical=200)
    scorer = Scorer(volume)
    if rows:
        scorer.score(rows)  # not folded: its rows wait for the ledger
    with api.client:
        answer = api.get("/api/backlog/pressure")
    assert answer["overall_pressure"] == overall
    queue = answer["queues"]["inference_results"]
    assert (queue["backlog"], queue["status"], queue["pressure_percent"]) == (rows, status, rows / 2)
    assert [alert["severity"] for alert in answer["alerts"]] == ([] if status == "normal" else [status])
    assert bool(answer["recommendations"]) == (status != "normal")


# Control


def test_control_is_closed_without_a_configured_token(volume: Volume) -> None:
    api = Api(volume)
    with api.client:
        for path in ("start", "stop", "reset", "throttle", "priority"):
            answer = api.post(path, "anything", {"rate": 1, "priority": "balanced"})
            assert (answer.status_code, answer.json()["success"]) == (403, False)
    assert read_control(volume) == Control()
    assert volume.epoch() == 1


@pytest.mark.parametrize("token", [None, "", "Secret", "secre", "secret2", "ü"])
def test_a_wrong_token_changes_nothing(api: Api, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": b"Bearer " + token.encode()}
    answer = api.client.post("/api/control/stop", headers=headers)
    assert (answer.status_code, answer.json()["success"]) == (401, False)
    assert read_control(api.volume).running


def test_stop_and_start(api: Api, scorer: Scorer) -> None:
    assert api.post("stop").json() == {"success": True, "message": "the stages are idle", "running": False}
    assert not read_control(api.volume).running
    assert api.get("/api/dashboard")["pipeline"]["status"] == "stopped"
    again = api.post("stop")
    assert (again.status_code, again.json()) == (409, {"success": False, "error": "the pipeline is stopped already"})
    assert api.post("start").status_code == api.post("start").status_code == 200
    assert read_control(api.volume).running


@pytest.mark.parametrize(("rate", "said", "kept"), [(50_000, 50_000.0, "50000"), ("max", "max", "max"), (0, 0.0, "0"),
                                                    ("1e3", 1000.0, "1000"), (0.5, 0.5, "0.5")])  # fmt: skip
def test_throttle(api: Api, rate: Any, said: Any, kept: str) -> None:
    assert api.post("throttle", body={"rate": rate}).json() == {"success": True, "rate": said}
    assert read_control(api.volume).rate == kept
    headers = {"Authorization": "Bearer secret"}
    assert api.client.get("/api/control/throttle", headers=headers).json()["rate"] == said
    assert api.get("/api/dashboard")["system_config"]["generation_rate"] == said


@pytest.mark.parametrize("rate", [-1, "fast", None, True, [1], {"a": 1}, "nan", "inf", 1e999])
def test_a_bad_rate_is_refused(api: Api, rate: Any) -> None:
    answer = api.client.post(
        "/api/control/throttle",
        content=json.dumps({"rate": rate}),
        headers={"Authorization": "Bearer secret", "Content-Type": "application/json"},
    )
    assert (answer.status_code, answer.json()["success"]) == (400, False)
    assert read_control(api.volume).rate is None


def test_priority(api: Api) -> None:
    assert api.post("priority", body={"priority": "training"}).json() == {"success": True, "priority": "training"}
    headers = {"Authorization": "Bearer secret"}
    assert api.client.get("/api/control/priority", headers=headers).json() == {"success": True, "priority": "training"}
    for bad in ("fast", None, 1, ["training"]):
        assert api.post("priority", body={"priority": bad}).status_code == 400
    assert read_control(api.volume).priority == "training"


@pytest.mark.parametrize("path", ["throttle", "priority"])
def test_a_missing_field_is_422(api: Api, path: str) -> None:
    assert api.post(path, body={"other": 1}).status_code == 422


def test_reset_leaves_nothing_behind(api: Api, scorer: Scorer) -> None:
    assert api.get("/api/history")["inference"]
    assert api.post("reset").json()["epoch"] == 2
    answer = api.get("/api/business/metrics")
    assert answer["transactions_analyzed"] == 0
    assert answer["fraud_exposure_identified"] == 0
    assert answer["recent_risk_signals"] == []
    assert answer["risk_signals_by_category"] == []
    assert not any(row["count"] for row in answer["fraud_velocity"])
    history = api.get("/api/history")
    assert history["epoch"] == 2
    assert not any(history["raw_transactions"])
    assert api.get("/api/backlog/status")["raw_transactions"] == 0


def test_orders_are_audited_without_the_token(api: Api) -> None:
    api.post("throttle", body={"rate": 10})
    api.post("stop")
    api.post("stop")
    text = (api.volume.logs / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["action"], line["value"], line["outcome"]) for line in lines] == [
        ("throttle", "10", "done"),
        ("stop", None, "done"),
        ("stop", None, "refused: the pipeline is stopped already"),
    ]
    assert "secret" not in text


def test_an_order_mends_damaged_orders(api: Api) -> None:
    (api.volume.control / "orders.json").write_text("{")
    assert api.client.get("/api/control/priority", headers={"Authorization": "Bearer secret"}).status_code == 503
    assert api.post("throttle", body={"rate": 5}).status_code == 200
    assert read_control(api.volume) == Control(rate="5")


def test_two_orders_at_once_both_count(api: Api) -> None:
    for _ in range(20):
        write_control(api.volume, Control())
        threads = [
            threading.Thread(target=api.post, args=("throttle",), kwargs={"body": {"rate": 7}}),
            threading.Thread(target=api.post, args=("priority",), kwargs={"body": {"priority": "training"}}),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_control(api.volume) == Control(rate="7", priority="training")


def test_an_order_that_the_volume_cannot_take_is_503(api: Api) -> None:
    api.volume.root.rename(api.volume.root.with_name("away"))
    answer = api.post("stop")
    assert (answer.status_code, answer.json()["success"]) == (503, False)


# Everything


def test_every_route_is_in_openapi_with_an_example(api: Api) -> None:
    described = api.client.get("/openapi.json").json()["paths"]
    served = {route.path for route in api.app.routes if isinstance(route, Route)} - {
        "/", "/docs", "/openapi.json", "/docs/oauth2-redirect",
    }  # fmt: skip
    assert served <= set(described)
    for path, shape in READS.items():
        example = described[path]["get"]["responses"]["200"]["content"]["application/json"]["example"]
        shape.model_validate(example, strict=True)


def test_a_fault_is_told_in_the_contract_s_shape(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(api.app.state.context), "answers", lambda _: 1 / 0)
    answer = api.client.get("/api/dashboard")
    assert (answer.status_code, answer.json()["success"]) == (500, False)


VERDICT = {
    "promoted": False, "reason": "not better", "margin": 0.005, "version": "v000001", "confidence": None,
    "champion_average_precision": 0.62, "challenger_average_precision": 0.61, "champion_ece": 0.0004,
    "challenger_ece": 0.0005, "rows": 900, "frauds": 40, "seen_by_champion": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("trees", "told"), [({"trees": [5, 10]}, [5, 10]), ({}, [1, 2])], ids=["every five", "of a version before"]
)
def test_losses_are_told_with_the_trees_they_are_of(api: Api, trees: dict[str, list[int]], told: list[int]) -> None:
    assert api.get("/api/model")["loss_trees"] == []
    losses = {"train": {"logloss": [0.5, 0.4]}, "valid": {"logloss": [0.6, 0.5]}}
    put_model(api.volume, curves=trees | losses)
    api.look()
    answer = api.get("/api/model")
    assert answer["loss"] == {"train": [0.5, 0.4], "valid": [0.6, 0.5]}
    assert answer["loss_trees"] == told


def test_champion_and_challenger_are_told_apart(api: Api) -> None:
    bins = [{"low": 0.0, "high": 0.001, "rows": 9, "frauds": 0, "mean_score": 0.0002, "fraud_rate": 0.0}]
    calibration = {"slope": 1.1, "intercept": 0.2, "ece": 0.0004, "brier": 0.002, "bins": bins}
    by_category = {"travel": {"rows": 9, "frauds": 1, "average_precision": 0.5, "precision": None, "recall": 0.0}}
    put_model(api.volume, calibration=calibration, cost_optimal_threshold=0.03, by_category=by_category)
    rows = [{"threshold": 0.03, "precision": 0.5, "cost": 120.5}]
    (api.volume.models / "v000001" / "thresholds.json").write_text(json.dumps(rows))
    api.look()
    answer = api.get("/api/model")
    assert answer["champion"] == {
        "version": "v000001", "average_precision": 0.6, "ece": 0.0004, "brier": 0.002,
        "cost_optimal_threshold": 0.03, "verdict": None,
    }  # fmt: skip
    assert answer["calibration"] == calibration
    assert answer["thresholds"] == rows
    assert answer["cost_optimal_threshold"] == 0.03
    assert answer["by_category"] == by_category
    assert answer["challenger"] is None
    put_model(api.volume, "v000002", average_precision=0.59, calibration={"ece": 0.0006}, verdict=VERDICT)
    api.volume.files.replace(api.volume.models / "current", b"v000001\n")
    api.look()
    answer = api.get("/api/model")
    schemas.ModelDetails.model_validate(answer, strict=True)
    assert answer["champion"]["version"] == "v000001"
    assert answer["challenger"] == {
        "version": "v000002", "average_precision": 0.59, "ece": 0.0006, "verdict": VERDICT,
    }  # fmt: skip
    api.volume.files.replace(api.volume.models / "current", b"v000002\nbefore v000001\n")
    api.look()
    assert api.get("/api/model")["challenger"] is None, "the newest is in service"


def test_signals_say_why_and_what_has_no_reasons_is_counted(api: Api, volume: Volume) -> None:
    scorer = Scorer(volume)
    path = volume.pending / f"{scorer.score(1000)}.json"
    aggregate = msgspec.json.decode(path.read_bytes(), type=Aggregate)
    aggregate.reasons_computed, aggregate.reasons_deferred = 1, aggregate.flagged - 1
    newest = aggregate.signals[0]
    newest.reasons = [Reason("amt", newest.cents / 100 * 1.0009, 2.5), Reason("card_amt_ratio", 14.2, 0.5)]
    path.write_bytes(msgspec.json.encode(aggregate))
    scorer.fold()
    shown = {one["trans_num"]: one for one in api.get("/api/business/metrics")["recent_risk_signals"]}
    dollars = newest.cents / 100
    assert shown[newest.trans_num]["reasons"] == [
        {"code": "amount", "text": f"amount ${dollars:,.2f}", "feature": "amt", "value": dollars, "contribution": 2.5},
        {
            "code": "amount_for_card",
            "text": "amount 14× the card's usual",
            "feature": "card_amt_ratio",
            "value": 14.2,
            "contribution": 0.5,
        },
    ]
    assert [one["reasons"] for one in shown.values()].count([]) == len(shown) - 1 > 0
    summary = {"computed": 1, "deferred": aggregate.flagged - 1}
    assert api.get("/api/model")["reasons_summary"] == summary | {"at_look_up": None}, "no server tells"


def test_drift_is_told_in_full(api: Api, volume: Volume) -> None:
    """Nine days counted, seven of them whole, one by another model; labels of nine, the last still maturing."""
    edges = Edges(features=("home_km", "amt", "card_days"), ranks=((1,), (1,), ()), settled=(True, True, False))
    reference = Reference(
        edges=edges, shares=((0.5, 0.5), (0.5, 0.5), None), feature_rows=(9_000,) * 3, score_edges=(0.1,),
        score_shares=(0.9, 0.1), score_rows=8_000, start=0, end=1, rows=9_500, frauds=900, test_frauds=200,
        base_rate=0.01,
    )  # fmt: skip
    put_model(volume)
    (volume.models / "v000001" / "drift.json").write_bytes(msgspec.json.encode(reference))
    counted = DriftDay(400, 1, [190, 210, 80, 320, 400], {"v000001": [300, 90] + [0] * 8, "v000002": [0, 10] + [0] * 8})
    other = DriftDay(400, 1, [400, 0, 400, 0, 400], {"v000001": [0, 400] + [0] * 8})  # of days that aren't whole
    replaced = DriftDay(400, 1, [190, 210, 80, 320, 400], {"v000002": [0, 400] + [0] * 8})
    part = Aggregate(
        drift={
            f"{edges.id}/{day}": {19_800: other, 19_804: replaced, 19_808: other}.get(day, counted)
            for day in range(19_800, 19_809)
        },
        label_days={
            str(day): LabelDay(10_000, 200 + 9_000 * (day == 19_808), 5_000, 50, 40 * MICRO)
            for day in range(19_800, 19_809)
        },
    )
    (volume.pending / "e0001-g01-p00-000000000001.json").write_bytes(msgspec.json.encode(part))
    Scorer(volume).fold()
    api.look()
    answer = api.get("/api/model")
    schemas.ModelDetails.model_validate(answer, strict=True)
    scores = psi((0.9, 0.1), 8_000, [1_800, 540])
    rate_low, rate_high = interval(1_400, 700, 900, 1.0)
    low, high = interval(350, 280, 200, 1.0)
    assert answer["drift"] == {
        "status": "alarm", "warn": 0.1, "alarm": 0.25,
        "reference": {"version": "v000001", "rows": 9_500},
        "window": {"from": "2024-03-19T00:00:00.000Z", "to": "2024-03-26T00:00:00.000Z", "rows": 2_800},
        "score_psi": scores,
        "features": [
            {"feature": "amt", "psi": psi((0.5, 0.5), 9_000, [560, 2_240]), "status": "alarm"},
            {"feature": "home_km", "psi": psi((0.5, 0.5), 9_000, [1_330, 1_470]), "status": "ok"},
            {"feature": "card_days", "psi": None, "status": None},
        ],
        "label_rate": {
            "reference": 0.01, "recent": 0.02, "ratio": 2.0, "low": rate_low, "high": rate_high, "rows": 70_000,
            "status": "alarm",
        },
        "calibration": {
            "expected_frauds": 280.0, "observed_frauds": 350, "ratio": 1.25, "low": low, "high": high, "rows": 35_000,
            "status": "ok",
        },
    }  # fmt: skip
    assert api.get("/api/business/metrics")["ml_details"]["drift"] == {"status": "alarm", "score_psi": scores}


def put_model(volume: Volume, version: str = "v000001", **metrics: Any) -> None:
    """A model's JSON, as the trainer leaves it (the weights are not opened by the api)."""
    folder = volume.models / version
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"average_precision": 0.6, "auc": 0.95} | metrics))
    Files(fsync=False).replace(volume.models / "current", f"{version}\n".encode())
