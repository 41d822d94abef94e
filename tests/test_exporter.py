"""``/metrics``: golden output from fixture input, documented series, counters that never go back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ledgers import Scorer
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from test_api import Api, put_model

from services.api.exporter import exposition
from services.api.snapshot import Disk, Flow, Models, Sample, Snapshot, Version
from spearhead.aggregate import MICRO, DriftDay, LabelDay
from spearhead.backlog import Backlogs, Head
from spearhead.control import Control
from spearhead.dead import DeadRows
from spearhead.drift import Edges, Reference
from spearhead.heartbeat import Heartbeat
from spearhead.ledger import LedgerFile, read_ledger
from spearhead.settings import Settings
from spearhead.volume import Volume

GOLDEN = Path(__file__).parent / "golden" / "metrics.txt"
DOCUMENT = Path(__file__).parent.parent / "docs" / "METRICS.md"
START_US = 1_760_000_000_000_000
MAX = 1_000_000
SETTINGS: dict[str, Any] = {"flashblade_max_bytes_per_s": MAX, "generation_rate": "max"}


@pytest.fixture
def ledger(volume: Volume) -> LedgerFile:
    scorer = Scorer(volume)
    for number in range(3):
        scorer.score(800, scored_at=START_US + number * 30_000_000, train_end=1_700_000_030_000_000)
    scorer.fold()
    read = read_ledger(volume)
    assert read is not None
    read.updated_at = datetime.fromtimestamp(START_US / 1e6 + 60, UTC)
    read.dead = {"raw_transactions": DeadRows(segments=1, rows=70, rejected_rows=3)}
    with_drift(read)
    return read


def reference() -> Reference:
    """Of two features: one that can be compared, and one that has not settled."""
    edges = Edges(features=("amt", "card_days"), ranks=((14_848, 16_000), ()), settled=(True, False))
    return Reference(
        edges=edges, shares=((0.5, 0.3, 0.2), None), feature_rows=(5_000, 5_000), score_edges=(0.01, 0.1),
        score_shares=(0.8, 0.15, 0.05), score_rows=4_000, start=0, end=0, rows=5_000, frauds=50, test_frauds=40,
        base_rate=0.01,
    )  # fmt: skip


def with_drift(ledger: LedgerFile) -> None:
    """Nine event days counted by ``reference``, and labels of them."""
    ledger.first_event_day = 1
    ledger.label_days.clear()
    for day in range(100, 109):
        counted = DriftDay(500, 0, [200, 150, 150, 500], {"v000002": [390, 80, 30, 0, 0, 0, 0, 0, 0, 0]})
        ledger.drift[f"{reference().edges.id}/{day}"] = counted
        ledger.label_days[str(day)] = LabelDay(1_000, 12, 900, 11, 10 * MICRO)


def snapshot(ledger: LedgerFile) -> Snapshot:
    """A volume on which everything is known."""
    now = datetime.fromtimestamp(START_US / 1e6 + 64, UTC)
    beat = {"epoch": 1, "rows_per_s": 900.0, "cpu_cores": 0.5, "rss_bytes": 1000, "read_bytes_per_s": 250.0,
            "write_bytes_per_s": 100_000.0}  # fmt: skip
    workers = (
        Heartbeat(stage="generator", worker="a", state="back_pressure", **beat),
        Heartbeat(stage="inference", worker="b", state="running", **beat),
        Heartbeat(stage="inference", worker="c", state="idle", last_error="OSError: no", **beat),
        Heartbeat(stage="prep", worker="d", state="running", **beat),
        Heartbeat(stage="api", worker="f", state="running", figures={"processes": 2, "reasons_at_look_up": 7}, **beat),
        Heartbeat(stage="train", worker="e", state="idle", figures={"matured_rows": 5, "needed_rows": 9}, **beat),
    )
    metrics = {"average_precision": 0.6, "auc": 0.95, "logloss": 0.01, "train_seconds": 2.5,
               "calibration": {"ece": 0.0004}, "cost_optimal_threshold": 0.03}  # fmt: skip
    verdict = {"challenger_average_precision": 0.61, "champion_average_precision": 0.62, "challenger_ece": 0.0005}
    sample = Sample(now.timestamp(), 1, 100.0, 90.0, 80.0, 1.0, 1.0, 2.0, 3.0, 10, 20, 30, 40, 5.0, 6.0, None, None)
    return Snapshot(
        0.0,
        now,
        readable=True,
        epoch=1,
        ledger=ledger,
        workers=workers,
        backlogs=Backlogs(raw_transactions=10, features_ready=20, inference_results=30, training_queue=40),
        heads={"g00": Head(rows=2000, rejected=3, watermark=0, ended=False, finite=False),
               "h01": Head(rows=400, rejected=0, watermark=0, ended=False, finite=False)},
        flow=Flow(2400, 3, 2400, 2400, 2400),
        control=Control(priority="training"),
        disk=Disk(500, 1000),
        labels_waiting=7, models=Models(
            "v000002",
            (Version("v000002", 1_760_000_001.0, metrics), Version("v000003", 1_760_000_050.0, {"verdict": verdict})),
            reference=reference(),
        ),
        samples=(sample,),
    )  # fmt: skip


def test_output_is_golden(ledger: LedgerFile) -> None:
    text = exposition(snapshot(ledger), Settings(**SETTINGS), "")[0].decode()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_output_parses_in_both_formats(ledger: LedgerFile) -> None:
    body, kind = exposition(snapshot(ledger), Settings(**SETTINGS), "")
    assert kind.startswith("text/plain")
    plain = {family.name for family in parse_text(body.decode())}
    body, kind = exposition(snapshot(ledger), Settings(**SETTINGS), "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert {family.name for family in parse_openmetrics(body.decode())} == {
        name.removesuffix("_info") if name.endswith("_info") else name for name in plain
    }


def test_every_series_is_documented_and_every_documented_one_exists(ledger: LedgerFile) -> None:
    text = exposition(snapshot(ledger), Settings(**SETTINGS), "")[0].decode()
    exported = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    rows = re.findall(r"^\| `(spearhead_\w+)` \| (\w+) \| (.*?) \|", DOCUMENT.read_text(), re.M)
    assert {name: kind for name, kind, _ in rows} == exported
    for name, _, labels in rows:
        documented = set(re.findall(r"`(\w+)`", labels))
        used = {
            label for line in text.splitlines() if re.match(rf"{name}(_bucket)?{{", line)
            for label in re.findall(r'(\w+)="', line)
        } - {"le"}  # fmt: skip
        assert documented == used, name


def test_names_follow_the_conventions(ledger: LedgerFile) -> None:
    text = exposition(snapshot(ledger), Settings(**SETTINGS), "")[0].decode()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M):
        assert name.startswith("spearhead_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|percent|milliseconds|mb|gb|count)(_|$)", name), name
    assert 'stage="' not in text
    assert len(text.splitlines()) < 1_000  # bounded cardinality


def test_nothing_known_exports_no_made_up_number() -> None:
    now = datetime.fromtimestamp(0, UTC)
    text = exposition(Snapshot(0.0, now, ("volume: away",)), Settings(), "")[0].decode()
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    known = {name: float(value) for name, value in values.items() if "threshold" not in name and "info" not in name}
    assert known == {
        "spearhead_volume_readable": 0.0,
        "spearhead_ledger_readable": 0.0,
        "spearhead_ledger_parse_error": 0.0,
        "spearhead_read_problems": 1.0,
        "spearhead_ledger_stale": 0.0,
        "spearhead_volume_low_watermark_bytes": float(Settings().disk_low_bytes),
    }


def test_latency_bounds_are_kept(ledger: LedgerFile) -> None:
    """A row counted under a bound took no longer than that, and those 2 % under it are counted."""
    text = exposition(snapshot(ledger), Settings(), "")[0].decode()
    buckets = [float(line.split()[1]) for line in text.splitlines() if "latency_seconds_bucket" in line]
    assert buckets == sorted(buckets)
    assert buckets[-1] == ledger.transactions_analyzed == 2400
    assert f"spearhead_decision_latency_seconds_sum {ledger.latency_us / 1e6}" in text
    assert any(0 < bucket < 2400 for bucket in buckets)


def test_counters_never_go_back_whichever_process_answers(volume: Volume) -> None:
    """Two API processes, scraped in turn as fast as can be while rows are counted."""
    scorer = Scorer(volume)
    scorer.score(10)
    scorer.fold()
    put_model(volume)
    first, second = Api(volume), Api(volume)
    seen: dict[str, float] = {}
    with first.client, second.client:
        for number in range(30):
            if number % 3 == 0:
                scorer.score(7)
                scorer.fold()
            text = (first, second)[number % 2].client.get("/metrics").text
            found = {
                sample.name + str(sample.labels): sample.value
                for family in parse_text(text) if family.type == "counter" for sample in family.samples
            }  # fmt: skip
            assert seen.keys() <= found.keys()
            assert all(found[name] >= value for name, value in seen.items())
            seen = found
    assert seen["spearhead_transactions_total{}"] == 80


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say(ledger: LedgerFile) -> None:
    body, _ = exposition(snapshot(ledger), Settings(**SETTINGS), "")
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
