"""Merchant risk knows labels that come on their own: at the right time, the same whoever computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelling import Bench, Said
from segments import START_US, raw_batch
from test_features import DAY_US, PATIENT, START, assert_parity, make_batch, streams

from services.prep.late import WaitingLabels
from services.prep.work import FeatureWork
from spearhead import codes, packing
from spearhead.features import FEATURES
from spearhead.files import Files
from spearhead.history import History, Labels, merchant_hashes
from spearhead.partition import PartitionLog
from spearhead.schema import LABELS, MERCHANT
from spearhead.settings import Settings
from spearhead.volume import Volume
from tests.reference_features import Reference

HOUR_US = 3_600_000_000
Row = dict[str, object]


def label(history: History, said: list[tuple[str, int, int, int]]) -> int:
    """Of rows: merchant, event time, label, label before."""
    names, times, frauds, before = zip(*said, strict=True)
    merchants = pa.array(names, pa.string()).dictionary_encode().cast(MERCHANT)
    return history.label(
        Labels(merchant_hashes(merchants), np.array(times), np.array(frauds, np.int8), np.array(before, np.int8))
    )


STEPS = [0, 1, HOUR_US, 5 * HOUR_US, 7 * HOUR_US, DAY_US, 3 * DAY_US, 20 * DAY_US, 50 * DAY_US, -10 * HOUR_US]
SHARES = [0.05, 0.2, 0.2, 0.2, 0.15, 0.1, 0.04, 0.015, 0.015, 0.03]


def busy(random: np.random.Generator, rows: int = 200, merchants: int = 2) -> list[Row]:
    """Rows of few merchants, so that most windows hold labels, with gaps that empty them."""
    times = START + np.cumsum(random.choice(STEPS, rows, p=SHARES))
    return [
        {"event_time": int(time), "card": int(card), "merchant": f"m{card % merchants}", "label": int(own)}
        for time, card, own in zip(times, random.integers(0, 9, rows), random.integers(-1, 2, rows), strict=True)
    ]


def compare(rows: list[Row], label_delay: int, random: np.random.Generator, merchants: int) -> None:
    """Rows in small pieces; between them labels and corrections of any earlier row, old and young ones."""
    history, reference = History(100, merchants, label_delay), Reference(100, merchants, label_delay)
    known = [int(row["label"]) for row in rows]  # type: ignore[call-overload]
    begin = 0
    while begin < len(rows):
        end = min(len(rows), begin + int(random.integers(1, 12)))
        assert_parity(make_batch(rows[begin:end]), history, reference)
        said = []
        for number in random.integers(0, end, random.integers(0, 6)).tolist():
            number = max(number, end - 1 - number) if random.random() < 0.5 else number
            is_fraud = int(random.integers(0, 2))
            if is_fraud != known[number]:
                row = rows[number]
                said.append((str(row["merchant"]), int(row["event_time"]), is_fraud, known[number]))  # type: ignore[call-overload]
                known[number] = is_fraud
        if said:
            assert label(history, said) == sum(reference.label(*one) for one in said)
        begin = end
        if random.random() < 0.2:
            history = History.restore(history.arrays())


@PATIENT
@given(streams(), st.sampled_from([0, DAY_US // 2, 7 * DAY_US]), st.integers(0, 2**32), st.sampled_from([2, 100]))
def test_agrees_with_the_reference_on_any_stream(rows: list[Row], label_delay: int, seed: int, merchants: int) -> None:
    compare(rows, label_delay, np.random.default_rng(seed), merchants)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("label_delay", [0, DAY_US // 2, 7 * DAY_US])
def test_agrees_with_the_reference_where_windows_are_full(label_delay: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    compare(busy(random), label_delay, random, 100)


def late_features(work: FeatureWork, rows: list[Row]) -> list[list[float]]:
    """What a merchant's labels say at each row."""
    places = [place for place, name in enumerate(FEATURES) if name in LABEL_FEATURES]
    found = packing.of(work.apply(make_batch(rows)).features).matrix()
    decoded: list[list[float]] = codes.decode(found)[:, places].tolist()
    return decoded


LABEL_FEATURES = (
    "merch_risk_1d", "merch_risk_7d", "merch_risk_30d", "merch_frauds_7d", "merch_labelled_30d", "merch_recent_risk",
    "merch_fraud_run_days", "merch_last_fraud_days",
)  # fmt: skip


def made() -> FeatureWork:
    settings = Settings(_env_file=None, card_state_max=100, merchant_state_max=100, partitions=1)  # type: ignore[call-arg]
    return FeatureWork(settings)


def segment(labels: list[tuple[int, int, int]], merchant: str = "m", own: int = -1) -> pa.RecordBatch:
    """Of rows by their event time: the label, and when it was said (us)."""
    rows = [
        {"trans_num": f"t{time}", "labelled_at": at, "is_fraud": fraud, "matched": True, "event_time": time,
         "card": 1, "merchant": merchant, "producer": "h00", "own_label": own, "flagged": False, "in_sample": False}
        for time, fraud, at in labels
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays([pa.array([row[f.name] for row in rows], f.type) for f in LABELS], schema=LABELS)


def at(days: float, own: int = -1) -> Row:
    return {"event_time": START + int(days * DAY_US), "label": own}


def test_a_late_label_counts_as_one_that_its_row_had_carried() -> None:
    """Said within the delay, a label changes every later row's features just as if the row had come with it."""
    plain, late = made(), made()
    days = [0.0, 0.3, 1.0, 2.5]
    plain.apply(make_batch([at(day, own) for day, own in zip(days, [1, 0, 0, 1], strict=True)]))
    late.apply(make_batch([at(day) for day in days]))
    said = [(START + int(day * DAY_US), own, START) for day, own in zip(days, [1, 0, 0, 1], strict=True)]
    late.apply_labels(segment(said))
    later = [at(day) for day in (3, 6.9, 7.5, 8.1, 9, 10, 15, 30, 45)]
    assert late_features(late, later) == late_features(plain, later)
    assert (late.late.used, late.late.lost, len(late.late)) == (4, 0, 0)


def test_a_label_tells_no_row_of_what_was_not_known_at_its_time() -> None:
    """Neither before its row is LABEL_DELAY old, nor before the moment at which it was said."""
    without, late = made(), made()
    for work in (without, late):
        work.apply(make_batch([at(0)]))
    late.apply_labels(segment([(START, 1, START + 12 * DAY_US)]))
    early = [at(day) for day in (1, 6.9, 8, 11.9)]
    assert late_features(late, early) == late_features(without, early)
    assert len(late.late) == 1
    assert late_features(late, [at(12)]) == late_features(without, [at(12)]), "what reaches the moment is before it"
    after = [at(12.1)]
    told, untold = late_features(late, after), late_features(without, after)
    assert told != untold
    assert told[0][LABEL_FEATURES.index("merch_recent_risk")] == pytest.approx(0.25, rel=1e-3)
    assert (late.late.used, len(late.late)) == (1, 0)


def test_a_label_said_at_once_still_waits_for_the_delay() -> None:
    without, late = made(), made()
    for work in (without, late):
        work.apply(make_batch([at(0), at(0.1)]))
    late.apply_labels(segment([(START, 1, START)]))
    early = [at(day) for day in (0.2, 5, 6.99)]
    assert late_features(late, early) == late_features(without, early)
    assert late_features(late, [at(7.3)]) != late_features(without, [at(7.3)])


def test_a_correction_takes_back_what_was_said_before() -> None:
    never, corrected = made(), made()
    never.apply(make_batch([at(0, 0), at(1, 0)]))
    corrected.apply(make_batch([at(0, 0), at(1)]))
    corrected.apply_labels(segment([(START + DAY_US, 1, START)]))
    corrected.apply_labels(segment([(START, 1, START)], own=0))
    corrected.apply_labels(segment([(START + DAY_US, 0, START + 1)]))
    corrected.apply_labels(segment([(START, 0, START + 1)], own=0))
    later = [at(day) for day in (2, 8, 9)]
    assert late_features(corrected, later) == late_features(never, later)


def test_the_state_goes_on_from_a_checkpoint_as_if_nothing_had_been() -> None:
    whole, again = made(), made()
    for number in range(8):
        rows = [at(number * 3 + hour / 24) for hour in range(0, 48, 7)]
        said = [(START + number * 3 * DAY_US, number % 2, START + (number * 3 + 5) * DAY_US)]
        for work in (whole, again):
            work.apply(make_batch(rows))
            work.apply_labels(segment(said))
        arrays = again.arrays()
        again = made()
        again.restore(arrays)
    assert len(whole.late) > 0 < whole.late.used
    one, other = whole.arrays(), again.arrays()
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_more_labels_than_may_wait_are_counted_as_lost_the_latest_first() -> None:
    history = History(10, 10)
    waiting = WaitingLabels(kept=3)
    columns = Labels(np.arange(5, dtype=np.uint64), *(np.zeros(5, kind) for kind in (np.int64, np.int8, np.int8)))
    waiting.add(np.array([5, 1, 4, 2, 3]), columns, history)
    assert (len(waiting), waiting.lost) == (3, 2)
    waiting.advance(3, history)
    assert (len(waiting), waiting.used, waiting.lost) == (0, 0, 5), "of merchants that nobody knows"


def test_what_the_joiner_publishes_reaches_the_state_and_a_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    bench = Bench(Volume(tmp_path, Files(fsync=False)))
    bench.scorer.score(20)
    bench.drop([Said(3, 1, 10), Said(4, 0, 20), Said(3, 0, 30)])
    bench.look()
    bench.prep()
    bench.scorer.take(raw_batch(100_000, 10), scored_at=START_US)  # of a day after the labels were said
    bench.drop([Said(7, 1, 40)])
    bench.look()

    def opened(worker: str) -> tuple[PartitionLog, FeatureWork]:
        work = FeatureWork(bench.settings)
        log = PartitionLog(bench.volume, 0, worker, work, checkpoint_seconds=1e9)
        log.open(1)
        return log, work

    log, work = opened("prep-1")
    while log.step():
        pass
    assert (work.late.used, work.late.lost, len(work.late)) == (4, 0, 0)
    _, replayed = opened("prep-2")
    one, other = work.arrays(), replayed.arrays()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one.keys() | other.keys())
