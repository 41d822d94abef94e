"""The dashboard in Chromium: every tab and state, from phone to 4K, light and dark, by keyboard, without violations.

Screenshots are left in artifacts/dashboard/, which git ignores. axe-core is looked for in AXE_CORE, then in
.node/node_modules/, where CI installs it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import playwright.sync_api as playwright
import pytest
from ledgers import Scorer
from processes import ROOT, wait_until
from test_api import beat_all, put_model
from test_api_server import Server

from spearhead import kpi
from spearhead.aggregate import MICRO, Aggregate, DriftDay, LabelDay
from spearhead.control import Control, write_control
from spearhead.drift import Edges, Reference
from spearhead.volume import Volume

pytestmark = pytest.mark.browser

SHOTS = ROOT / "artifacts" / "dashboard"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
AXE = Path(os.environ.get("AXE_CORE") or ROOT / ".node" / "node_modules" / "axe-core" / "axe.min.js")
SIZES = {390: 844, 1280: 900, 3840: 2160}
TABS = ("business", "pipeline", "model", "control")
FILLED = {
    "business": "document.querySelectorAll('#view-business tbody tr').length > 10",
    "pipeline": "document.querySelectorAll('#view-pipeline .chart canvas').length === 4",
    "model": "document.querySelectorAll('#view-model .chart canvas').length === 4",
    "control": "document.querySelector('#view-control .facts dd')?.textContent === 'Working'",
}
METRICS: dict[str, Any] = {
    "average_precision": 0.71, "auc": 0.993, "logloss": 0.011, "rows": 180_000, "frauds": 950, "trees": 42,
    "train_seconds": 4.2, "test_base_rate": 0.005, "test_rows": 30_000, "test_frauds": 150, "promoted": True,
    "at_threshold": {"precision": 0.86, "recall": 0.61},
    "stateless": {"average_precision": 0.12, "auc": 0.91},
    "pr_curve": [{"threshold": 1 - i / 40, "recall": i / 40, "precision": 1 - (i / 40) ** 3} for i in range(41)],
    "curves": {"trees": list(range(5, 45, 5))} | {
        part: {"logloss": [0.6 * 0.9**i + base for i in range(5, 45, 5)]}
        for part, base in (("train", 0.009), ("valid", 0.012))
    },
    "importances": {"merch_risk_30d": 0.4, "card_count_1h": 0.35, "hour": 0.25},
    "by_scenario": {"velocity_attack": 0.8, "geo_anomaly": 0.55},
    "cost_optimal_threshold": 0.3,
    "calibration": {
        "ece": 0.0031, "brier": 0.0042, "slope": 0.97, "intercept": -0.05,
        "bins": [
            {"low": i / 10, "high": (i + 1) / 10, "rows": 30_000 // 4**i, "frauds": 30_000 // 4**i * i // 11,
             "mean_score": (i + 0.5) / 10, "fraud_rate": i / 11} if i < 8 else
            {"low": i / 10, "high": (i + 1) / 10, "rows": 0, "frauds": 0, "mean_score": None, "fraud_rate": None}
            for i in range(10)
        ],
    },
}  # fmt: skip
SHADOW: dict[str, Any] = {
    "average_precision": 0.702, "promoted": False,
    "verdict": {
        "promoted": False, "reason": "average precision 0.702 is not above 0.710 by 0.005", "margin": 0.005,
        "version": "v000002", "champion_average_precision": 0.71, "challenger_average_precision": 0.702,
        "confidence": None, "champion_ece": 0.0031, "challenger_ece": 0.0044, "rows": 30_000, "frauds": 150,
        "seen_by_champion": False,
    },
}  # fmt: skip


def put_drift(volume: Volume, version: str) -> None:
    """Nine event days of traffic whose amounts have moved, and labels that say so little."""
    edges = Edges(
        features=("amt", "home_km", "card_days"), ranks=((15_000,), (15_000,), ()), settled=(True, True, False)
    )
    reference = Reference(
        edges=edges, shares=((0.5, 0.5), (0.5, 0.5), None), feature_rows=(9_000,) * 3, score_edges=(0.1,),
        score_shares=(0.9, 0.1), score_rows=9_000, start=0, end=1, rows=9_000, frauds=90, test_frauds=60,
        base_rate=0.01,
    )  # fmt: skip
    (volume.models / version / "drift.json").write_bytes(msgspec.json.encode(reference))
    counted = DriftDay(400, 1, [80, 320, 190, 210, 400], {version: [360, 40, 0, 0, 0, 0, 0, 0, 0, 0]})
    part = Aggregate(
        drift={f"{edges.id}/{day}": counted for day in range(30_000, 30_009)},
        label_days={str(day): LabelDay(1_000, 10 + day % 3, 1_000, 12, 10 * MICRO) for day in range(30_000, 30_009)},
    )
    (volume.pending / "e0001-g01-p00-000000000001.json").write_bytes(msgspec.json.encode(part))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert CHROMIUM, "Chromium is not installed: set CHROMIUM to its path"
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def scorer(volume: Volume) -> Scorer:
    """9,000 transactions have just been decided."""
    made = Scorer(volume)
    for rows in (4000, 3000, 2000):
        made.score(rows)
    made.fold()
    return made


@pytest.fixture
def server(volume: Volume, scorer: Scorer) -> Iterator[Server]:
    """A pipeline with all its stages and its second model."""
    beat_all(volume, figures={"matured_rows": 31_000, "needed_rows": 20_000})
    put_model(volume, "v000001", **METRICS)
    put_model(volume, "v000003", **METRICS | SHADOW)  # the newest, and not in service
    put_model(volume, "v000002", **METRICS)
    thresholds = [
        {"threshold": t / 100, "precision": t / 100, "recall": 1 - t / 100, "alerts_per_million": 9000.0 - 80 * t,
         "fraud_dollars_caught": 1e5, "fraud_dollars_missed": 2e4, "cost": 4e5 + 1e4 * abs(t - 30)}
        for t in range(10, 100, 2)
    ]  # fmt: skip
    (volume.models / "v000002" / "thresholds.json").write_text(json.dumps(thresholds))
    put_drift(volume, "v000002")
    scorer.fold()
    started = Server(volume.root, api_workers=1, api_token="secret", lease_seconds=600)
    wait_until(started.alive, "the api answers")
    yield started
    started.kill()


@pytest.fixture
def traffic(server: Server, scorer: Scorer) -> Iterator[None]:
    """Transactions go on being decided."""
    stop = threading.Event()

    def decide() -> None:
        while not stop.wait(0.5):
            scorer.score(300)
            scorer.fold()

    thread = threading.Thread(target=decide)
    thread.start()
    yield
    stop.set()
    thread.join()


class Page:
    """A page of the dashboard that remembers what went wrong in it."""

    def __init__(self, browser: Any, server: Server, width: int = 1280, scheme: str = "light") -> None:
        self.server = server
        self.context = browser.new_context(viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, tab: str) -> Any:
        self.page.goto(f"http://127.0.0.1:{self.server.port}/#{tab}")
        self.page.wait_for_selector("body.loaded")
        return self.page

    def violations(self) -> list[str]:
        """What axe-core finds serious or critical. Without axe-core the test fails: it would say nothing."""
        assert AXE.exists(), f"axe-core is not at {AXE}: `npm install --prefix .node axe-core`, or set AXE_CORE"
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run({resultTypes: ['violations']})")
        return [
            f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_every_tab_at_every_size(browser: Any, server: Server, traffic: None, width: int, scheme: str) -> None:
    with Page(browser, server, width, scheme) as view:
        for tab in TABS:
            page = view.open(tab)
            wait_until(lambda page=page, tab=tab: page.evaluate(FILLED[tab]), f"{tab} is filled", 60)
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), tab
            assert view.violations() == [], tab
            view.shot(f"{tab}-{width}-{scheme}")
        assert view.errors == []


def test_the_api_page_has_no_violation(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        view.page.goto(f"http://127.0.0.1:{server.port}/docs")
        view.page.wait_for_selector(".docs section")
        assert view.page.locator(".docs section").count() > 10
        assert view.violations() == []
        assert view.errors == []
        view.shot("docs")


def test_the_numbers_are_those_of_the_api(browser: Any, server: Server) -> None:
    answer = server.get("/api/business/metrics")
    with Page(browser, server) as view:
        page = view.open("business")
        cards = page.locator("#view-business .card")
        shown = {cards.nth(i).locator(".name").inner_text(): cards.nth(i) for i in range(cards.count())}
        kpis = {kpi["name"]: kpi for kpi in answer["kpis"] if not isinstance(kpi["value"], list | dict)}
        assert shown.keys() == kpis.keys()
        assert shown["Transactions analysed"].locator("strong").inner_text() == "9,000"
        exposure = answer["fraud_exposure_identified"]
        assert shown["Fraud exposure identified"].locator("strong").inner_text() == f"${exposure:,.0f}"
        assert shown["Volume utilisation"].locator("strong").inner_text() == "–"
        for name, card in shown.items():  # every card says its formula and its source
            assert kpis[name]["formula"] in card.get_attribute("data-tip")
            assert "Source:" in card.get_attribute("data-tip")


def test_champion_challenger_calibration_and_costs_are_those_of_the_api(browser: Any, server: Server) -> None:
    answer = server.get("/api/model")
    with Page(browser, server) as view:
        page = view.open("model")
        duel = page.locator("#view-model section[aria-label='Champion and challenger']")
        duel.locator(".verdict .state.shadow").wait_for()
        assert duel.locator(".verdict").inner_text() == f"in the shadow {answer['challenger']['verdict']['reason']}"
        assert "margin 0.005 · 30,000 rows, 150 frauds" in duel.inner_text()
        rows = [row.split("\t") for row in duel.locator("tbody tr").all_inner_texts()]
        assert rows[:3] == [
            ["Version", "v000002", "v000003"],
            ["Average precision, judged together", "0.710", "0.702"],
            ["Calibration error, judged together", "0.0031", "0.0044"],
        ]
        calibration = page.locator("#view-model section[aria-label='Calibration']")
        assert calibration.locator("dd").all_inner_texts() == ["0.0031", "0.0042", "0.97", "-0.05"]
        assert calibration.locator(".scroll tbody tr").count() == 8  # bins without rows say nothing
        thresholds = page.locator("#view-model section[aria-label='Thresholds'] tbody")
        assert thresholds.locator("tr:has(.best)").inner_text().split("\t")[0] == "0.30"
        assert thresholds.locator("tr.current").inner_text().split("\t")[:2] == ["0.52", "in force"]
        assert thresholds.locator("tr.current td").last.inner_text() == "$620,000"
        assert view.errors == []


def test_drift_is_that_of_the_api(browser: Any, server: Server) -> None:
    answer = server.get("/api/model")["drift"]
    assert [feature["feature"] for feature in answer["features"]] == ["amt", "home_km", "card_days"]
    assert answer["status"] == "alarm"
    assert answer["window"]["rows"] == 2_800
    with Page(browser, server) as view:
        page = view.open("model")
        drift = page.locator("#view-model section[aria-label='Drift']")
        drift.locator("tbody tr").first.wait_for()
        rows = [[cell.strip() for cell in row.split("\t")] for row in drift.locator("tbody tr").all_inner_texts()]
        psi = answer["features"][0]["psi"]
        assert [rows[0][0], *rows[0][-2:]] == ["Amt", f"{psi:.3f}", "drifted"]
        assert rows[1][-1] == "steady"
        assert rows[2][-2:] == ["–", "–"]
        facts = drift.locator("dd").all_inner_texts()
        assert facts[0] == "drifted"
        assert facts[2].endswith(f"(× {answer['label_rate']['ratio']:.2f})")
        assert facts[3] == "× 1.20"
        page = view.open("business")
        panel = page.locator("#view-business section[aria-label='Risk distribution']")
        panel.get_by_text("traffic drifted").wait_for()
        assert view.errors == []


def test_every_number_has_a_tip(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        for tab in TABS:
            page = view.open(tab)
            page.wait_for_timeout(0)
            bare = page.evaluate(
                """tab => [...document.querySelectorAll(`#view-${tab} strong, #view-${tab} td.num, #view-${tab} dd`)]
                .filter(e => e.offsetParent && /\\d/.test(e.textContent) && !e.closest('[data-tip]')
                        && !e.closest('.panel')?.querySelector('.info'))
                .map(e => e.outerHTML)""",
                tab,
            )
            assert bare == []


def test_a_tip_is_shown_on_hover_and_on_focus(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        page = view.open("business")
        page.locator(".card").first.hover()
        assert "Σ amount of flagged" in page.locator("#tip").inner_text()
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        page.locator(".card").nth(5).focus()
        assert "decision time" in page.locator("#tip").inner_text()


def test_the_keyboard_reaches_every_tab(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        page = view.open("business")
        page.locator("#tab-business").focus()
        for tab in ("pipeline", "model", "control", "business"):
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
            assert page.locator(f"#view-{tab}").is_visible()
            assert page.locator("[role=tabpanel]:visible").count() == 1
        page.keyboard.press("End")
        assert page.locator("#view-control").is_visible()
        page.reload()  # the tab is in the address
        assert page.locator("#view-control").is_visible()


def test_the_theme_can_be_chosen_and_stays(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        page = view.open("business")
        for wanted in ("light", "dark"):
            page.locator("#theme").click()
            assert page.locator("html").get_attribute("data-theme") == wanted
        page.reload()
        assert page.locator("html").get_attribute("data-theme") == "dark"


# States


def test_loading_before_anything_is_known(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        view.page.route_web_socket("**/ws/metrics**", lambda socket: None)  # it opens and stays silent
        view.page.goto(f"http://127.0.0.1:{server.port}/")
        view.page.wait_for_selector(".pill:text('Connecting')")
        assert view.page.locator(".card strong").first.inner_text() == "–"
        names = view.page.locator("#view-business .card .name").all_inner_texts()
        assert set(names) < {one.name for one in kpi.KPIS}
        view.shot("state-loading")


def test_empty_before_the_first_model(browser: Any, server: Server, volume: Volume) -> None:
    (volume.models / "current").unlink()
    beat_all(volume, "train", figures={"matured_rows": 12_400, "needed_rows": 20_000})
    with Page(browser, server) as view:
        page = view.open("model")
        page.wait_for_selector("#notice.empty")
        assert page.locator("#notice").inner_text() == "No model yet\n12,400 of 20,000 matured rows."
        page.wait_for_selector(".progress:visible")
        view.shot("state-empty")
        assert view.errors == []


def test_empty_volume(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    bare = Server(tmp_path / "bare", api_workers=1)
    try:
        wait_until(bare.alive, "the api answers")
        with Page(browser, bare) as view:
            for tab in TABS:
                page = view.open(tab)
                page.wait_for_selector("#notice.error")
                assert "is not a Spearhead volume yet" in page.locator("#notice").inner_text()
                assert page.locator(".state.absent").count() == 0  # nobody can say so
                view.shot(f"state-no-volume-{tab}")
            assert page.locator("text=Control is closed").is_visible()
            assert view.errors == []
    finally:
        bare.kill()


def test_stale_when_nothing_is_decided(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        page = view.open("business")
        page.wait_for_selector("#notice.stale", timeout=30_000)
        assert page.locator("#notice strong").inner_text().startswith("No data for 1")
        view.shot("state-stale")


def test_error_when_the_api_goes_and_recovery_when_it_is_back(browser: Any, server: Server, volume: Volume) -> None:
    with Page(browser, server) as view:
        page = view.open("business")
        server.kill()
        page.wait_for_selector("#notice.error", timeout=30_000)
        assert page.locator("#notice strong").inner_text() == "Connection lost"
        view.shot("state-error")
        again = Server(volume.root, port=server.port, api_workers=1, lease_seconds=600)
        try:
            page.wait_for_selector("#notice:not(.error)", state="attached", timeout=60_000)
        finally:
            again.kill()


def test_degraded_when_a_stage_is_gone(browser: Any, server: Server, volume: Volume) -> None:
    (volume.workers / "inference-inference00.json").unlink()
    with Page(browser, server) as view:
        page = view.open("pipeline")
        page.wait_for_selector("#notice.stale")
        assert "No inference worker is alive" in page.locator("#notice").inner_text()
        page.wait_for_selector(".at-inference .state.absent")
        view.shot("state-degraded")


# Control


def test_orders_are_given_and_refused(browser: Any, server: Server, volume: Volume) -> None:
    write_control(volume, Control())
    with Page(browser, server) as view:
        page = view.open("control")
        page.fill("#rate", "1234")
        page.click("text=Set rate")
        page.wait_for_selector(".outcome.bad:text('token')")
        page.fill("#token", "secret")
        page.click("text=Set rate")
        page.wait_for_selector(".outcome.good:text('Throttle: rate 1234')")
        page.wait_for_selector("dd:text('1,234 rows/s')")
        page.fill("#rate", "fast")
        page.click("text=Set rate")
        page.wait_for_selector(".outcome.bad:text('rate must be a number')")
        page.check("#priority-training")
        page.wait_for_selector("dd:text('Training')")
        page.click("button:text-is('Stop')")
        page.wait_for_selector("dd:text('Stopped')")
        view.shot("state-stopped")
        page.click("button:text-is('Start')")
        page.wait_for_selector("dd:text('Working')")
        page.click("text=Reset…")
        page.click("dialog >> text=Keep")
        assert volume.epoch() == 1
        page.click("text=Reset…")
        view.shot("dialog")
        page.click("dialog >> button:text-is('Reset')")
        page.wait_for_selector(".outcome.good:text('epoch 2')")
        assert volume.epoch() == 2
        assert [error for error in view.errors if "401" not in error and "400" not in error] == []


def test_nothing_is_loaded_from_elsewhere(browser: Any, server: Server) -> None:
    with Page(browser, server) as view:
        hosts: set[str] = set()
        view.page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        for tab in TABS:
            view.open(tab)
        assert hosts == {f"127.0.0.1:{server.port}"}
