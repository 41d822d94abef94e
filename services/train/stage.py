"""The training stage: follows training-queue, retrains on matured rows, puts a model that is better into service."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, NamedTuple

from services.train import card
from services.train.evaluation import Costs
from services.train.fit import CancelledError, CannotTrainError, Options, Rows, fitted
from services.train.job import Job
from services.train.promotion import Rules, Verdict, judge
from services.train.reference import reference
from services.train.sample import Count, Sample
from spearhead.backlog import Backlog, Head, RawHeads
from spearhead.features import FEATURES, STATELESS, WIDTH
from spearhead.ledger import LedgerError, read_ledger
from spearhead.model import Artifact, Model, ModelError, ModelStore
from spearhead.settings import Settings
from spearhead.stage import Stage
from spearhead.timer import Timer
from spearhead.usage import give_memory_back
from spearhead.volume import Volume

LOOK_SECONDS: Final = 0.5
REST: Final = 2.0  # least pause after a training, in times of what it took
GROWN: Final = 2.0  # so many times the matured rows of the last training, and the next does not wait for its share
RETRY_SECONDS: Final = (5.0, 300.0)  # wait after a training that failed: first and longest
NICENESS: Final = {"inference": 19, "balanced": 10, "training": 0}
Cancelled = Callable[[], bool]
_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What a job brings."""

    artifact: Artifact
    verdict: Verdict
    rows: int
    champion: str | None  # the version in service when it began


class Train(Stage):
    """One trainer a volume. A second does no harm: both publish versions, the pointer says which one serves."""

    name: ClassVar[str] = "train"

    def __init__(self, settings: Settings, volume: Volume, worker: str) -> None:
        super().__init__(settings, volume, worker)
        self._store = ModelStore(volume, settings.train_threads)
        self._heads = RawHeads(volume)
        self._backlog = Backlog(volume)
        self._sample = Sample(volume, self.epoch, WIDTH)
        self._look_due = Timer(LOOK_SECONDS)
        self._job: Job[Trained] | None = None
        self._job_epoch = self.epoch
        self._failures = 0
        self._not_before = 0.0  # monotonic
        self._affordable = 0.0  # monotonic: when the last training has taken no more than its share of a core
        self._began_cpu = 0.0  # CPU seconds of this process when the last training began
        self._trained_at = time.monotonic()  # when the last training began, or this process
        self._trained_on = 0.0  # source rows whose label could be used, or was corrected, when the last training began
        self._ended = False  # every source has ended and all its rows are in the sample

    def start(self) -> None:
        """Put weights that lie in ``models/`` into service; a volume that has some does not wait for a first model."""
        self._adopt()
        self._show(Count(), None)

    def step(self) -> int:
        """Look at the queue, start a training when one is due, publish one that is done; rows that it was made of."""
        if not self._look_due.due():
            return 0
        heads, count = self._look()
        if self._job is not None:
            return self._end_of_job(self._job) if self._job.done else 0
        in_service = self._in_service()
        self._show(count, in_service)
        if self._is_due(count, in_service):
            self._begin(heads, count, in_service)
        return 0

    def reset(self, epoch: int) -> None:
        """Forget the sample; models stay, a training of the old epoch does not count."""
        super().reset(epoch)
        self._sample = Sample(self.volume, epoch, WIDTH)
        self._trained_on = 0.0
        self._ended = False
        self.figures.update(cannot_train=None, source_ended=0)
        if self._job is not None:
            self._job.cancel()

    def close(self) -> None:
        """End a training that runs: it is made again from the same rows."""
        if self._job is not None:
            self._job.cancel()
            self._job.join()

    # Looking

    def _look(self) -> tuple[Mapping[str, Head], Count]:
        """Bring the sample up to date; the producers, and what it holds."""
        heads = self._heads.producers(self.epoch)
        settled = self._is_settled(heads)
        delay = self.settings.label_delay_us
        self._sample.refresh(heads, delay)
        self._ended = settled
        return heads, self._sample.count(heads, delay)

    def _is_settled(self, heads: Mapping[str, Head]) -> bool:
        """Whether nothing more can come into the sample: sources ended, prep through with them, its outputs published.

        To be asked before the sample is refreshed: what was committed before is then among what was published.
        """
        if not heads or not all(head.ended for head in heads.values()) or self._backlog.raw_transactions():
            return False
        staged = self.volume.training / "staged"
        return not any(self.files.list(staged / attempt) for attempt in self.files.list(staged))

    def _in_service(self) -> str | None:
        try:
            return self._store.current()
        except ModelError as error:
            self.figures["model_error"] = str(error)
            return None

    def _adopt(self) -> None:
        try:
            self._store.adopt()
        except ModelError as error:
            self.figures["model_error"] = str(error)

    def _show(self, count: Count, in_service: str | None) -> None:
        needed = self.settings.train_first_rows
        self.figures.update(
            matured_rows=int(count.matured),
            needed_rows=needed,
            sample_rows=self._sample.rows,
            sample_files_refused=self._sample.refused,
            sample_unlabelled=count.unlabelled,
            sample_aged_out=self._sample.aged_out,
            late_labels=self._sample.late_labels,
            source_ended=int(self._ended),
            model_version=in_service,
        )
        self.figures.setdefault("cannot_train", None)
        if self.figures["cannot_train"]:
            self.detail = f"cannot train: {self.figures['cannot_train']}"
        elif in_service is None:
            self.detail = f"first model: {int(count.matured)} of {needed} matured rows"
        else:
            self.detail = ""

    # Deciding

    def _is_due(self, count: Count, in_service: str | None) -> bool:
        if time.monotonic() < self._not_before:
            return False
        new = _evidence(count) - self._trained_on
        if in_service is None:
            return self._first_is_due(count.matured, new)
        if new <= 0 or count.matured < self.settings.train_first_rows or self._must_yield() or self._must_save(count):
            return False
        waited = time.monotonic() - self._trained_at
        return new >= self.settings.train_new_rows or waited >= self.settings.train_interval_seconds

    def _first_is_due(self, matured: float, new: float) -> bool:
        """Enough rows, or all there will be; again only with other rows than those that made no model."""
        if self.figures.get("cannot_train") and new <= 0:
            return False
        return matured >= self.settings.train_first_rows or self._ended

    def _must_yield(self) -> bool:
        """With priority on inference no retraining while features wait."""
        return (
            self.control.priority == "inference"
            and self._backlog.features_ready() > self.settings.features_ready_warning
        )

    def _must_save(self, count: Count) -> bool:
        """Whether the last training is still to be paid for.

        Not while there is twice as much to learn from as it had: early on a longer history makes a better model.
        """
        if self.control.priority == "training" or time.monotonic() >= self._affordable:
            return False
        return _evidence(count) < GROWN * self._trained_on

    # Training

    def _begin(self, heads: Mapping[str, Head], count: Count, in_service: str | None) -> None:
        rows = self._sample.take(heads, self.settings.label_delay_us)
        champion = self._champion(in_service)
        began = self._history_began()
        first = in_service is None
        modest = self.control.priority == "inference" and not first
        settings = self.settings
        threads = 1 if modest else settings.train_threads
        rules = Rules(settings.promote_margin, settings.promote_ece_tolerance)
        costs = Costs(settings.cost_per_alert, settings.cost_per_missed_fraud)

        def work(cancelled: Cancelled) -> Trained:
            options = Options(
                names=FEATURES, stateless=STATELESS, threshold=settings.fraud_threshold, seed=settings.seed,
                threads=threads, device=settings.device, costs=costs, cancelled=cancelled,
            )  # fmt: skip
            artifact, verdict = train(rows, options, champion, rules, began)
            return Trained(self._carded(artifact, card.pictures), verdict, len(rows.label), in_service)

        self._trained_at, self._trained_on = time.monotonic(), _evidence(count)
        self._began_cpu = time.process_time()
        self._job_epoch = self.epoch
        self.figures["card_error"] = None
        # Nothing can be scored before the first model: it has the right of way.
        self._job = Job(work, 0 if first else NICENESS[self.control.priority])
        self.state, self.detail = "running", f"training on {len(rows.label)} rows, {rows.frauds} of them fraud"

    def _champion(self, version: str | None) -> Model | None:
        if version is None:
            return None
        try:
            return self._store.load(version)
        except ModelError as error:  # what can't be loaded can't be in anyone's way
            _log.warning("model in service is unusable: %s", error)
            self.figures["model_error"] = str(error)
            return None

    def _history_began(self) -> int | None:
        """The event day of the first rows that were scored; None before any was, or where no ledger can be read."""
        try:
            ledger = read_ledger(self.volume)
        except LedgerError as error:
            _log.warning("history is taken to begin with the sample: %s", error)
            return None
        return ledger.first_event_day if ledger is not None and ledger.first_scored_at else None

    def _end_of_job(self, job: Job[Trained]) -> int:
        try:
            return self._finish(job)
        finally:
            give_memory_back()

    def _finish(self, job: Job[Trained]) -> int:
        """Publish what the job made; where the disk is full it is kept and published later."""
        try:
            trained = job.result()
        except CancelledError:
            self._job = None
            return 0
        except CannotTrainError as error:
            self._job = None
            self.figures["cannot_train"] = str(error)
            return 0
        except Exception:
            self._job = None
            self._failures += 1
            first, longest = RETRY_SECONDS
            self._not_before = time.monotonic() + min(first * 2 ** (self._failures - 1), longest)
            self._trained_on = 0.0
            raise
        if self._job_epoch == self.epoch:
            self._publish(trained)
        self._job = None
        now = time.monotonic()
        self._not_before = now + REST * (now - self._trained_at)
        self._affordable = self._trained_at + (time.process_time() - self._began_cpu) / self.settings.train_cpu_share
        return trained.rows

    def _publish(self, trained: Trained) -> None:
        verdict = trained.verdict
        if verdict.promote and self._in_service() != trained.champion:  # an operator's choice made meanwhile
            verdict = verdict.refused("another model was put in service during the training")
        metrics = {**trained.artifact.metrics, "verdict": verdict.figures}
        artifact = self._carded(trained.artifact._replace(metrics=metrics), card.texts)
        version = self._store.publish(artifact, promote=verdict.promote, over=trained.champion)
        self._failures = 0
        self._store.prune()
        self.figures.update(
            cannot_train=None,
            model_error=None,
            trained_version=version,
            promoted=int(verdict.promote),
            average_precision=metrics["average_precision"],
            auc=metrics["auc"],
            train_seconds=metrics["train_seconds"],
            trainings=int(self.figures.get("trainings") or 0) + 1,
        )
        outcome = "in service" if verdict.promote else "kept as a shadow"
        _log.info("model %s %s: %s", version, outcome, verdict.figures["reason"])

    def _carded(self, artifact: Artifact, part: Callable[[Artifact], Mapping[str, bytes]]) -> Artifact:
        """The artifact with more of its card. A card that fails costs no model: it is missing, logged and reported."""
        try:
            return artifact._replace(card={**artifact.card, **part(artifact)})
        except Exception as error:
            _log.exception("this model has no whole card")
            self.figures["card_error"] = f"{type(error).__name__}: {error}"
            return artifact


def _evidence(count: Count) -> float:
    """Grows with every label that may be used from now on, or is another than it was."""
    return count.matured + count.corrected


def train(
    rows: Rows, options: Options, champion: Model | None, rules: Rules, history_began: int | None = None
) -> tuple[Artifact, Verdict]:
    """Fit, evaluate, judge against the champion, and take down what drift is to be measured by.

    ``history_began`` is the event day, days since 1970, since when there has been history; None: since the first row.
    """
    artifact, test, scores = fitted(rows, options)
    verdict = judge(artifact, champion, rows, rules, scores)
    known = champion.reference if champion is not None else None
    return artifact._replace(reference=reference(rows, options.names, scores, test, known, history_began)), verdict
