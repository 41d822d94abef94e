"""``verify``: is every row that was published accounted for exactly once? Works on a running volume too.

Sums come from ``balance.py``; what looks wrong is looked at again, several times, before it is reported. Then every
``trans_num`` in the result files that retention has left is compared with every other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from spearhead.balance import Balance, BalanceReader
from spearhead.segment import SUFFIX, SegmentError, SegmentName, read_info, read_segment
from spearhead.volume import Volume

SETTLE_TRIES: Final = 200
SETTLE_SECONDS: Final = 0.05
CONFIRMATIONS: Final = 3
CONFIRM_SECONDS: Final = 0.5
HASHES_AT_ONCE: Final = 16_000_000  # 64-bit hashes sorted at a time: bounds the memory of the comparison
EXAMPLES: Final = 10


class Report(msgspec.Struct, kw_only=True):
    """What ``verify`` found, in rows. ``lost`` = published - scored - dead - waiting."""

    published: int
    waiting: int
    scored: int
    ledger: int
    pruned: int  # scored, and their result files removed by retention
    lost: int
    duplicated: int
    dead: int
    ok: bool
    epoch: int
    settled: bool  # the sums were read while nothing moved: they are exact
    waiting_raw: int
    waiting_features: int
    result_rows: int  # in the result files there are
    result_files: int
    duplicate_trans_nums: list[str]  # some of them
    missing_segments: list[str]  # some of them
    unreadable_results: list[str]  # some of them
    unknown_dead_segments: int  # dead segments that nobody knows the rows of
    labels: int  # labels that came on their own and were published
    labels_waiting: int
    labels_lost: int
    labels_duplicated: int  # counted more than once

    def text(self) -> str:
        """For people."""
        lines = [
            f"published   {self.published:>14,}",
            f"waiting     {self.waiting:>14,}",
            f"scored      {self.scored:>14,}",
            f"in ledger   {self.ledger:>14,}",
            f"pruned      {self.pruned:>14,}",
            f"dead        {self.dead:>14,}",
            f"lost        {self.lost:>14,}",
            f"duplicated  {self.duplicated:>14,}",
            "ok" if self.ok else "NOT OK",
        ]
        if self.labels:
            told = f"{self.labels:,} late labels: {self.labels_waiting:,} waiting, {self.labels_lost:,} lost, "
            lines.insert(-1, told + f"{self.labels_duplicated:,} counted twice")
        lines += [f"missing segment {name}" for name in self.missing_segments]
        lines += [f"trans_num more than once: {text}" for text in self.duplicate_trans_nums]
        lines += [f"unreadable result file {name}" for name in self.unreadable_results]
        return "\n".join(lines)


def audit(volume: Volume) -> Report:
    """Audit the epoch in force. Raises VolumeError, OSError, LedgerError."""
    balance = _confirmed_balance(BalanceReader(volume))
    results = Results(volume, balance.epoch)
    doubled_rows = results.doubled_rows()
    duplicated = max(-balance.difference, 0) if balance.settled else 0
    lost = max(balance.difference, 0)
    unreadable = sorted(results.unreadable)
    labels_lost = max(balance.labels_difference, 0)
    labels_duplicated = max(-balance.labels_difference, 0) if balance.settled else 0
    return Report(
        published=balance.published,
        waiting=balance.waiting,
        scored=balance.scored,
        ledger=balance.ledger,
        pruned=max(balance.scored - results.rows, 0),
        lost=lost,
        duplicated=max(duplicated, doubled_rows),
        dead=balance.dead,
        ok=not (lost or duplicated or doubled_rows or unreadable or labels_lost or labels_duplicated),
        epoch=balance.epoch,
        settled=balance.settled,
        waiting_raw=balance.waiting_raw,
        waiting_features=balance.waiting_features,
        result_rows=results.rows,
        result_files=results.files,
        duplicate_trans_nums=results.examples,
        missing_segments=balance.missing_raw[:EXAMPLES],
        unreadable_results=unreadable[:EXAMPLES],
        unknown_dead_segments=balance.unknown_dead,
        labels=balance.labels_published,
        labels_waiting=balance.labels_waiting,
        labels_lost=labels_lost,
        labels_duplicated=labels_duplicated,
    )


def _confirmed_balance(reader: BalanceReader) -> Balance:
    """A balance whose sums are exact; one that doesn't add up is believed only if it stays so in fresh looks."""
    balance = _settled_balance(reader)
    for _ in range(CONFIRMATIONS):
        if not balance.difference and not balance.labels_difference:
            break
        time.sleep(CONFIRM_SECONDS)
        balance = min(balance, _settled_balance(reader), key=_differences)
    return balance


def _differences(balance: Balance) -> int:
    return abs(balance.difference) + abs(balance.labels_difference)


def _settled_balance(reader: BalanceReader) -> Balance:
    """A look during which no counter moved, or the last of many."""
    balance = reader.read()
    for _ in range(SETTLE_TRIES):
        if balance.settled:
            break
        time.sleep(SETTLE_SECONDS * float(np.random.default_rng().random()))
        balance = reader.read()
    return balance


class Results:
    """The result files of an epoch: their rows, and whether a ``trans_num`` is in them more than once."""

    def __init__(self, volume: Volume, epoch: int) -> None:
        self._volume = volume
        self._epoch = epoch
        self._paths = sorted(self._list())
        self.rows = 0
        self.files = 0
        self.examples: list[str] = []
        self.unreadable: set[str] = set()
        self._count()

    def doubled_rows(self) -> int:
        """Rows beyond the first of each ``trans_num``. Memory is bounded, however many rows there are."""
        passes = max(1, -(-self.rows // HASHES_AT_ONCE))
        doubled: list[NDArray[np.uint64]] = []
        for part in range(passes):
            hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *self._hashes(part, passes)]))
            doubled.append(hashes[1:][hashes[1:] == hashes[:-1]])
        suspects = np.unique(np.concatenate(doubled))
        return self._compare(suspects) if len(suspects) else 0

    def _list(self) -> Iterator[Path]:
        root = self._volume.results / "ready"
        for folder in self._volume.files.list(root):
            for file in self._volume.files.list(root / folder):
                name = SegmentName.parse(file)
                if name is not None and file.endswith(SUFFIX) and name.epoch == self._epoch:
                    yield root / folder / file

    def _count(self) -> None:
        for path in self._paths:
            try:
                self.rows += read_info(path).rows
                self.files += 1
            except FileNotFoundError:  # retention removed it
                continue
            except SegmentError:
                self.unreadable.add(path.name)

    def _trans_nums(self) -> Iterator[pl.Series]:
        for path in self._paths:
            try:
                batch = read_segment(path)[0]
            except FileNotFoundError:
                continue
            except SegmentError:
                self.unreadable.add(path.name)
                continue
            yield pl.Series("trans_num", batch.column("trans_num"))

    def _hashes(self, part: int, parts: int) -> Iterator[NDArray[np.uint64]]:
        for trans_nums in self._trans_nums():
            hashes = trans_nums.hash(seed=0).to_numpy()
            yield hashes if parts == 1 else hashes[hashes % np.uint64(parts) == part]

    def _compare(self, suspects: NDArray[np.uint64]) -> int:
        """The same hash is not yet the same text."""
        texts = [
            found.filter(pl.Series(np.isin(found.hash(seed=0).to_numpy(), suspects))) for found in self._trans_nums()
        ]
        counts = pl.concat(texts).value_counts().filter(pl.col("count") > 1).sort("trans_num")
        self.examples = counts["trans_num"].head(EXAMPLES).to_list()
        return int(counts["count"].sum()) - len(counts)
