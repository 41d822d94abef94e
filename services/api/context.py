"""What the handlers of one process share."""

from __future__ import annotations

from typing import NamedTuple

import structlog

from services.api.answers import Answers
from services.api.reader import Reader
from services.api.snapshot import Snapshot
from spearhead.settings import Settings
from spearhead.volume import Volume


class Context:
    """Settings, the reader, and the answers of its newest snapshot."""

    def __init__(self, settings: Settings, volume: Volume, reader: Reader, log: structlog.BoundLogger) -> None:
        self.settings = settings
        self.volume = volume
        self.reader = reader
        self.log = log
        self._newest = _Made(None, None)

    def answers(self) -> Answers:
        """Of the newest snapshot; serialised at most once for each."""
        snapshot = self.reader.snapshot
        if self._newest.snapshot is not snapshot or self._newest.answers is None:
            self._newest = _Made(snapshot, Answers(snapshot, self.settings))
        assert self._newest.answers is not None
        return self._newest.answers


class _Made(NamedTuple):
    snapshot: Snapshot | None
    answers: Answers | None
