"""Prometheus and Alertmanager as processes, on this repository's own configuration, and what their rules consist of."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "prometheus"
RECORDING, ALERTS = PROMETHEUS / "rules" / "recording.yml", PROMETHEUS / "rules" / "alerts.yml"
SELECTOR = re.compile(r"(?<![\w:])([a-z]\w*(?::\w+)*)(\{[^}]*\})?(?![\w:(])")
NOT_METRICS = re.compile(
    r"\b(and|or|unless|on|ignoring|by|without|bool|offset|Inf|le|group_left|group_right|time|scalar|vector|min|max|sum)\b"
)


class Alert(NamedTuple):
    """An alert rule and the group it is in."""

    group: str
    name: str
    expr: str
    rule: dict[str, Any]


def groups(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text())["groups"]
    return found


def alerts() -> list[Alert]:
    return [
        Alert(group["name"], rule["alert"], rule["expr"], rule) for group in groups(ALERTS) for rule in group["rules"]
    ]


def recordings() -> list[dict[str, Any]]:
    return [rule for group in groups(RECORDING) for rule in group["rules"]]


def selectors(expr: str) -> set[str]:
    """The series that an expression selects, without ranges: ``name`` or ``name{labels}``."""
    plain = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", expr)
    names = SELECTOR.finditer(re.sub(r"\[[^\]]*\]|\boffset\s+\w+", " ", plain))
    return {
        match[1] + (match[2] or "") for match in names if not NOT_METRICS.fullmatch(match[1]) and not match[1].isdigit()
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that listens on a free loopback port."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """What the API answers; an error's body for a refused query."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(self.url + path + query, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def stop(self) -> str:
        """What it logged."""
        self._process.terminate()
        self._process.wait(30)
        return self._log.read_text()


class Prometheus(Server):
    """This repository's configuration and rules, with other addresses, looking once a second."""

    def __init__(self, folder: Path, exporter: str, alertmanager: str) -> None:
        port = free_port()
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        addresses = {"api:8000": exporter, "localhost:9090": f"127.0.0.1:{port}", "alertmanager:9093": alertmanager}
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RECORDING), str(ALERTS)]
        for target in _targets(config):
            target["targets"] = [addresses[address] for address in target["targets"]]
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        command = [
            "prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        super().__init__(command, port, folder / "prometheus.log")

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Samples of an expression now; fails if it is an error."""
        answer = self.get("/api/v1/query", {"query": expr})
        assert answer["status"] == "success", (expr, answer)
        found = answer["data"]["result"]
        return found if answer["data"]["resultType"] == "vector" else [{"metric": {}, "value": found}]


def _targets(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in (*config["scrape_configs"], *config["alerting"]["alertmanagers"]):
        yield from part.get("static_configs", ())
