"""Rows that wait in each topic, from file names and footers; a footer is read once.

raw-transactions: what producers published less what prep's newest commits say it consumed. features-ready: rows in
ready/ and under a claim. inference-results: rows scored whose aggregates no ledger version has applied.
training-queue: rows in ready/.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from spearhead.partition import newest_commit
from spearhead.segment import LABEL_LETTER, SegmentError, SegmentInfo, SegmentName, read_info
from spearhead.volume import Volume


class Backlogs(msgspec.Struct, frozen=True, kw_only=True):
    """Waiting rows by topic, at about one moment."""

    raw_transactions: int = 0
    features_ready: int = 0
    inference_results: int = 0
    training_queue: int = 0


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far a producer has published, over all partitions."""

    rows: int
    rejected: int
    watermark: int  # us since 1970: what it has published in every partition
    ended: bool
    finite: bool


class RawHeads:
    """The newest segment of every producer and partition: it stays in raw-transactions' ready/ until a newer one."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._infos: dict[str, SegmentInfo | None] = {}

    def newest(self, epoch: int) -> dict[tuple[str, int], SegmentInfo]:
        """By producer and partition, the newest segment of the epoch that can be read."""
        heads: dict[tuple[str, int], SegmentInfo] = {}
        seen: set[str] = set()
        for folder in self._folders():
            series: dict[str, list[str]] = {}
            for file in self._volume.files.list(folder):
                series.setdefault(file.rpartition("-")[0], []).append(file)
            for files in series.values():
                name = SegmentName.parse(files[-1])
                if name is not None and name.epoch == epoch and (info := self._first(folder, files[::-1], seen)):
                    heads[name.producer, name.partition] = info
        self._infos = {name: info for name, info in self._infos.items() if name in seen}
        return heads

    def producers(self, epoch: int) -> dict[str, Head]:
        """By producer of transactions. Its watermark and end are those that all its partitions have reached."""
        series: dict[str, list[SegmentInfo]] = {}
        for (producer, _), info in self.newest(epoch).items():
            if not producer.startswith(LABEL_LETTER):
                series.setdefault(producer, []).append(info)
        return {
            producer: Head(
                rows=sum(info.rows_before + info.rows for info in infos),
                rejected=sum(info.rejected_before + info.rejected for info in infos),
                watermark=min(info.watermark for info in infos),
                ended=all(info.ended for info in infos),
                finite=any(info.finite for info in infos),
            )
            for producer, infos in series.items()
        }

    def _folders(self) -> list[Path]:
        root = self._volume.raw / "ready"
        return [root / name for name in self._volume.files.list(root)]

    def _first(self, folder: Path, files: Iterable[str], seen: set[str]) -> SegmentInfo | None:
        """Of the files, the first that can be read. A damaged one is prep's to set aside."""
        for file in files:
            seen.add(file)
            if file not in self._infos:
                try:
                    self._infos[file] = read_info(folder / file)
                except FileNotFoundError:
                    continue
                except SegmentError:
                    self._infos[file] = None
            if info := self._infos[file]:
                return info
        return None


class Backlog:
    """Counts what waits on a volume, in the epoch in force. Keeps what it read of files that are still there."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._heads = RawHeads(volume)
        self._features = Footers()
        self._training = Footers()
        self._pending: dict[str, int] = {}
        self._applied: tuple[str, frozenset[str]] = ("", frozenset())

    def rows(self) -> Backlogs:
        """All four. Raises OSError, and msgspec.DecodeError if a commit of prep is damaged."""
        return Backlogs(
            raw_transactions=self.raw_transactions(),
            features_ready=self.features_ready(),
            inference_results=self.inference_results(),
            training_queue=self.training_queue(),
        )

    def raw_transactions(self) -> int:
        """Rows published that no commit of prep has consumed."""
        epoch = self._volume.epoch()
        consumed = 0
        for folder in self._volume.files.list(self._volume.raw / "commits"):
            commit = newest_commit(self._volume, int(folder.removeprefix("p")), epoch)
            consumed += commit.consumed if commit else 0
        published = sum(info.rows_before + info.rows for info in self._heads.newest(epoch).values())
        return max(0, published - consumed)  # below 0 only while the newest raw segment is damaged

    def features_ready(self) -> int:
        """Rows that no inference worker has committed."""
        folder, claimed = self._volume.features / "ready", self._volume.features / "claimed"
        paths = [folder / file for file in self._volume.files.list(folder)]
        for attempt in self._volume.files.list(claimed):  # after ready/: what is claimed meanwhile is seen here
            paths += [claimed / attempt / file for file in self._volume.files.list(claimed / attempt)]
        return self._features.rows(paths, self._volume.epoch())

    def inference_results(self) -> int:
        """Rows scored that the ledger has not counted."""
        epoch = self._volume.epoch()
        files = self._volume.files.list(self._volume.pending)
        applied = self._read_applied()
        waiting = {}
        for file in files:
            name = SegmentName.parse(file.removesuffix(".json"))
            if name is not None and name.epoch == epoch and str(name) not in applied:
                waiting[file] = self._pending[file] if file in self._pending else self._read_count(file)
        self._pending = waiting
        return sum(waiting.values())

    def training_queue(self) -> int:
        """Sampled rows that the trainer has not taken."""
        folder = self._volume.training / "ready"
        return self._training.rows([folder / file for file in self._volume.files.list(folder)], self._volume.epoch())

    def _read_count(self, file: str) -> int:
        try:
            return msgspec.json.decode((self._volume.pending / file).read_bytes(), type=_Count).count
        except FileNotFoundError:  # folded meanwhile
            return 0
        except msgspec.DecodeError:  # the fold sets it aside
            return 0

    def _read_applied(self) -> frozenset[str]:
        """Names that the newest ledger version has counted and whose files may still be there."""
        for file in reversed(self._volume.files.list(self._volume.ledger)):
            if file == self._applied[0]:
                break
            try:
                applied = msgspec.json.decode((self._volume.ledger / file).read_bytes(), type=_Applied).applied
            except (FileNotFoundError, msgspec.DecodeError):  # removed meanwhile, or damaged: the one before it
                continue
            self._applied = (file, frozenset(applied))
            break
        return self._applied[1]


class Footers:
    """Rows of segments whose ``rows_before`` counts rows of the same topic: two footers tell a whole run's rows."""

    def __init__(self) -> None:
        self._infos: dict[str, SegmentInfo | None] = {}

    def rows(self, paths: Iterable[Path], epoch: int) -> int:
        """Rows of the segments of an epoch among ``paths``; damaged ones count where their neighbours tell."""
        files: dict[SegmentName, Path] = {}
        for path in paths:
            name = SegmentName.parse(path.name)
            if name is not None and name.epoch == epoch:
                files[name] = path
        self._infos = {file: info for file, info in self._infos.items() if SegmentName.parse(file) in files}
        return sum(self._run_rows([files[name] for name in run]) for run in runs(files))

    def _run_rows(self, files: Sequence[Path]) -> int:
        first = next((info for path in files if (info := self._info(path))), None)
        last = next((info for path in reversed(files) if (info := self._info(path))), None)
        if first is None or last is None:
            return 0
        return last.rows_before + last.rows - first.rows_before

    def _info(self, path: Path) -> SegmentInfo | None:
        if path.name not in self._infos:
            try:
                self._infos[path.name] = read_info(path)
            except FileNotFoundError:  # moved on meanwhile
                return None
            except SegmentError:
                self._infos[path.name] = None
        return self._infos[path.name]


class _Count(msgspec.Struct):
    count: int


class _Applied(msgspec.Struct):
    applied: list[str]


def runs(names: Iterable[SegmentName]) -> list[list[SegmentName]]:
    """Names of one producer and partition whose numbers follow each other, ascending."""
    ordered = sorted(names)
    found: list[list[SegmentName]] = [ordered[:1]] if ordered else []
    for before, name in pairwise(ordered):
        if name == before._replace(seq=before.seq + 1):
            found[-1].append(name)
        else:
            found.append([name])
    return found
