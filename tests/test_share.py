"""The share of rows that prep samples: what the sample spans, and that it is a function of the log alone."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from faulting import Crash, FaultingFiles
from hypothesis import given, settings
from hypothesis import strategies as st
from segments import drain, raw_batch, volume_at

from services.prep.sample import FIRST_DAYS, KNOWN_DAYS, MEMORY_DAYS, Share, middle_event_time
from services.prep.work import FeatureWork
from spearhead.partition import PartitionLog
from spearhead.producer import Producer
from spearhead.schema import RAW
from spearhead.settings import Settings
from spearhead.volume import Volume

DAY_US = 86_400_000_000
START_US = 1_700_000_000_000_000
MAX_ROWS = 10_000


def at(days: float) -> int:
    return START_US + round(days * DAY_US)


def spaced(start: int, rows: int, a_day: float) -> pa.RecordBatch:
    """Rows number ``start`` on of the endless source, so many an event day."""
    times = START_US + (np.arange(start, start + rows) * (DAY_US / a_day)).astype(np.int64)
    index = RAW.get_field_index("event_time")
    field = RAW.field(index)
    return raw_batch(start, rows).set_column(index, field, pa.array(times, field.type))


def share_after(days: float, a_day: float, window_days: float = 28.0) -> Share:
    """What steady traffic has led to, ten segments a day."""
    share = Share(MAX_ROWS, window_days)
    for step in range(round(days * 10) + 1):
        share.update(round(a_day / 10), at(step / 10))
    return share


# What the sample spans


@pytest.mark.parametrize(
    ("days", "window", "span"),
    [(5, 28, 14), (14, 28, 14), (20, 28, 20), (28, 28, 28), (60, 28, 28), (5, 7, 7), (60, 7, 7)],
)
def test_the_window_grows_with_the_event_time_seen(days: float, window: float, span: float) -> None:
    share = share_after(days, 5_000, window)
    assert share.span == pytest.approx(span)
    assert share.share == pytest.approx(MAX_ROWS / (5_000 * span), rel=0.1 if days < 4 * MEMORY_DAYS else 0.02)


def test_the_share_follows_the_rate() -> None:
    share = share_after(40, 5_000)
    for step in range(1, 201):  # traffic falls to a tenth
        share.update(50, at(40 + step / 10))
    assert share.share == pytest.approx(MAX_ROWS / (500 * 28), rel=0.05)


def test_little_traffic_is_kept_whole() -> None:
    assert share_after(30, 100).share == 1.0
    assert share_after(KNOWN_DAYS / 2, 1e6).share == 1.0


@settings(deadline=None, max_examples=40)
@given(
    window=st.floats(3, 40),
    a_day=st.floats(3_000, 30_000),
    segments=st.integers(4, 40),  # a day
    days=st.integers(1, 60),
)
def test_the_newest_rows_of_the_first_span_are_always_kept(
    window: float, a_day: float, segments: int, days: int
) -> None:
    """Of steady traffic the sample holds all that it can of the first 14 days, and grows from there to its window.

    Never is a day sampled more thinly than it will be in the end, so no model learns from fewer rows than before.
    """
    share, kept, sampled = Share(MAX_ROWS, window), deque[tuple[float, float]](), 0.0
    for step in range(days * segments):
        day, rows = step / segments, a_day / segments
        share.update(round(rows), at(day))
        kept.append((day, rows * share.share))
        sampled += kept[-1][1]
        while sampled > MAX_ROWS and len(kept) > 1:
            sampled -= kept.popleft()[1]
        warm = day >= 4 * MEMORY_DAYS
        if warm:
            span = day - kept[0][0] + 1 / segments
            assert span >= 0.9 * min(window, FIRST_DAYS, day) - KNOWN_DAYS - 2 / segments
            assert share.share >= min(1.0, 0.95 * MAX_ROWS / (a_day * window))
        if day >= 2.75 * max(window, FIRST_DAYS):  # e times: by then no row of the denser days is left
            assert span >= 0.9 * window - 2 / segments


# A function of the log


Segments = list[tuple[int, float]]


@settings(deadline=None)
@given(
    segments=st.lists(st.tuples(st.integers(1, 5_000), st.floats(-40, 40)), min_size=1, max_size=40),
    restarts=st.sets(st.integers(0, 40)),
)
def test_a_restart_changes_nothing(segments: Segments, restarts: set[int]) -> None:
    whole, parts = Share(MAX_ROWS, 28), Share(MAX_ROWS, 28)
    for number, (rows, days) in enumerate(segments):
        if number in restarts:
            arrays = parts.arrays()
            parts = Share(MAX_ROWS, 28)
            parts.restore(arrays)
        for share in (whole, parts):
            share.update(rows, at(days))
        assert parts.share == whole.share
        assert 0 < parts.share <= 1
        assert min(28, FIRST_DAYS) <= parts.span <= 28


def test_another_setting_counts_from_the_restart_on() -> None:
    other = Share(2 * MAX_ROWS, 14)
    other.restore(share_after(30, 5_000).arrays())
    assert other.share == pytest.approx(4 * MAX_ROWS / (5_000 * 28), rel=0.02)


def test_a_checkpoint_of_a_version_before_starts_with_nothing_seen(tmp_path: Path) -> None:
    work = FeatureWork(Settings(flashblade_path=tmp_path))
    work.apply(raw_batch(0, 5_000))
    before = {name: array for name, array in work.arrays().items() if not name.startswith("share_")}
    work.restore(before)
    assert (work.share.share, work.share.span) == (1.0, FIRST_DAYS)


def test_the_sample_is_the_same_to_the_byte_whoever_is_killed(tmp_path: Path) -> None:
    """Over the whole time in which the window grows; replays, restarts and take-overs included."""
    a_day, sizes = 100, [85, 1, 130, 0, 95] * 12
    options = Settings(train_max_rows=300)

    def run(root: Path, patience: int) -> tuple[list[int], dict[str, bytes]]:
        begun = []  # by life: the step of the checkpoint that it began from
        volume = volume_at(root)
        source, row = Producer(volume, "g00", 1, "feeder"), 0
        source.resume()
        for size in sizes:
            source.publish(spaced(row, size, a_day))
            row += size
        for life in range(1, 400):
            work = FeatureWork(options)
            work.sampling = True
            try:
                files = FaultingFiles(patience + life % 13) if patience else volume.files
                log = PartitionLog(Volume(root, files), 0, f"w{life}", work)
                log.open(1)
                begun.append(log.checkpoint_step)
                drain(log, checkpoint_each=1)
                break
            except Crash:
                continue
        return begun, {path.name: path.read_bytes() for path in (volume.training / "ready").iterdir()}

    begun, expected = run(tmp_path / "whole", 0)
    assert begun == [0]
    assert len(expected) > 30
    checkpoints = set()
    for patience in (60, 120, 200):
        begun, found = run(tmp_path / str(patience), patience)
        assert len(begun) > 3
        assert found == expected
        checkpoints |= set(begun)
    assert len(checkpoints) > 3, "too few began from a checkpoint: give them more patience"


def test_a_segment_is_sampled_by_the_share_of_its_own_turn() -> None:
    """The state has taken the next one by then."""
    work = FeatureWork(Settings(train_max_rows=100))
    work.sampling = True
    for first in range(0, 800, 100):
        outcome = work.apply(spaced(first, 100, 100))
    before, share = work.sample(outcome), work.share.share
    work.apply(spaced(800, 4_000, 100))
    assert work.share.share < share
    assert before is not None
    assert before.equals(work.sample(outcome))


def test_partitions_fill_the_sample_together(tmp_path: Path) -> None:
    """Each sees its part of the rows: sampled rows a day are the same with one partition and with four."""
    found = []
    for partitions in (1, 4):
        work = FeatureWork(Settings(flashblade_path=tmp_path, partitions=partitions, train_max_rows=MAX_ROWS))
        for day in range(40):
            work.share.update(8_000 // partitions, at(day))
        found.append(work.share.share)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0] < 0.1


# Wrong dates


def test_a_few_wrong_dates_in_a_segment_do_not_move_its_time() -> None:
    times = [at(0.5)] * 300
    times[0] = times[-1] = times[100] = at(300_000)
    assert middle_event_time(dated(times)) == at(0.5)
    assert middle_event_time(dated([at(7)])) == at(7)


def dated(times: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(times, RAW.field("event_time").type)], ["event_time"])


@pytest.mark.parametrize("wrong", [300_000, -15_000])
@pytest.mark.parametrize("first", [False, True])
def test_a_segment_of_a_wrong_date_does_no_lasting_harm(wrong: float, first: bool) -> None:
    share = Share(MAX_ROWS, 28) if first else share_after(40, 5_000)
    share.update(1, at(wrong))
    for step in range(1, 401):
        share.update(500, at(40 + step / 10))
    assert share.share == pytest.approx(MAX_ROWS / (5_000 * 28), rel=0.05)
    assert share.span == 28


@pytest.mark.parametrize("behind", [20, 35])
def test_a_producer_that_was_ahead_may_go(behind: int) -> None:
    share = share_after(40, 5_000)
    for step in range(1, 151):
        share.update(500, at(40 - behind + step / 10))
    assert share.span == pytest.approx(min(28, 40 - behind + 15))
    assert share.share == pytest.approx(MAX_ROWS / (5_000 * share.span), rel=0.05)


def test_producers_of_different_event_time_are_counted_by_the_one_ahead() -> None:
    """A generator that was added later is always behind: its rows come too, and no clock is set back."""
    share = share_after(40, 5_000)
    for step in range(1, 401):
        share.update(500, at(40 + step / 10))
        share.update(500, at(step / 10))
    assert share.share == pytest.approx(MAX_ROWS / (10_000 * 28), rel=0.05)
