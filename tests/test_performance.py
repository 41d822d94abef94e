"""Growth curves, the page made of them, the scaling model, and the slopes of a hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bench import hold, report, scaling
from bench.setups import CURVES, Setup, setups
from bench.without_history import NoHistory
from services.generator.population import population
from services.generator.traffic import Traffic
from spearhead.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"
STAGES = {  # seconds of CPU: a row, a segment, a reason, a second of idling, a row and row beside it
    "generator": (250e-9, 2e-3, 0.0, 0.004, 0.0),
    "prep": (480e-9, 3e-3, 0.0, 0.005, 2e-13),
    "inference": (260e-9, 4e-3, 500e-6, 0.005, 0.0),
    "api": (0.0, 0.0, 0.0, 0.012, 0.0),
    "supervisor": (0.0, 0.0, 0.0, 0.004, 0.0),
}
OTHER = 0.2  # cores that other work took


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode((DOCS / "performance" / "curves.json").read_bytes())
    return document


def made() -> dict[str, Any]:
    """A document whose figures follow from STAGES on two cores that the work fills to 90 %."""
    costs = {stage: scaling.Cost(*cost) for stage, cost in STAGES.items()}
    model = scaling.Model(costs, {"prep": 0.004, "inference": 0.006}, 0.9, 6.0, 0.004, 300.0, 9.0, 4e8, 4e8, 2)
    return {
        "taken_at": "2026-01-01T00:00+00:00",
        "window_seconds": 10.0,
        "machine": {
            "cores": 2, "processor": "made up", "memory_gib": 8.0, "kernel": "6.0", "python": "3.11",
            "fsyncs_per_s": 5000, "write_mb_per_s": 400,
        },
        "curves": {name: [[x, setup.name] for x, setup in curve] for name, curve in CURVES.items()},
        "setups": {
            setup.name: {"figures": _figures(setup, model), "reason": None, "asked": msgspec.to_builtins(setup)}
            for setup in setups()
        },
    }  # fmt: skip


def _figures(setup: Setup, model: scaling.Model) -> dict[str, Any]:
    flat = setup.rate == "max"
    rows = scaling.rate(model, setup.segment_rows, setup.inference, 2 - OTHER) if flat else float(setup.rate)
    segments = max(rows / setup.segment_rows, 0.0 if flat else 10.0)
    reasons = scaling.asked_reasons(model, rows, segments)
    cores = {
        stage: cost.cores(rows, segments, reasons, setup.inference if stage == "inference" else 1)
        for stage, cost in model.costs.items()
    }
    return {
        "tx_per_s": rows, "segments_per_s": segments, "reasons_per_s": reasons, "cpu_cores": sum(cores.values()),
        "other_cores": OTHER,
        "bytes_per_row": 300.0, "fsyncs_per_s": 9 * segments, "p50_ms_at_window": 100.0, "p99_ms_at_window": None,
        "rss_mib": 900.0, "pss_mib": 600.0, "cards_remembered": setup.cards, "rows_per_segment": setup.segment_rows,
        "waiting_rows": {"raw_transactions": 1, "features_ready": 2}, "count_ms_first": 3.0, "count_ms_again": 0.5,
        "clean_exit": True, "verify": {"published": 10, "lost": 0, "duplicated": 0},
        "stages": {
            stage: {"cpu_cores": used, "cpu_ns_per_row": used / rows * 1e9, "rss_mib": 200.0}
            for stage, used in cores.items()
        },
    }  # fmt: skip


def test_the_pages_are_made_of_the_stored_figures(tmp_path: Path, stored: dict[str, Any]) -> None:
    folder = tmp_path / "performance"
    folder.mkdir()
    shutil.copy(DOCS / "SCALING.md", tmp_path)
    report.write(folder, stored)
    scaling.write(folder, stored, scaling.fit(stored))
    for page in ("PERFORMANCE.md", "SCALING.md", *(f"performance/{name}.svg" for name in report.SECTIONS)):
        assert (tmp_path / page).read_text() == (DOCS / page).read_text(), f"{page}: run make performance"


def test_every_stored_pipeline_lost_and_doubled_no_row(stored: dict[str, Any]) -> None:
    for name, measured in stored["setups"].items():
        if measured["figures"]:
            assert measured["figures"]["verify"]["ok"], name
        else:
            assert measured["reason"], name


def test_the_stored_figures_are_of_all_curves(stored: dict[str, Any]) -> None:
    named = {setup for curve in stored["curves"].values() for _, setup in curve}
    assert named == set(stored["setups"]) == {setup.name for setup in setups()}


def test_the_model_predicts_what_was_measured(stored: dict[str, Any]) -> None:
    if not scaling.quiet(stored):
        pytest.skip("the stored figures were taken beside other work, and are marked so: make bench-full")
    rows = scaling.compare(stored, scaling.fit(stored))
    off = [row for row in rows if abs(row.error) > scaling.LIMIT]
    assert not off, off


def test_the_model_finds_the_costs_that_figures_were_made_of() -> None:
    document = made()
    model = scaling.fit(document)
    for stage, cost in STAGES.items():
        assert model.costs[stage][:4] == pytest.approx(cost[:4], rel=0.02, abs=1e-9), stage
        assert model.costs[stage].beside == pytest.approx(cost[4], rel=0.02, abs=1e-15), stage
    assert all(abs(row.error) < 0.02 for row in scaling.compare(document, model))


def test_more_cores_give_more_rows_until_the_volume_binds() -> None:
    model = scaling.fit(made())
    rates = [scaling.cores_allow(model, cores)[0] for cores in scaling.CORES]
    assert rates == sorted(rates)
    text = scaling.render(made(), model)
    assert "(volume)" in text
    per_row = model.bytes_per_row
    assert f"| {0.4e3 / per_row:.1f} (volume)" in text


def test_segments_that_fill_the_queue_are_written_only_when_the_one_before_is_scored() -> None:
    model = scaling.fit(made())
    slow = model.costs["inference"]._replace(row=2 * model.costs["prep"].row)
    model = model._replace(costs=model.costs | {"inference": slow}, wait=model.wait | {"prep": 0.1}, cores=64)
    assert scaling.rate(model, scaling.READY_CRITICAL - 1, 1) > 1.1 * scaling.rate(model, scaling.READY_CRITICAL, 1)
    assert Settings.model_fields["features_ready_critical"].default == scaling.READY_CRITICAL


def test_a_ledger_that_is_too_busy_divides_the_cards() -> None:
    assert scaling.volumes(10, 12) == 1  # 115 segments a second
    assert scaling.volumes(100, 128) == 3  # 12,207 a second would take 3.4 s of one ledger, and 0.4 s of each of three


def test_figures_taken_beside_other_work_are_marked() -> None:
    document = made()
    assert scaling.quiet(document)
    assert scaling.BUSY not in scaling.render(document, scaling.fit(document))
    for measured in document["setups"].values():
        measured["figures"]["other_cores"] = 0.8
    assert not scaling.quiet(document)
    assert scaling.BUSY in scaling.render(document, scaling.fit(document))


def test_a_model_of_too_few_figures_is_refused() -> None:
    document = made()
    for name in list(document["setups"])[2:]:
        document["setups"][name] |= {"figures": None, "reason": "RuntimeError: it did not run"}
    with pytest.raises(ValueError, match="too few"):
        scaling.fit(document)


def test_a_pipeline_that_did_not_run_is_shown_with_its_reason() -> None:
    document = made()
    document["setups"]["cards=5000000"] = {"figures": None, "reason": "RuntimeError: no room\nmore", "asked": {}}
    line = next(line for line in report.render(document).splitlines() if line.startswith("| 5,000,000"))
    assert "not measured: RuntimeError: no room |" in line
    assert report.plot(document, "cards") != report.plot(made(), "cards")


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        scaling.within("# Scaling\n", "text")


def test_setups_differ_and_their_settings_are_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [setup.name for setup in setups()]
    assert len(set(names)) == len(names)
    for setup in setups():
        for name, value in setup.environment().items():
            monkeypatch.setenv(name, value)
        settings = Settings()
        assert (settings.cards, settings.segment_rows) == (setup.cards, setup.segment_rows)
        assert settings.fsync is setup.fsync
        monkeypatch.delenv("REASONS_MAX_PER_S", raising=False)
    assert not [name for name in Settings.model_fields if "history" in name or "features_off" in name]


def test_without_history_every_feature_is_zero_and_no_card_is_remembered() -> None:
    batch = Traffic(population(100, 50, 1), 1, 0, 0.005).take(1_000).batch
    history = NoHistory(1_000, 1_000)
    assert not history.encode(batch).matrix().any()
    assert history.cards == 0


def test_growth_a_minute_is_that_of_most_samples() -> None:
    samples = [
        {
            "seconds": 5.0 * i,
            "rows_per_s": 1e6,
            "backlog_rows": 100.0,
            "memory_mib": 2000 + i,
            "stages_mib": {"prep": 500.0} | ({"train": 1000.0 + i} if i else {}),
            "files": 50,
            "volume_mib": 9,
        }
        for i in range(24)
    ]
    samples[7]["files"] = 5_000  # a fold behind: one sample is no growth
    found = hold.summary(samples)
    growth, stages = found["growth_per_minute"], found["memory_mib_by_stage"]
    assert growth["memory_mib"] == pytest.approx(12.0)
    assert stages["train"]["growth_per_minute"] == pytest.approx(12.0)
    assert stages["prep"] == {"median": 500.0, "growth_per_minute": 0.0}
    assert growth["files"] == 0
    assert growth["backlog_rows"] == 0


@pytest.mark.soak
def test_a_curve_is_measured_and_one_that_fails_is_null(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.full", "--seconds", "3", "--only", "history=false", "--results", tmp_path]
    subprocess.run(command, check=True)
    document = msgspec.json.decode((tmp_path / "curves.json").read_bytes())
    (measured,) = document["setups"].values()
    assert measured["figures"]["verify"]["ok"], measured["reason"]
    assert measured["figures"]["cards_remembered"] == 0
    assert measured["figures"]["stages"]["prep"]["cpu_ns_per_row"] > 0


@pytest.mark.soak
def test_a_hold_ends_with_slopes_and_an_audit() -> None:
    command = [sys.executable, "-m", "bench.hold", "--minutes", "0.3", "--every", "3", "--warm-up", "5"]
    found = msgspec.json.decode(subprocess.run(command, check=True, capture_output=True).stdout)
    assert found["verify"]["ok"]
    assert len(found["samples"]) == 6
    assert set(found["growth_per_minute"]) == set(hold.FIGURES)
    assert found["memory_mib_by_stage"].keys() >= {"generator", "prep", "inference", "train", "api"}
    assert np.median([sample["rows_per_s"] for sample in found["samples"]]) > 0
    assert re.match(r"\d", str(found["median"]["files"]))
