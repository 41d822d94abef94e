"""Answers of a real run, kept in ``examples.json``, as examples in OpenAPI and in docs/API_PAYLOADS.md.

``make examples`` takes new ones, all of one run (``bench/examples.py``).
"""

from __future__ import annotations

import urllib.request
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = Path(__file__).with_name("examples.json")
SHOWN: Final = 3  # entries of a list
PATHS: Final = {
    "business": "/api/business/metrics",
    "dashboard": "/api/dashboard",
    "backlog": "/api/backlog/status",
    "pressure": "/api/backlog/pressure",
    "history": "/api/history",
    "model_details": "/api/model",
}


@cache
def all_examples() -> dict[str, Any]:
    examples: dict[str, Any] = msgspec.json.decode(FILE.read_bytes())
    return examples


def add_to(openapi: dict[str, Any]) -> None:
    """Put the examples into an OpenAPI document (FastAPI's own way drops nulls from them)."""
    for name, path in PATHS.items():
        answer = openapi["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        answer["example"] = all_examples()[name]


def take(base: str) -> dict[str, Any]:
    """The answers of a running API, lists cut to SHOWN entries but for the KPIs."""
    found = {}
    for name, path in PATHS.items():
        with urllib.request.urlopen(base.rstrip("/") + path, timeout=10) as answer:  # noqa: S310, the caller's own
            found[name] = _cut(msgspec.json.decode(answer.read()))
    return found


def _cut(value: Any, key: str = "") -> Any:
    if isinstance(value, list):
        return [_cut(entry) for entry in (value if key == "kpis" else value[:SHOWN])]
    if isinstance(value, dict):
        return {name: _cut(entry, name) for name, entry in value.items()}
    return value


def save(found: dict[str, Any]) -> None:
    """Keep ``found``, as ``take`` gives it, in FILE."""
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    all_examples.cache_clear()
