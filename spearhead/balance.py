"""Where every published row of a volume is right now: waiting, scored, counted, dead. Nothing but reading.

Producers' newest segments say what was published, prep's newest commit what it consumed and passed on, the ledger what
was counted; what is between is counted by name. Names are collected in the direction in which segments move, so one
that moves meanwhile is seen at least once, and its last place wins. If neither a commit nor a ledger version was added
while the names were collected, the sums are exact, on a running volume too (``Balance.settled``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from spearhead.aggregate import Aggregate
from spearhead.backlog import RawHeads
from spearhead.dead import DeadCounter
from spearhead.ledger import LedgerFile, find_newest
from spearhead.partition import LABEL_SUFFIX, Commit, newest_commit
from spearhead.segment import LABEL_LETTER, SUFFIX, SegmentError, SegmentInfo, SegmentName, read_info
from spearhead.volume import Volume


class Balance(msgspec.Struct, kw_only=True):
    """Rows by where they are. ``published`` counts rows that the edge set aside too."""

    epoch: int
    settled: bool  # nothing moved past the counters while they were read: the sums are exact
    published: int
    waiting_raw: int
    waiting_features: int
    scored: int  # committed by inference: in the ledger or about to be
    ledger: int
    dead: int
    unknown_dead: int  # dead segments whose rows nobody knows yet
    missing_raw: list[str]  # published, not consumed, and not there
    ended: bool  # every producer is finite and has ended
    segments: int  # segments that prep passed on
    labels_published: int = 0  # labels that came on their own
    labels_waiting: int = 0
    labels_counted: int = 0  # in the ledger
    labels_dead: int = 0

    @property
    def labels_difference(self) -> int:
        """Labels that nobody accounts for; below 0: labels that are counted more than once."""
        return self.labels_published - self.labels_waiting - self.labels_counted - self.labels_dead

    @property
    def waiting(self) -> int:
        return self.waiting_raw + self.waiting_features

    @property
    def difference(self) -> int:
        """Rows that nobody accounts for; below 0: rows that are accounted for more than once."""
        return self.published - self.scored - self.dead - self.waiting

    @property
    def finished(self) -> bool:
        """Whether there was an end, and every row up to it is in the ledger or dead."""
        rows = not self.waiting and self.scored == self.ledger and not self.difference
        return self.ended and self.settled and rows and not self.labels_waiting and not self.labels_difference


class BalanceReader:
    """Reads balances of one volume again and again; remembers the rows of the segments it has seen."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._heads = RawHeads(volume)
        self._dead = DeadCounter(volume)
        self._rows: dict[str, int] = {}  # of segments in features-ready
        self._labels: dict[str, int] = {}  # of aggregates of labels on their way to the ledger
        self._ledger: tuple[str, LedgerFile | None] = ("", None)

    def read(self) -> Balance:
        """One look. Raises OSError, LedgerError, msgspec.DecodeError if a commit is damaged."""
        volume = self._volume
        epoch = volume.epoch()
        before = self._marks()
        commits = self._commits(epoch)
        every = self._heads.newest(epoch)
        heads = {key: info for key, info in every.items() if not key[0].startswith(LABEL_LETTER)}
        missing = self._missing_raw(epoch, commits, every)
        waiting, scored = self._in_flight(epoch, commits)
        labels = self._labels_in_flight(epoch, commits)
        ledger = self._read_ledger(epoch)
        dead = self._dead.count(epoch)
        settled = before == self._marks() and volume.epoch() == epoch
        applied = set(ledger.applied) if ledger else set()
        scored -= applied
        waiting -= scored | applied
        counted = ledger.transactions_analyzed if ledger else 0
        published = sum(info.rows_before + info.rows for info in heads.values())
        refused = sum(info.rejected_before + info.rejected for info in heads.values())
        consumed = sum(commit.consumed for commit in commits.values())
        later = ("features_ready", "metrics")
        self._rows = {name: rows for name, rows in self._rows.items() if name in waiting or name in scored}
        return Balance(
            epoch=epoch,
            settled=settled and None not in map(self._rows.get, waiting | scored),
            published=max(published, consumed) + refused,
            waiting_raw=max(published - consumed, 0) - missing.rows,
            **self._label_sums(every, commits, missing.labels, labels, ledger),
            waiting_features=sum(self._rows.get(name, 0) for name in waiting),
            scored=counted + sum(self._rows.get(name, 0) for name in scored),
            ledger=counted,
            dead=refused
            + sum(commit.rejected + commit.dead_rows for commit in commits.values())
            + sum(dead[topic].rows for topic in later),
            unknown_dead=sum(dead[topic].unknown_segments for topic in (*later, "raw_transactions")),
            missing_raw=missing.names,
            ended=bool(heads) and all(info.ended and info.finite for info in heads.values()),
            segments=sum(
                position.seq
                for commit in commits.values()
                for producer, position in commit.producers.items()
                if not producer.startswith(LABEL_LETTER)
            ),
        )

    def _label_sums(
        self,
        heads: dict[tuple[str, int], SegmentInfo],
        commits: dict[int, Commit],
        missing: int,
        in_flight: dict[str, int],
        ledger: LedgerFile | None,
    ) -> dict[str, int]:
        applied = set(ledger.applied) if ledger else set()
        published = sum(info.labels_before + info.labels for info in heads.values())
        taken = sum(commit.labels_taken for commit in commits.values())
        return {
            "labels_published": max(published, taken),
            "labels_waiting": max(published - taken, 0)
            - missing
            + sum(count for name, count in in_flight.items() if name not in applied),
            "labels_counted": ledger.feedback.received if ledger else 0,
            "labels_dead": sum(commit.dead_labels for commit in commits.values()),
        }

    def _labels_in_flight(self, epoch: int, commits: dict[int, Commit]) -> dict[str, int]:
        """Aggregates of labels that prep has committed and the ledger may not have counted: their labels by name."""
        volume, found = self._volume, {}
        places = [
            (volume.raw / "staged" / commit.attempt, LABEL_SUFFIX, set(commit.labels)) for commit in commits.values()
        ]
        for folder, suffix, wanted in [*places, (volume.pending, ".json", None)]:
            for file in volume.files.list(folder):
                name = SegmentName.parse(file.removesuffix(suffix))
                if not file.endswith(suffix) or name is None or name.epoch != epoch or not name.of_labels:
                    continue
                if wanted is None or str(name) in wanted:
                    count = self._read_labels(folder / file, str(name))
                    if count is not None:
                        found[str(name)] = count
        self._labels = found
        return found

    def _read_labels(self, path: Path, name: str) -> int | None:
        if name in self._labels:
            return self._labels[name]
        try:
            return msgspec.json.decode(path.read_bytes(), type=Aggregate).feedback.received
        except FileNotFoundError:  # it moved on: the next place, or the ledger, has it
            return None

    def _marks(self) -> tuple[str, ...]:
        """Names of the newest commits and ledger version: while they stay, the counters do."""
        volume = self._volume
        folders = [volume.raw / "commits" / name for name in volume.files.list(volume.raw / "commits")]
        return tuple(name for folder in (*folders, volume.ledger) for name in volume.files.list(folder)[-1:])

    def _commits(self, epoch: int) -> dict[int, Commit]:
        partitions = (int(name.removeprefix("p")) for name in self._volume.files.list(self._volume.raw / "commits"))
        found = ((partition, newest_commit(self._volume, partition, epoch)) for partition in partitions)
        return {partition: commit for partition, commit in found if commit is not None}

    def _read_ledger(self, epoch: int) -> LedgerFile | None:
        newest = "".join(self._volume.files.list(self._volume.ledger)[-1:])
        if newest != self._ledger[0]:
            self._ledger = (newest, find_newest(self._volume).ledger)
        ledger = self._ledger[1]
        return ledger if ledger is not None and ledger.epoch == epoch else None

    def _missing_raw(
        self, epoch: int, commits: dict[int, Commit], heads: dict[tuple[str, int], SegmentInfo]
    ) -> _Missing:
        """Numbers between what prep consumed and the newest one that have no file."""
        missing = _Missing()
        for (producer, partition), head in heads.items():
            newest = SegmentName.parse(head.name)
            assert newest is not None
            folder = self._volume.raw_ready(partition)
            position = commits[partition].producers.get(producer) if partition in commits else None
            names = [
                SegmentName(epoch, producer, partition, seq)
                for seq in range(position.seq + 1 if position else 1, newest.seq + 1)
            ]
            there = set(self._volume.files.list(folder))
            absent = [str(n) for n in names if n.file not in there and not (folder / n.file).exists()]
            if absent:
                missing.names += absent
                gaps = _items_in_gaps(folder, names, position.rows if position else 0)
                if producer.startswith(LABEL_LETTER):
                    missing.labels += gaps
                else:
                    missing.rows += gaps
        return missing

    def _in_flight(self, epoch: int, commits: dict[int, Commit]) -> tuple[set[str], set[str]]:
        """Names that wait for inference, and names that it has committed and the ledger may not have counted."""
        volume, files = self._volume, self._volume.files
        consumed = {
            (producer, partition): position.seq
            for partition, commit in commits.items()
            for producer, position in commit.producers.items()
        }

        def known(names: Iterable[str]) -> set[str]:
            """Those of segments that the commits have passed on: later ones are not in their sums either."""
            parsed = [(name, SegmentName.parse(name)) for name in names]
            return {
                name.removesuffix(SUFFIX)
                for name, p in parsed
                if p is not None
                and not p.of_labels
                and p.epoch == epoch
                and p.seq <= consumed.get((p.producer, p.partition), 0)
            }

        waiting: set[str] = set()
        places: dict[str, Path] = {}

        def collect(folder: Path, names: Iterable[str]) -> set[str]:
            found = known(names)
            places.update({name: folder / f"{name}{SUFFIX}" for name in found})
            return found

        for commit in commits.values():
            folder = volume.features / "staged" / commit.attempt
            waiting |= collect(folder, files.list(folder))
        waiting |= collect(volume.features / "ready", files.list(volume.features / "ready"))
        for attempt in files.list(volume.features / "claimed"):
            folder = volume.features / "claimed" / attempt
            waiting |= collect(folder, files.list(folder))
        # A claim may have been taken back to ready/ after that was listed.
        waiting |= collect(volume.features / "ready", files.list(volume.features / "ready"))
        committed = {file.partition(".")[0]: file for file in files.list(volume.features / "committed")}
        done = known(committed)
        places.update({name: volume.features / "committed" / committed[name] for name in done})
        pending = known(name.removesuffix(".json") for name in files.list(volume.pending))
        dead = known(name for name in files.list(volume.features / "dead") if name.endswith(SUFFIX))
        for name in waiting | done | pending:
            self._learn_rows(name, places.get(name))
        return waiting - dead, done | pending

    def _learn_rows(self, name: str, place: Path | None) -> None:
        if name in self._rows:
            return
        for path in (place, self._volume.result_file(name)):
            try:
                if path is not None:
                    self._rows[name] = read_info(path).rows
                    return
            except (FileNotFoundError, SegmentError):  # it moved on, or is damaged and on its way to dead/
                continue


class _Missing:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows = 0
        self.labels = 0


def _items_in_gaps(folder: Path, names: Iterable[SegmentName], before: int) -> int:
    """Rows (or labels) of the segments of a series that are not there: each one says how many rows came before it."""
    items, gaps = before, 0
    for name in names:
        try:
            info = read_info(folder / name.file)
        except (FileNotFoundError, SegmentError):
            continue
        gaps += info.items_before - items
        items = info.items_before + info.items
    return gaps
