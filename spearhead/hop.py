"""Competing consumers of features-ready: claim, stage, commit, publish, recover. Exactly once, whoever is killed when.

Below ``queue/features-ready/``, X being a segment's name and a an attempt's, ``<worker>.<series><counter>``, never used
twice:

- ``ready/X.arrow``: waits; whoever renames it to ``claimed/a/X.arrow`` works on it.
- ``rows/X.arrow``: the companion of X (spearhead/companion.py), if it has one; removed once its results are published.
- ``committed/X.a``: the renamed claim. This one rename decides that attempt a's staged outputs count.
- ``tries/X.a.<kind>``: what went wrong with attempt a: it ``raised`` on X alone, its worker was ``killed`` while it
  held X alone, or either happened to a ``group`` that X was in. A segment with tries is claimed alone.
- ``dead/X.arrow`` and ``dead/X.reason.json``: set aside after MAX_RAISED or MAX_KILLED tries.

Outputs are staged in ``queue/inference-results/staged/a/`` and published by one rename each. The source of such a
rename exists once, so a publish that is done again, by anyone, does nothing. ``docs/decisions/0001`` has the reasons.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import msgspec
import pyarrow as pa

from spearhead.companion import STAGED_SUFFIX, companion, read_features
from spearhead.mask import mask
from spearhead.rejects import REASON_SUFFIX, Reason, move_aside, stray_name
from spearhead.segment import SUFFIX, SegmentError, SegmentInfo, SegmentName, read_info
from spearhead.volume import Volume

MAX_RAISED: Final = 3
MAX_KILLED: Final = 5
MAX_SEGMENTS: Final = 64  # in one claim: bounds what a batch's commit costs
MISSES: Final = 8  # claims lost to other workers, one after another, before the folder is listed again
STALE_REMOVALS: Final = 2_000  # files of older epochs removed in one recovery, so that it ends within the lease
TEMPORARY_SECONDS: Final = 3600.0  # age at which a temporary file is nobody's any more
ENVIRONMENT: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
     errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN}
)  # fmt: skip

Kind = Literal["raised", "killed", "group"]


class Output(NamedTuple):
    """One thing that is made of every segment: staged as ``<X><suffix>``, published at ``target(X)`` below ``root``."""

    suffix: str
    target: Callable[[str], Path]
    root: Path


class Liveness(Protocol):
    """Who is alive, by worker name (``heartbeat.Roster``)."""

    def alive(self) -> Collection[str]: ...


@dataclass(slots=True, eq=False)
class Claim:
    """A segment that this worker holds. ``batch`` is mapped, not copied: drop the claim when done."""

    name: str
    attempt: str
    batch: pa.RecordBatch
    info: SegmentInfo


class Recovery(NamedTuple):
    """What one call of ``Hop.recover`` did, in segments."""

    finished: int = 0  # commits of dead workers that it published
    taken_back: int = 0  # claims of dead workers back in ready/


def inference_outputs(volume: Volume) -> tuple[Output, ...]:
    """Results first, then what they add to the ledger: the ledger never counts a row whose result isn't there."""
    return (
        Output(SUFFIX, volume.result_file, volume.results / "ready"),
        Output(".json", lambda name: volume.pending / f"{name}.json", volume.pending),
    )


class Hop:
    """One worker's side of the hop from features-ready to inference-results and the ledger.

    Every method may raise OSError; nothing is lost then, ``recover`` (of any worker) takes it up. Not thread-safe.
    """

    def __init__(self, volume: Volume, worker: str, roster: Liveness, outputs: Sequence[Output] | None = None) -> None:
        self.worker = worker
        self.epoch = volume.epoch()
        self.dead = 0  # segments that this worker set aside
        self._volume = volume
        self._files = volume.files
        self._roster = roster
        self._outputs = tuple(outputs or inference_outputs(volume))
        self._ready = volume.features / "ready"
        self._companions = volume.companions
        self._claimed = volume.features / "claimed"
        self._committed = volume.features / "committed"
        self._tries = volume.features / "tries"
        self._dead = volume.features / "dead"
        self._staged = volume.results / "staged"
        self._series = f"{secrets.token_hex(4)}x"  # tells the attempts of two hops of one worker apart
        self._counter = itertools.count()
        self._turn = 0
        self._waiting: deque[str] = deque()
        self._held: dict[str, set[str]] = {}  # attempt -> names that this worker is still busy with
        self._suspects: set[str] = set()
        self._accounted: set[str] = set()  # dead segments whose rows are known
        for folder in (self._claimed, self._committed, self._tries, self._dead, self._staged):
            self._files.make_folder(folder)

    # Working

    def claim(self, max_rows: int, max_segments: int = MAX_SEGMENTS) -> list[Claim]:
        """Take segments, oldest first in turn over producers and partitions, until they have ``max_rows`` rows.

        The last one may exceed ``max_rows``. A segment that went wrong before comes alone. Damaged segments are
        failed on the way and never returned. An empty list: nothing waits.
        """
        while (name := self._next()) is not None:
            self._waiting.appendleft(name)
            attempt = self._new_attempt()
            try:
                claims, again = self._claim(attempt, max_rows, max_segments)
            except BaseException:
                self._abandon([attempt])
                raise
            self._leave(attempt)
            if claims or not again:
                return claims
        return []

    def _claim(self, attempt: str, max_rows: int, max_segments: int) -> tuple[list[Claim], bool]:
        """Claim as one attempt, up to a segment that can't be kept: it may come again, but as another attempt.

        Also says whether there was one. If all that is listed belongs to others, the listing may just be stale.
        """
        tries = self._read_tries()
        claims: list[Claim] = []
        rows = misses = 0
        while rows < max_rows and len(claims) < max_segments and (name := self._next()) is not None:
            if name in tries and claims:
                self._waiting.appendleft(name)
                break
            if not self._take(name, attempt):
                misses += 1
                if misses == MISSES:
                    self._waiting.clear()
                    break
                continue
            self._held[attempt].add(name)
            claim = self._open(name, attempt, tries.get(name, Counter()))
            if claim is None:
                return claims, True
            claims.append(claim)
            rows += claim.info.rows
            if name in tries:
                self._suspects.add(name)
                break
        return claims, False

    def staged(self, claim: Claim, suffix: str) -> Path:
        """Where the output of that suffix has to be written (and fsynced) before ``commit``.

        Use ``write_segment``, or ``Files.create`` after ``unstage`` when a segment is tried again.
        """
        return self._staged / claim.attempt / f"{claim.name}{suffix}"

    def unstage(self, claims: Iterable[Claim]) -> None:
        """Throw staged outputs away, before segments of a batch that raised are tried one by one."""
        for claim in claims:
            self._unstage(claim.name, claim.attempt)

    def finish(self, claims: Sequence[Claim]) -> list[Claim]:
        """Commit and publish. Returns the claims that count; the others were taken by another worker meanwhile."""
        committed = self.commit(claims)
        self.publish(committed)
        return committed

    def commit(self, claims: Sequence[Claim]) -> list[Claim]:
        """Decide, for each claim on its own, that its staged outputs count. Returns those for which that is so."""
        attempts = list(dict.fromkeys(claim.attempt for claim in claims))
        try:
            self._files.sync_folders([*(self._staged / attempt for attempt in attempts), self._staged])
            won = [claim for claim in claims if self._commit(claim)]
            self._files.sync_folders([*(self._claimed / attempt for attempt in attempts), self._committed, self._ready])
        except BaseException:
            self._abandon(attempts)
            raise
        for claim in claims:
            if claim not in won:
                self._unstage(claim.name, claim.attempt)
                self._resolve(claim.name, claim.attempt)
        return won

    def publish(self, claims: Sequence[Claim]) -> None:
        """Put the outputs of committed claims where their readers look."""
        try:
            self._publish([(claim.name, claim.attempt) for claim in claims])
            for claim in claims:
                if claim.name in self._suspects:
                    self._forget_tries(claim.name)
                self._resolve(claim.name, claim.attempt)
        except BaseException:
            self._abandon({claim.attempt for claim in claims})
            raise

    def release(self, claims: Iterable[Claim]) -> None:
        """Give claims back without a try: the stage ends, or what failed is not the segment's fault."""
        claims = list(claims)
        try:
            for claim in claims:
                self._unstage(claim.name, claim.attempt)
                self._give_back(claim.name, claim.attempt)
                self._resolve(claim.name, claim.attempt)
        except BaseException:
            self._abandon({claim.attempt for claim in claims})
            raise

    def fail(self, claim: Claim, error: Exception) -> bool:
        """The stage raised on this segment alone: back to ready/, or to dead/ at the third time. Whether it is dead.

        Errors of the volume (no space, I/O) are no try. Neither is one on a claim that another worker has taken.
        """
        if environmental(error):
            self.release([claim])
            return False
        try:
            return self._fail(claim.name, claim.attempt, error, claim.info.rows)
        except BaseException:
            self._abandon([claim.attempt])
            raise

    def reset(self, epoch: int) -> None:
        """A new epoch began: whatever is held or waits is garbage."""
        self.epoch = epoch
        self._waiting.clear()
        self._suspects.clear()
        self._accounted.clear()
        self._abandon(list(self._held))

    # Recovery

    def recover(self) -> Recovery:
        """Finish what dead workers committed, take back what they claimed, remove what they left. Anyone may, any time.

        Call it at the start and every few seconds. Folders are listed before heartbeats are read: a worker's
        heartbeat comes before its first claim, so a claim in the list without heartbeat is a dead worker's.
        """
        self._remove_stale()
        commits = [name.partition(".")[::2] for name in self._files.list(self._committed)]
        claimed = self._files.list(self._claimed)
        staged = self._files.list(self._staged)
        alive = self._roster.alive()

        def orphaned(attempt: str) -> bool:
            worker = attempt.partition(".")[0]
            return attempt not in self._held if worker == self.worker else worker not in alive

        finished = [(name, attempt) for name, attempt in commits if orphaned(attempt)]
        holding = Counter(attempt for _, attempt in finished)
        self._publish(finished)
        taken_back = sum(self._take_back(attempt, holding[attempt]) for attempt in claimed if orphaned(attempt))
        for attempt in staged:
            if orphaned(attempt):
                self._collect(attempt)
        self._files.remove_temporaries(self._dead, self._committed.stat().st_mtime - TEMPORARY_SECONDS)
        self._collect_tries()
        self._collect_companions()
        self._fill_in_rows()
        return Recovery(len(finished), taken_back)

    # Claiming

    def _next(self) -> str | None:
        if not self._waiting:
            self._waiting.extend(self._in_turn(self._files.list(self._ready)))
        return self._waiting.popleft() if self._waiting else None

    def _in_turn(self, files: Iterable[str]) -> Iterable[str]:
        """Names of this epoch in the order of claiming; sets aside what is no segment, removes older epochs."""
        groups: dict[tuple[str, int], list[str]] = {}
        for file in files:
            name = SegmentName.parse(file)
            if name is None or not file.endswith(SUFFIX):
                self._set_aside_foreign(file)
            elif name.epoch < self.epoch:
                self._files.remove(self._ready / file)
            elif name.epoch == self.epoch:
                groups.setdefault((name.producer, name.partition), []).append(str(name))
        queues = list(groups.values())
        self._turn += 1
        start = self._turn % len(queues) if queues else 0
        rounds = itertools.zip_longest(*queues[start:], *queues[:start])
        return (name for turn in rounds for name in turn if name is not None)

    def _new_attempt(self) -> str:
        attempt = f"{self.worker}.{self._series}{next(self._counter)}"
        self._held[attempt] = set()
        self._files.make_folder(self._staged / attempt)
        self._files.make_folder(self._claimed / attempt)
        return attempt

    def _take(self, name: str, attempt: str) -> bool:
        path = self._claim_file(name, attempt)
        try:
            self._files.rename(self._ready / path.name, path)
        except FileNotFoundError:  # another worker has it, unless only the reply was lost
            return os.path.lexists(path)
        return True

    def _open(self, name: str, attempt: str, tries: Counter[str]) -> Claim | None:
        """The claim with its rows; None if the segment can't be read or has used up its tries: it is dealt with."""
        if tries["raised"] >= MAX_RAISED or tries["killed"] >= MAX_KILLED:
            reason = self._last_reason(name) if tries["raised"] >= MAX_RAISED else "its workers died, one after another"
            self._set_aside(name, attempt, reason, max(tries["raised"], tries["killed"]), self._rows(name, attempt))
            return None
        try:
            return Claim(name, attempt, *read_features(self._volume, self._claim_file(name, attempt)))
        except FileNotFoundError:  # taken back from us already
            self._resolve(name, attempt)
        except SegmentError as error:
            if environmental(error):
                self._give_back(name, attempt)
                self._resolve(name, attempt)
                raise
            self._fail(name, attempt, error, None)
        return None

    def _claim_file(self, name: str, attempt: str) -> Path:
        return self._claimed / attempt / f"{name}{SUFFIX}"

    def _rows(self, name: str, attempt: str) -> int | None:
        try:
            return read_info(self._claim_file(name, attempt)).rows
        except (SegmentError, FileNotFoundError):
            return None

    # Committing and publishing

    def _commit(self, claim: Claim) -> bool:
        target = self._committed / f"{claim.name}.{claim.attempt}"
        try:
            self._files.rename(self._claim_file(claim.name, claim.attempt), target)
        except FileNotFoundError:  # on NFS a lost reply looks like this; else the claim was taken from us
            return os.path.lexists(target)
        return True

    def _publish(self, committed: Sequence[tuple[str, str]]) -> None:
        """Rename every staged output to its place, make that durable, only then forget the commits."""
        if not committed:
            return
        folders: dict[Path, None] = {}
        for name, attempt in committed:
            for output in self._outputs:
                target = output.target(name)
                self._publish_one(self._staged / attempt / f"{name}{output.suffix}", target)
                folders[target.parent] = None
            folders[self._staged / attempt] = None
        self._files.sync_folders(folders)
        for name, attempt in committed:
            self._drop_companion(name)
            self._files.remove(self._committed / f"{name}.{attempt}")

    def _drop_companion(self, name: str) -> None:
        path = companion(self._volume, name)
        if os.path.lexists(path):
            self._files.remove(path)

    def _publish_one(self, source: Path, target: Path) -> None:
        while True:
            try:
                return self._files.rename(source, target)
            except FileNotFoundError:
                if not os.path.lexists(source):  # published before
                    return None
                self._files.make_folder(target.parent)
                self._files.sync_folders([target.parent.parent])

    def _unstage(self, name: str, attempt: str) -> None:
        for output in self._outputs:
            path = self._staged / attempt / f"{name}{output.suffix}"
            if os.path.lexists(path):
                self._files.remove(path)

    def _resolve(self, name: str, attempt: str) -> None:
        """This worker is done with a claim; the attempt's folders go with its last one."""
        self._suspects.discard(name)
        held = self._held.get(attempt)
        if held is None:
            return
        held.discard(name)
        self._leave(attempt)

    def _leave(self, attempt: str) -> None:
        if not self._held.get(attempt, True):
            self._files.remove_folder(self._staged / attempt)
            self._files.remove_folder(self._claimed / attempt)
            del self._held[attempt]

    def _abandon(self, attempts: Iterable[str]) -> None:
        """Leave attempts to recovery, as if this worker had died: where they stand is not known."""
        for attempt in attempts:
            self._held.pop(attempt, None)

    def _give_back(self, name: str, attempt: str) -> bool:
        path = self._claim_file(name, attempt)
        try:
            self._files.rename(path, self._ready / path.name)
        except FileNotFoundError:
            return False
        return True

    # Tries

    def _read_tries(self) -> dict[str, Counter[str]]:
        tries: dict[str, Counter[str]] = {}
        for file in self._files.list(self._tries):
            name, _, rest = file.partition(".")
            tries.setdefault(name, Counter())[rest.rpartition(".")[2]] += 1
        return tries

    def _note_try(self, name: str, attempt: str, kind: Kind, reason: str) -> None:
        """Count a try; by its name, so that it counts once however often it is noted."""
        path = self._tries / f"{name}.{attempt}.{kind}"
        try:
            self._files.create(path, reason.encode())
        except FileExistsError:
            return
        self._files.sync_folders([self._tries])

    def _last_reason(self, name: str) -> str:
        files = [file for file in self._files.list(self._tries) if file.startswith(f"{name}.")]
        raised = [self._tries / file for file in files if file.endswith(".raised")]
        return raised[-1].read_text(errors="replace") if raised else ""

    def _forget_tries(self, name: str) -> None:
        for file in self._files.list(self._tries):
            if file.startswith(f"{name}."):
                self._files.remove(self._tries / file)

    def _fail(self, name: str, attempt: str, error: Exception, rows: int | None) -> bool:
        self._unstage(name, attempt)
        dead = False
        if os.path.lexists(self._claim_file(name, attempt)):
            reason = f"{type(error).__name__}: {error}"
            self._note_try(name, attempt, "raised", reason)
            tries = self._read_tries()[name]["raised"]
            if tries >= MAX_RAISED:
                dead = self._set_aside(name, attempt, reason, tries, rows)
            else:
                self._give_back(name, attempt)
        self._resolve(name, attempt)
        return dead

    # Setting aside

    def _set_aside(self, name: str, attempt: str, reason: str, tries: int, rows: int | None) -> bool:
        """Move a claim to dead/, the reason first: what is dead always has its reason. Whether it was still ours."""
        path = self._claim_file(name, attempt)
        target = self._dead / path.name
        self._write_reason(name, Reason(reason=mask(reason), tries=tries, rows=rows))
        moved = True
        try:
            self._files.rename(path, target)
        except FileNotFoundError:
            moved = os.path.lexists(target)
        self._files.sync_folders([self._dead, self._claimed / attempt])
        if moved:
            self._bury_companion(name)
            self.dead += 1
            self._forget_tries(name)
        self._resolve(name, attempt)
        return moved

    def _bury_companion(self, name: str) -> None:
        """What is needed to look into a dead segment lies beside it."""
        path = companion(self._volume, name)
        if os.path.lexists(path):
            with suppress(FileNotFoundError):  # another worker did it
                self._files.rename(path, self._dead / f"{name}{STAGED_SUFFIX}")

    def _set_aside_foreign(self, file: str) -> None:
        """Something in ready/ that no producer made. It was never counted, so it has no rows to account for."""
        try:
            reason = Reason(reason="not the name of a segment", rows=0)
            move_aside(self._files, self._ready / file, self._dead, reason, stray_name(self.epoch, file))
        except FileNotFoundError:  # another worker did it
            return
        self.dead += 1

    def _write_reason(self, name: str, reason: Reason) -> None:
        self._files.replace(self._dead / f"{name}{REASON_SUFFIX}", msgspec.json.encode(reason))

    def _fill_in_rows(self) -> None:
        """Learn the rows of dead segments that could not be read, from the segments before and after them."""
        for file in self._files.list(self._dead):
            name = SegmentName.parse(file.removesuffix(REASON_SUFFIX))
            if name is None or not file.endswith(REASON_SUFFIX) or str(name) in self._accounted:
                continue
            try:
                reason = msgspec.json.decode((self._dead / file).read_bytes(), type=Reason)
            except (FileNotFoundError, msgspec.DecodeError):  # removed or damaged: nothing to fill in
                continue
            if reason.rows is None and (rows := self._rows_between(name)) is not None:
                reason.rows = rows
                self._write_reason(str(name), reason)
            if reason.rows is not None:
                self._accounted.add(str(name))

    def _rows_between(self, name: SegmentName) -> int | None:
        before = self._info(name._replace(seq=name.seq - 1)) if name.seq > 1 else None
        after = self._info(name._replace(seq=name.seq + 1))
        if after is None or (before is None and name.seq > 1):
            return None
        return after.rows_before - (before.rows_before + before.rows if before else 0)

    def _info(self, name: SegmentName) -> SegmentInfo | None:
        for path in (self._ready / name.file, self._volume.result_file(str(name))):
            try:
                return read_info(path)
            except (SegmentError, FileNotFoundError):
                continue
        return None

    # Recovery

    def _take_back(self, attempt: str, committed: int) -> int:
        """The claims of a dead worker go back to ready/; each remembers that its worker died. How many went."""
        files = self._files.list(self._claimed / attempt)
        known = {file.rpartition(".")[0] for file in self._files.list(self._tries)} if files else set()
        names = [file.removesuffix(SUFFIX) for file in files]
        kind: Kind = "killed" if len(names) + committed == 1 else "group"
        for name in names:  # all before the first goes back: a recoverer that comes after sees fewer
            if f"{name}.{attempt}" not in known:
                self._note_try(name, attempt, kind, "")
        taken = sum(self._give_back(name, attempt) for name in names)
        self._files.sync_folders([self._ready])
        self._files.remove_folder(self._claimed / attempt)
        return taken

    def _collect(self, attempt: str) -> None:
        """Remove staged outputs that can't count any more: their claim is gone, and (looked up after it) no commit is.

        In this order: the claim becomes the commit, so a commit that is absent first may have been made since.
        """
        folder = self._staged / attempt
        for file in _all_names(folder):  # hidden ones too: a torn temporary file keeps the folder from going
            name = file.lstrip(".").partition(".")[0]
            if os.path.lexists(self._claim_file(name, attempt)):
                continue
            if os.path.lexists(self._committed / f"{name}.{attempt}"):
                continue
            self._files.remove(folder / file)
        self._files.remove_folder(folder)

    def _collect_tries(self) -> None:
        """Remove tries of segments that are gone. One lost by a race costs a try more, no segment."""
        tries = self._files.list(self._tries)
        if not tries:
            return
        there = set(self._files.list(self._ready))
        for attempt in self._files.list(self._claimed):
            there.update(self._files.list(self._claimed / attempt))
        there.update(self._files.list(self._ready))  # again: one may have gone back between the two listings
        for file in tries:
            if file.partition(".")[0] + SUFFIX not in there:
                self._files.remove(self._tries / file)

    def _collect_companions(self) -> None:
        """Remove companions that a power cut brought back, or a kill left, after their segment was done or dead.

        Only on evidence that stays: once its results are there, or it is in dead/, nobody reads a segment again.
        """
        waiting = set(self._files.list(self._ready))
        for file in self._files.list(self._companions):
            name = file.removesuffix(SUFFIX)
            if file in waiting or SegmentName.parse(file) is None:
                continue
            if self._volume.result_file(name).exists():
                self._drop_companion(name)
            elif os.path.lexists(self._dead / file):
                self._bury_companion(name)

    def _remove_stale(self) -> None:
        """Remove what earlier epochs left in this topic and in the published outputs, a bounded number at a time."""
        roots = [self._ready, self._companions, self._committed, self._dead, self._tries]
        roots += [self._claimed / attempt for attempt in self._files.list(self._claimed)]
        roots += [output.root for output in self._outputs]
        left = STALE_REMOVALS
        for root in roots:
            for file in self._files.list(root):
                if left and _epoch_of(file) < self.epoch:
                    left -= self._remove_tree(root / file, left)

    def _remove_tree(self, path: Path, most: int) -> int:
        """Remove a file, or at most ``most`` files of a folder (and it, when empty). How many it removed."""
        if not path.is_dir():
            self._files.remove(path)
            return 1
        names = _all_names(path)[:most]
        for name in names:
            self._files.remove(path / name)
        self._files.remove_folder(path)
        return len(names)


def environmental(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is the volume's or the host's and says nothing about the segment."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in ENVIRONMENT:
            return True
        error = error.__cause__
    return False


_EPOCH = re.compile(r"e(\d{4,})-")


def _epoch_of(file: str) -> float:
    match = _EPOCH.match(file)
    return int(match[1]) if match else float("inf")


def _all_names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
