"""Writes ``monitoring.yaml`` from prometheus/rules, the source of all alerts: python deploy/kubernetes/monitoring.py"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent
RULES: Final = HERE.parent.parent / "prometheus" / "rules"
NOT_OURS: Final = "spearhead-monitoring"  # about the Prometheus that runs the rules: a cluster's own has its own
HEADER: Final = """\
# Made by monitoring.py from prometheus/rules/*.yml: change those. Needs the Prometheus operator.
"""
SERVICE_MONITOR: Final = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "ServiceMonitor",
    "metadata": {"name": "spearhead"},
    "spec": {
        "jobLabel": "app.kubernetes.io/part-of",  # so that the job is spearhead, as the rules say
        "selector": {"matchLabels": {"app.kubernetes.io/name": "api"}},
        "endpoints": [{"port": "http", "path": "/metrics", "interval": "5s", "scrapeTimeout": "4s"}],
    },
}


def rules() -> dict[str, Any]:
    """The PrometheusRule: recordings first, then alerts."""
    groups = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((RULES / name).read_text())["groups"]
        if group["name"] != NOT_OURS
    ]
    for group in groups:
        group["name"] += "-alerts" if "alert" in group["rules"][0] else ""  # names are of one file here
        group["interval"] = "15s"
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "spearhead"},
        "spec": {"groups": groups},
    }


def render() -> str:
    """The content of ``monitoring.yaml``."""
    documents = yaml.safe_dump_all(
        [SERVICE_MONITOR, rules()], sort_keys=False, width=118, allow_unicode=True, explicit_start=False
    )
    return HEADER + documents


if __name__ == "__main__":
    (HERE / "monitoring.yaml").write_text(render())
    sys.exit(0)
