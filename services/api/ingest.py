"""HTTP ingest: rows are checked, tokenised and published as segments; an answer means that they are durable.

Each API process publishes as a producer of its own (``h00`` …, an owner file in ``control/slots/``). A request with an
``Idempotency-Key`` is published once, however often it is sent, whoever dies in between:

* ``control/idempotency/claims/<key>`` is put there first, by ``link``, and says which producer publishes it;
* the segment carries key and answer in its cursor;
* ``control/idempotency/<day>/<key>`` holds the answer from then on, and is written before that producer's next segment.

So if there is a claim and no answer, the rows are in the newest segment of the claim's producer or they are not
published. Whoever goes on for a dead owner publishes as that same producer: the owner's own link, should it wake, then
collides with the number or finds it superseded (spearhead/producer.py). A request without a key is given one of its
own, by which an owner that was taken for dead in the middle of it finds out whether its rows count.

A request's rows are in all partitions or in none: what a killed process leaves half linked is linked to the end by the
next owner of its slot, or by ``finish``, which every API process does now and then.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from spearhead import edge
from spearhead.files import Files
from spearhead.heartbeat import Heartbeat, Roster, worker_name
from spearhead.lease import Lease
from spearhead.mask import mask
from spearhead.producer import Producer, SupersededError
from spearhead.runner import iso_now
from spearhead.schema import RAW, UNKNOWN_LABEL, came_together
from spearhead.segment import SegmentName
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer
from spearhead.volume import Volume

SLOTS: Final = 100
KEPT_DAYS: Final = 2  # an answer is repeated for a day at least
SHOWN_REJECTS: Final = 1_000
SUPERSEDED_TRIES: Final = 3
DAY: Final = 86_400


class BusyError(RuntimeError):
    """Nothing is wrong with the request, but it can't be taken now: send it again."""


class ConflictError(RuntimeError):
    """The key is being worked on, or was used for other rows."""


class Rejection(msgspec.Struct, frozen=True):
    row: int  # position in the request, from 0
    trans_num: str | None
    reason: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of a request's rows."""

    accepted: int
    rejected: int
    rejections: list[Rejection]
    segment: str | None  # where the accepted rows are


class Claim(msgspec.Struct, frozen=True):
    worker: str
    producer: str
    content: str  # digest of the body


class Answered(msgspec.Struct, frozen=True):
    content: str
    outcome: Outcome


class Mark(msgspec.Struct, frozen=True):
    """The cursor of an ingest segment: whose it is, and what its sender was told."""

    key: str | None  # none in segments of earlier versions
    content: str
    outcome: Outcome


class Checked(msgspec.Struct, frozen=True):
    batch: Any  # pa.RecordBatch of schema.RAW
    rejections: list[Rejection]
    watermark: int


def check(rows: pl.DataFrame, tokens: Tokenizer) -> Checked:
    """Rows of ``rows.parse`` as a batch, and those refused with their reasons. ``ingested_at`` is now."""
    checked = edge.check(rows)
    parts = [
        edge.to_batch(checked.accepted.slice(start, edge.MAX_ROWS), tokens)
        for start in range(0, max(checked.accepted.height, 1), edge.MAX_ROWS)
    ]
    assert len(parts) == 1  # a request has fewer rows than that
    batch = _unlabelled(parts[0], time.time_ns() // 1000)
    names = rows["trans_num"]
    rejections = [
        Rejection(row, None if names[row] is None else mask(names[row])[:64], reason)
        for row, reason in enumerate(checked.reason)
        if reason is not None
    ]
    newest = checked.accepted["event_time"].cast(pl.Int64).max() if batch.num_rows else 0
    assert isinstance(newest, int)
    return Checked(batch, rejections, newest)


def _unlabelled(batch: pa.RecordBatch, now: int) -> pa.RecordBatch:
    rows = batch.num_rows
    columns = {
        "ingested_at": came_together(rows, now),
        "label": pa.array(np.full(rows, UNKNOWN_LABEL, np.int8)),
    }
    for name, column in columns.items():
        index = RAW.get_field_index(name)
        batch = batch.set_column(index, RAW.field(index), column)
    return batch


class Ingest:
    """The producer of one API process. Publishes one request at a time; thread-safe."""

    def __init__(self, volume: Volume, settings: Settings, tokens: Tokenizer) -> None:
        self.tokens = tokens
        self._volume = volume
        self._settings = settings
        self._worker = worker_name()
        self._roster = Roster(volume, settings.lease_seconds)
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._producer: Producer | None = None
        self._name = ""
        self._epoch = 0
        self._folder = volume.control / "idempotency"
        self._rows = 0
        self._started_at = iso_now()
        self._stop = threading.Event()
        self._pulse: threading.Thread | None = None

    def take(self, checked: Checked, content: bytes, key: str | None) -> Outcome:
        """Publish the accepted rows; durable on return. Raises BusyError, ConflictError, OSError."""
        digest = hashlib.sha256(content).hexdigest()
        shown = checked.rejections[:SHOWN_REJECTS]
        count = checked.batch.num_rows

        def outcome(segment: str | None) -> Outcome:
            return Outcome(count, len(checked.rejections), shown, segment)

        with self._lock:
            self._prepare()
            if key is None:
                return self._publish(checked, secrets.token_hex(32), digest, outcome) if count else outcome(None)
            return self._take_once(checked, f"{self._epoch}:{key}", digest, outcome)

    def answer(self, content: bytes, key: str) -> Outcome | None:
        """What was answered to this key before. Raises ConflictError if that was for other rows."""
        answered = self._answered(_hashed(f"{self._volume.epoch()}:{key}"))
        if answered is None:
            return None
        return same(answered, hashlib.sha256(content).hexdigest())

    def close(self) -> None:
        """Give the slot up."""
        self._stop.set()
        if self._pulse is not None:
            self._pulse.join()
            self._roster.leave("ingest", self._worker)
        with self._lock:
            if self._producer is not None:
                self._producer.close()
            if self._lease is not None:
                self._lease.release()
        self._roster.close()

    # The producer

    def _prepare(self) -> None:
        """Own a slot and stand where its newest segment ends."""
        if self._pulse is None:
            self._beat()  # before anything is taken
            self._pulse = threading.Thread(target=self._beat_for_ever, name="ingest pulse", daemon=True)
            self._pulse.start()
        epoch = self._volume.epoch()
        if epoch != self._epoch:
            self._epoch, self._producer = epoch, None
        if self._lease is None or not self._lease.held():
            self._find_slot()
        if self._producer is None:
            self._producer = self._open(self._name)

    def _find_slot(self) -> None:
        alive = self._roster.alive()
        self._producer = None
        for slot in range(SLOTS):
            name = f"h{slot:02d}"
            lease = Lease(self._volume.files, self._volume.control / "slots" / name, self._worker)
            if not lease.take(alive):
                continue
            producer = self._open(name)
            if producer.position.redo_rows is None:
                self._lease, self._name, self._producer = lease, name, producer
                return
            lease.release()  # its staged parts were removed: only the rows' own sender can go on there
        raise BusyError("every ingest slot is taken")

    def _open(self, name: str) -> Producer:
        return open_producer(self._volume, name, self._settings.partitions, self._worker)

    def _publish(self, checked: Checked, key: str, digest: str, outcome: Callable[[str | None], Outcome]) -> Outcome:
        for _ in range(SUPERSEDED_TRIES):
            assert self._producer is not None
            try:
                return self._publish_as(self._producer, self._name, checked, key, digest, outcome)
            except SupersededError:  # a retry of someone else's request went before us: stand behind it
                self._producer = self._open(self._name)
                if (answered := self._answered(key)) is not None:
                    return answered.outcome  # it published these very rows: we were taken for dead
            except OSError:  # what is staged must not be taken for the next request's rows
                self._producer = None
                raise
        raise BusyError("the ingest slot is contended")

    def _publish_as(
        self,
        producer: Producer,
        name: str,
        checked: Checked,
        key: str,
        digest: str,
        outcome: Callable[[str | None], Outcome],
    ) -> Outcome:
        position = producer.position
        told = outcome(f"e{self._epoch:04d}-{name}-{position.seq + 1:012d}")
        mark = Mark(key, digest, told)
        producer.publish(
            checked.batch,
            cursor=msgspec.json.encode(mark).decode(),
            watermark=max(position.watermark, checked.watermark),
        )
        self._rows += checked.batch.num_rows
        return told

    # Once for a key

    def _take_once(self, checked: Checked, key: str, digest: str, outcome: Callable[[str | None], Outcome]) -> Outcome:
        hashed = _hashed(key)
        if (answered := self._answered(hashed)) is not None:
            return same(answered, digest)
        mine = Claim(self._worker, self._name, digest)
        path = self._folder / "claims" / hashed
        self._volume.files.make_folder(path.parent)
        if self._volume.files.put_if_absent(path, msgspec.json.encode(mine)):
            return self._first(checked, hashed, digest, outcome)
        try:
            claim = msgspec.json.decode(path.read_bytes(), type=Claim)
        except FileNotFoundError:  # it was answered this moment
            if (answered := self._answered(hashed)) is not None:
                return same(answered, digest)
            raise ConflictError("this key is being worked on: send it again") from None
        return self._again(claim, checked, hashed, digest, outcome)

    def _first(self, checked: Checked, hashed: str, digest: str, outcome: Callable[[str | None], Outcome]) -> Outcome:
        """Nobody else has the key. Between our look for an answer and the claim one may have come, though."""
        if (answered := self._answered(hashed)) is not None:
            self._volume.files.remove(self._folder / "claims" / hashed)
            return same(answered, digest)
        told = self._publish(checked, hashed, digest, outcome) if checked.batch.num_rows else outcome(None)
        settle(self._volume, hashed, Answered(digest, told))
        return told

    def _again(
        self, claim: Claim, checked: Checked, hashed: str, digest: str, outcome: Callable[[str | None], Outcome]
    ) -> Outcome:
        """Go on for the owner of a claim, unless it is alive, as the producer that it publishes as."""
        if claim.content != digest:
            raise ConflictError("this key was used for other rows")
        if claim.worker != self._worker and claim.worker in self._roster.alive():
            raise ConflictError("this key is being worked on: send it again")
        producer = self._producer if claim.producer == self._name else self._open(claim.producer)
        if claim.producer == self._name:
            producer = self._producer = self._open(self._name)
        if (answered := self._answered(hashed)) is not None:  # its segment was there, opening wrote the answer down
            return same(answered, digest)
        assert producer is not None
        if not checked.batch.num_rows:
            told = outcome(None)
        else:
            try:
                told = self._publish_as(producer, claim.producer, checked, hashed, digest, outcome)
            except SupersededError as error:
                raise ConflictError("this key is being worked on: send it again") from error
        settle(self._volume, hashed, Answered(digest, told))
        return told

    def _answered(self, hashed: str) -> Answered | None:
        return answer_of(self._volume, hashed)

    # Sign of life: whoever owns a slot beats

    def _beat_for_ever(self) -> None:
        while not self._stop.wait(self._settings.heartbeat_seconds):
            try:
                self._beat()
            except OSError:  # the volume is away: it comes back, or others may take the slot
                continue

    def _beat(self) -> None:
        self._roster.beat(
            Heartbeat(
                stage="ingest", worker=self._worker, epoch=self._epoch, state="running", rows=self._rows,
                started_at=self._started_at, updated_at=iso_now(),
            )
        )  # fmt: skip


def open_producer(volume: Volume, name: str, partitions: int, worker: str) -> Producer:
    """A producer where its newest segment ends; what that one's sender was told is written down first."""
    producer = Producer(volume, name, partitions, worker)
    position = producer.resume()
    if position.cursor:
        mark = msgspec.json.decode(position.cursor, type=Mark)
        if mark.key is not None:
            settle(volume, mark.key, Answered(mark.content, mark.outcome))
    return producer


def settle(volume: Volume, hashed: str, answered: Answered) -> None:
    """Write an answer down, where it is kept for two days, and take its claim away."""
    files, today, root = volume.files, int(time.time()) // DAY, volume.control / "idempotency"
    folder = root / str(today)
    if not folder.is_dir():
        files.make_folder(folder)
        _prune(files, root, today)
    files.replace(folder / hashed, msgspec.json.encode(answered))
    files.remove(root / "claims" / hashed)


def answer_of(volume: Volume, hashed: str) -> Answered | None:
    """The answer that was written down for a key."""
    today = int(time.time()) // DAY
    for day in range(today + 1, today - KEPT_DAYS - 1, -1):
        try:
            path = volume.control / "idempotency" / str(day) / hashed
            return msgspec.json.decode(path.read_bytes(), type=Answered)
        except FileNotFoundError:
            continue
    return None


def _prune(files: Files, root: Path, today: int) -> None:
    for day in files.list(root):
        if day.isdigit() and int(day) < today - KEPT_DAYS:
            for file in files.list(root / day):
                files.remove(root / day / file)
            files.remove_folder(root / day)


def unfinished(volume: Volume) -> list[str]:
    """Slots whose owner has something staged: it publishes this moment, or was killed while it did."""
    root = volume.raw / "staged"
    names = (SegmentName.parse(file) for folder in volume.files.list(root) for file in volume.files.list(root / folder))
    return sorted({name.producer for name in names if name is not None and name.producer.startswith("h")})


def finish(volume: Volume, slots: Iterable[str], partitions: int, worker: str, alive: Container[str]) -> None:
    """What killed owners have staged is linked where partition 0 has it, else dropped. ``worker`` must beat.

    Raises OSError, SegmentError.
    """
    for slot in slots:
        lease = Lease(volume.files, volume.control / "slots" / slot, worker)
        if lease.take(alive):
            open_producer(volume, slot, partitions, worker)
            lease.release()


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def same(answered: Answered, digest: str) -> Outcome:
    """What was answered to rows of this digest. Raises ConflictError if that was for others."""
    if answered.content != digest:
        raise ConflictError("this key was used for other rows")
    return answered.outcome
