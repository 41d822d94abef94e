"""Late labels: files in ``raw-data/labels/`` are joined with the decisions they are about, and published, exactly once.

One API process at a time is the producer ``l00``. A flush is a segment of schema.LABELS; its cursor says how far which
file is taken, so a killed one's successor goes on there. Labels without a decision go to ``raw-data/labels/waiting/``:
a file of them is written as ``<name>.staged`` before the flush that names it in its cursor, and renamed after it, so it
counts if and only if the flush does. They are looked up again, and set aside when LABEL_WAIT_SECONDS have passed. A
label whose trans_num may be a card number does not wait, for that would leave it on the volume.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import msgspec
import pyarrow as pa

from services.api import labels
from services.api.decisions import Decisions
from services.api.dropped import Dropped
from services.api.inbox import LONGEST_TEXT, Layout, UnreadableError, records, set_aside_name
from services.api.labels import Label
from services.api.taker import Means, Taker
from spearhead.decided import DECISION
from spearhead.mask import mask, may_be_card
from spearhead.rejects import Reason, Reject, move_aside
from spearhead.schema import LABELS, MERCHANT
from spearhead.volume import Volume

PRODUCER: Final = "l00"
MAX_WAITING: Final = 1_000_000  # labels: at so many no more files are taken
ABANDONED_SECONDS: Final = 600.0  # a temporary file of a killed process
MAX_TOGETHER: Final = 500  # small files, as requests leave them, in one flush
SMALL: Final = 64 * 1024  # bytes
TOGETHER_BYTES: Final = 1024**2  # so that a flush of small files has fewer labels than one of a large file
STAGED: Final = ".staged"
LAYOUT: Final = Layout(labels.COLUMNS, labels.COLUMNS)


class Mark(msgspec.Struct, frozen=True):
    """The cursor of a segment of labels: those of the file up to ``done`` are published; ``end``: all are."""

    identity: str
    done: int
    end: bool
    waiting: str = ""  # the file of those among them that wait for a decision
    others: tuple[str, ...] = ()  # identities of small files that were taken whole in the same flush

    def covers(self, identity: str) -> bool:
        """Whether all of this file is published."""
        return self.end and (identity == self.identity or identity in self.others)


class Waiting(NamedTuple):
    """What the name of a file of waiting labels says."""

    epoch: int
    since: int  # seconds since 1970, by the clock of whoever took them first
    labels: int
    token: str

    @property
    def file(self) -> str:
        return f"e{self.epoch:04d}-{self.since:012d}-{self.labels}-{self.token}.json"

    @classmethod
    def parse(cls, file: str) -> Waiting | None:
        parts = file.removesuffix(".json").split("-")
        if not file.endswith(".json") or len(parts) != 4:
            return None
        return cls(int(parts[0][1:]), int(parts[1]), int(parts[2]), parts[3])


def waiting(volume: Volume, epoch: int) -> list[Waiting]:
    """Files of labels that wait for a decision, those that wait longest first."""
    found = (Waiting.parse(file) for file in volume.files.list(folder_of_waiting(volume)))
    return sorted(file for file in found if file is not None and file.epoch == epoch)


def waiting_labels(volume: Volume, epoch: int) -> int:
    """How many labels wait for a decision."""
    return sum(file.labels for file in waiting(volume, epoch))


def folder_of_waiting(volume: Volume) -> Path:
    return volume.raw_data / "labels" / "waiting"


class Joiner(Taker):
    """Takes files of labels."""

    name: ClassVar[str] = "joiner"
    slot: ClassVar[str] = PRODUCER

    def __init__(self, means: Means, clock: Callable[[], float] = time.time) -> None:
        self._waiting = folder_of_waiting(means.volume)
        folder = means.volume.raw_data / "labels"
        super().__init__(means, Dropped(means.volume.files, folder, aside=self._waiting.name))
        self._clock = clock
        self._decisions = Decisions(means.volume)
        self._looked: dict[str, int] = {}  # waiting file -> server's time of the newest results it was looked up in, ns

    def look(self) -> None:
        """One look: take every file that is complete, look waiting labels up again.

        Raises OSError, SegmentError, SupersededError, VolumeError.
        """
        ready = self._complete()
        self._forget_older_epochs()
        if not ready and not self._volume.files.list(self._waiting):
            return
        self._beat()
        if self._held_back() or not self._lease.take(self._roster.alive()):
            return
        for folder in (self._folder, self._waiting):
            self._volume.files.remove_temporaries(folder, self._roster.server_time() - ABANDONED_SECONDS)
        if self._resume():
            self._settle(self._newest_mark().waiting)
        if not self._settle_begun(ready):
            return
        for names in self._groups(ready):
            if self._stop.is_set() or waiting_labels(self._volume, self._epoch) >= MAX_WAITING:
                break
            self._take(names)
        self._retry(waiting(self._volume, self._epoch))

    # Files

    def _complete(self) -> list[str]:
        """Complete files, those written longest ago first."""
        ready = self._dropped.complete()
        return sorted(ready, key=lambda name: int(self._dropped.seen[name].rpartition("-")[2] or 0))

    def _settle_begun(self, ready: list[str]) -> bool:
        """Finish what the newest cursor is about: no other says how far it is taken. False: not yet."""
        mark = self._newest_mark()
        if mark.end and Waiting.parse(mark.identity) is not None:
            self._volume.files.remove(self._waiting / mark.identity)
        begun = [name for name, identity in self._dropped.seen.items() if identity in (mark.identity, *mark.others)]
        if not set(begun) <= set(ready):
            return False
        for name in begun:
            ready.remove(name)
            self._take([name])
        return not begun or self._newest_mark().end

    def _groups(self, ready: list[str]) -> Iterator[list[str]]:
        """Files in order; small ones that follow each other together, for each flush looks through the results."""
        group: list[str] = []
        size = 0
        for name in ready:
            own = int(self._dropped.seen[name].split("-")[1] or 0) if self._dropped.seen[name] else 0
            small = name.startswith(labels.API_PREFIX) and own <= SMALL
            if group and (not small or len(group) == MAX_TOGETHER or size + own > TOGETHER_BYTES):
                yield group
                group, size = [], 0
            if small:
                group, size = [*group, name], size + own
            else:
                yield [name]
        if group:
            yield group

    def _take(self, names: list[str]) -> None:
        """Publish what is left of a file, or of small ones together, and delete it."""
        paths = [self._folder / name for name in names]
        mark = self._mark(self._dropped.identity(names[0]))
        if not mark.covers(self._dropped.identity(names[0])):
            try:
                if not (self._publish_from(paths[0], mark) if len(paths) == 1 else self._publish_whole(names)):
                    return
            except UnreadableError as error:
                if len(paths) > 1:  # someone else's file with the name of a request's
                    for name in names:
                        self._take([name])
                    return
                self._refuse(paths[0], mark.identity, str(error))
                return
        for path in paths:
            self._volume.files.remove(path)
        self._volume.files.sync_folders(sorted({path.parent for path in paths}))
        self._log.info("labels taken", files=names[:3], count=len(names), labels=self._taken)

    def _refuse(self, path: Path, identity: str, error: str) -> None:
        aside = set_aside_name(self._epoch, path.name, identity)
        reason = f"{error}; labels taken before: {self._mark(identity).done:,}"
        move_aside(self._volume.files, path, self._volume.raw / "dead", Reason(reason=reason, rows=0), aside)
        self._log.error("file of labels refused", set_aside=aside, reason=reason)

    def _publish_whole(self, names: list[str]) -> bool:
        good: list[Label] = []
        rejected: list[Reject] = []
        for path in (self._folder / name for name in names):
            for cells, done, _ in _batches(path, 0):
                accepted, refused = _checked(cells, done - len(cells))
                good += accepted
                rejected += refused
        if self._stop.is_set() or self._volume.epoch() != self._epoch:
            return False
        identity, *others = (self._dropped.identity(name) for name in names)
        self._flush(good, Mark(identity, len(good), True, others=tuple(others)), rejected=rejected)
        return True

    def _publish_from(self, path: Path, mark: Mark) -> bool:
        """Publish what comes after the mark; whether that was all (else: stopped, or a reset)."""
        for cells, done, end in _batches(path, mark.done):
            if self._stop.is_set() or self._volume.epoch() != self._epoch:
                return False
            self._beat()
            first = done - len(cells)
            good, rejected = _checked(cells, first)
            self._flush(good, Mark(mark.identity, done, end), rejected=rejected)
        return True

    # Waiting labels

    def _retry(self, files: list[Waiting]) -> None:
        """Publish those whose decision is there by now, and give those up that have waited for too long.

        One look through the results that are new, for all of them; a file that is due for giving up, or new to this
        process, is looked up in all results.
        """
        late = {file for file in files if self._clock() - file.since >= self._settings.label_wait_seconds}
        found = {file: self._read(file) for file in files if not self._mark(file.file).covers(file.file)}
        if not found:
            return
        since = min(0 if file in late else self._looked.get(file.file, 0) for file in found)
        now = int(self._roster.server_time() * 1e9)
        joined = self._join([label for some in found.values() for label in some], since)
        known = set(joined.column("trans_num").to_pylist())
        for file, some in found.items():
            if self._stop.is_set():
                return
            self._looked[file.file] = now
            if file not in late and not any(label.trans_num in known for label in some):
                continue
            mark = Mark(file.file, len(some), True)
            waits = self._publish(some, joined, mark, since=file.since, give_up=file in late)
            self._looked[waits] = now
            self._volume.files.remove(self._waiting / file.file)
        self._looked = {name: at for name, at in self._looked.items() if (self._waiting / name).is_file()}

    def _read(self, file: Waiting) -> list[Label]:
        content = (self._waiting / file.file).read_bytes()
        return [Label(*cells) for cells in msgspec.json.decode(content, type=list[tuple[str, int, int]])]

    def _forget_older_epochs(self) -> None:
        epoch = self._volume.epoch()
        for name in self._volume.files.list(self._waiting):
            file = Waiting.parse(name.removesuffix(STAGED))
            if file is not None and file.epoch < epoch:
                self._volume.files.remove(self._waiting / name)

    # One flush

    def _flush(self, good: list[Label], mark: Mark, rejected: list[Reject]) -> None:
        since = int(self._clock())
        self._publish(good, self._join(good, 0), mark, since=since, give_up=False, rejected=rejected)

    def _join(self, found: Sequence[Label], since_ns: int) -> pa.Table:
        return self._decisions.find(
            self._epoch, dict.fromkeys(label.trans_num for label in found), since_ns, self._stop.is_set
        )

    def _publish(
        self,
        found: list[Label],
        joined: pa.Table,
        mark: Mark,
        *,
        since: int,
        give_up: bool,
        rejected: Sequence[Reject] = (),
    ) -> str:
        """Publish the labels that have a decision; the others wait, or are set aside and counted.

        The name of the file that they wait in, "" if none does.
        """
        assert self._producer is not None
        known = set(joined.column("trans_num").to_pylist())
        matched = [label for label in found if label.trans_num in known]
        without = [label for label in found if label.trans_num not in known]
        given_up = [label for label in without if give_up or may_be_card(label.trans_num)]
        others = [label for label in without if not (give_up or may_be_card(label.trans_num))]
        reason = (
            f"no decision on this transaction within {self._settings.label_wait_seconds:g} seconds"
            if give_up
            else "no decision on this transaction; its trans_num may be a card number and is not kept"
        )
        refused = [*rejected, *(Reject(row, reason, label.trans_num) for row, label in enumerate(given_up, 1))]
        left = self._volume.files.list(self._waiting)
        if others:
            mark = msgspec.structs.replace(mark, waiting=self._wait(others, since))
        batch = _segment(matched, given_up, joined)
        self._producer.publish(batch, rejected=refused, cursor=msgspec.json.encode(mark).decode())
        self._settle(mark.waiting)
        for name in left:  # of flushes that can't be published any more, now that ours is
            if name.endswith(STAGED):
                self._volume.files.remove(self._waiting / name)
        self._taken += len(found)
        return mark.waiting

    def _wait(self, others: list[Label], since: int) -> str:
        name = Waiting(self._epoch, since, len(others), secrets.token_hex(6)).file
        self._volume.files.make_folder(self._waiting)
        self._volume.files.replace(self._waiting / f"{name}{STAGED}", msgspec.json.encode(others))
        return name

    def _settle(self, name: str) -> None:
        """What a flush that is published had staged counts."""
        if not name:
            return
        try:
            self._volume.files.rename(self._waiting / f"{name}{STAGED}", self._waiting / name)
        except FileNotFoundError:  # it was renamed before, and may have been taken
            return
        self._volume.files.sync_folders([self._waiting])

    # The producer

    def _newest_mark(self) -> Mark:
        assert self._producer is not None
        cursor = self._producer.position.cursor
        return msgspec.json.decode(cursor, type=Mark) if cursor else Mark("", 0, False)

    def _mark(self, identity: str) -> Mark:
        """How much of the file is published."""
        mark = self._newest_mark()
        return mark if mark.identity == identity or mark.covers(identity) else Mark(identity, 0, False)


def _batches(path: Path, done: int) -> Iterator[tuple[list[Sequence[str | None]], int, bool]]:
    """Records of a file, how many there were up to their end, and whether that is the file's end too."""
    batches = records(path, done, LAYOUT)
    batch = next(batches, None)
    while batch is not None:
        following = next(batches, None)
        done += batch.height
        yield batch.rows(), done, following is None
        batch = following


def _checked(cells: list[Sequence[str | None]], first: int) -> tuple[list[Label], list[Reject]]:
    good: list[Label] = []
    rejected: list[Reject] = []
    for row, texts in enumerate(cells):
        label = labels.check(texts)
        if isinstance(label, str):
            text = msgspec.json.encode(dict(zip(labels.COLUMNS, texts, strict=True))).decode()
            rejected.append(Reject(first + row + 1, label, text[:LONGEST_TEXT]))
        else:
            good.append(label)
    return good, rejected


def _segment(matched: list[Label], unmatched: list[Label], joined: pa.Table) -> pa.RecordBatch:
    """A batch of schema.LABELS, in the order of ``matched``, then ``unmatched``."""
    rows = {trans_num: row for row, trans_num in enumerate(joined.column("trans_num").to_pylist())}
    decided = joined.take(pa.array([rows[label.trans_num] for label in matched], pa.int64()))
    table = pa.concat_tables([decided, _undecided(unmatched)])
    every = [*matched, *unmatched]
    columns: dict[str, Any] = {
        "labelled_at": pa.array([label.labelled_at for label in every], LABELS.field("labelled_at").type),
        "is_fraud": pa.array([label.is_fraud for label in every], pa.int8()),
        "matched": pa.array([True] * len(matched) + [False] * len(unmatched), pa.bool_()),
        "merchant": _whole(table.column("merchant")).dictionary_encode().cast(MERCHANT),
    }
    arrays = [columns[name] if name in columns else _whole(table.column(name)) for name in LABELS.names]
    return pa.RecordBatch.from_arrays(arrays, schema=LABELS)


def _undecided(unmatched: list[Label]) -> pa.Table:
    """Of schema DECISION, all but ``trans_num`` empty."""
    empty: dict[str, Any] = {
        "event_time": 0, "card": 0, "merchant": "", "producer": "", "own_label": -1, "flagged": False, "in_sample": True
    }  # fmt: skip
    columns = [
        pa.array([_kept(label.trans_num) for label in unmatched], pa.string())
        if field.name == "trans_num"
        else pa.array([empty[field.name]] * len(unmatched), field.type)
        for field in DECISION
    ]
    return pa.Table.from_arrays(columns, schema=DECISION)


def _kept(trans_num: str) -> str:
    """Nobody has said that it is a transaction's number: if it may be a card's it does not go on."""
    return mask(trans_num) if may_be_card(trans_num) else trans_num


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
