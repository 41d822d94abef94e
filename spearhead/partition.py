"""The log of one partition of raw-transactions: which segments were taken in which order, and what came of them.

Step n exists once ``commits/pNN/<epoch:06d>-<n:012d>.json`` does. It is put there by ``link``, so once; it names the
inputs and the attempt whose staged outputs count. Only then are the outputs renamed into ``ready/`` by name, and step
n+1 starts only when all of them are there. Whoever has linked n looks again and acts only if n is still the newest
(models/partition.py). State is a function of the commits alone: a checkpoint and a replay of the later commits' inputs
give the same bytes. While what came of a segment is written, and a step is made durable, the state takes the segment
that follows: that changes no file, and goes with the state if the step is lost. docs/decisions/0003-partition-log.md
has the reasons.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
import pyarrow as pa

from spearhead.aggregate import Aggregate
from spearhead.checkpoint import (
    Arrays,
    CheckpointError,
    CheckpointName,
    UnknownFormatError,
    read_checkpoint,
    read_header,
    write_checkpoint,
)
from spearhead.companion import STAGED_SUFFIX, companion
from spearhead.files import Files
from spearhead.mask import mask
from spearhead.narrow import read_raw
from spearhead.rejects import (
    PREP_SUFFIX,
    REASON_SUFFIX,
    Reason,
    RejectedRow,
    encode_rejects,
    move_aside,
    set_aside,
    stray_name,
)
from spearhead.schema import LABELS, RAW
from spearhead.segment import SegmentError, SegmentInfo, SegmentName, write_segment
from spearhead.volume import Volume

LABEL_SUFFIX: Final = ".labels.json"  # the aggregate of a segment of labels, as it is staged
MAX_TRIES: Final = 3
MAX_DEATHS: Final = 5
CHECKPOINT_SHARE: Final = 0.03  # of the time may go into writing checkpoints
CHECKPOINT_ROWS: Final = 1 << 27  # taken without one at most: what a replay takes in, and half of what raw keeps
COLLECT_SECONDS: Final = 30.0

_RAW: Final = frozenset(RAW.names)
_COMMIT = re.compile(r"^(\d{6,})-(\d{12})\.json$")
_STAGED_COMMIT = re.compile(r"^p(\d{2,})-(\d{6,})-\d{12}\.json$")
_log = logging.getLogger(__name__)


class LostError(RuntimeError):
    """Another worker commits to this partition: drop the state; open again if the partition is still one's own."""


class LogDamagedError(RuntimeError):
    """The state can't be rebuilt from what is on the volume; the message says what is missing."""


class DeadInput(msgspec.Struct, frozen=True):
    """A segment passed over: damaged, or missing. ``rows`` is None until the producer's next segment tells."""

    name: str
    reason: str
    tries: int
    rows: int | None = None


class ProducerPosition(msgspec.Struct, frozen=True):
    """How far one producer was followed in this partition."""

    seq: int = 0  # highest number taken or passed over
    good: int = 0  # highest number that could be read
    rows: int = 0  # rows (or labels) it had published up to there, those of dead segments included once known
    emitted: int = 0  # rows passed on
    rejected: int = 0  # rows set aside here
    sampled: int = 0  # rows put into training-queue
    dead: DeadInput | None = None  # passed over last, its rows not known yet


class Commit(msgspec.Struct, kw_only=True):
    """One step, as its file says. Counts are sums over all steps of the epoch up to this one."""

    format: int = 1
    epoch: int
    partition: int
    step: int
    attempt: str  # whose staged outputs count
    inputs: list[str] = []  # segments taken, in order; each of rows has an output of its name in features-ready
    training: list[str] = []  # those of them with an output in training-queue
    rejects: list[str] = []  # those of them with rows set aside
    labels: list[str] = []  # those of them that hold labels: each has an output of the same name in metrics/pending
    known: list[str] = []  # those of them with an output in training-queue/labels
    dead: list[DeadInput] = []  # segments passed over, and those of earlier steps whose rows became known
    producers: dict[str, ProducerPosition] = {}
    consumed: int = 0  # rows taken from raw-transactions: emitted + rejected + dead_rows
    emitted: int = 0
    rejected: int = 0
    dead_rows: int = 0
    dead_segments: int = 0
    labels_taken: int = 0  # labels taken from raw-transactions, those of dead segments included once known
    dead_labels: int = 0


class Outcome(NamedTuple):
    """What one segment came to: rows passed on (features-ready) and rows refused.

    Rows are passed on in their order; a column of schema.RAW holds what it held.
    """

    features: pa.RecordBatch
    rejects: Sequence[RejectedRow]
    share: float = 1.0  # of the rows that are for training-queue


class LabelOutcome(NamedTuple):
    """What a segment of labels came to: what it adds to the ledger, and what it changed (schema.KNOWN_LABELS)."""

    aggregate: Aggregate
    known: pa.RecordBatch


class Work(Protocol):
    """What a partition's log is kept for: a deterministic state machine over segments, but for whether it samples."""

    def restore(self, arrays: Arrays | None) -> None:
        """Go to the state of a checkpoint, or to the empty state."""

    def arrays(self) -> Arrays:
        """The state, to be written at once."""

    def apply(self, batch: pa.RecordBatch) -> Outcome:
        """Take one segment of schema.RAW. Raises SegmentError before anything of the state has changed."""

    def apply_labels(self, batch: pa.RecordBatch) -> LabelOutcome:
        """Take one segment of schema.LABELS. Raises SegmentError before anything of the state has changed."""

    def sample(self, outcome: Outcome) -> pa.RecordBatch | None:
        """Rows for training-queue out of what ``apply`` came to, if any. The state may be another one by now."""


class Limits(NamedTuple):
    """How much one step takes at most."""

    segments: int = 4
    rows: int = 262_144


DEFAULT_LIMITS: Final = Limits()


class _Output(NamedTuple):
    info: SegmentInfo
    features: pa.RecordBatch
    training: pa.RecordBatch | None
    sampled_before: int
    rejects: Sequence[RejectedRow]


class _LabelOutput(NamedTuple):
    info: SegmentInfo
    outcome: LabelOutcome


class _Step(msgspec.Struct):
    """A step whose inputs the state has taken already: it is committed, or lost with the state."""

    commit: Commit
    outputs: list[_Output | _LabelOutput]
    rows: int  # or labels
    looks_ahead: bool
    changed: bool = False  # whether the state has taken any of the inputs
    written: int = 0  # of the outputs
    unsynced: list[Path] = []  # what was written and is not durable yet
    staged: bool = False
    linked: bool = False
    garbage: list[Path] = []


class _Ahead(NamedTuple):
    """The next segment, which the state takes while what came of the one before is written and committed."""

    name: SegmentName
    read: Future[tuple[pa.RecordBatch, SegmentInfo]]
    outcome: Future[Outcome | LabelOutcome]


class PartitionLog:
    """The log as one worker that believes it owns the partition reads, extends and checkpoints it."""

    def __init__(
        self,
        volume: Volume,
        partition: int,
        worker: str,
        work: Work,
        *,
        limits: Limits = DEFAULT_LIMITS,
        checkpoint_seconds: float = 10.0,
        gap_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._files: Files = volume.files
        self._partition = partition
        self._worker = worker
        self._work = work
        self._limits = limits
        self._checkpoint_seconds = checkpoint_seconds
        self._gap_seconds = gap_seconds
        self._clock = clock
        self._ready = volume.raw_ready(partition)
        self._commits = volume.commits(partition)
        self._checkpoints = volume.checkpoints(partition)
        self._dead = volume.raw / "dead"
        self._note = volume.control / "owners" / f"p{partition:02d}.holding"
        self._tries: dict[str, tuple[int, str]] = {}  # segment -> times it raised on its own, and what
        self._opened = 0
        self._loaded = False
        self._ahead: _Ahead | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="look-ahead")
        self.commit = Commit(epoch=0, partition=partition, step=0, attempt="")
        self.checkpoint_step = 0
        self.checkpoint_cost = 0.0  # seconds
        self.last_error: str | None = None

    # Opening

    def open(self, epoch: int) -> None:
        """Finish the newest commit, whoever's it is, and rebuild the state it leaves.

        Raises LostError if another worker goes on meanwhile, LogDamagedError, OSError.
        """
        self._loaded = False
        if self._ahead is not None:
            wait([self._ahead.outcome])  # the state is about to be another one
            self._ahead = None
        self._opened += 1
        self._attempt = f"{self._worker}.p{self._partition:02d}-{self._opened}"
        self._pending: _Step | None = None
        self._seen: set[str] = set()
        self._waiting: dict[str, set[int]] = {}
        self._gaps: dict[str, float] = {}
        self._served = ""
        self._covered: dict[str, int] = {}
        self._covered_step = 0
        self._proved: set[str] = set()  # producers of which one segment was taken: it didn't kill us
        self._epoch = epoch
        self._forget_older_epochs()
        newest = newest_commit(self._volume, self._partition, epoch)
        self.commit = newest or Commit(epoch=epoch, partition=self._partition, step=0, attempt="")
        if newest is not None:
            self._finish(newest)
        self._rebuild()
        self._count_death()
        self._checkpointed = self._clock()
        self._checkpointed_rows = self.commit.consumed
        self._collected = self._checkpointed - COLLECT_SECONDS
        self._loaded = True
        self._clean()

    def _rebuild(self) -> None:
        step = self._load_checkpoint()
        for n in range(step + 1, self.commit.step + 1):
            try:
                for name in self._read_commit(n).inputs:
                    self._give(name, read_raw(self._ready / f"{name}.arrow")[0])
            except FileNotFoundError as error:
                if self._checkpoint_steps()[-1:] > [step]:
                    raise LostError(f"partition {self._partition} moved on while it was replayed") from error
                raise LogDamagedError(
                    f"partition {self._partition}: step {n} can't be replayed, {error.filename} is gone; "
                    "`reset` starts with an empty history"
                ) from error
            except SegmentError as error:
                raise LogDamagedError(
                    f"partition {self._partition}: step {n} can't be replayed: {error}; "
                    "`reset` starts with an empty history"
                ) from error

    def _give(self, name: str, batch: pa.RecordBatch) -> Outcome | LabelOutcome:
        """Have the state take a segment."""
        parsed = SegmentName.parse(name)
        labels = parsed is not None and parsed.of_labels
        return self._work.apply_labels(batch) if labels else self._work.apply(batch)

    def _load_checkpoint(self) -> int:
        """Restore the newest readable checkpoint; its step, 0 if there is none. Damaged ones are removed."""
        self._sweep_hidden(self._checkpoints)
        steps = self._checkpoint_steps()
        while steps:
            path = self._checkpoint_path(steps[-1])
            try:
                _, arrays = read_checkpoint(path)
            except UnknownFormatError as error:
                raise LogDamagedError(str(error)) from error
            except CheckpointError as error:
                self._report(f"checkpoint of partition {self._partition} is damaged, going back one: {error}")
                self._files.remove(path)
                steps.pop()
                continue
            except FileNotFoundError as error:
                raise LostError(f"partition {self._partition} moved on while its checkpoint was read") from error
            self._work.restore(arrays)
            self.checkpoint_step = steps[-1]
            self._cover(steps)
            return steps[-1]
        self._work.restore(None)
        self.checkpoint_step = 0
        return 0

    def _cover(self, steps: list[int]) -> None:
        """What the older of the two checkpoints kept covers: the newer one may turn out damaged."""
        if len(steps) < 2:
            return
        try:
            self._covered = read_header(self._checkpoint_path(steps[-2])).seqs
            self._covered_step = steps[-2]
        except (CheckpointError, FileNotFoundError):  # nothing is removed before the next checkpoint
            return

    def _count_death(self) -> None:
        """A note left behind says which segment a worker held when it died; five in a row and the segment is dead."""
        try:
            note = msgspec.json.decode(self._note.read_bytes(), type=_Holding)
        except FileNotFoundError:
            self._deaths = _Holding(name="", deaths=0)
            return
        self._deaths = _Holding(name=note.name, deaths=note.deaths + 1)
        if self._deaths.deaths >= MAX_DEATHS:
            self._tries[note.name] = (MAX_TRIES, f"{MAX_DEATHS} workers in a row died holding it")

    # One step

    def step(self) -> int:
        """Take the next segments, if any, as one step; rows taken from raw-transactions.

        Raises LostError, OSError (a full disk): then call it again, what was computed is kept and nothing is lost.
        """
        return self._step(looks_ahead=True)

    def _step(self, looks_ahead: bool) -> int:
        if not self._loaded:
            self.open(self._epoch)
        if self._pending is None:
            self._pending = self._prepare(looks_ahead)
        if self._pending is None:
            return 0
        step = self._pending
        if step.looks_ahead:
            self._look_ahead(step.commit.producers)
        try:
            self._commit(step)
        except FileNotFoundError as error:  # our private folder was cleared: we were taken for dead
            self._lose(step)
            raise LostError(f"partition {self._partition}: what {self._attempt} staged is gone") from error
        self.commit = step.commit
        self._pending = None
        return step.rows

    def _prepare(self, looks_ahead: bool) -> _Step | None:
        """Read and apply the next segments; None if there is nothing to commit."""
        step = _Step(self._next_commit(), [], 0, looks_ahead)
        try:
            self._fill(step)
        except BaseException:
            self._loaded = self._loaded and not step.changed  # the state has taken what is not going to be committed
            raise
        return step if self._loaded and (step.commit.inputs or step.commit.dead) else None

    def _fill(self, step: _Step) -> None:
        stuck: set[str] = set()
        for name in self._next_names(step.commit, stuck):
            tries, reason = self._tries.get(str(name), (0, ""))
            if tries >= MAX_TRIES:
                self._pass_over(step.commit, name.producer, name.seq, DeadInput(str(name), reason, tries))
            elif not self._take(step, name):
                stuck.add(name.producer)
            if not self._loaded or step.rows >= self._limits.rows:
                return
        self._pass_over_gaps(step.commit)

    def _take(self, step: _Step, name: SegmentName) -> bool:
        """Apply one segment and add what comes of it to the step; False if it could not be taken this time."""
        before = step.commit.producers.get(name.producer, ProducerPosition())
        ahead, self._ahead = self._ahead, None  # _next_names gave its name
        try:
            batch, info = self._read(name, before) if ahead is None else ahead.read.result()
        except SegmentError as error:
            self._failed(name, str(error))
            return False
        except FileNotFoundError as error:
            self._loaded = False
            reason = f"partition {self._partition}: {name} was taken and removed by another worker"
            raise LostError(reason) from error
        if ahead is None:
            step.looks_ahead &= name.producer in self._proved  # one that kills must not keep this step from its commit
            self._hold(name)
            outcome = self._apply(name, partial(self._give, str(name), batch))
            self._release(name)
        else:
            outcome = self._apply(name, ahead.outcome.result)
        if outcome is None:
            return False
        step.changed = True
        self._tries.pop(str(name), None)
        if step.looks_ahead:
            position = ProducerPosition(seq=name.seq, rows=info.items_before + info.items)
            self._look_ahead({**step.commit.producers, name.producer: position})
        if isinstance(outcome, LabelOutcome):
            self._add_labels(step, name, info, before, outcome)
        else:
            self._add(step, name, info, before, outcome)
        self._write_ahead(step)
        return True

    def _read(self, name: SegmentName, before: ProducerPosition) -> tuple[pa.RecordBatch, SegmentInfo]:
        """The next segment of a producer that was followed so far. Raises SegmentError, FileNotFoundError."""
        batch, info = read_raw(self._ready / name.file)
        _check(batch, info, name, before)
        return batch, info

    def _apply(self, name: SegmentName, give: Callable[[], Outcome | LabelOutcome]) -> Outcome | LabelOutcome | None:
        """What a segment comes to; None if it raised, whatever it was: one segment must not stop the stage."""
        try:
            return give()
        except SegmentError as error:
            self._failed(name, str(error))
        except MemoryError:  # not the segment's fault
            raise
        except Exception as error:
            self._loaded = False  # the state may be half changed
            self._failed(name, f"{type(error).__name__}: {error}")
        return None

    def _add(
        self, step: _Step, name: SegmentName, info: SegmentInfo, before: ProducerPosition, outcome: Outcome
    ) -> None:
        commit = step.commit
        emitted, rejected = outcome.features.num_rows, len(outcome.rejects)
        training = self._work.sample(outcome)
        passed_on = SegmentInfo(
            name=str(name),
            rows=emitted,
            rows_before=before.emitted,
            rejected_before=before.rejected,
            rejected=rejected,
            watermark=info.watermark,
            ended=info.ended,
            finite=info.finite,
            shared=() if rejected else tuple(column for column in outcome.features.schema.names if column in _RAW),
        )
        step.outputs.append(_Output(passed_on, outcome.features, training, before.sampled, outcome.rejects))
        step.rows += info.rows
        gap = _gap(commit, info, before)
        commit.inputs.append(str(name))
        if training is not None:
            commit.training.append(str(name))
        if rejected:
            commit.rejects.append(str(name))
        commit.consumed += gap + info.rows
        commit.emitted += emitted
        commit.rejected += rejected
        commit.dead_rows += gap
        commit.producers[name.producer] = ProducerPosition(
            seq=name.seq,
            good=name.seq,
            rows=info.rows_before + info.rows,
            emitted=before.emitted + emitted,
            rejected=before.rejected + rejected,
            sampled=before.sampled + (0 if training is None else training.num_rows),
        )

    def _add_labels(
        self, step: _Step, name: SegmentName, info: SegmentInfo, before: ProducerPosition, outcome: LabelOutcome
    ) -> None:
        commit = step.commit
        step.outputs.append(_LabelOutput(info, outcome))
        step.rows += info.labels
        gap = _gap(commit, info, before)
        commit.inputs.append(str(name))
        commit.labels.append(str(name))
        if outcome.known.num_rows:
            commit.known.append(str(name))
        commit.labels_taken += gap + info.labels
        commit.dead_labels += gap
        end = info.labels_before + info.labels
        commit.producers[name.producer] = ProducerPosition(seq=name.seq, good=name.seq, rows=end)

    def _look_ahead(self, producers: Mapping[str, ProducerPosition]) -> None:
        """Have the state take the segment after those that ``producers`` have come to, in a thread.

        Not before a checkpoint: it is of the state that the newest commit leaves. Not one whose turn needs more care:
        the first of a producer, one that failed before, labels. What is wrong with a file is told when its turn comes.
        """
        if self._ahead is not None or self._is_due():
            return
        names = self._in_turn(producers)
        if not self._proved.issuperset(name.producer for name in names):
            return
        name = next((name for name in names if not name.of_labels and str(name) not in self._tries), None)
        if name is not None:
            read = self._thread.submit(self._read, name, producers.get(name.producer, ProducerPosition()))
            self._ahead = _Ahead(name, read, self._thread.submit(lambda: self._give(str(name), read.result()[0])))

    def _next_commit(self) -> Commit:
        last = self.commit
        return msgspec.structs.replace(
            last,
            step=last.step + 1,
            attempt=self._attempt,
            inputs=[],
            training=[],
            rejects=[],
            labels=[],
            known=[],
            dead=[],
            producers=dict(last.producers),
        )

    def _failed(self, name: SegmentName, reason: str) -> None:
        tries = self._tries.get(str(name), (0, ""))[0] + 1
        self._tries[str(name)] = (tries, reason)
        self._report(f"{name}: try {tries} of {MAX_TRIES}: {reason}")

    def _pass_over(self, commit: Commit, producer: str, seq: int, dead: DeadInput) -> None:
        before = commit.producers.get(producer, ProducerPosition())
        commit.producers[producer] = msgspec.structs.replace(before, seq=seq, dead=dead)
        commit.dead.append(dead)
        commit.dead_segments += seq - before.seq
        self._tries.pop(dead.name, None)

    def _pass_over_gaps(self, commit: Commit) -> None:
        """Numbers below a waiting segment that never come (somebody removed files) must not stop its producer."""
        for producer, seqs in self._waiting.items():
            taken = commit.producers.get(producer, ProducerPosition()).seq
            later = [seq for seq in seqs if seq > taken]
            if not later or min(later) == taken + 1:
                self._gaps.pop(producer, None)
            elif self._clock() - self._gaps.setdefault(producer, self._clock()) >= self._gap_seconds:
                missing = SegmentName(self._epoch, producer, self._partition, taken + 1)
                reason = f"missing: {taken + 1} to {min(later) - 1} of {producer} never came, or were removed"
                self._pass_over(commit, producer, min(later) - 1, DeadInput(str(missing), reason, 0))

    # What there is to take

    def _next_names(self, commit: Commit, stuck: Container[str]) -> Iterator[SegmentName]:
        """The next segments: strictly by number within a producer, in turn over the producers that are not ``stuck``.

        The first of each producer after a take-over comes alone: if it kills us, the note (``_hold``) blames no other.
        """
        self._scan()
        for taken in range(self._limits.segments):
            new: list[SegmentName] = []
            if self._ahead is not None:
                name = self._ahead.name
            else:
                names = [name for name in self._in_turn(commit.producers) if name.producer not in stuck]
                new = [name for name in names if name.producer not in self._proved]
                if not names or (new and taken):
                    return
                name = (new or names)[0]
            self._served = name.producer
            yield name
            if new:
                return

    def _in_turn(self, producers: Mapping[str, ProducerPosition]) -> list[SegmentName]:
        """The segment of each producer that comes next and is there, from the producer on whose turn it is."""
        following = {p: producers.get(p, ProducerPosition()).seq + 1 for p in sorted(self._waiting)}
        names = [
            SegmentName(self._epoch, producer, self._partition, seq)
            for producer, seq in following.items()
            if seq in self._waiting[producer]
        ]
        later = [name for name in names if name.producer > self._served]
        return [*later, *(name for name in names if name.producer <= self._served)]

    def _scan(self) -> None:
        """Sort what is new in the ready folder."""
        for producer, position in self.commit.producers.items():
            if producer in self._waiting:
                self._waiting[producer] = {seq for seq in self._waiting[producer] if seq > position.seq}
        for file in self._files.list(self._ready):
            if file in self._seen:
                continue
            name = SegmentName.parse(file)
            if name is None or name.file != file or name.partition != self._partition:
                self._set_aside_foreign(file)
            elif name.epoch < self._epoch:
                self._files.remove(self._ready / file)
            elif name.epoch == self._epoch:
                self._seen.add(file)
                if name.seq > self.commit.producers.get(name.producer, ProducerPosition()).seq:
                    self._waiting.setdefault(name.producer, set()).add(name.seq)

    def _set_aside_foreign(self, file: str) -> None:
        source = self._ready / file
        self._report(f"{mask(file)} in {self._ready.name} is no segment of this partition: set aside")
        reason = Reason(reason="not a segment of this partition", rows=0)
        move_aside(self._files, source, self._dead, reason, stray_name(self._epoch, file))

    def _hold(self, name: SegmentName) -> None:
        """Before a producer's first segment after a take-over: a note, so that the next owner knows what killed us."""
        if name.producer not in self._proved:
            deaths = self._deaths.deaths if self._deaths.name == str(name) else 0
            self._files.make_folder(self._note.parent)
            self._files.replace(self._note, msgspec.json.encode(_Holding(name=str(name), deaths=deaths)))

    def _release(self, name: SegmentName) -> None:
        if name.producer not in self._proved:
            self._files.remove(self._note)
            self._proved.add(name.producer)

    # Committing

    def _commit(self, step: _Step) -> None:
        if not step.staged:
            self._stage(step)
            step.staged = True
        if not step.linked:
            step.garbage = self._find_garbage()
            self._link(step)
            step.linked = True
        if self._commit_steps()[-1:] != [step.commit.step]:  # look again
            self._lose(step)
            raise LostError(f"partition {self._partition}: {step.commit.step} is not the newest step any more")
        self._finish(step.commit)
        for path in step.garbage:
            self._files.remove(path)

    def _write_ahead(self, step: _Step) -> None:
        """Write outputs as they come, so that the disk is at work while the next segment is computed."""
        try:
            self._write(step)
        except OSError:  # a full disk: _stage writes them again, and says so if it still is
            step.written = 0

    def _stage(self, step: _Step) -> None:
        """Write every output and the commit into private folders, durably. Done again it writes them anew."""
        try:
            self._write(step)
            for path in step.unsynced:
                self._files.sync_file(path)
        except BaseException:
            step.written = 0  # what an fsync refused may be lost, also if a second one says nothing
            raise
        staged = self._staged_commit(step.commit)
        self._files.remove(staged)
        self._files.create(staged, msgspec.json.encode(step.commit))
        folders = self._folders(step)
        self._files.sync_folders([*folders, *(folder.parent for folder in folders)])

    def _folders(self, step: _Step) -> list[Path]:
        """The private folders that a step needs."""
        topics = [self._volume.raw, self._volume.features]
        if step.commit.training or step.commit.known:
            topics.append(self._volume.training)
        return [self._private(topic) for topic in topics]

    def _write(self, step: _Step) -> None:
        """Write the outputs that are not written yet."""
        for folder in self._folders(step):
            self._files.make_folder(folder)
        if step.written == 0:
            step.unsynced = []
        for output in step.outputs[step.written :]:
            written = self._write_labels(output) if isinstance(output, _LabelOutput) else self._write_output(output)
            step.unsynced += written
            step.written += 1

    def _write_output(self, output: _Output) -> list[Path]:
        """Write what came of a segment; the files that are still to be fsynced."""
        info, file = output.info, f"{output.info.name}.arrow"
        folder = self._private(self._volume.features)
        if info.shared:
            self._files.link(self._ready / file, folder / f"{info.name}{STAGED_SUFFIX}", sync=False)
        own = [column for column in output.features.schema.names if column not in info.shared]
        unsynced = [folder / file]
        write_segment(self._files, folder / file, output.features.select(own), info, sync=False)
        if output.training is not None:
            rows = output.training.num_rows
            sample = msgspec.structs.replace(info, rows=rows, rows_before=output.sampled_before, shared=())
            unsynced.append(self._private(self._volume.training) / file)
            write_segment(self._files, unsynced[-1], output.training, sample, sync=False)
        if output.rejects:
            path = self._private(self._volume.raw) / f"{info.name}{PREP_SUFFIX}"
            self._files.remove(path)
            self._files.create(path, encode_rejects(output.rejects))
        return unsynced

    def _write_labels(self, output: _LabelOutput) -> list[Path]:
        """Write what came of a segment of labels, durably."""
        info, (aggregate, known) = output
        path = self._private(self._volume.raw) / f"{info.name}{LABEL_SUFFIX}"
        self._files.remove(path)
        self._files.create(path, msgspec.json.encode(aggregate))
        if known.num_rows:
            told = SegmentInfo(name=info.name, rows=known.num_rows, rows_before=0)
            write_segment(self._files, self._private(self._volume.training) / f"{info.name}.arrow", known, told)
        return []

    def _link(self, step: _Step) -> None:
        target = self._commits / _commit_file(self._epoch, step.commit.step)
        if not self._files.link(self._staged_commit(step.commit), target):
            self._lose(step)
            raise LostError(f"partition {self._partition}: step {step.commit.step} was committed by another worker")

    def _lose(self, step: _Step) -> None:
        """Drop the state and what was staged: the step is another worker's."""
        self._loaded = False
        self._pending = None
        for source, _ in (*self._companions(step.commit), *self._moves(step.commit)):
            self._files.remove(source)
        self._files.remove(self._staged_commit(step.commit))
        self._remove_private()

    def _finish(self, commit: Commit) -> None:
        """Publish what a commit's attempt staged, by name; what is not there any more was published before."""
        self._publish(self._companions(commit))
        if commit.inputs:  # a companion must be there, power cut or not, before its features are
            self._files.sync_folders([self._volume.companions])
        moves = list(self._moves(commit))
        self._publish(moves)
        self._files.sync_folders([folder for source, target in moves for folder in (target.parent, source.parent)])
        for dead in commit.dead:
            self._bury(dead)
        self._files.remove(self._staged_commit(commit))

    def _publish(self, moves: Iterable[tuple[Path, Path]]) -> None:
        for source, target in moves:
            try:
                self._files.rename(source, target)
            except FileNotFoundError:
                continue

    def _bury(self, dead: DeadInput) -> None:
        reason = Reason(reason=dead.reason, tries=dead.tries, rows=dead.rows)
        try:
            set_aside(self._files, self._ready / f"{dead.name}.arrow", self._dead, reason)
        except FileNotFoundError:
            self._files.replace(self._dead / f"{dead.name}{REASON_SUFFIX}", msgspec.json.encode(reason))

    def _companions(self, commit: Commit) -> Iterator[tuple[Path, Path]]:
        """Where the companions of a commit's features are staged, those that have one, and where they go."""
        for name in commit.inputs:
            if name not in commit.labels:
                staged = self._volume.features / "staged" / commit.attempt / f"{name}{STAGED_SUFFIX}"
                yield staged, companion(self._volume, name)

    def _moves(self, commit: Commit) -> Iterator[tuple[Path, Path]]:
        """Where each output of a commit is staged, and where it goes."""
        volume, attempt = self._volume, commit.attempt
        rows = [name for name in commit.inputs if name not in commit.labels]
        topics = [
            (volume.features, rows, volume.features / "ready"),
            (volume.training, commit.training, volume.training / "ready"),
            (volume.training, commit.known, volume.labels),
        ]
        for topic, names, target in topics:
            for name in names:
                yield topic / "staged" / attempt / f"{name}.arrow", target / f"{name}.arrow"
        for name in commit.labels:
            yield volume.raw / "staged" / attempt / f"{name}{LABEL_SUFFIX}", volume.pending / f"{name}.json"
        for name in commit.rejects:
            file = f"{name}{PREP_SUFFIX}"
            yield self._volume.raw / "staged" / commit.attempt / file, self._dead / file

    def _private(self, topic: Path) -> Path:
        return topic / "staged" / self._attempt

    def _staged_commit(self, commit: Commit) -> Path:
        file = f"p{self._partition:02d}-{_commit_file(self._epoch, commit.step)}"
        return self._volume.raw / "staged" / commit.attempt / file

    # Checkpoints and what they cover

    def checkpoint(self, force: bool = False) -> bool:
        """Write a checkpoint if one is due (or ``force``) and remove what it covers; whether one was written.

        Due: something was committed since, ``checkpoint_seconds`` have passed, and writing checkpoints has taken at
        most CHECKPOINT_SHARE of the time, or CHECKPOINT_ROWS were taken. With ``force`` what the state has taken
        ahead is committed first. Raises LostError, OSError (a full disk).
        """
        while force and self._loaded and self._ahead is not None:
            self._step(looks_ahead=False)
        if not self._loaded or self._pending is not None or self._ahead is not None:
            return False
        if self.commit.step == self.checkpoint_step:
            return False
        if not (force or self._is_due()):
            return False
        started = self._clock()
        name = CheckpointName(self._epoch, self.commit.step)
        seqs = {producer: position.seq for producer, position in self.commit.producers.items()}
        try:
            write_checkpoint(self._files, self._checkpoint_path(name.step), name, seqs, self._work.arrays())
        except FileNotFoundError as error:  # swept as the left-over of a dead worker
            self._loaded = False
            raise LostError(f"partition {self._partition}: another worker has cleared our checkpoint") from error
        finally:
            self._checkpointed = self._clock()
        self.checkpoint_step = name.step
        self._checkpointed_rows = self.commit.consumed
        # Not the removal of what is covered: it goes with the traffic, however far apart checkpoints are. Counted in,
        # it would put them farther apart the more there is to remove, without end.
        self.checkpoint_cost = self._checkpointed - started
        self._clean()
        return True

    def _is_due(self) -> bool:
        idle = self._clock() - self._checkpointed
        if idle < self._checkpoint_seconds:
            return False
        rows = self.commit.consumed - self._checkpointed_rows
        return idle >= self.checkpoint_cost / CHECKPOINT_SHARE or rows >= CHECKPOINT_ROWS

    def _clean(self) -> None:
        """Remove old checkpoints, then the inputs and commits that the older of the two kept covers."""
        steps = self._checkpoint_steps()
        for step in steps[:-2]:
            self._files.remove(self._checkpoint_path(step))
        self._cover(steps[-2:])
        self._clean_inputs()
        for step in self._commit_steps()[:-1]:
            if step <= self._covered_step:
                self._files.remove(self._commits / _commit_file(self._epoch, step))

    def _clean_inputs(self) -> None:
        """Remove covered segments, except each producer's newest and its newest readable one (producer.py)."""
        on_disk: dict[str, list[int]] = {}
        for file in self._files.list(self._ready):
            name = SegmentName.parse(file)
            if name is not None and name.epoch == self._epoch:
                on_disk.setdefault(name.producer, []).append(name.seq)
        for producer, seqs in on_disk.items():
            keep = {max(seqs), self.commit.producers.get(producer, ProducerPosition()).good}
            for seq in seqs:
                if seq <= self._covered.get(producer, 0) and seq not in keep:
                    file = SegmentName(self._epoch, producer, self._partition, seq).file
                    self._files.remove(self._ready / file)
                    self._seen.discard(file)

    def _checkpoint_path(self, step: int) -> Path:
        return self._checkpoints / CheckpointName(self._epoch, step).file

    def _checkpoint_steps(self) -> list[int]:
        names = map(CheckpointName.parse, self._files.list(self._checkpoints))
        return [name.step for name in names if name is not None and name.epoch == self._epoch]

    def _commit_steps(self) -> list[int]:
        return _commit_steps(self._volume, self._partition, self._epoch)

    def _read_commit(self, step: int) -> Commit:
        return _read_commit(self._commits / _commit_file(self._epoch, step))

    # Garbage

    def _find_garbage(self) -> list[Path]:
        """What other attempts have staged for this partition; asked for now and then, before a step is linked.

        Each of them was staged for a step no higher than the one we are about to link. Once ours is linked and still
        the newest, theirs can't be any more: only then may it be removed.
        """
        if self._clock() - self._collected < COLLECT_SECONDS:
            return []
        self._collected = self._clock()
        roots = [topic / "staged" for topic in (self._volume.raw, self._volume.features, self._volume.training)]
        return [
            root / attempt / file
            for root in roots
            for attempt in self._files.list(root)
            if attempt != self._attempt
            for file in self._files.list(root / attempt)
            if self._is_staged_here(root, file)
        ]

    def _is_staged_here(self, root: Path, file: str) -> bool:
        """Whether prep staged ``file`` for this partition (producers stage their segments in raw-transactions)."""
        commit = _STAGED_COMMIT.match(file)
        if commit is not None:
            return int(commit[1]) == self._partition
        suffixless = file.removesuffix(PREP_SUFFIX).removesuffix(LABEL_SUFFIX).removesuffix(STAGED_SUFFIX)
        name = SegmentName.parse(suffixless)
        if name is None or name.partition != self._partition:
            return False
        return file.endswith((PREP_SUFFIX, LABEL_SUFFIX)) or root.parent != self._volume.raw

    def sweep(self, alive: Container[str]) -> None:
        """Remove empty private folders of workers that are not among ``alive`` (names of workers that beat)."""
        for topic in (self._volume.raw, self._volume.features, self._volume.training):
            for attempt in self._files.list(topic / "staged"):
                if attempt.split(".")[0] not in alive:
                    self._files.remove_folder(topic / "staged" / attempt)

    def _forget_older_epochs(self) -> None:
        """Remove commits, checkpoints and inputs of earlier epochs, and what was staged or set aside in them."""
        self._files.make_folder(self._dead)
        for folder in (self._commits, self._checkpoints):
            for file in self._files.list(folder):
                epoch = file.split("-")[0]
                if epoch.isdigit() and int(epoch) < self._epoch:
                    self._files.remove(folder / file)
        topics = (self._volume.raw, self._volume.features, self._volume.training)
        staged = [topic / "staged" / a for topic in topics for a in self._files.list(topic / "staged")]
        for folder in (self._ready, self._dead, self._volume.labels, *staged):
            for file in self._files.list(folder):
                if _is_older(file, self._epoch):
                    self._files.remove(folder / file)

    def _sweep_hidden(self, folder: Path) -> None:
        """Remove torn files that a killed worker left in a folder that only owners write to."""
        for path in folder.glob(".*.tmp"):
            self._files.remove(path)

    def _report(self, message: str) -> None:
        self.last_error = message
        _log.warning(message)

    def close(self) -> None:
        """Write a last checkpoint, so that the next owner has nothing to replay, and remove the private folders."""
        if not self._loaded:
            return
        self.checkpoint(force=True)
        self._remove_private()

    def _remove_private(self) -> None:
        for topic in (self._volume.raw, self._volume.features, self._volume.training):
            self._files.remove_folder(self._private(topic))


class _Holding(msgspec.Struct):
    """The note beside an owner file: what is being taken, and how many workers in a row died doing so."""

    name: str
    deaths: int


def newest_commit(volume: Volume, partition: int, epoch: int) -> Commit | None:
    """The newest step of a partition in an epoch; None before the first. Raises msgspec.DecodeError if damaged."""
    while steps := _commit_steps(volume, partition, epoch):
        try:
            return _read_commit(volume.commits(partition) / _commit_file(epoch, steps[-1]))
        except FileNotFoundError:  # a newer one is there by now, and this one was removed
            continue
    return None


def _read_commit(path: Path) -> Commit:
    return msgspec.json.decode(path.read_bytes(), type=Commit)


def _commit_file(epoch: int, step: int) -> str:
    return f"{epoch:06d}-{step:012d}.json"


def _commit_steps(volume: Volume, partition: int, epoch: int) -> list[int]:
    """Steps of a partition that have a commit file, ascending."""
    prefix = f"{epoch:06d}-"
    files = volume.files.list(volume.commits(partition))
    return [int(match[2]) for file in files if file.startswith(prefix) and (match := _COMMIT.match(file))]


def _is_older(file: str, epoch: int) -> bool:
    """Whether a file belongs to a segment, or a staged commit, of an epoch before ``epoch``."""
    commit = _STAGED_COMMIT.match(file)
    if commit is not None:
        return int(commit[2]) < epoch
    name = SegmentName.parse(file.split(".", maxsplit=1)[0])
    return name is not None and name.epoch < epoch


def _gap(commit: Commit, info: SegmentInfo, before: ProducerPosition) -> int:
    """Rows (or labels) of what was passed over just before, now that this segment tells; notes them."""
    gap = info.items_before - before.rows
    if before.dead is not None:
        commit.dead.append(msgspec.structs.replace(before.dead, rows=gap))
    return gap


def _check(batch: pa.RecordBatch, info: SegmentInfo, name: SegmentName, before: ProducerPosition) -> None:
    """Raises SegmentError if a readable segment is not what its name and place promise."""
    if info.name != str(name):
        raise SegmentError(f"{name}: its metadata says it is {info.name!r}")
    if info.items_before < before.rows or (info.items_before > before.rows and before.dead is None):
        raise SegmentError(f"{name}: says {info.items_before} rows came before it, there were {before.rows}")
    if not batch.schema.equals(LABELS if name.of_labels else RAW, check_metadata=False):
        raise SegmentError(f"{name}: its columns are not those of raw-transactions")
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise SegmentError(f"{name}: damaged columns: {error}") from error
