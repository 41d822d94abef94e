"""What the API knows at one moment, and what follows from it: state, reasons, rates.

A snapshot is made by one thread (``reader.py``) and read by all requests of the process; nobody changes it.
What could not be read is None, and ``problems`` say why.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from spearhead.backlog import Backlogs, Head
from spearhead.control import Control
from spearhead.drift import Drift, Reference
from spearhead.drift import assess as assess_drift
from spearhead.heartbeat import Heartbeat
from spearhead.ledger import LedgerFile

State = Literal["ok", "starting", "no_model", "stopped", "degraded", "unavailable"]
STALE_SECONDS: Final = 15.0  # rows wait for the ledger and it is older than this: it is stale
STEPS: Final = {"generation": "generator", "preprocessing": "prep", "training": "train", "inference": "inference"}
QUEUES: Final = ("raw_transactions", "features_ready", "inference_results", "training_queue")


class Disk(NamedTuple):
    """Space on the volume, in bytes."""

    free: int
    total: int


class Flow(NamedTuple):
    """How far each step has come in this epoch, in rows. None: not known."""

    published: int | None = None  # by all producers
    rejected: int | None = None  # set aside at the edge
    consumed: int | None = None  # taken by prep
    emitted: int | None = None  # passed on by prep
    scored: int | None = None  # in the ledger


class Sample(NamedTuple):
    """One second of the charts. Rates are rows a second over the last few seconds."""

    time: float  # seconds since 1970
    epoch: int
    generation: float | None
    preprocessing: float | None
    inference: float | None
    flagged: float | None  # flagged transactions a second
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    raw_transactions: int | None
    features_ready: int | None
    inference_results: int | None
    training_queue: int | None
    read_bytes: float | None  # a second
    write_bytes: float | None
    precision: float | None
    recall: float | None


class Version(NamedTuple):
    """A model on the volume: its name, when it was put there, and its own figures (``metrics.json``)."""

    name: str
    made_at: float  # seconds since 1970, the file server's clock
    metrics: dict[str, Any]


class Models(NamedTuple):
    """The model in service and the newest versions, oldest first."""

    current: str | None = None
    versions: tuple[Version, ...] = ()
    thresholds: tuple[dict[str, Any], ...] = ()  # of the one in service
    window: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    reference: Reference | None = None  # what drift is measured by
    problem: str | None = None

    @property
    def challenger(self) -> Version | None:
        """The newest version where it is newer than the one in service, whose place it did not take."""
        if self.current is None or not self.versions:
            return None
        newest = self.versions[-1]
        return newest if int(newest.name[1:]) > int(self.current[1:]) else None


class Snapshot(NamedTuple):
    """One look at the volume."""

    at: float  # monotonic seconds
    time: datetime
    problems: tuple[str, ...] = ()  # what could not be read, and why
    readable: bool = False  # the volume
    epoch: int | None = None
    ledger: LedgerFile | None = None
    ledger_damaged: bool = False  # .metrics.json can't be read; ``ledger`` is from a version beside it, or None
    ledger_failed: bool = False  # nor can any version
    workers: tuple[Heartbeat, ...] | None = None
    backlogs: Backlogs | None = None
    heads: dict[str, Head] | None = None
    flow: Flow = Flow()
    control: Control | None = None
    disk: Disk | None = None
    models: Models | None = None
    labels_waiting: int | None = None  # for a decision to be joined with
    samples: Sequence[Sample] = ()

    @property
    def drift(self) -> Drift | None:
        """How far recent traffic is from the training window of the model in service; None: that is not known."""
        models, ledger = self.models, self.ledger
        if models is None or models.current is None or models.reference is None or ledger is None:
            return None
        return assess_drift(models.reference, models.current, ledger.drift, ledger.label_days, ledger.first_event_day)

    def of(self, step: str) -> list[Heartbeat]:
        """Live workers of a step, such as ``preprocessing``."""
        return [beat for beat in self.workers or () if beat.stage == STEPS[step]]

    @property
    def reasons_at_look_up(self) -> int | None:
        """Flagged rows that the live API servers explained since each started; None: none says how many."""
        told = [beat.figures.get("reasons_at_look_up") for beat in self.workers or () if beat.stage == "api"]
        known = [count for count in told if isinstance(count, int)]
        return sum(known) if known else None

    @property
    def ledger_age(self) -> float | None:
        """Seconds since the ledger was last written."""
        return max(0.0, (self.time - self.ledger.updated_at).total_seconds()) if self.ledger else None

    @property
    def data_age(self) -> float | None:
        """Seconds since the newest decision that the ledger counts; None before the first."""
        if self.ledger is None or not self.ledger.last_scored_at:
            return None
        return max(0.0, self.time.timestamp() - self.ledger.last_scored_at / 1e6)

    @property
    def stale(self) -> bool:
        """Whether rows wait to be counted and nobody counts them."""
        waiting = self.backlogs is not None and self.backlogs.inference_results > 0
        return waiting and self.ledger_age is not None and self.ledger_age > STALE_SECONDS

    @property
    def latest(self) -> Sample | None:
        return self.samples[-1] if self.samples else None


class Assessment(NamedTuple):
    """How things stand, and every reason why they are not simply well."""

    state: State
    reasons: tuple[str, ...]


def assess(snapshot: Snapshot) -> Assessment:
    """The state in one word, worst first, with all reasons in plain sentences."""
    reasons = list(snapshot.problems)
    state: State = "ok"
    if not snapshot.readable or snapshot.ledger_failed:
        return Assessment("unavailable", tuple(reasons))
    if snapshot.ledger is None:
        state = "starting"
        reasons.append("no ledger yet: no inference worker has started on this volume")
    elif snapshot.control is not None and not snapshot.control.running:
        state = "stopped"
        reasons.append("the pipeline was stopped by an operator")
    elif _lacks_model(snapshot):
        state = "no_model"
        reasons.append(model_progress(snapshot))
    troubles = _troubles(snapshot)
    if (troubles or snapshot.problems) and state == "ok":
        state = "degraded"
    return Assessment(state, (*reasons, *troubles))


def _lacks_model(snapshot: Snapshot) -> bool:
    assert snapshot.ledger is not None
    return snapshot.models is not None and snapshot.models.current is None


def model_progress(snapshot: Snapshot) -> str:
    """Why nothing is scored yet."""
    for beat in snapshot.of("training"):
        matured, needed = beat.figures.get("matured_rows"), beat.figures.get("needed_rows")
        reason = beat.figures.get("cannot_train")
        if matured is not None and needed is not None:
            text = f"no model yet: {int(matured):,} of {int(needed):,} matured rows"
            return f"{text} (can't train: {reason})" if reason else text
    return "no model yet" if snapshot.of("training") else "no model yet, and no trainer is alive"


def _troubles(snapshot: Snapshot) -> list[str]:
    found = []
    if snapshot.ledger_damaged:
        found.append(".metrics.json is damaged; the totals are those of the newest ledger version")
    if snapshot.stale:
        found.append(f"the ledger is {snapshot.ledger_age:.0f} s old while rows wait to be counted")
    if snapshot.workers is not None:
        found += [
            f"no {STEPS[step]} worker is alive" for step in ("preprocessing", "inference") if not snapshot.of(step)
        ]
        found += [
            f"{beat.stage} is short of disk space" + (f": {beat.detail}" if beat.detail else "")
            for beat in snapshot.workers
            if beat.state == "disk_low"
        ]
    return found


def iso(time: datetime) -> str:
    """ISO 8601 UTC with Z, to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_us(us: int) -> str:
    return iso(datetime.fromtimestamp(us / 1e6, UTC))
