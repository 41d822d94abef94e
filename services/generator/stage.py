"""The generator stage: takes rows from its source at the set rate and publishes them, exactly once each."""

from __future__ import annotations

import os
import time
from typing import ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa

from services.generator.handbook import Handbook, transactions
from services.generator.pacing import Pacer
from services.generator.population import population
from services.generator.source import Chunk, Source
from services.generator.traffic import PER_CARD_AND_DAY, Traffic
from spearhead.backlog import Backlog
from spearhead.errors import ConfigurationError
from spearhead.heartbeat import Roster
from spearhead.lease import Lease
from spearhead.producer import Position, Producer, SupersededError
from spearhead.runner import iso_now
from spearhead.schema import INGESTED_MAX, MERCHANTS_MAX, NO_RAW_ROWS, RAW, TIME
from spearhead.settings import Settings, parse_rate
from spearhead.stage import Stage
from spearhead.volume import Volume

SLOTS: Final = 64  # replicas of an endless synthetic generator
LOOK_SECONDS: Final = 0.1  # backlog and free space are looked at this often
IDLE_LOOK_SECONDS: Final = 1.0  # at a rate of zero
SLOT_SECONDS: Final = 0.5  # a worker without a slot looks for one this often
HELD_SECONDS: Final = 1.0  # a worker with a slot looks this often whether it is still its own
HELD: Final = ("back_pressure", "disk_low")  # states in which nothing is produced
RELIEF: Final = 0.8  # of the critical backlog: production goes on below
DISK_RELIEF: Final = 1.1


class Flush(NamedTuple):
    """What is to be published next; kept until it is."""

    batch: pa.RecordBatch
    chunk: Chunk
    ended: bool
    rows: int


class Generator(Stage):
    """Holds a slot, and with it the name ``gNN`` under which it publishes."""

    name: ClassVar[str] = "generator"

    def __init__(self, settings: Settings, volume: Volume, worker: str) -> None:
        super().__init__(settings, volume, worker)
        self._roster = Roster(volume, settings.lease_seconds)
        self._backlog = Backlog(volume)
        self._pacer = Pacer(parse_rate(settings.generation_rate), time.monotonic())
        self._lease: Lease | None = None
        self._slot = 0
        self._producer: Producer | None = None
        self._source: Source | None = None
        self._pending: Flush | None = None
        self._first_beats: dict[str, str] = {}
        self._slot_at = self._look_at = self._held_at = self._flushed_at = 0.0
        self._rate_text: str | None = None

    def start(self) -> None:
        """Refuse settings that can't work. Raises ConfigurationError."""
        check(self.settings, self.volume)

    def step(self) -> int:
        """Publish what is due, if anything; the rows published."""
        now = time.monotonic()
        if not self._own_slot(now):
            return 0
        try:
            return self._produce(now)
        except SupersededError:
            self._forget()
            return 0

    def reset(self, epoch: int) -> None:
        super().reset(epoch)
        self._forget()

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close()
        if self._lease is not None:
            self._lease.release()
        self._roster.close()

    # The slot

    def _own_slot(self, now: float) -> bool:
        """Whether a slot is this worker's; looks for one when it is time."""
        if self._lease is not None and now < self._held_at:
            return True
        if self._lease is not None and self._lease.held():
            self._held_at = now + HELD_SECONDS
            return True
        if self._lease is not None:  # taken from us: somebody thought us dead
            self._lease = None
            self._forget()
        if now < self._slot_at:
            return False
        self._slot_at = now + SLOT_SECONDS
        return self._find_slot(now)

    def _find_slot(self, now: float) -> bool:
        """Take the first slot whose owner is dead or that nobody has.

        A fresh heartbeat may be a dead worker's last. So a slot after an owned one is opened only when that owner was
        seen to beat again: else a generator that was killed and started anew would leave its own traffic unfinished.
        """
        alive = self._roster.alive()
        for slot in range(SLOTS if self._endless_synthetic() else 1):
            lease = Lease(self.files, self.volume.control / "slots" / f"g{slot:02d}", self.worker)
            if lease.take(alive):
                self._lease, self._slot, self._held_at = lease, slot, now + HELD_SECONDS
                return True
            owner = lease.owner()
            beat = alive[owner].updated_at if owner in alive else ""
            if self._first_beats.setdefault(owner or "", beat) == beat:
                break
        self.detail = "stands by: other generators hold the slots"
        return False

    def _endless_synthetic(self) -> bool:
        return self.settings.source is None and not self.settings.finite

    def _forget(self) -> None:
        """Drop what was made but not published: the next step goes on from what is on disk."""
        self._producer = self._source = self._pending = None

    def _resume(self, now: float) -> Producer:
        """The producer, resumed from disk if it isn't yet, with the source where its newest segment ends."""
        if self._producer is None or self._source is None:
            producer = Producer(self.volume, f"g{self._slot:02d}", self.settings.partitions, self.worker)
            position = producer.resume()
            self._source = open_source(self.settings, self.volume, self._slot, position.cursor)
            self._producer = producer
            self._pacer.restart(now)
            self._tell(position)
        return self._producer

    # Production

    def _produce(self, now: float) -> int:
        producer = self._resume(now)
        self._obey_rate(now)
        if self._pending is None:
            if self._complete(producer.position):
                self.detail = "every row of the source is published"
                return 0
            if self._held_back(now):
                self._pacer.restart(now)
                return 0
            self._pending = self._take(producer.position, now)
        if self._pending is None:
            return 0
        return self._publish(producer, self._pending)

    def _publish(self, producer: Producer, flush: Flush) -> int:
        """Publish; on an error ``flush`` stays for the next step."""
        position = producer.publish(
            flush.batch,
            rejected=flush.chunk.rejected,
            cursor=flush.chunk.cursor,
            watermark=flush.chunk.watermark,
            ended=flush.ended,
            finite=self._finite(),
        )
        self._pending = None
        self._flushed_at = time.monotonic()
        self._tell(position)
        return flush.rows

    def _finite(self) -> bool:
        return self.settings.rows is not None or bool(self._source and self._source.finite)

    def _left(self, position: Position) -> float:
        """Rows that may still come."""
        if self.settings.rows is None:
            return float("inf")
        return max(0, self.settings.rows - position.rows - position.rejected)

    def _complete(self, position: Position) -> bool:
        """Whether the last row is published. An ended run whose limit was since raised goes on."""
        if not position.ended or position.redo_rows is not None:
            return False
        return self._left(position) == 0 or bool(self._source and self._source.finite)

    def _obey_rate(self, now: float) -> None:
        text = self.control.rate or self.settings.generation_rate
        if text != self._rate_text:
            self._rate_text = text
            self._pacer.set_rate(parse_rate(text), now)
            self._look_at = 0.0
            self.figures = {**self.figures, "rate": text}

    def _held_back(self, now: float) -> bool:
        """Whether raw-transactions or the disk is too full; says so in the heartbeat."""
        if now >= self._look_at:
            self._look_at = now + (LOOK_SECONDS if self._pacer.rate else IDLE_LOOK_SECONDS)
            self._look_around()
        return self.state in HELD

    def _look_around(self) -> None:
        settings = self.settings
        space = os.statvfs(self.volume.root)
        free = space.f_bavail * space.f_frsize
        need = settings.disk_low_bytes * (DISK_RELIEF if self.state == "disk_low" else 1.0)
        waiting = self._backlog.raw_transactions()
        limit = settings.raw_transactions_critical * (RELIEF if self.state == "back_pressure" else 1.0)
        if free < need:
            self.state = "disk_low"
            self.detail = f"{free:,} bytes free on the volume, paused below {settings.disk_low_bytes:,}"
        elif waiting >= limit:
            self.state = "back_pressure"
            self.detail = f"{waiting:,} rows wait in raw-transactions, paused at {settings.raw_transactions_critical:,}"
        elif self.state in HELD:
            self.state, self.detail = "running", ""

    def _take(self, position: Position, now: float) -> Flush | None:
        """The next flush, if one is due: a full segment, or what has come since the last one."""
        left = self._left(position)
        rows = int(min(self._pacer.due(now), self.settings.segment_rows, left))
        if position.redo_rows is not None:
            rows = position.redo_rows
        elif left > 0 and not self._time_to_flush(rows, left, now):
            return None
        return self._flush(position, rows)

    def _time_to_flush(self, rows: int, left: float, now: float) -> bool:
        if rows <= 0:
            return False
        return rows >= min(self.settings.segment_rows, left) or now - self._flushed_at >= self.settings.flush_seconds

    def _flush(self, position: Position, rows: int) -> Flush:
        """Take ``rows`` rows from the source (none: the run ends here)."""
        assert self._source is not None
        since = self._pacer.seconds_due()
        taken_at = time.time_ns() // 1000
        chunk = self._source.take(rows) if rows else Chunk(NO_RAW_ROWS, [], position.cursor, position.watermark, True)
        count = chunk.batch.num_rows + len(chunk.rejected)
        self._pacer.taken(count)
        ended = chunk.ended or position.rows + position.rejected + count >= (self.settings.rows or float("inf"))
        return Flush(_stamped(chunk.batch, taken_at, round(since * 1e6)), chunk, ended or not count, count)

    def _tell(self, position: Position) -> None:
        self.figures = {
            "producer": f"g{self._slot:02d}",
            "published": position.rows,
            "complete": int(self._complete(position)),
            "rejected": position.rejected,
            "rate": self._rate_text,
            "event_time": str(np.datetime64(position.watermark, "us")) + "Z" if position.rows else None,
            "published_at": iso_now() if position.rows else None,
        }


def _stamped(batch: pa.RecordBatch, now: int, since: int) -> pa.RecordBatch:
    """``batch`` with the wall time at which each row came: evenly over the ``since`` us in which they fell due.

    Rows share one of at most INGESTED_MAX times, the one at which the last of them came.
    """
    rows = batch.num_rows
    steps = min(rows, INGESTED_MAX)
    ends = -(-np.arange(1, steps + 1, dtype=np.int64) * rows // max(steps, 1))  # rows up to the last of each step
    times = now - since + ends * since // max(rows, 1)
    shares = (np.arange(rows, dtype=np.int64) * steps // max(rows, 1)).astype(np.uint8)
    index = RAW.get_field_index("ingested_at")
    stamps = pa.DictionaryArray.from_arrays(pa.array(shares), pa.array(times, TIME))
    return batch.set_column(index, RAW.field(index), stamps)


def open_source(settings: Settings, volume: Volume, slot: int, cursor: str) -> Source:
    """The source of these settings, at ``cursor``. Raises ConfigurationError if it can't go on from there."""
    try:
        if settings.source is not None:
            from services.generator.replay import open_replay  # noqa: PLC0415, brings polars: 60 MB that traffic spares

            return open_replay(settings, cursor)
        if settings.population == "handbook":
            return Handbook(transactions(volume), cursor)
        pop = population(settings.cards, settings.merchants, settings.seed, volume)
        return Traffic(pop, settings.seed, slot, settings.fraud_rate, cursor)
    except ValueError as error:
        hint = "; use the settings of before, another volume, or 'reset'" if cursor else ""
        raise ConfigurationError(f"{error}{hint}") from error


def check(settings: Settings, volume: Volume) -> None:
    """Raises ConfigurationError if the settings can't work.

    If no model could ever be trained: labels must mature before the queues are full. If a segment could hold more
    merchants than it has codes for.
    """
    if settings.source is not None:
        open_source(settings, volume, 0, "")
        return
    if settings.population == "handbook":  # 10,000 rows a day, and it ends: its labels mature in time
        return
    if min(settings.merchants, settings.segment_rows) > MERCHANTS_MAX:
        raise ConfigurationError(
            f"a segment of {settings.segment_rows:,} rows may be at more than the {MERCHANTS_MAX:,} merchants that it "
            f"has codes for: MERCHANTS or SEGMENT_ROWS must be {MERCHANTS_MAX:,} at most"
        )
    room = settings.raw_transactions_critical + settings.features_ready_critical
    per_day = settings.cards * PER_CARD_AND_DAY
    need = per_day * settings.label_delay_days + settings.train_first_rows
    if need <= room or (settings.rows is not None and settings.rows <= room) or (volume.models / "current").exists():
        return
    raise ConfigurationError(
        f"no model could ever be trained: {settings.cards:,} cards x {PER_CARD_AND_DAY:g} transactions a day x "
        f"{settings.label_delay_days:g} days until labels mature + {settings.train_first_rows:,} rows for the first "
        f"model = {need:,.0f} rows, but queues hold {settings.raw_transactions_critical:,} + "
        f"{settings.features_ready_critical:,} = {room:,}; at most "
        f"{_most_cards(settings, room):,} cards fit: lower CARDS, import a model (--model DIR), or make a finite run "
        f"of at most {room:,} rows (--rows)"
    )


def _most_cards(settings: Settings, room: int) -> int:
    per_card = PER_CARD_AND_DAY * settings.label_delay_days
    return max(0, int((room - settings.train_first_rows) / per_card)) if per_card else settings.cards
