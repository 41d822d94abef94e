"""What prep does with one segment: refuse bad rows, compute features from history, sample for training."""

from __future__ import annotations

import pyarrow as pa

from services.prep.late import WaitingLabels
from services.prep.sample import Share, middle_event_time, newest_event_time, sample
from services.prep.validate import validate, values
from spearhead.checkpoint import Arrays
from spearhead.errors import ConfigurationError
from spearhead.features import History
from spearhead.hashing import hash_strings
from spearhead.history import Labels, StateError, merchant_hashes
from spearhead.labels import KnownLabels
from spearhead.packing import attach
from spearhead.partition import LabelOutcome, Outcome
from spearhead.segment import SegmentError
from spearhead.settings import Settings


class FeatureWork:
    """``partition.Work`` over ``features.History``. ``sampling`` is whether there is a trainer to sample for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.sampling = False
        self.share = self._no_share()
        self.history = self._empty()
        self.labels = KnownLabels()
        self.late = WaitingLabels()

    def _empty(self) -> History:
        settings = self._settings
        return History(
            settings.card_state_max,
            settings.merchant_state_max,
            settings.label_delay_us,
            settings.partitions,
            settings.card_idle_us,
        )

    def _no_share(self) -> Share:
        """Cards are spread evenly, so each partition fills its part of the sample."""
        settings = self._settings
        return Share(settings.train_max_rows / settings.partitions, settings.train_window_days)

    def restore(self, arrays: Arrays | None) -> None:
        """Take up a checkpoint's state. Raises ConfigurationError if other settings or another version made it."""
        asked = self._empty()
        try:
            self.history = asked if arrays is None else History.restore(dict(arrays))
        except StateError as error:
            raise ConfigurationError(
                f"this version can't use the volume's feature history: {error}; go back to the version of before, "
                "or 'reset' to begin a new history"
            ) from error
        self.labels = KnownLabels() if arrays is None else KnownLabels.restore(arrays)
        self.late = WaitingLabels() if arrays is None else WaitingLabels.restore(arrays)
        self.share = self._no_share()
        self.share.restore(arrays or {})
        for setting in ("label_delay_us", "partitions", "card_max", "merchant_max", "card_idle_us"):
            kept, wanted = getattr(self.history, setting), getattr(asked, setting)
            if kept != wanted:
                raise ConfigurationError(
                    f"the volume's feature history was made with {setting} {kept:,}, the settings say {wanted:,}: "
                    "go back to the setting of before, or 'reset' to begin a new history"
                )

    def arrays(self) -> Arrays:
        return {**self.history.arrays(), **self.labels.arrays(), **self.late.arrays(), **self.share.arrays()}

    def apply(self, batch: pa.RecordBatch) -> Outcome:
        """Features of the good rows; the identity columns are passed on by reference."""
        good, rejects = validate(batch)
        features = self.history.encode(good)
        if good.num_rows:
            self.late.advance(newest_event_time(good), self.history)
            self.share.update(good.num_rows, middle_event_time(good))
        return Outcome(attach(good, features), rejects, self.share.share)

    def apply_labels(self, batch: pa.RecordBatch) -> LabelOutcome:
        """Labels are made by our own code: one that is missing makes the whole segment a damaged one."""
        if any(column.null_count for column in batch.columns):
            raise SegmentError("a label, or what it is about, is missing")
        change = self.labels.apply(batch, hash_strings(batch.column("trans_num")))
        told = batch.take(pa.array(change.rows))
        said = Labels(
            merchant_hashes(told.column("merchant")), values(told.column("event_time")),
            values(told.column("is_fraud")), change.before,
        )  # fmt: skip
        self.late.add(values(told.column("labelled_at")), said, self.history)
        return LabelOutcome(change.aggregate, change.known)

    def sample(self, outcome: Outcome) -> pa.RecordBatch | None:
        wanted = self.sampling and outcome.features.num_rows
        return sample(outcome.features, outcome.share) if wanted else None
