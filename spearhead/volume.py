"""Where everything is on the shared volume, the volume's format version, and the epoch.

The epoch is a number that ``reset`` raises. It is part of every segment, commit, checkpoint and ledger name, so that
whatever an earlier epoch left behind is garbage wherever it is found.
"""

from __future__ import annotations

import os
from pathlib import Path

from spearhead.files import Files
from spearhead.segment import SegmentName

FORMAT = 5
TOPICS = ("raw-transactions", "features-ready", "inference-results", "training-queue")


class VolumeError(RuntimeError):
    """The volume can't be used; the message says what to do."""


class Volume:
    """Paths on one mounted volume. ``prepare`` makes the folders; until then nothing is touched."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self.root = root.expanduser().absolute()
        self.files = files or Files()
        self.queue = self.root / "queue"
        self.raw = self.queue / "raw-transactions"
        self.features = self.queue / "features-ready"
        self.companions = self.features / "rows"  # what features that wait don't repeat of raw-transactions
        self.results = self.queue / "inference-results"
        self.training = self.queue / "training-queue"
        self.archive = self.results / "archive"  # unlabelled decisions whose result file is gone
        self.metrics = self.root / "metrics"
        self.workers = self.metrics / "workers"
        self.labels = self.training / "labels"  # labels that came on their own, for training and look-ups
        self.pending = self.metrics / "pending"  # aggregates of scored segments that wait for the ledger
        self.ledger = self.metrics / "ledger"  # versions of the ledger
        self.metrics_json = self.metrics / ".metrics.json"
        self.models = self.root / "models"
        self.logs = self.root / "logs"
        self.raw_data = self.root / "raw-data"
        self.control = self.root / "control"
        self.epochs = self.control / "epochs"

    def raw_ready(self, partition: int) -> Path:
        return self.raw / "ready" / f"p{partition:02d}"

    def commits(self, partition: int) -> Path:
        return self.raw / "commits" / f"p{partition:02d}"

    def checkpoints(self, partition: int) -> Path:
        return self.raw / "checkpoints" / f"p{partition:02d}"

    def result_file(self, name: str) -> Path:
        """Where the results of segment ``name`` are: a thousand segments to a folder."""
        prefix, seq = name.removesuffix(".arrow").rsplit("-", 1)
        return self.results / "ready" / f"{prefix}-{int(seq) // 1000:09d}" / f"{prefix}-{seq}.arrow"

    def prepare(self, partitions: int = 1) -> None:
        """Make the folders, write or check the format version, start epoch 1.

        Raises VolumeError if the root is missing, not writable, of a format this version does not know, or in use with
        another number of partitions.
        """
        if not self.root.is_dir():
            raise VolumeError(f"volume {self.root} is not there: mount it or set FLASHBLADE_PATH")
        try:
            self._make_folders(partitions)
        except PermissionError as error:
            raise VolumeError(
                f"volume {self.root} is not writable by uid {os.getuid()} ({error.strerror}: {error.filename}): "
                f"give the folder to that uid"
            ) from error
        self._check_format()
        if not self.files.list(self.epochs):
            self.files.put_if_absent(self.epochs / f"{1:06d}", b"")
        self._check_partitions(partitions)

    def _make_folders(self, partitions: int) -> None:
        folders = [self.workers, self.pending, self.ledger, self.models, self.logs, self.epochs]
        folders += [self.raw_data / "inbox", self.raw_data / "labels"]
        folders += [topic / kind for topic in (self.raw, self.features, self.results, self.training)
                    for kind in ("ready", "staged", "dead")]  # fmt: skip
        folders += [self.labels, self.companions, self.archive]
        folders += [self.features / kind for kind in ("claimed", "committed")]
        for p in range(partitions):
            folders += [self.raw_ready(p), self.commits(p), self.checkpoints(p)]
        for folder in folders:
            self.files.make_folder(folder)

    def _check_format(self) -> None:
        path = self.control / "format"
        if not path.exists():
            self.files.put_if_absent(path, f"{FORMAT}\n".encode())
        found = path.read_text().strip()
        if found != str(FORMAT):
            raise VolumeError(
                f"volume {self.root} has format {found!r}, this version reads {FORMAT}: see docs/OPERATIONS.md, Upgrade"
            )

    def _check_partitions(self, partitions: int) -> None:
        """Raises VolumeError if the epoch in force was begun with another count: rows would be lost or doubled.

        A producer's second flush comes after its first one is in every partition, and the newest segment stays.
        """
        epoch = self.epoch()
        found: dict[str, dict[int, int]] = {}  # producer -> partition -> newest number
        for folder in self.files.list(self.raw / "ready"):
            names = (SegmentName.parse(file) for file in self.files.list(self.raw / "ready" / folder))
            for name in names:
                if name is not None and name.epoch == epoch:
                    newest = found.setdefault(name.producer, {})
                    newest[name.partition] = max(newest.get(name.partition, 0), name.seq)
        for newest in found.values():
            count = max(newest) + 1
            if count > partitions or (count < partitions and max(newest.values()) > 1):
                raise VolumeError(
                    f"volume {self.root} holds segments in {count} partitions, PARTITIONS says {partitions}: "
                    f"set it back, or see docs/OPERATIONS.md, Changing the partition count"
                )

    def epoch(self) -> int:
        """The epoch in force. Raises VolumeError on a volume that was never prepared."""
        names = [name for name in self.files.list(self.epochs) if name.isdigit()]
        if not names:
            raise VolumeError(f"volume {self.root} is not a Spearhead volume yet: start the pipeline on it first")
        return int(names[-1])

    def raise_epoch(self) -> int:
        """Start the next epoch: everything of earlier ones is garbage from here on."""
        while True:
            epoch = self.epoch() + 1
            if self.files.put_if_absent(self.epochs / f"{epoch:06d}", b""):
                return epoch
