"""What a volume says of itself at this moment: workers, backlogs, totals, latency, model."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import msgspec

from spearhead.aggregate import LATENCY_GROWTH
from spearhead.backlog import Backlog, Backlogs
from spearhead.balance import Balance, BalanceReader
from spearhead.heartbeat import Heartbeat, Roster
from spearhead.ledger import LedgerFile, LedgerReader
from spearhead.pointer import in_service
from spearhead.volume import Volume

RATE_SECONDS: Final = 5.0  # rates are means over this long


class Status(msgspec.Struct, kw_only=True):
    """One look at a volume. What is not known is None."""

    epoch: int
    workers: list[Heartbeat]
    backlogs: Backlogs
    transactions_analyzed: int = 0
    amount_total: float = 0.0
    flagged_count: int = 0
    flagged_amount: float = 0.0
    rows_per_s: float | None = None  # counted in the last seconds
    latency_p50_ms: float | None = None  # of the rows counted in the last seconds
    latency_p99_ms: float | None = None
    model: str | None = None  # that scores, or would
    dead_rows: int = 0
    cannot_train: str | None = None  # why there is no model and won't be one
    balance: Balance | None = None

    @property
    def finished(self) -> bool:
        return self.balance is not None and self.balance.finished

    def text(self) -> str:
        """For people."""
        lines = [
            f"epoch {self.epoch}, model {self.model or 'none'}",
            f"{self.transactions_analyzed:,} transactions, ${self.amount_total:,.2f}; "
            f"{self.flagged_count:,} flagged, ${self.flagged_amount:,.2f}; {self.dead_rows:,} rows dead",
            "waiting: "
            + ", ".join(
                f"{name.replace('_', ' ')} {rows:,}" for name, rows in msgspec.structs.asdict(self.backlogs).items()
            ),
        ]
        lines += [
            f"{beat.stage:<10} {beat.worker:<17} {beat.state:<13} {beat.rows_per_s:>11,.0f} rows/s "
            f"{beat.cpu_cores:>5.2f} cores {beat.rss_bytes / 2**20:>7,.0f} MiB  {beat.detail or beat.last_error or ''}"
            for beat in self.workers
        ]
        return "\n".join(line.rstrip() for line in lines)


class Watch:
    """Looks at a volume again and again; rates and latencies are those of the last seconds."""

    def __init__(self, volume: Volume, roster: Roster) -> None:
        self._volume = volume
        self._roster = roster
        self._reader = LedgerReader(volume)
        self._backlog = Backlog(volume)
        self._balance = BalanceReader(volume)
        self._earlier: deque[tuple[float, LedgerFile]] = deque()

    def look(self, balance: bool = False) -> Status:
        """One look, with the balance of all rows if wanted. Raises OSError, LedgerError, msgspec.DecodeError."""
        ledger = self._reader.read()
        workers = sorted(self._roster.alive().values(), key=lambda beat: (beat.stage, beat.started_at, beat.worker))
        status = Status(
            epoch=self._volume.epoch(),
            workers=workers,
            backlogs=self._backlog.rows(),
            model=_model(workers) or in_service(self._volume.models),
        )
        if ledger is not None:
            status.transactions_analyzed = ledger.transactions_analyzed
            status.amount_total, status.flagged_amount = ledger.amount_total, ledger.flagged_amount
            status.flagged_count = ledger.flagged_count
            status.dead_rows = sum(dead.rows + dead.rejected_rows for dead in ledger.dead.values())
            self._compare(status, ledger)
        status.cannot_train = _cannot_train(status)
        status.balance = self._balance.read() if balance else None
        return status

    def _compare(self, status: Status, ledger: LedgerFile) -> None:
        now = time.monotonic()
        if self._earlier and self._earlier[-1][1].epoch != ledger.epoch:
            self._earlier.clear()
        while len(self._earlier) > 1 and now - self._earlier[1][0] >= RATE_SECONDS:
            self._earlier.popleft()
        if self._earlier:
            then, earlier = self._earlier[0]
            status.rows_per_s = (ledger.transactions_analyzed - earlier.transactions_analyzed) / max(now - then, 1e-3)
            latency = {bucket: rows - earlier.latency.get(bucket, 0) for bucket, rows in ledger.latency.items()}
            status.latency_p50_ms, status.latency_p99_ms = (latency_quantile(latency, q) for q in (0.5, 0.99))
        self._earlier.append((now, ledger))


def read_status(volume: Volume, lease_seconds: float) -> Status:
    """One look from outside. Raises as ``Watch.look`` does."""
    roster = Roster(volume, lease_seconds)
    try:
        return Watch(volume, roster).look()
    finally:
        roster.close()


def latency_quantile(buckets: dict[str, int], quantile: float) -> float | None:
    """Milliseconds that ``quantile`` of the rows stayed under (upper end of the bucket); None without rows."""
    rows = {int(bucket): count for bucket, count in buckets.items() if count > 0}
    wanted = quantile * sum(rows.values())
    for bucket in sorted(rows):
        wanted -= rows[bucket]
        if wanted <= 0:
            return float(LATENCY_GROWTH ** (bucket + 1) / 1000)
    return None


def _model(workers: list[Heartbeat]) -> str | None:
    """The version that the inference workers score with."""
    versions = {beat.figures.get("model_version") for beat in workers if beat.stage == "inference"} - {None}
    return "/".join(sorted(map(str, versions))) or None


def _cannot_train(status: Status) -> str | None:
    """The trainer's reason, once nothing more can come that might change it."""
    if _model(status.workers) is not None:
        return None
    trainers = [beat.figures for beat in status.workers if beat.stage == "train"]
    reasons = [figures.get("cannot_train") for figures in trainers if figures.get("source_ended")]
    return next((str(reason) for reason in reasons if reason), None)
