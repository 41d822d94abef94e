"""Late labels on a volume by the product's own code: scored rows, the joiner, prep's log, the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

import structlog
from ledgers import DELAY_US, MODEL, Scorer
from processes import wait_until

from services.api.joiner import Joiner, waiting_labels
from services.api.taker import Means
from services.prep.work import FeatureWork
from spearhead.aggregate import Feedback, Outcomes
from spearhead.files import Files
from spearhead.ledger import Ledger, LedgerFile, find_newest
from spearhead.partition import PartitionLog
from spearhead.schema import LABELS
from spearhead.segment import read_segment
from spearhead.settings import Settings
from spearhead.volume import Volume

WAIT_SECONDS = 100.0


class Said(NamedTuple):
    """A label as a sender gives it."""

    number: int  # of the transaction
    is_fraud: int
    at: int  # seconds

    def record(self) -> dict[str, object]:
        stamp = f"2024-01-01T{self.at // 3600:02d}:{self.at // 60 % 60:02d}:{self.at % 60:02d}Z"
        return {"trans_num": f"{self.number:032x}", "is_fraud": self.is_fraud, "labelled_at": stamp}


class Bench:
    """A volume, and stages on it that can be ended and begun again at any time."""

    def __init__(self, volume: Volume, partitions: int = 1, labelled: bool = False) -> None:
        self.volume = volume
        self.settings = Settings(
            flashblade_path=volume.root, fsync=False, lease_seconds=0.05, partitions=partitions,
            label_wait_seconds=WAIT_SECONDS, label_delay_days=DELAY_US / 86_400e6,
            card_state_max=1000, merchant_state_max=1000,
        )  # fmt: skip
        volume.prepare(partitions)
        model = volume.models / MODEL
        model.mkdir(exist_ok=True)
        (model / "window.json").write_text('{"train_end": 0}')
        self.scorer = Scorer(volume, labelled=labelled)
        self.now = 1_700_000_000.0
        self.dropped = 0
        self.sampling = False

    def drop(self, labels: Iterable[Said], prefix: str = "bank") -> None:
        self.dropped += 1
        path = self.volume.raw_data / "labels" / f"{prefix}-{self.dropped:04d}.ndjson"
        path.write_text("".join(json.dumps(label.record()) + "\n" for label in labels))

    def joiner(self, files: Files | None = None) -> Joiner:
        log = structlog.wrap_logger(structlog.ReturnLogger())
        volume = Volume(self.volume.root, files or Files(fsync=False))
        return Joiner(Means(volume, self.settings, lambda: False, log), clock=lambda: self.now)

    def look(self, files: Files | None = None) -> None:
        """What a process does from its start: the second look finds the files as they were."""
        joiner = self.joiner(files)
        try:
            joiner.look()
            joiner.look()
        finally:
            joiner.close()

    def prep(self, files: Files | None = None, checkpoint: bool = False) -> None:
        """A prep from its start until nothing is left, of every partition."""
        volume = Volume(self.volume.root, files or Files(fsync=False))
        for partition in range(self.settings.partitions):
            work = FeatureWork(self.settings)
            work.sampling = self.sampling
            log = PartitionLog(volume, partition, f"prep-{id(work)}", work, checkpoint_seconds=0.001)
            log.open(volume.epoch())
            before = -1
            while log.commit.step > before:  # a step of labels that all wait takes none
                before = log.commit.step
                log.step()
            if checkpoint:
                log.checkpoint()

    def fold(self) -> LedgerFile:
        ledger = Ledger(self.volume, DELAY_US)
        ledger.fold()
        ledger.close()
        found = find_newest(self.volume).ledger
        assert found is not None
        return found

    def settle(self) -> LedgerFile:
        """Take all that is there, and give up what has no decision."""
        joiner = self.joiner()
        wait_until(lambda: self._all_taken(joiner), "labels to be taken", 10.0)
        joiner.close()
        self.prep()
        return self.fold()

    def _all_taken(self, joiner: Joiner) -> bool:
        """A killed one before may hold the lease for a moment."""
        joiner.look()
        self.now += WAIT_SECONDS
        files = [path for path in (self.volume.raw_data / "labels").iterdir() if path.is_file()]
        return not files and not waiting_labels(self.volume, self.volume.epoch())

    def published(self) -> list[dict[str, object]]:
        """Labels in the order of the log."""
        rows: list[dict[str, object]] = []
        for partition in range(self.settings.partitions):
            for path in sorted(self.volume.raw_ready(partition).glob("*-l00-*.arrow")):
                batch, info = read_segment(path)
                assert batch.schema.equals(LABELS, check_metadata=False)
                assert info.rows == 0
                rows += batch.to_pylist()
        return rows


def expected(rows: Iterable[dict[str, object]]) -> tuple[Feedback, Outcomes]:
    """A plain reference: the counts that labels in this order come to, and the outcomes that the last ones give."""
    feedback = Feedback()
    known: dict[object, tuple[object, object, object]] = {}
    for row in rows:
        feedback.received += 1
        number, said, at = row["trans_num"], row["is_fraud"], row["labelled_at"]
        if not row["matched"]:
            feedback.unmatched += 1
        elif number not in known:
            known[number] = (at, said, row["flagged"])
            feedback.applied += 1
        elif at < known[number][0] or said == known[number][1]:  # type: ignore[operator]
            feedback.duplicate += 1
            known[number] = (max(at, known[number][0]), known[number][1], row["flagged"])  # type: ignore[type-var]
        else:
            feedback.corrected += 1
            known[number] = (at, said, row["flagged"])
    outcomes = Outcomes()
    for _, said, flagged in known.values():
        kind = ("tp" if said else "fp") if flagged else ("fn" if said else "tn")
        setattr(outcomes, kind, getattr(outcomes, kind) + 1)
    return feedback, outcomes
