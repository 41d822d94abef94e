"""Boards: their source, their types, and that every query has data on a real Prometheus under real traffic."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from monitoring import ROOT, Prometheus, Server, alerts, free_port, recordings, selectors
from processes import Up, wait_until

GRAFANA = ROOT / "grafana"
BOARDS = ("business", "model", "pipeline", "runbook", "volume")
EVERY_BOARD = pytest.mark.parametrize("name", BOARDS)
OWN_OPTIONS = ("titleFormat", "textFormat", "tagKeys")  # of Prometheus' annotations, not in the common type
VARIABLES = {
    "$__rate_interval": "10s", "$__range": "1m", "$window": "30s",
    "$category": ".*", "$state": ".*", "$step": ".*", "$queue": ".*",
}  # fmt: skip
TRAFFIC: dict[str, object] = {
    "CARDS": 2_000, "MERCHANTS": 200, "LABEL_DELAY_DAYS": 0.5, "TRAIN_FIRST_ROWS": 3_000, "FSYNC": "false",
    "TRAIN_INTERVAL_SECONDS": 5, "TRAIN_CPU_SHARE": 100, "FLASHBLADE_MAX_BYTES_PER_S": 10**9, "API_WORKERS": 1,
}  # fmt: skip


def board(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((GRAFANA / "dashboards" / f"{name}.json").read_text())
    return made


def panels(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = board(name)["panels"]
    return found


def queries() -> list[tuple[str, str, str]]:
    """Board, panel and expression of every query."""
    return [
        (name, panel["title"], target["expr"])
        for name in BOARDS
        for panel in panels(name)
        for target in panel.get("targets", ())
    ]


def filled_in(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def excused() -> set[str]:
    return {filled_in(selector) for selector in yaml.safe_load((GRAFANA / "may_be_empty.yaml").read_text())}


# What the boards are


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("boards", GRAFANA / "boards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@EVERY_BOARD
def test_boards_are_what_their_source_makes(generator: ModuleType, name: str) -> None:
    assert (GRAFANA / "dashboards" / f"{name}.json").read_text() == generator.render(name)


def test_no_board_is_without_a_source(generator: ModuleType) -> None:
    assert sorted(generator.BOARDS) == sorted(path.stem for path in (GRAFANA / "dashboards").iterdir()) == list(BOARDS)


@EVERY_BOARD
def test_boards_are_of_grafanas_published_types(name: str) -> None:
    """Read into Grafana's types and written again, nothing is lost: every key is one that Grafana knows."""
    register_default_plugins()
    made = board(name)
    for annotation in made["annotations"]["list"]:
        for option in OWN_OPTIONS:
            del annotation[option]
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(made))) == made


@EVERY_BOARD
def test_panels_are_described_have_a_unit_and_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith(("." if name != "runbook" else "", "RUNBOOK.md"))
        if panel["type"] not in ("alertlist", "text"):
            assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels(name)}) == len(panels(name))


@EVERY_BOARD
def test_each_board_lists_alerts_shows_them_and_leads_to_the_others(name: str) -> None:
    made = board(name)
    assert made["uid"] == f"spearhead-{name}"
    assert "alertlist" in {panel["type"] for panel in made["panels"]}
    assert "ALERTS" in made["annotations"]["list"][0]["expr"]
    assert (made["links"][0]["type"], made["links"][0]["tags"]) == ("dashboards", ["spearhead"])
    assert "spearhead" in made["tags"]


@pytest.mark.parametrize("name", [name for name in BOARDS if name != "runbook"])
def test_variables_are_declared_and_used(name: str) -> None:
    made = board(name)
    declared = {variable["name"] for variable in made["templating"]["list"]}
    exprs = " ".join(expr for board_name, _, expr in queries() if board_name == name)
    assert {word for word in re.findall(r"\$(\w+)", exprs) if not word.startswith("__")} == declared
    assert declared
    assert any(panel["fieldConfig"]["defaults"].get("thresholds") for panel in panels(name) if "fieldConfig" in panel)


def test_the_runbook_board_is_the_runbook() -> None:
    text = (ROOT / "docs" / "RUNBOOK.md").read_text()
    shown = {panel["title"]: panel["options"]["content"] for panel in panels("runbook") if panel["type"] == "text"}
    assert list(shown) == [alert.name for alert in alerts()]
    assert all(content in text for content in shown.values())


def test_boards_and_provisioning_name_the_same_data_sources() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "datasources.yaml").read_text())
    sources = {source["uid"]: source for source in provisioned["datasources"]}
    assert {uid: source["type"] for uid, source in sources.items()} == {
        "prometheus": "prometheus", "alertmanager": "alertmanager",
    }  # fmt: skip
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for source in sources.values():
        assert source["url"].split("//")[1].split(":")[0] in services
    used = {
        target["datasource"]["uid"]
        for name in BOARDS
        for panel in panels(name)
        for target in (panel, *panel.get("targets", ()))
        if "datasource" in target
    }
    assert used == {"prometheus"}
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "dashboards.yaml").read_text())["providers"][0]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]


# What they show


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus that has scraped the real exporter of a pipeline with a model and matured labels."""
    folder = tmp_path_factory.mktemp("monitored")
    port, alertmanager_port = free_port(), free_port()
    (folder / "targets").mkdir()
    (folder / "alertmanager.yml").write_text("{route: {receiver: none}, receivers: [{name: none}]}\n")
    pipeline = Up(
        folder / "volume", "--rate", "3000", "--port", str(port), TOKEN_KEY_FILE=folder / "token.key", **TRAFFIC
    )
    alertmanager = Server(
        [
            "prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}", "--cluster.listen-address=",
            f"--storage.path={folder / 'alerts'}", f"--web.listen-address=127.0.0.1:{alertmanager_port}",
        ],
        alertmanager_port, folder / "alertmanager.log",
    )  # fmt: skip
    server = Prometheus(folder, f"127.0.0.1:{port}", f"127.0.0.1:{alertmanager_port}")
    try:
        wait_until(server.ready, "Prometheus is ready")
        for what in ("spearhead:precision:ratio30m >= 0", "spearhead:recall:ratio30m >= 0"):
            wait_until(lambda what=what: server.query(what), what)  # type: ignore[misc]
        wait_until(
            lambda: server.query("min(count_over_time(spearhead_precision_ratio[5m])) >= 12"), "a dozen scrapes of it"
        )
        yield server
    finally:
        logged = server.stop()
        alertmanager.stop()
        pipeline.kill()
    assert "level=error" not in logged


@pytest.mark.tools
def test_every_target_is_up_and_every_rule_is_loaded_and_well(prometheus: Prometheus) -> None:
    assert {sample["metric"]["job"] for sample in prometheus.query("up == 1")} == {
        "spearhead", "prometheus", "alertmanager",
    }  # fmt: skip
    assert prometheus.query("up == 0") == []
    loaded = [rule for group in prometheus.get("/api/v1/rules")["data"]["groups"] for rule in group["rules"]]
    assert len(loaded) == len(alerts()) + len(recordings())
    assert [(rule["name"], rule["lastError"]) for rule in loaded if rule.get("lastError")] == []


@pytest.mark.tools
def test_no_query_of_a_panel_is_an_error_or_empty(prometheus: Prometheus) -> None:
    empty = [
        (name, title, expr)
        for name, title, expr in queries()
        if not prometheus.query(filled_in(expr)) and not selectors(filled_in(expr)) & excused()
    ]
    assert empty == []


@pytest.mark.tools
def test_no_alert_is_an_error_and_everything_it_looks_at_is_there(prometheus: Prometheus) -> None:
    missing = []
    for alert in alerts():
        prometheus.query(alert.expr)
        found = selectors(alert.expr)
        assert found, alert.expr
        missing += [(alert.name, selector) for selector in found - excused() if not prometheus.query(selector)]
    assert missing == []


@pytest.mark.tools
def test_every_recording_has_a_series(prometheus: Prometheus) -> None:
    assert [rule["record"] for rule in recordings() if not prometheus.query(rule["record"])] == []


@pytest.mark.tools
def test_variables_have_values(prometheus: Prometheus) -> None:
    for name in BOARDS:
        for variable in board(name).get("templating", {}).get("list", ()):
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
                assert {sample["metric"].get(label) for sample in prometheus.query(metric)} - {None}, variable


@pytest.mark.tools
def test_what_replicas_are_scaled_by_is_known(prometheus: Prometheus) -> None:
    """KEDA takes a query without a sample for zero."""
    for scaled in yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "scaling.yaml").read_text()):
        for trigger in scaled["spec"]["triggers"]:
            found = prometheus.query(trigger["metadata"]["query"])
            assert len(found) == 1 or (not found and trigger["name"] == "recommended-replicas"), trigger


@pytest.mark.tools
def test_nothing_critical_fires_while_all_is_well(prometheus: Prometheus) -> None:
    assert prometheus.query('ALERTS{alertstate="firing", severity="critical"}') == []


def test_excuses_are_about_what_is_asked() -> None:
    asked = {selector for _, _, expr in queries() for selector in selectors(filled_in(expr))}
    asked |= {selector for alert in alerts() for selector in selectors(alert.expr)}
    assert excused() <= asked


# How it starts


def started(tmp_path: Path) -> Path:
    """Run Grafana's start script; the file that it says the password is in."""
    done = subprocess.run(
        ["sh", str(ROOT / "deploy" / "grafana" / "start.sh"), "printenv", "GF_SECURITY_ADMIN_PASSWORD__FILE"],
        env={"PATH": os.environ["PATH"], "GF_PATHS_DATA": str(tmp_path), "SECRETS_FOLDER": str(tmp_path / "secrets")},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return Path(done.stdout.strip())


def test_the_password_is_made_once_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    made = started(tmp_path)
    password = made.read_text()
    assert len(password.strip()) >= 24
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert started(tmp_path).read_text() == password


def test_the_password_of_the_secret_goes_first(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "password").write_text("given")
    assert started(tmp_path).read_text() == "given"
