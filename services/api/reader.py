"""The one reader of a process: a thread that looks at the volume and puts a new snapshot in place.

Requests only ever see the snapshot. A look that hangs (a dead mount) delays nobody: the snapshot grows old, and
``Reader.snapshot`` says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
import structlog

from services.api.joiner import waiting_labels
from services.api.models import ModelReader
from services.api.snapshot import QUEUES, Disk, Flow, Sample, Snapshot
from spearhead import kpi
from spearhead.backlog import Backlog, Backlogs, Head, RawHeads
from spearhead.control import read_control
from spearhead.heartbeat import Heartbeat, Roster
from spearhead.ledger import LedgerError, LedgerFile, LedgerReader
from spearhead.partition import Commit, newest_commit
from spearhead.settings import Settings
from spearhead.volume import FORMAT, Volume, VolumeError

LOOK_SECONDS: Final = 0.25  # totals and orders
SURVEY_SECONDS: Final = 1.0  # workers, backlogs, disk, models; one sample of the charts
SAMPLES: Final = 600
RATE_SECONDS: Final = 5.0  # rates and recent latency are means over this long
HUNG_SECONDS: Final = 5.0  # a snapshot older than this means that the volume doesn't answer
T = TypeVar("T")
_FAILURES = (OSError, VolumeError, LedgerError, msgspec.MsgspecError, ValueError)


class Looker:
    """Looks at a volume; not thread-safe. Each part that can't be read is None and named among the problems."""

    def __init__(self, volume: Volume, settings: Settings) -> None:
        self._volume = volume
        self._settings = settings
        self._ledger = LedgerReader(volume)
        self._roster = Roster(volume, settings.lease_seconds)
        self._backlog = Backlog(volume)
        self._heads = RawHeads(volume)
        self._models = ModelReader(volume)
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._recent: deque[tuple[float, Flow, LedgerFile | None]] = deque()  # looks within RATE_SECONDS
        self._problems: list[str] = []
        self._shown: tuple[tuple[int, int, int] | None, bool] = (None, False)
        self._survey: dict[str, Any] = {}
        self._survey_problems: tuple[str, ...] = ()
        self._survey_at = 0.0

    def look(self, survey: bool = False) -> Snapshot:
        """A new snapshot. ``survey``: look at everything, not only at what changes fastest."""
        at, now = time.monotonic(), datetime.now(UTC)
        self._problems = []
        epoch = self._try("volume", self._epoch)
        if epoch is None:
            self._survey_at = 0.0
            self._samples.clear()
            self._recent.clear()
            return Snapshot(at, now, tuple(self._problems))
        damaged = self._try("ledger copy", self._is_damaged)
        ledger = self._try("ledger", self._ledger.read)
        failed = any(problem.startswith("ledger:") for problem in self._problems)
        control = self._try("orders", lambda: read_control(self._volume))
        problems = tuple(self._problems)
        if survey or at - self._survey_at >= SURVEY_SECONDS or self._survey.get("epoch") != epoch:
            self._look_around(epoch, ledger, at, now)
        return Snapshot(
            at,
            now,
            problems + self._survey_problems,
            readable=True,
            ledger=ledger,
            ledger_damaged=bool(damaged),
            ledger_failed=failed,
            control=control,
            samples=tuple(self._samples),
            **self._survey | {"flow": self._survey["flow"]._replace(scored=_scored(ledger))},
        )

    def close(self) -> None:
        self._roster.close()

    def _epoch(self) -> int:
        epoch = self._volume.epoch()
        found = (self._volume.control / "format").read_text().strip()
        if found != str(FORMAT):
            raise VolumeError(f"the volume has format {found!r}, this version reads {FORMAT}")
        return epoch

    def _look_around(self, epoch: int, ledger: LedgerFile | None, at: float, now: datetime) -> None:
        self._problems = []
        workers = self._try("heartbeats", self._workers)
        backlogs = self._try("backlogs", self._backlog.rows)
        heads = self._try("producers", lambda: self._heads.producers(epoch))
        flow = self._flow(epoch, heads)._replace(scored=_scored(ledger))
        self._survey = {
            "epoch": epoch,
            "workers": workers,
            "backlogs": backlogs,
            "heads": heads,
            "flow": flow,
            "disk": self._try("disk", self._disk),
            "models": self._try("models", self._models.read),
            "labels_waiting": self._try("labels", lambda: waiting_labels(self._volume, epoch)),
        }
        self._survey_problems = tuple(self._problems)
        self._survey_at = at
        if self._samples and self._samples[-1].epoch != epoch:  # reset: the charts begin anew
            self._samples.clear()
            self._recent.clear()
        self._samples.append(self._sample(epoch, now, at, flow, ledger, backlogs, workers))
        self._recent.append((at, flow, ledger))
        while at - self._recent[0][0] > RATE_SECONDS:
            self._recent.popleft()

    def _workers(self) -> tuple[Heartbeat, ...]:
        return tuple(sorted(self._roster.alive().values(), key=lambda beat: (beat.stage, beat.started_at, beat.worker)))

    def _flow(self, epoch: int, heads: dict[str, Head] | None) -> Flow:
        commits: list[Commit] | None = self._try("commits of prep", lambda: list(self._commits(epoch)))
        return Flow(
            published=None if heads is None else sum(head.rows for head in heads.values()),
            rejected=None if heads is None else sum(head.rejected for head in heads.values()),
            consumed=None if commits is None else sum(commit.consumed for commit in commits),
            emitted=None if commits is None else sum(commit.emitted for commit in commits),
        )

    def _commits(self, epoch: int) -> Iterable[Commit]:
        for folder in self._volume.files.list(self._volume.raw / "commits"):
            commit = newest_commit(self._volume, int(folder.removeprefix("p")), epoch)
            if commit is not None:
                yield commit

    def _disk(self) -> Disk:
        status = os.statvfs(self._volume.root)
        return Disk(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)

    def _is_damaged(self) -> bool:
        """Whether .metrics.json is there and can't be read. Looked at again only when the file changes."""
        try:
            status = self._volume.metrics_json.stat()
        except FileNotFoundError:
            return False
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        if signature != self._shown[0]:
            self._shown = (signature, not _is_ledger(self._volume.metrics_json.read_bytes()))
        return self._shown[1]

    def _try(self, what: str, read: Callable[[], T]) -> T | None:
        """What ``read`` returns; None, and a problem noted, where it can't be read: the other parts still can."""
        try:
            return read()
        except _FAILURES as error:
            self._problems.append(f"{what}: {error}" if str(error) else f"{what}: {type(error).__name__}")
            return None

    def _sample(
        self,
        epoch: int,
        now: datetime,
        at: float,
        flow: Flow,
        ledger: LedgerFile | None,
        backlogs: Backlogs | None,
        workers: Sequence[Heartbeat] | None,
    ) -> Sample:
        then, before, earlier = self._recent[0] if self._recent else (at, Flow(), None)
        seconds = at - then
        latency = kpi.latency_quantiles_ms(_recent_latency(ledger, earlier))
        return Sample(
            time=now.timestamp(),
            epoch=epoch,
            generation=_rate(flow.published, before.published, seconds),
            preprocessing=_rate(flow.emitted, before.emitted, seconds),
            inference=_rate(flow.scored, before.scored, seconds),
            flagged=_rate(_flagged(ledger), _flagged(earlier), seconds),
            p50_ms=latency["p50"],
            p95_ms=latency["p95"],
            p99_ms=latency["p99"],
            **{queue: getattr(backlogs, queue, None) for queue in QUEUES},
            read_bytes=total(beat.read_bytes_per_s for beat in workers or ()),
            write_bytes=total(beat.write_bytes_per_s for beat in workers or ()),
            precision=kpi.precision(ledger) if ledger else None,
            recall=kpi.recall(ledger) if ledger else None,
        )


class Reader:
    """Keeps a snapshot fresh from a thread of its own."""

    def __init__(self, volume: Volume, settings: Settings, log: structlog.BoundLogger) -> None:
        self._looker = Looker(volume, settings)
        self._log = log
        self._stop = False
        self._wake = threading.Condition()
        self._wanted = self._done = 0  # fresh looks that were asked for, and those that have been made
        self._snapshot = Snapshot(time.monotonic(), datetime.now(UTC), ("volume: not read yet",))
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stop = True
            self._wake.notify_all()
        self._thread.join(timeout=HUNG_SECONDS)  # it may hang on a dead mount

    @property
    def snapshot(self) -> Snapshot:
        """The newest; one that is too old has no numbers, only the reason."""
        snapshot = self._snapshot
        age = time.monotonic() - snapshot.at
        if age <= HUNG_SECONDS:
            return snapshot
        problem = f"volume: it has not answered for {age:.0f} s"
        return Snapshot(snapshot.at, datetime.now(UTC), (problem,))

    def fresh(self, timeout: float) -> Snapshot:
        """A snapshot whose look began after this call; ``snapshot`` if there is none in ``timeout`` seconds."""
        with self._wake:
            self._wanted = max(self._wanted, self._done) + 1
            mine = self._wanted
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._done >= mine or self._stop, timeout)
        return self.snapshot

    def _run(self) -> None:
        seen: tuple[str, ...] = ()
        while not self._stop:
            with self._wake:
                wanted = self._wanted
            snapshot = self._looker.look(survey=wanted > self._done)
            if snapshot.problems != seen:
                seen = snapshot.problems
                self._log.info("volume is read" if not seen else "can't read", problems=list(seen))
            with self._wake:
                self._snapshot = snapshot
                self._done = wanted
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._stop or self._wanted > self._done, LOOK_SECONDS)
        self._looker.close()


def total(values: Iterable[float | None]) -> float | None:
    """Sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


class _Header(msgspec.Struct):
    format: int
    epoch: int
    version: int


def _is_ledger(content: bytes) -> bool:
    try:
        msgspec.json.decode(content, type=_Header)
    except msgspec.DecodeError:
        return False
    return True


def _scored(ledger: LedgerFile | None) -> int | None:
    return None if ledger is None else ledger.transactions_analyzed


def _flagged(ledger: LedgerFile | None) -> int | None:
    return None if ledger is None else ledger.flagged_count


def _rate(now: int | None, before: int | None, seconds: float) -> float | None:
    """A second; None where it is not known. A producer's damaged head may count back: that is no rate."""
    if now is None or before is None or seconds <= 0:
        return None
    return max(0.0, (now - before) / seconds)


def _recent_latency(ledger: LedgerFile | None, earlier: LedgerFile | None) -> dict[str, int]:
    """Rows by latency bucket that were counted between two versions of one epoch."""
    if ledger is None or earlier is None or ledger is earlier or ledger.epoch != earlier.epoch:
        return {}
    return {bucket: rows - earlier.latency.get(bucket, 0) for bucket, rows in ledger.latency.items()}
