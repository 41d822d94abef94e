"""Rules and their tests, the runbook, Alertmanager's configuration from the environment."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring import ALERTS, PROMETHEUS, RECORDING, ROOT, Alert, alerts, recordings, selectors

RUNBOOK = ROOT / "docs" / "RUNBOOK.md"
START = ROOT / "deploy" / "alertmanager" / "start.sh"
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))
WEBHOOK = {"ALERT_WEBHOOK_URL": "https://hooks.example/it's-a-secret"}
SLACK = {"ALERT_SLACK_URL": "https://slack.example/T0/secret", "ALERT_SLACK_CHANNEL": "#fraud"}
EMAIL = {
    "ALERT_EMAIL_TO": "ops@example.org", "ALERT_EMAIL_FROM": "spearhead@example.org", "ALERT_SMTP_HOST": "mail:587",
    "ALERT_SMTP_USER": "spearhead", "ALERT_SMTP_PASSWORD": "se'cr: et#\\",
}  # fmt: skip
EVERY_ALERT = pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def cases() -> list[tuple[str, bool]]:
    """Of each tested case, the alert and whether it is to fire."""
    return [
        (expected["alertname"], bool(expected["exp_alerts"]))
        for path in CASES
        for test in yaml.safe_load(path.read_text())["tests"]
        for expected in test["alert_rule_test"]
    ]


# Rules


@pytest.mark.tools
def test_prometheus_accepts_configuration_and_rules() -> None:
    assert "SUCCESS" in run("promtool", "check", "config", str(PROMETHEUS / "prometheus.yml"))
    run("promtool", "check", "rules", "--lint-fatal", str(RECORDING), str(ALERTS))


@pytest.mark.tools
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    run("promtool", "test", "rules", str(path))


@EVERY_ALERT
def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent(alert: Alert) -> None:
    assert {fires for name, fires in cases() if name == alert.name} == {True, False}


def test_no_case_is_about_an_alert_that_is_not_there() -> None:
    assert {name for name, _ in cases()} == {alert.name for alert in alerts()}


@EVERY_ALERT
def test_each_alert_says_how_severe_it_is_what_it_is_and_where_to_look(alert: Alert) -> None:
    notes = alert.rule["annotations"]
    assert alert.rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert len(notes["summary"]) < 80
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"docs/RUNBOOK.md#{alert.name.lower()}"


def test_names_are_given_once() -> None:
    names = [alert.name for alert in alerts()]
    assert len(names) == len(set(names))


def test_every_recording_is_used() -> None:
    used = {name for path in (ROOT / "grafana" / "dashboards").glob("*.json") for name in _recorded(path.read_text())}
    used |= {name for rule in (*recordings(), *(alert.rule for alert in alerts())) for name in _recorded(rule["expr"])}
    assert {rule["record"] for rule in recordings()} - used == set()


def _recorded(text: str) -> list[str]:
    return re.findall(r"spearhead:[\w:]+", text)


def test_selectors_are_found() -> None:
    expr = (
        'max by (step) (rate(a_b_total{step=~"x|y"}[5m])) > on (queue) c:d:e2 or time() - max(f offset 5m) == bool Inf'
    )
    assert selectors(expr) == {'a_b_total{step=~"x|y"}', "c:d:e2", "f"}


# Runbook


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE) == [alert.name for alert in alerts()]


@EVERY_ALERT
def test_each_section_says_what_it_means_and_how_to_confirm_and_fix_it(alert: Alert) -> None:
    section = RUNBOOK.read_text().split(f"## {alert.name}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == ["Means", "Confirm", "Fix"]


def test_the_runbook_names_only_alerts_services_and_settings_that_exist() -> None:
    text = RUNBOOK.read_text()
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(re.findall(r"Spearhead[A-Z]\w+", text)) - {"SpearheadTest"} == {alert.name for alert in alerts()}
    commands = re.findall(
        r"docker compose (?:logs|exec|ps|restart|stop|up)((?: -[-\w=]+(?: \d\w*)?| [a-z]+\b(?![-/]))*)", text
    )
    for words in commands:
        named = [word for word in words.split() if word in compose["services"]]
        others = [word for word in words.split() if word.isalpha() and word not in compose["services"]]
        assert named or not others, words
    example = (ROOT / ".env.example").read_text()
    for name in set(re.findall(r"`([A-Z][A-Z]+(?:_[A-Z]+)+)(?:=\w+)?`", text)):
        assert f"# {name}=" in example, name


# Alertmanager


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Runs the start script with some settings; its exit status, the configuration it wrote, and all that it said."""

    def start(*then: str, **settings: str) -> tuple[int, dict[str, Any], str]:
        path = tmp_path / "alertmanager.yml"
        places = {"ALERTMANAGER_CONFIG": str(path), "SECRETS_FOLDER": str(tmp_path / "secrets")}
        done = subprocess.run(
            ["sh", str(START), *(then or ("true",))], env={"PATH": os.environ["PATH"]} | places | settings,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        written = yaml.safe_load(path.read_text()) if path.exists() else {}
        return done.returncode, written, done.stdout + done.stderr

    return start


Configured = Callable[..., tuple[int, dict[str, Any], str]]


def receiver(written: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in written["receivers"] if one["name"] == "operators")
    return found


def test_without_a_receiver_alerts_are_sent_to_nobody(configured: Configured) -> None:
    status, written, said = configured()
    assert (status, said) == (0, "")
    assert written["receivers"] == [{"name": "none"}, {"name": "operators"}]


@pytest.mark.tools
@pytest.mark.parametrize("settings", [{}, WEBHOOK, SLACK, EMAIL, WEBHOOK | SLACK | EMAIL])
def test_alertmanager_accepts_every_receiver(configured: Configured, tmp_path: Path, settings: dict[str, str]) -> None:
    status, _, said = configured("amtool", "check-config", str(tmp_path / "alertmanager.yml"), **settings)
    assert status == 0, said
    assert "SUCCESS" in said


def test_settings_arrive_as_they_are_and_are_never_printed(configured: Configured, tmp_path: Path) -> None:
    status, written, said = configured(**WEBHOOK, **SLACK, **EMAIL)
    assert (status, said) == (0, "")
    made = receiver(written)
    assert made["webhook_configs"][0]["url"] == WEBHOOK["ALERT_WEBHOOK_URL"]
    assert made["slack_configs"][0]["api_url"] == SLACK["ALERT_SLACK_URL"]
    assert made["slack_configs"][0]["channel"] == "#fraud"
    mail = made["email_configs"][0]
    assert [mail[key] for key in ("to", "from", "smarthost", "auth_username", "auth_password")] == list(EMAIL.values())
    assert stat.S_IMODE((tmp_path / "alertmanager.yml").stat().st_mode) == 0o600


def test_secrets_come_from_files_too(configured: Configured, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "ALERT_SLACK_URL").write_text("https://slack.example/from-a-file\n")
    status, written, _ = configured()
    assert status == 0
    assert receiver(written)["slack_configs"][0]["api_url"] == "https://slack.example/from-a-file"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ALERT_WEBHOOK_URL": "s3cret-without-scheme"}, "ALERT_WEBHOOK_URL"),
        ({"ALERT_SLACK_URL": "https://s3cret\nreceivers: []"}, "ALERT_SLACK_URL"),
        ({"ALERT_EMAIL_TO": "a@b"}, "ALERT_EMAIL_FROM"),
        ({"ALERT_EMAIL_TO": "a@b", "ALERT_EMAIL_FROM": "c@d", "ALERT_SMTP_HOST": "mail"}, "ALERT_SMTP_HOST"),
        ({"ALERT_MIN_SEVERITY": "loud"}, "ALERT_MIN_SEVERITY"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_not_by_value(
    configured: Configured, settings: dict[str, str], named: str
) -> None:
    status, written, said = configured(**settings)
    assert (status, written) == (2, {})
    assert named in said
    assert "s3cret" not in said


@pytest.mark.tools
@pytest.mark.parametrize(
    ("least", "severity", "reached"),
    [("", "warning", True), ("", "info", False), ("info", "info", True), ("critical", "warning", False)],
)
def test_what_is_sent_depends_on_severity(
    configured: Configured, tmp_path: Path, least: str, severity: str, reached: bool
) -> None:
    config = str(tmp_path / "alertmanager.yml")
    _, _, said = configured(
        "amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}", "alertname=X",
        **WEBHOOK, ALERT_MIN_SEVERITY=least,
    )  # fmt: skip
    assert said.splitlines()[0] == ("operators" if reached else "none")


def test_inhibitions_name_alerts_that_exist(configured: Configured) -> None:
    names = [alert.name for alert in alerts()]
    for rule in configured()[1]["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            for pattern in matcher.split('"')[1].split("|"):
                assert any(re.fullmatch(pattern, name) for name in names), pattern
