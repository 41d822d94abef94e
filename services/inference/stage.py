"""The inference stage: takes segments of features, scores them, publishes results and what they add to the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.inference.budget import Budget
from services.inference.retention import Limits, Retention
from services.inference.watch import ModelWatch
from spearhead import binning, codes, evidence, packing, reasons, scoring, shap, trees
from spearhead.aggregate import Aggregate, DriftDay
from spearhead.backlog import RawHeads
from spearhead.drift import Reference
from spearhead.heartbeat import Roster
from spearhead.hop import Claim, Hop, environmental
from spearhead.ledger import Ledger
from spearhead.model import Model, ModelStore
from spearhead.reasons import Reason
from spearhead.scoring import Scored
from spearhead.segment import SUFFIX, SegmentName, write_segment
from spearhead.settings import Settings
from spearhead.stage import Stage
from spearhead.timer import Timer
from spearhead.volume import Volume

BATCH_ROWS: Final = 262_144  # rows claimed at once under backlog
RECOVER_SECONDS: Final = 2.0
RETENTION_SECONDS: Final = 10.0
WAITING_SECONDS: Final = 1.0  # how often the progress towards the first model is read
AGGREGATE_SUFFIX: Final = ".json"
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Inference(Stage):
    """One replica. Any number compete for the same segments; each also folds the ledger and recovers the dead."""

    name: ClassVar[str] = "inference"

    def __init__(self, settings: Settings, volume: Volume, worker: str) -> None:
        super().__init__(settings, volume, worker)
        self._roster = Roster(volume, settings.lease_seconds)
        self._hop = Hop(volume, worker, self._roster)
        self._ledger = Ledger(volume, settings.label_delay_us)
        self._watch = ModelWatch(ModelStore(volume, settings.inference_threads, settings.device, explains=True))
        self._retention = Retention(
            volume,
            RawHeads(volume),
            Limits(settings.results_retention_bytes, settings.results_retention_seconds),
            Limits(settings.archive_retention_bytes, settings.archive_retention_days * 86_400),
        )
        self._reasons = Budget(settings.reasons_max_per_s)
        self._bins: tuple[Reference, binning.Bins] | None = None  # as the kernel takes it
        self._fold_due = Timer(settings.fold_seconds)
        self._recover_due = Timer(RECOVER_SECONDS)
        self._retention_due = Timer(RETENTION_SECONDS)
        self._waiting_due = Timer(WAITING_SECONDS)
        self._flagged = 0
        self._rows = 0
        self._latency_us = 0
        self._done: list[SegmentName] = []  # segments whose files nobody else is expected to read soon

    def start(self) -> None:
        """Compile the kernels, load the model in service, take up what dead workers left."""
        codes.warm()
        trees.warm()
        shap.warm()
        scoring.warm()
        binning.warm()
        self._watch.adopt()
        self._hop.recover()

    def step(self) -> int:
        """Score the segments of one claim; keep the ledger and the topic tidy whether or not there is work."""
        model = self._watch.model()
        self._keep_house()
        if model is None:
            self._wait_for_model()
            return 0
        if self.state == "no_model":
            self.state, self.detail = "idle", ""
        rows = self._score(self._hop.claim(BATCH_ROWS), model)
        self._forget()
        self.dead = self._hop.dead
        if rows:
            self._report(model)
        return rows

    def reset(self, epoch: int) -> None:
        super().reset(epoch)
        self._hop.reset(epoch)

    def close(self) -> None:
        """Nothing is held between steps; fold what is pending so that the ledger is complete."""
        self._ledger.fold()
        self._ledger.close()
        self._retention.close()
        self._roster.close()

    def _score(self, claims: Sequence[Claim], model: Model) -> int:
        """Stage all, commit and publish together: a claim that raises fails alone. Rows that count."""
        decided = self._attempt(claims, lambda claim: self._decide(claim, model))
        chosen = self._choose([scored for _, (scored, _) in decided], model)
        dear = {claim.name: (*found, rows) for (claim, found), rows in zip(decided, chosen, strict=True)}
        staged = self._attempt(
            [claim for claim, _ in decided], lambda claim: self._stage(claim, *dear[claim.name], model)
        )
        aggregates = {claim.name: aggregate for claim, aggregate in staged}
        done = self._hop.finish([claim for claim, _ in staged]) if staged else []
        for claim in done:
            self._count(aggregates[claim.name])
        self._done = [_parsed(claim.name) for claim in done]
        return sum(claim.info.rows for claim in done)

    def _attempt(self, claims: Sequence[Claim], work: Callable[[Claim], T]) -> list[tuple[Claim, T]]:
        """What ``work`` gives of each claim; one that raises fails alone and is left out."""
        good: list[tuple[Claim, T]] = []
        for position, claim in enumerate(claims):
            try:
                good.append((claim, work(claim)))
            except MemoryError:
                raise
            except Exception as error:
                if environmental(error):  # the volume's fault: give everything back and wait
                    self._hop.release([*(claim for claim, _ in good), *claims[position:]])
                    raise
                self._hop.fail(claim, error)
                _log.warning("segment %s failed: %s: %s", claim.name, type(error).__name__, error)
        return good

    def _decide(self, claim: Claim, model: Model) -> tuple[Scored, Aggregate]:
        scores = model.score(packing.of(claim.batch))
        scored, aggregate = scoring.decide(
            claim.batch,
            scores,
            producer=_parsed(claim.name).producer,
            threshold=self.settings.fraud_threshold,
            train_end=model.train_end,
            scored_at=time.time_ns() // 1000,
            model=model.version,
        )
        aggregate.drift = self._count_bins(claim.name, scored, model)
        return scored, aggregate

    def _count_bins(self, segment: str, scored: scoring.Scored, model: Model) -> dict[str, DriftDay]:
        """Rows by the bins of the model's drift reference."""
        if model.reference is None:
            return {}
        if self._bins is None or self._bins[0] is not model.reference:
            self._bins = (model.reference, binning.bins_of(model.reference))
        features, event_time = packing.of(scored.batch), scoring.event_times(scored.batch)
        return binning.count(
            self._bins[1], features, scored.scores, event_time,
            number=_parsed(segment).seq, model=model.version, scored_at=scored.scored_at,
        )  # fmt: skip

    def _choose(self, decided: Sequence[Scored], model: Model) -> list[NDArray[np.int64]]:
        """The flagged rows to explain now, by segment: over all, those that may cost most, as the budget allows."""
        self._reasons.expect(model.version, model.explain_seconds)
        losses = [scoring.expected_loss(scored) for scored in decided]
        loss = np.concatenate([np.empty(0), *losses])
        chosen = np.zeros(len(loss), np.bool_)
        chosen[np.argsort(-loss, kind="stable")[: self._reasons.take(len(loss))]] = True
        ends = np.cumsum([len(own) for own in losses], dtype=np.int64)[:-1]
        parts = np.split(chosen, ends) if losses else []
        return [scored.flagged[part] for scored, part in zip(decided, parts, strict=True)]

    def _stage(
        self, claim: Claim, scored: Scored, aggregate: Aggregate, rows: NDArray[np.int64], model: Model
    ) -> Aggregate:
        """Explain ``rows`` of a decided segment and write its two outputs to the claim's private place."""
        packed = packing.of(scored.batch)
        found: list[list[Reason]] = []
        if len(rows):
            features = packed.take(rows)
            with self._reasons.explaining(len(rows)):
                found = reasons.strongest(codes.decode(features), model.contributions(features))
        explained = dict(zip(rows.tolist(), found, strict=True))
        scoring.explain(scored, aggregate, explained)
        flagged = scored.flagged
        notes = evidence.encode(flagged.tolist(), packed.take(flagged), explained) if len(flagged) else b""
        write_segment(self.files, self._hop.staged(claim, SUFFIX), scoring.results(scored), claim.info, notes)
        self.files.create(self._hop.staged(claim, AGGREGATE_SUFFIX), msgspec.json.encode(aggregate))
        return aggregate

    def _count(self, aggregate: Aggregate) -> None:
        self._rows += aggregate.count
        self._flagged += aggregate.flagged
        self._latency_us += aggregate.latency_us

    def _forget(self) -> None:
        """Let what was just scored leave memory, now that no claim has it mapped.

        Raw segments stay for a replay and results for look-ups, gigabytes of both. Left to the kernel they fill memory
        before it takes any back, and a page that comes fresh from the host costs ten times one that was just given up.
        """
        for name in self._done:
            self.files.forget(self.volume.result_file(str(name)))
            self.files.forget(self.volume.raw_ready(name.partition) / name.file)
        self._done = []

    def _keep_house(self) -> None:
        if self._recover_due.due():
            self._hop.recover()
            self._share()
        if self._fold_due.due():
            self._ledger.fold()
        if self._retention_due.due():
            self._retention.prune(self.epoch)

    def _share(self) -> None:
        """The more replicas, the less often each folds (the ledger is as fresh, and they rarely collide), and the
        fewer reasons each computes.
        """
        replicas = sum(heartbeat.stage == self.name for heartbeat in self._roster.alive().values())
        self._fold_due.seconds = self.settings.fold_seconds * max(1, replicas)
        self._reasons.rate = self.settings.reasons_max_per_s / max(1, replicas)

    def _wait_for_model(self) -> None:
        """Say why nothing is scored; features wait in the queue meanwhile."""
        self.state = "no_model"
        if not self._waiting_due.due():
            return
        self.figures["model_version"] = None
        self.figures["model_load_errors"] = self._watch.errors
        if self._watch.error:
            self.detail = f"no model: {self._watch.error}"
            return
        trainers = [heartbeat for heartbeat in self._roster.alive().values() if heartbeat.stage == "train"]
        self.detail = _progress(trainers[0].figures) if trainers else "no model yet, and no trainer is running"

    def _report(self, model: Model) -> None:
        self.figures.update(
            model_version=model.version,
            model_load_errors=self._watch.errors,
            model_error=self._watch.error,
            rows_scored=self._rows,
            flagged=self._flagged,
            latency_ms=self._latency_us / self._rows / 1000 if self._rows else None,
        )


def _progress(figures: Mapping[str, float | int | str | None]) -> str:
    matured, needed, reason = (figures.get(key) for key in ("matured_rows", "needed_rows", "cannot_train"))
    if matured is None or needed is None:
        return "no model yet"
    return f"no model yet: {matured} of {needed} matured rows" + (f" ({reason})" if reason else "")


def _parsed(segment: str) -> SegmentName:
    name = SegmentName.parse(segment)
    if name is None:
        raise ValueError(f"{segment} is not a segment's name")
    return name
