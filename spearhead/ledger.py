"""The ledger: global totals of an epoch, counted once a segment, in versions that any worker may add.

``metrics/ledger/<epoch:06d>-<version:012d>.json`` holds a LedgerFile. Version n+1 is version n and the aggregates in
``metrics/pending/`` that n has not applied, put there by ``link`` unless another folder was first. A copy of the newest
version is ``metrics/.metrics.json``. ``docs/decisions/0002-ledger.md`` has the protocol and why each step is needed.
"""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from spearhead.aggregate import (
    HOUR_US,
    SCORE_BINS,
    Aggregate,
    AmountBucket,
    DriftDay,
    Feedback,
    Group,
    HourOutcomes,
    LabelDay,
    Outcomes,
    Signal,
    add_hour,
    add_outcomes,
    merge,
    outcomes_count,
    prune_days,
    prune_minutes,
)
from spearhead.backlog import Head, RawHeads
from spearhead.dead import DeadCounter, DeadRows
from spearhead.rejects import Reason, move_aside, stray_name
from spearhead.segment import SegmentError, SegmentName, read_info
from spearhead.volume import Volume

LEDGER_FORMAT: Final = 1
MINUTES: Final = 120
MAX_FOLDED: Final = 1_000  # segments in one fold, so that it ends within the lease
KEPT_VERSIONS: Final = 3
TEMPORARY_SECONDS: Final = 3600.0  # age at which a temporary file is nobody's any more
REFRESH_SECONDS: Final = 0.5  # least time between two copies into .metrics.json
LOST: Final = "the totals are lost. Restore a version or .metrics.json from a backup, or start anew with reset"

_VERSION = re.compile(r"^(\d{6,})-(\d{12})\.json$")


class LedgerError(RuntimeError):
    """No version of the ledger can be read; the message says what to do."""


class Labelled(msgspec.Struct):
    """Decisions against labels that have matured; ``pending`` rows' labels have not, but will."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    pending: int = 0
    in_sample: Outcomes = msgspec.field(default_factory=Outcomes)


class Counted(msgspec.Struct):
    """What one producer's results came to."""

    segments: int = 0
    rows: int = 0


class LedgerFile(msgspec.Struct, kw_only=True):
    """One version. Times are ISO 8601 in JSON, ``*_cents`` and counts are exact, dollars are derived from cents."""

    format: int = LEDGER_FORMAT
    epoch: int
    version: int = 0
    updated_at: datetime
    started_at: datetime | None = None  # when the first row was scored
    transactions_analyzed: int = 0
    amount_total: float = 0.0
    amount_total_cents: int = 0
    flagged_count: int = 0
    flagged_amount: float = 0.0
    flagged_amount_cents: int = 0
    labelled: Labelled = msgspec.field(default_factory=Labelled)
    unlabelled: int = 0
    reasons_computed: int = 0  # flagged rows with reasons from the stream
    reasons_deferred: int = 0  # flagged rows beyond the budget of reasons
    feedback: Feedback = msgspec.field(default_factory=Feedback)  # its outcomes are in ``labelled`` too
    score_bins: list[int] = msgspec.field(default_factory=lambda: [0] * SCORE_BINS)
    bands: list[int] = msgspec.field(default_factory=lambda: [0] * 3)
    categories: dict[str, Group] = msgspec.field(default_factory=dict)
    states: dict[str, Group] = msgspec.field(default_factory=dict)
    minutes: dict[str, Group] = msgspec.field(default_factory=dict)
    latency: dict[str, int] = msgspec.field(default_factory=dict)
    latency_us: int = 0
    flagged_amounts: dict[str, AmountBucket] = msgspec.field(default_factory=dict)
    models: dict[str, int] = msgspec.field(default_factory=dict)
    recent_signals: list[Signal] = msgspec.field(default_factory=list)
    producers: dict[str, Counted] = msgspec.field(default_factory=dict)
    dead: dict[str, DeadRows] = msgspec.field(default_factory=dict)
    label_days: dict[str, LabelDay] = msgspec.field(default_factory=dict)  # matured labels by event day since 1970
    drift: dict[str, DriftDay] = msgspec.field(default_factory=dict)  # "<edges>/<event day>"
    first_scored_at: int = 0  # us since 1970; 0: none
    first_event_day: int = 0  # days since 1970, of the rows scored first
    last_scored_at: int = 0
    pending_labels: dict[str, HourOutcomes] = msgspec.field(default_factory=dict)
    damaged_versions: int = 0  # versions that could not be read; what they alone had counted is lost
    applied: list[str] = msgspec.field(default_factory=list)  # counted, and their pending files may be there

    @property
    def key(self) -> Key:
        return Key(self.epoch, self.version)

    def totals(self) -> Aggregate:
        """The figures as an aggregate that shares this version's tables: merging into it changes them."""
        return Aggregate(
            count=self.transactions_analyzed,
            cents=self.amount_total_cents,
            flagged=self.flagged_count,
            flagged_cents=self.flagged_amount_cents,
            unlabelled=self.unlabelled,
            reasons_computed=self.reasons_computed,
            reasons_deferred=self.reasons_deferred,
            score_bins=self.score_bins,
            bands=self.bands,
            categories=self.categories,
            states=self.states,
            minutes=self.minutes,
            latency=self.latency,
            latency_us=self.latency_us,
            flagged_amounts=self.flagged_amounts,
            pending_labels=self.pending_labels,
            label_days=self.label_days,
            drift=self.drift,
            feedback=self.feedback,
            models=self.models,
            signals=self.recent_signals,
            first_scored_at=self.first_scored_at,
            first_event_day=self.first_event_day,
            last_scored_at=self.last_scored_at,
        )

    def set_totals(self, totals: Aggregate) -> None:
        """Take over the figures of ``totals``, which had been this version's."""
        self.transactions_analyzed = totals.count
        self.amount_total_cents = totals.cents
        self.amount_total = totals.cents / 100
        self.flagged_count = totals.flagged
        self.flagged_amount_cents = totals.flagged_cents
        self.flagged_amount = totals.flagged_cents / 100
        self.unlabelled = totals.unlabelled
        self.reasons_computed = totals.reasons_computed
        self.reasons_deferred = totals.reasons_deferred
        self.score_bins = totals.score_bins
        self.bands = totals.bands
        self.latency_us = totals.latency_us
        self.recent_signals = totals.signals
        self.first_scored_at = totals.first_scored_at
        self.first_event_day = totals.first_event_day
        self.last_scored_at = totals.last_scored_at
        if totals.first_scored_at:
            self.started_at = datetime.fromtimestamp(totals.first_scored_at / 1e6, UTC)


class Key(NamedTuple):
    """Order of versions over all epochs."""

    epoch: int
    version: int

    @property
    def file(self) -> str:
        return f"{self.epoch:06d}-{self.version:012d}.json"

    @classmethod
    def parse(cls, file: str) -> Key | None:
        match = _VERSION.match(file)
        return cls(int(match[1]), int(match[2])) if match else None


class Folded(NamedTuple):
    """What one call of ``Ledger.fold`` did."""

    segments: int = 0
    rows: int = 0
    dead: int = 0  # pending aggregates that could not be read


class Newest(NamedTuple):
    """The newest version that can be read, and the key of the newest there is (higher if that one is damaged)."""

    ledger: LedgerFile | None
    top: Key
    damaged: int


class Ledger:
    """Folds pending aggregates into new versions. Any number of workers may, at the same time; not thread-safe."""

    def __init__(
        self,
        volume: Volume,
        label_delay_us: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._files = volume.files
        self._label_delay_us = label_delay_us
        self._clock = clock
        self._heads = RawHeads(volume)
        self._dead = DeadCounter(volume)
        self._dead_folder = volume.metrics / "dead"
        self._base: LedgerFile | None = None  # the version that the last fold saw or made: never changed
        self._removed: set[str] = set()  # pending files that this folder's own unlink removed or found gone
        self._refreshed = -math.inf
        for folder in (volume.ledger, volume.pending, self._dead_folder):
            self._files.make_folder(folder)

    def fold(self) -> Folded:
        """Count what is pending, let labels mature, and bring .metrics.json up to date.

        A race lost to another folder counts nothing and is no error: the next call goes on from its version. Raises
        LedgerError if no version is readable, OSError; nothing is lost or doubled then.
        """
        epoch = self._volume.epoch()
        newest = self._newest(epoch)
        if newest is None:  # the epoch rose, or versions are made faster than we read them
            return Folded()
        base = newest.ledger or empty_ledger(epoch)
        aggregates, bad = self._read_pending(epoch, base)
        heads = self._heads.producers(epoch)
        dead = self._dead.count(epoch)
        done = Folded(dead=bad)
        news = aggregates or newest.damaged or base.version == 0 or dead != base.dead or self._matured(base, heads)
        if news:
            new = self._next(base, aggregates, heads, dead)
            new.epoch, new.version = newest.top.epoch, newest.top.version + 1
            new.damaged_versions += newest.damaged
            if self._link(new):
                done = Folded(len(aggregates), sum(aggregate.count for aggregate in aggregates.values()), bad)
                base = new
        self._refresh(base)
        return done

    def close(self) -> None:
        """Show in .metrics.json what is known by now, however recent the last copy is."""
        self._refreshed = -math.inf
        if self._base is not None:
            self._refresh(self._base)

    # The base

    def _newest(self, epoch: int) -> Newest | None:
        """The base of a fold: surely the newest version at some moment after it was read, else None.

        Without the second listing it might be a link that does not count: of a folder that froze before it, while
        the version it replaces was removed as old.
        """
        files = self._files.list(self._volume.ledger)
        keys = [key for file in files if (key := Key.parse(file))]
        if self._base is not None and keys and keys[-1] == self._base.key and self._base.epoch == epoch:
            return Newest(self._base, self._base.key, 0)
        newest = find_newest(self._volume)
        if self._top() != newest.top or newest.top.epoch > epoch:
            return None
        if newest.top.epoch < epoch:  # the epoch starts at zero
            return Newest(None, Key(epoch, 0), 0)
        if newest.ledger is None or newest.ledger.epoch < epoch:
            raise LedgerError(f"no version of epoch {epoch} in {self._volume.ledger} can be read: {LOST}")
        self._base = newest.ledger if not newest.damaged else None
        return newest

    def _top(self) -> Key:
        """The newest key there is; (0, 0) if there is none."""
        return max(
            (key for file in self._files.list(self._volume.ledger) if (key := Key.parse(file))), default=Key(0, 0)
        )

    # The next version

    def _read_pending(self, epoch: int, base: LedgerFile) -> tuple[dict[str, Aggregate], int]:
        """Aggregates that ``base`` has not applied, by name (oldest MAX_FOLDED), and how many were set aside."""
        applied = set(base.applied)
        aggregates: dict[str, Aggregate] = {}
        bad = 0
        for file in self._files.list(self._volume.pending):
            name = SegmentName.parse(file.removesuffix(".json"))
            if name is not None and name.epoch < epoch:
                self._files.remove(self._volume.pending / file)
            elif name is not None and str(name) in applied:  # whoever counted it died before it could remove it
                self._remove_pending([str(name)])
            elif name is not None and name.epoch > epoch:
                continue
            elif len(aggregates) == MAX_FOLDED:
                break
            else:
                try:
                    content = (self._volume.pending / file).read_bytes()
                    aggregates[_segment(name)] = msgspec.json.decode(content, type=Aggregate)
                except FileNotFoundError:  # counted and removed by another folder: it is not for this version
                    continue
                except msgspec.DecodeError as error:
                    self._set_aside(file, name, str(error), epoch)
                    bad += 1
        return aggregates, bad

    def _set_aside(self, file: str, name: SegmentName | None, reason: str, epoch: int) -> None:
        """A pending file that nobody can read never changes: out of the way with it."""
        why = Reason(reason=reason, rows=0 if name is None else self._result_rows(name))
        called = stray_name(epoch, file) if name is None else file
        try:
            move_aside(self._files, self._volume.pending / file, self._dead_folder, why, called)
        except FileNotFoundError:  # another folder did it
            return

    def _result_rows(self, name: SegmentName) -> int | None:
        try:
            return read_info(self._volume.result_file(str(name))).rows
        except (SegmentError, FileNotFoundError):
            return None

    def _next(
        self, base: LedgerFile, aggregates: dict[str, Aggregate], heads: dict[str, Head], dead: dict[str, DeadRows]
    ) -> LedgerFile:
        """``base`` and what is new. Removes pending files that ``base`` has counted."""
        new = msgspec.json.decode(msgspec.json.encode(base), type=LedgerFile)  # base stays as it is
        totals = new.totals()
        merge(totals, aggregates.values())
        new.set_totals(totals)
        prune_minutes(new.minutes, MINUTES)
        for name, aggregate in aggregates.items():
            _count_segment(new.producers, name, aggregate.count)
            _add_matured(new.labelled, aggregate.feedback.outcomes)
        for key in self._matured(new, heads):
            hour = new.pending_labels.pop(key)
            _add_matured(new.labelled, hour)
            add_hour(new.label_days, int(key.rpartition("/")[2]), hour)
        prune_days(new.label_days, new.drift)
        new.labelled.pending = sum(_hour_count(hour) for hour in new.pending_labels.values())
        new.dead = dead
        new.updated_at = datetime.now(UTC)
        new.applied = [*self._still_applied(base), *aggregates]
        return new

    def _matured(self, ledger: LedgerFile, heads: dict[str, Head]) -> list[str]:
        """Hours whose labels may be used: their producer has published event time LABEL_DELAY past their end."""
        mature = []
        for key in ledger.pending_labels:
            producer, _, hour = key.rpartition("/")
            head = heads.get(producer)
            end = (int(hour) + 1) * HOUR_US
            if head is not None and (head.ended or head.watermark >= end + self._label_delay_us):
                mature.append(key)
        return mature

    def _still_applied(self, base: LedgerFile) -> list[str]:
        """Names that the next version must remember. Only those go whose file our own unlink removed or found gone.

        That a listing lacks a file proves nothing: listings may be stale, and what is forgotten is counted again.
        """
        for name in base.applied:
            if name not in self._removed:
                self._remove_pending([name])
        return [name for name in base.applied if name not in self._removed]

    def _remove_pending(self, names: Iterable[str]) -> None:
        for name in names:
            self._files.remove(self._volume.pending / f"{name}.json")
            self._removed.add(name)

    # Linking

    def _link(self, new: LedgerFile) -> bool:
        """Make ``new`` the newest version, unless another folder was first. Then remove what it makes superfluous."""
        path = self._volume.ledger / new.key.file
        try:
            linked = self._files.put_if_absent(path, msgspec.json.encode(new))
        except FileNotFoundError:  # we froze for so long that our temporary file was collected
            linked = False
        if not linked or self._top() != new.key:  # look again: beside anything newer our link does not count
            self._base = None
            self._removed.clear()
            return False
        self._removed.intersection_update(new.applied)
        self._base = new
        self._remove_pending([name for name in new.applied if name not in self._removed])
        self._remove_old(path)
        return True

    def _remove_old(self, path: Path) -> None:
        """Remove old versions, oldest first: the newest that are there always follow each other."""
        keys = sorted(key for file in self._files.list(self._volume.ledger) if (key := Key.parse(file)))
        for key in keys[:-KEPT_VERSIONS]:
            self._files.remove(self._volume.ledger / key.file)
        try:
            now = path.stat().st_mtime  # the server's clock
        except FileNotFoundError:
            return
        for folder in (self._volume.ledger, self._volume.metrics, self._dead_folder):
            self._files.remove_temporaries(folder, now - TEMPORARY_SECONDS)

    def _refresh(self, newest: LedgerFile) -> None:
        """Copy a version into .metrics.json, not over a newer one as far as can be told (readers never go back)."""
        now = self._clock()
        if now - self._refreshed < REFRESH_SECONDS:
            return
        try:
            shown = msgspec.json.decode(self._volume.metrics_json.read_bytes(), type=_Header)
            key = Key(shown.epoch, shown.version)
        except (FileNotFoundError, msgspec.DecodeError):
            key = Key(0, 0)
        if key < newest.key:
            self._files.replace(self._volume.metrics_json, msgspec.json.encode(newest))
        self._refreshed = now


class LedgerReader:
    """Reads ``.metrics.json`` again and again, and never goes back to an older version than it has shown."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._newest: LedgerFile | None = None
        self._signature: tuple[int, int, int] | None = None

    def read(self) -> LedgerFile | None:
        """The newest totals of the epoch in force; zeros right after a reset; None on a volume without a ledger.

        A damaged .metrics.json is passed over for the newest version that can be read. Raises LedgerError if there
        is none and nothing was read before.
        """
        try:
            status = self._volume.metrics_json.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            signature = None
        if signature is None or signature != self._signature:
            self._show(self._read())
            self._signature = signature
        return _of_epoch(self._newest, self._volume.epoch())

    def _read(self) -> LedgerFile | None:
        try:
            return decode_ledger(self._volume.metrics_json)
        except (FileNotFoundError, LedgerError):
            if self._newest is None:
                return find_newest(self._volume).ledger
            try:
                return find_newest(self._volume).ledger
            except LedgerError:  # what was shown is the best there is
                return None

    def _show(self, ledger: LedgerFile | None) -> None:
        if ledger is not None and (self._newest is None or ledger.key > self._newest.key):
            self._newest = ledger


def read_ledger(volume: Volume) -> LedgerFile | None:
    """The newest version's totals, of the epoch in force; None on a volume without a ledger. Raises LedgerError."""
    return _of_epoch(find_newest(volume).ledger, volume.epoch())


def decode_ledger(path: Path) -> LedgerFile:
    """One file. Raises LedgerError if it is damaged or of another format, FileNotFoundError, other OSErrors."""
    content = path.read_bytes()
    try:
        ledger = msgspec.json.decode(content, type=LedgerFile)
    except msgspec.DecodeError as error:
        raise LedgerError(f"{path}: damaged: {error}") from error
    if ledger.format != LEDGER_FORMAT:
        raise LedgerError(f"{path}: has format {ledger.format}, this version reads {LEDGER_FORMAT}")
    return ledger


def find_newest(volume: Volume) -> Newest:
    """The newest readable version; the copy in .metrics.json stands in for a damaged one.

    Raises LedgerError if there are versions and none can be read.
    """
    while True:
        keys = sorted(key for file in volume.files.list(volume.ledger) if (key := Key.parse(file)))
        ledger, damaged, vanished = _first_readable(volume, keys[::-1])
        if not vanished:  # by now there are newer ones: look again
            break
    if ledger is None or damaged:
        ledger = max(filter(None, (ledger, _shown(volume))), key=lambda found: found.key, default=None)
    if ledger is None and keys:
        raise LedgerError(f"no version in {volume.ledger} can be read: {LOST}")
    top = max([*keys[-1:], ledger.key] if ledger else [*keys[-1:], Key(0, 0)])
    return Newest(ledger, top, damaged)


def empty_ledger(epoch: int) -> LedgerFile:
    """The totals with which an epoch starts."""
    return LedgerFile(epoch=epoch, updated_at=datetime.now(UTC))


class _Header(msgspec.Struct):
    epoch: int
    version: int


def _first_readable(volume: Volume, keys: Collection[Key]) -> tuple[LedgerFile | None, int, bool]:
    """The first that can be read, how many before it were damaged, and whether one of them had vanished."""
    damaged = 0
    for key in keys:
        try:
            return decode_ledger(volume.ledger / key.file), damaged, False
        except FileNotFoundError:
            return None, damaged, True
        except (LedgerError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            damaged += 1
    return None, damaged, False


def _shown(volume: Volume) -> LedgerFile | None:
    try:
        return decode_ledger(volume.metrics_json)
    except (FileNotFoundError, LedgerError):
        return None


def _of_epoch(ledger: LedgerFile | None, epoch: int) -> LedgerFile | None:
    return empty_ledger(epoch) if ledger is not None and ledger.epoch < epoch else ledger


def _count_segment(producers: dict[str, Counted], name: str, rows: int) -> None:
    parsed = SegmentName.parse(name)
    assert parsed is not None
    if parsed.of_labels:
        return
    counted = producers.setdefault(parsed.producer, Counted())
    counted.segments += 1
    counted.rows += rows


def _add_matured(labelled: Labelled, hour: HourOutcomes) -> None:
    outcomes = hour.out_of_sample
    labelled.tp += outcomes.tp
    labelled.fp += outcomes.fp
    labelled.tn += outcomes.tn
    labelled.fn += outcomes.fn
    add_outcomes(labelled.in_sample, hour.in_sample)


def _segment(name: SegmentName | None) -> str:
    if name is None:
        raise msgspec.DecodeError("not the name of a segment")
    return str(name)


def _hour_count(hour: HourOutcomes) -> int:
    return outcomes_count(hour.out_of_sample) + outcomes_count(hour.in_sample)
