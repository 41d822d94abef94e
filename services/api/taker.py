"""Takes what is dropped into a folder and publishes it as one producer: of all API processes one at a time does so."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

import structlog

from services.api.dropped import LOOK_SECONDS, Dropped
from services.api.lookups import StoppedError
from spearhead.heartbeat import Heartbeat, Roster, worker_name
from spearhead.lease import Lease
from spearhead.producer import Producer, SupersededError
from spearhead.runner import describe, iso_now
from spearhead.segment import SegmentError
from spearhead.settings import Settings
from spearhead.volume import Volume, VolumeError


class Means(NamedTuple):
    """What every taker works with. ``held_back`` says whether no rows may be taken now."""

    volume: Volume
    settings: Settings
    held_back: Callable[[], bool]
    log: structlog.BoundLogger


class Taker(ABC):
    """A thread that looks at the folder every LOOK_SECONDS, and beats and holds the slot's lease while it has work."""

    name: ClassVar[str]  # in logs
    slot: ClassVar[str]  # the producer that it is

    def __init__(self, means: Means, dropped: Dropped) -> None:
        self._volume, self._settings, self._held_back, self._log = means
        self._dropped = dropped
        self._folder: Path = dropped.folder
        self._worker = worker_name()
        self._roster = Roster(self._volume, self._settings.lease_seconds)
        self._lease = Lease(self._volume.files, self._volume.control / "slots" / self.slot, self._worker)
        self._producer: Producer | None = None
        self._epoch = 0
        self._taken = 0  # rows or labels
        self._started_at = iso_now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End after the flush at hand; give the slot up."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._lease.release()
            self._roster.leave("ingest", self._worker)
            self._roster.close()
        except OSError as error:  # the volume is away: the lease runs out
            self._log.warning(f"{self.name} not left", reason=describe(error))

    @abstractmethod
    def look(self) -> None:
        """One look: take every file that is complete.

        Raises StoppedError, OSError, SegmentError, SupersededError, VolumeError, ConfigurationError.
        """

    def _run(self) -> None:
        failed = ""
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look()
                failed = ""
            except StoppedError:
                return
            except (OSError, VolumeError, SegmentError, SupersededError, ValueError) as error:
                self._producer = None  # the next look goes on from what is on disk
                if describe(error) != failed:
                    failed = describe(error)
                    self._log.error(f"{self.name} waits", reason=failed)

    def _resume(self) -> bool:
        """Have a producer that knows where it stands in this epoch; whether it had to find out."""
        epoch = self._volume.epoch()
        if self._producer is not None and epoch == self._epoch:
            return False
        self._epoch = epoch
        producer = Producer(self._volume, self.slot, self._settings.partitions, self._worker)
        producer.resume()
        self._producer = producer
        return True

    def _beat(self) -> None:
        self._roster.beat(
            Heartbeat(
                stage="ingest", worker=self._worker, epoch=self._epoch, state="running", rows=self._taken,
                started_at=self._started_at, updated_at=iso_now(),
            )
        )  # fmt: skip
