"""The prep stage: owns partitions of raw-transactions and turns their segments into features, in order."""

from __future__ import annotations

import os
import time
from typing import ClassVar, Final

from services.prep.ownership import Ownership
from services.prep.work import FeatureWork
from spearhead import codes, features, label_files
from spearhead.backlog import Backlog
from spearhead.heartbeat import Roster, State
from spearhead.partition import LostError, PartitionLog
from spearhead.settings import Settings
from spearhead.spool import Spool
from spearhead.stage import Stage
from spearhead.volume import Volume

LOOK_SECONDS: Final = 0.5  # who is alive, which partitions are ours, how full the disk is
BACKLOG_SECONDS: Final = 0.02  # least time between two counts of what waits for inference, during a pause
RESUME_SHARE: Final = 0.8  # of the critical threshold: below it a pause for back pressure ends
TIDY_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 60.0
DISK_SHARE: Final = 0.5  # of the producers' low mark: prep goes on below it, or what they made could not drain


class Prep(Stage):
    """One replica. Standby (no partition) costs a look at the heartbeats twice a second."""

    name: ClassVar[str] = "prep"

    def __init__(self, settings: Settings, volume: Volume, worker: str) -> None:
        super().__init__(settings, volume, worker)
        self._roster = Roster(volume, settings.lease_seconds)
        self._ownership = Ownership(volume, settings.partitions, worker)
        self._spool = Spool(volume, worker, settings.train_max_rows)
        self._backlog = Backlog(volume)
        self._logs: dict[int, PartitionLog] = {}
        self._works: dict[int, FeatureWork] = {}
        self._alive: frozenset[str] = frozenset()
        self._trainer = False
        self._disk_low = False
        self._waiting = 0  # rows in features-ready: counted, and what was emitted since
        self._pressed = False
        self._look_at = self._backlog_at = self._tidy_at = self._sweep_at = 0.0

    def start(self) -> None:
        """Have the kernels ready, then take the partitions that are free."""
        features.warm()
        codes.warm()
        self._look_around()

    def step(self) -> int:
        """One step of each partition that is ours."""
        if time.monotonic() >= self._look_at:
            self._look_around()
        if not self._logs:
            self._say("idle", "standby: every partition has an owner")
            return 0
        if self._blocked():
            self._checkpoint()
            return 0
        rows = sum(self._advance(partition) for partition in list(self._logs))
        self._checkpoint()
        self._say("running" if rows else "idle", "")
        return rows

    def reset(self, epoch: int) -> None:
        """Forget all history: the logs of the new epoch are empty."""
        super().reset(epoch)
        self._waiting = 0
        self._pressed = False
        for partition in list(self._logs):
            self._drop(partition)
        self._look_at = self._tidy_at = 0.0

    def close(self) -> None:
        """Checkpoint and give back what is ours, so that a standby goes on at once with nothing to replay."""
        try:
            for partition in list(self._logs):
                self._give_back(partition)
        finally:
            self._roster.close()

    # Partitions

    def _look_around(self) -> None:
        alive = self._roster.alive()
        self._alive = frozenset(alive)
        # Without a model the sample is what the first one is made of, though its trainer may still be starting.
        has_model = (self.volume.models / "current").exists()
        self._trainer = not has_model or any(heartbeat.stage == "train" for heartbeat in alive.values())
        replicas = [worker for worker, heartbeat in alive.items() if heartbeat.stage == self.name]
        ours, surplus = self._ownership.balance(replicas, {*alive, self.worker})
        for partition in set(self._logs) - ours:
            self._drop(partition)
        for partition in surplus & set(self._logs):
            self._give_back(partition)
        for partition in sorted(ours - surplus - set(self._logs)):
            self._open(partition)
        self._disk_low = self._free_bytes() < DISK_SHARE * self.settings.disk_low_bytes
        self._housekeep()
        self._look_at = time.monotonic() + LOOK_SECONDS

    def _open(self, partition: int) -> None:
        settings = self.settings
        work = FeatureWork(settings)
        log = PartitionLog(
            self.volume,
            partition,
            self.worker,
            work,
            checkpoint_seconds=settings.checkpoint_seconds,
            gap_seconds=settings.lease_seconds,
        )
        try:
            log.open(self.epoch)
        except LostError:  # another replica is at it: the next look tells whose it is
            return
        self._works[partition], self._logs[partition] = work, log

    def _advance(self, partition: int) -> int:
        log, work = self._logs[partition], self._works[partition]
        work.sampling = self._trainer
        emitted, dead = log.commit.emitted, log.commit.dead_segments
        try:
            rows = log.step()
        except LostError as error:
            self._drop(partition)
            self._look_at = 0.0
            self.detail = str(error)
            return 0
        self._waiting += log.commit.emitted - emitted
        self.dead += log.commit.dead_segments - dead
        return rows

    def _checkpoint(self) -> None:
        for partition, log in list(self._logs.items()):
            try:
                log.checkpoint()
            except LostError:
                self._drop(partition)

    def _drop(self, partition: int) -> None:
        """Not ours any more, or not in this epoch: its state is another's to go on with."""
        self._logs.pop(partition)
        self._works.pop(partition)

    def _give_back(self, partition: int) -> None:
        try:
            self._logs[partition].close()
        except LostError:  # already another's
            pass
        finally:
            self._drop(partition)
            self._ownership.release(partition)

    # What makes it pause

    def _blocked(self) -> bool:
        if self._disk_low:
            self._say("disk_low", f"{self._free_bytes()} bytes free on the volume")
            return True
        if self._under_pressure():
            self._say("back_pressure", f"{self._waiting} rows wait for inference")
            return True
        return False

    def _under_pressure(self) -> bool:
        """Whether features-ready is full: counted only when it may be, and seldom while it is."""
        critical = self.settings.features_ready_critical
        limit = RESUME_SHARE * critical if self._pressed else critical
        if self._waiting < limit:
            self._pressed = False
        elif not self._pressed or time.monotonic() >= self._backlog_at:
            self._waiting = self._backlog.features_ready()
            self._backlog_at = time.monotonic() + BACKLOG_SECONDS
            self._pressed = self._waiting >= limit
        return self._pressed

    def _free_bytes(self) -> int:
        status = os.statvfs(self.volume.root)
        return status.f_bavail * status.f_frsize

    # What it says and keeps tidy

    def _say(self, state: State, detail: str) -> None:
        self.state = state
        self.detail = detail

    def _housekeep(self) -> None:
        now = time.monotonic()
        self._report()
        if 0 not in self._logs:
            return
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_SECONDS
            self.figures["training_rows"] = self._spool.tidy()
            label_files.tidy(self.volume, self.worker)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._logs[0].sweep({*self._alive, self.worker})

    def _report(self) -> None:
        """Sums over the partitions that are ours, for the heartbeat."""
        commits = [log.commit for log in self._logs.values()]
        histories = [work.history for work in self._works.values()]
        self.figures |= {
            "partitions": ",".join(str(partition) for partition in sorted(self._logs)),
            "rows_in": sum(commit.consumed for commit in commits),
            "rows_out": sum(commit.emitted for commit in commits),
            "rejected": sum(commit.rejected for commit in commits),
            "dead_rows": sum(commit.dead_rows for commit in commits),
            "commit_step": max((commit.step for commit in commits), default=0),
            "checkpoint_step": max((log.checkpoint_step for log in self._logs.values()), default=0),
            "checkpoint_seconds": max((log.checkpoint_cost for log in self._logs.values()), default=0.0),
            "late": sum(history.late for history in histories),
            "cards": sum(history.cards for history in histories),
            "merchants": sum(history.merchants for history in histories),
            "evicted": sum(history.evicted_cards + history.evicted_merchants for history in histories),
            "truncated": sum(history.truncated for history in histories),
            "risk_labels_used": sum(work.late.used for work in self._works.values()),
            "risk_labels_lost": sum(work.late.lost for work in self._works.values()),
            "risk_labels_waiting": sum(len(work.late) for work in self._works.values()),
            "train_share": min((work.share.share for work in self._works.values()), default=None),
            "input_error": next((log.last_error for log in self._logs.values() if log.last_error), None),
        }
