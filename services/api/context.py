"""What the handlers of one process share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from services.api.answers import Answers
from services.api.explainer import Explainer
from services.api.inbox import Inbox
from services.api.ingest import Ingest
from services.api.joiner import Joiner
from services.api.limiter import Limiter
from services.api.reader import Reader
from services.api.snapshot import Snapshot
from services.api.taker import Means
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer, tokenizer
from spearhead.volume import Volume

LOOKUPS: Final = 2  # at once: each reads whole columns
LOOKUPS_WAITING: Final = 16


class Context:
    """Settings, the reader, and the answers of its newest snapshot."""

    def __init__(
        self,
        settings: Settings,
        volume: Volume,
        reader: Reader,
        log: structlog.BoundLogger,
        count_reasons: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.volume = volume
        self.reader = reader
        self.log = log
        self.explainer = Explainer(volume, count_reasons)
        self.lookups = Limiter(LOOKUPS, LOOKUPS_WAITING)
        self._newest = _Made(None, None)
        self._ingest: Ingest | None = None
        self._ingest_lock = threading.Lock()
        self._tokens: Tokenizer | None = None
        self._tokens_lock = threading.Lock()
        means = Means(volume, settings, lambda: self.held_back() is not None, log)
        self._joiner = Joiner(means)
        self._inbox = Inbox(means, self.tokens)

    def answers(self) -> Answers:
        """Of the newest snapshot; serialised at most once for each."""
        snapshot = self.reader.snapshot
        if self._newest.snapshot is not snapshot or self._newest.answers is None:
            self._newest = _Made(snapshot, Answers(snapshot, self.settings))
        assert self._newest.answers is not None
        return self._newest.answers

    def ingest(self) -> Ingest:
        """This process's producer, made when the first rows come. Raises ConfigurationError without a usable key."""
        with self._ingest_lock:
            if self._ingest is None:
                self._ingest = Ingest(self.volume, self.settings, self.tokens())
            return self._ingest

    def start(self) -> None:
        """Start reading, and watching the folders of rows and labels."""
        self.reader.start()
        self._inbox.start()
        self._joiner.start()

    def tokens(self) -> Tokenizer:
        """Made on first use. Raises ConfigurationError without a usable key."""
        with self._tokens_lock:
            if self._tokens is None:
                self._tokens = tokenizer(self.settings)
            return self._tokens

    def held_back(self) -> str | None:
        """Why no rows can be taken now; None if they can. Nothing is dropped: the sender keeps its rows."""
        snapshot, settings = self.reader.snapshot, self.settings
        if snapshot.backlogs is not None and snapshot.backlogs.raw_transactions >= settings.raw_transactions_critical:
            return "back pressure: raw-transactions is at its critical threshold; send again later"
        if snapshot.disk is not None and snapshot.disk.free < settings.disk_low_bytes:
            return "the volume is short of space; send again later"
        return None

    def close(self) -> None:
        """Stop reading, give the producer's slot up."""
        self.lookups.close()
        self._inbox.close()
        self._joiner.close()
        self.reader.stop()
        if self._ingest is not None:
            self._ingest.close()


class _Made(NamedTuple):
    snapshot: Snapshot | None
    answers: Answers | None
