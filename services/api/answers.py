"""Answers that are the same for everybody: made from a snapshot when first asked for, then sent as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from services.api import business, charts, infrastructure
from services.api.snapshot import Snapshot
from spearhead.settings import Settings

Build = Callable[[Snapshot, Settings], dict[str, Any]]
BUILDERS: Final[dict[str, Build]] = {
    "business": business.business_metrics,
    "dashboard": infrastructure.dashboard,
    "backlog": lambda snapshot, _: infrastructure.backlog_status(snapshot),
    "pressure": infrastructure.pressure,
    "history": lambda snapshot, _: charts.history(snapshot),
    "model_details": lambda snapshot, _: charts.model(snapshot),
    "message": infrastructure.message,
}


class Answers:
    """The answers of one snapshot."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        self.snapshot = snapshot
        self._settings = settings
        self._made: dict[str, bytes] = {}

    def bytes(self, name: str) -> bytes:
        """One of BUILDERS' answers as JSON."""
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = msgspec.json.encode(BUILDERS[name](self.snapshot, self._settings))
        return made
