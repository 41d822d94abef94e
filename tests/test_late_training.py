"""Rows that come without a label wait in the training sample for the one that comes late, and are used with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from faulting import Crash, FaultingFiles
from labelling import Bench, Said
from segments import START_US, raw_batch
from test_train import train_once

from services.train.fit import Rows
from services.train.late import Said as Told
from services.train.sample import Sample, _File, _no_rows
from services.train.stage import Train
from spearhead import label_files
from spearhead.backlog import Head, RawHeads
from spearhead.features import WIDTH
from spearhead.files import Files
from spearhead.segment import SegmentInfo, SegmentName
from spearhead.settings import Settings
from spearhead.spool import Spool
from spearhead.volume import Volume

ROWS = 4_000
LATER = START_US / 1e6 + 86_400 * 400  # a clock that all labels of these tests have reached


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(Volume(tmp_path, Files(fsync=False)))
    bench.sampling = True
    return bench


def frauds(rows: int, seed: int = 5) -> tuple[np.ndarray, list[int]]:
    """Which of ``rows`` rows are fraud, and amounts that tell."""
    rng = np.random.default_rng(seed)
    fraud = rng.random(rows) < 0.05
    return fraud, rng.lognormal(np.where(fraud, 9.5, 7.5), 0.7).astype(np.int64).clip(1, 10**8).tolist()


def publish(bench: Bench, rows: int, cents: list[int] | None = None, label: int = -1) -> None:
    """One segment of rows, each with ``label``, scored, and in the sample."""
    raw = raw_batch(bench.scorer.rows, rows, cents=cents)
    place = raw.schema.get_field_index("label")
    raw = raw.set_column(place, raw.schema.field(place), pa.array(np.full(rows, label, np.int8)))
    bench.scorer.take(raw, scored_at=START_US)
    bench.prep()


def say(bench: Bench, labels: list[Said]) -> None:
    bench.drop(labels)
    bench.look()
    bench.prep()


def heads(bench: Bench) -> dict[str, Head]:
    return RawHeads(bench.volume).producers(1)


def taken(bench: Bench, sample: Sample | None = None, now: float = LATER, delay_us: int = 0) -> Rows:
    sample = sample or Sample(bench.volume, 1, WIDTH, lambda: now)
    sample.refresh(heads(bench), delay_us)
    return sample.take(heads(bench), delay_us)


def numbers(rows: Rows) -> list[int]:
    """Which rows these are: each has a minute of its own."""
    found: list[int] = ((rows.event_time - START_US) // 60_000_000).tolist()
    return found


def test_a_model_comes_of_late_labels_alone_and_rows_without_one_are_not_in_it(bench: Bench) -> None:
    fraud, cents = frauds(ROWS)
    for first in range(0, ROWS, 1_000):
        publish(bench, 1_000, cents[first : first + 1_000])
    known = np.flatnonzero(np.random.default_rng(6).random(ROWS) < 0.7)
    stage = trainer(bench)
    assert train_once(stage) == 0
    assert (stage.figures["matured_rows"], stage.figures["sample_unlabelled"]) == (0, ROWS)
    say(bench, [Said(number, int(fraud[number]), 1) for number in known.tolist()])
    assert train_once(stage) == len(known)
    figures = stage.figures
    assert figures["cannot_train"] is None
    assert figures["promoted"] == 1
    assert figures["average_precision"] > 0.5 > 8 * fraud.mean()
    assert (figures["sample_unlabelled"], figures["late_labels"]) == (ROWS - len(known), len(known))
    rows = taken(bench)
    assert numbers(rows) == known.tolist()
    assert rows.label.tolist() == fraud[known].astype(int).tolist()


def trainer(bench: Bench) -> Train:
    shutil.rmtree(bench.volume.models / "v000001")  # it only says what its training had seen
    settings = Settings(
        _env_file=None, flashblade_path=bench.volume.root, train_first_rows=2_000, train_interval_seconds=1e-6,
        fsync=False,
    )  # type: ignore[call-arg]  # fmt: skip
    stage = Train(settings, bench.volume, "trainer001")
    stage.start()
    return stage


def test_the_last_label_counts_once_whoever_starts_and_however_files_are_merged(bench: Bench) -> None:
    sample = Sample(bench.volume, 1, WIDTH, lambda: LATER)
    publish(bench, 30)
    for at, label in enumerate([Said(3, 1, 10), Said(4, 0, 11), Said(3, 0, 20), Said(4, 1, 5), Said(5, 1, 30)]):
        say(bench, [label])
        if at == 2:
            publish(bench, 30)
        taken(bench, sample)
    say(bench, [Said(40, 1, 31), Said(5, 1, 40), Said(3, 1, 50)])
    want = {3: 1, 4: 0, 5: 1, 40: 1}
    for merge in (False, True, False):
        if merge:
            label_files.tidy(bench.volume, "prep-1", max_files=1)
            Spool(bench.volume, "prep-1", max_rows=10_000, max_files=1).tidy()
            assert len(bench.volume.files.list(bench.volume.labels)) == 1
            assert len(bench.volume.files.list(bench.volume.training / "ready")) == 1
        for each in (sample, None):
            rows = taken(bench, each)
            assert dict(zip(numbers(rows), rows.label.tolist(), strict=True)) == want
        assert sample.matured(heads(bench), 0) == 4
        found = label_files.latest(bench.volume, 1, [f"{number:032x}" for number in (3, 4, 6)])
        assert {key: fraud for key, (fraud, _) in found.items()} == {f"{3:032x}": True, f"{4:032x}": False}


def test_labels_said_after_a_merge_count_too(bench: Bench) -> None:
    sample = Sample(bench.volume, 1, WIDTH, lambda: LATER)
    publish(bench, 10)
    for number in range(3):
        say(bench, [Said(number, 1, number)])
    taken(bench, sample)
    label_files.tidy(bench.volume, "prep-1", max_files=2)
    say(bench, [Said(0, 0, 9), Said(7, 1, 9)])
    for each in (sample, None):
        rows = taken(bench, each)
        assert dict(zip(numbers(rows), rows.label.tolist(), strict=True)) == {0: 0, 1: 1, 2: 1, 7: 1}


def test_a_label_may_be_there_before_its_row(bench: Bench) -> None:
    publish(bench, 10)
    ready = bench.volume.training / "ready"
    (file,) = bench.volume.files.list(ready)
    (ready / file).rename(bench.volume.root / file)
    say(bench, [Said(2, 1, 1)])
    sample = Sample(bench.volume, 1, WIDTH, lambda: LATER)
    assert numbers(taken(bench, sample)) == []
    (bench.volume.root / file).rename(ready / file)
    assert (numbers(taken(bench, sample)), taken(bench, sample).label.tolist()) == ([2], [1])


def test_a_label_changes_nothing_before_its_own_time(bench: Bench) -> None:
    publish(bench, 10)
    say(bench, [Said(1, 0, 1), Said(2, 1, 1)])
    said = 1_704_067_200  # 2024-01-01, the day of all labels here
    now = [said + 2.0]
    sample = Sample(bench.volume, 1, WIDTH, lambda: now[0])
    before = taken(bench, sample)
    count = sample.count(heads(bench), 0)
    say(bench, [Said(1, 1, 3_600), Said(3, 1, 3_600)])
    after = taken(bench, sample)
    assert [column.tolist() for column in after] == [column.tolist() for column in before]
    assert sample.count(heads(bench), 0) == count
    now[0] = said + 3_600.0
    rows = taken(bench, sample)
    assert dict(zip(numbers(rows), rows.label.tolist(), strict=True)) == {1: 1, 2: 1, 3: 1}
    assert sample.matured(heads(bench), 0) == 3


def test_a_rows_own_label_is_overruled_only_once_it_counts_itself(bench: Bench) -> None:
    publish(bench, 10, label=0)
    say(bench, [Said(1, 1, 1), Said(8, 1, 1)])
    sample = Sample(bench.volume, 1, WIDTH, lambda: LATER)
    rows = taken(bench, sample, delay_us=5 * 60_000_000)  # the newest row is number 9
    assert (numbers(rows), rows.label.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 0, 0, 0])
    count = sample.count(heads(bench), 5 * 60_000_000)
    assert (count.matured, count.corrected, count.unlabelled) == (5, 1, 0)
    assert taken(bench, sample).label.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]


def test_rows_that_never_get_a_label_age_out_and_are_counted(bench: Bench) -> None:
    sample = Sample(bench.volume, 1, WIDTH, lambda: LATER)
    publish(bench, 10)
    say(bench, [Said(1, 0, 1)])
    taken(bench, sample)
    assert (sample.count(heads(bench), 0).unlabelled, sample.aged_out) == (9, 0)
    publish(bench, 5)
    Spool(bench.volume, "prep-1", max_rows=5).tidy()
    assert numbers(taken(bench, sample)) == []
    assert (sample.rows, sample.aged_out, sample.count(heads(bench), 0).unlabelled) == (5, 9, 5)
    assert sample.matured(heads(bench), 0) == 1, "what was used once stays counted"


@pytest.mark.parametrize(("rows", "labels"), [(50, 400), (400, 50), (5, 5), (0, 9), (9, 0)])
def test_rows_and_labels_find_each_other_whichever_are_more(rows: int, labels: int) -> None:
    random = np.random.default_rng(rows)
    trans = random.integers(0, 60, rows).astype(np.uint64)
    told = Told(np.sort(random.integers(0, 60, labels).astype(np.uint64)), np.arange(labels), np.zeros(labels, np.int8))
    info = SegmentInfo(name="", rows=rows, rows_before=0)
    file = _File(_no_rows(0), np.empty((0, 0), np.uint16), trans, [], [], info)
    file.match(told)
    found = [pair for places, said in file.late for pair in zip(places.tolist(), said.at.tolist(), strict=True)]
    want = {(row, at) for row in range(rows) for at in range(labels) if trans[row] == told.trans[at]}
    assert sorted(found) == sorted(want)
    for row in range(rows):
        own = [at for place, at in found if place == row]
        assert own == sorted(own), "in the order of the log"


def test_a_merge_killed_before_any_change_loses_no_label(tmp_path: Path) -> None:
    crash_at, died = 0, True
    while died:
        crash_at += 1
        folder = tmp_path / f"{crash_at}"
        folder.mkdir()
        bench = Bench(Volume(folder, Files(fsync=False)))
        bench.sampling = True
        publish(bench, 10)
        for number in range(3):
            say(bench, [Said(number, 1, number)])
        newest = label_files.listed(bench.volume, 1)[-1].seq
        sample = Sample(bench.volume, 1, WIDTH, lambda: LATER)
        died = False
        try:
            label_files.tidy(Volume(folder, FaultingFiles(crash_at=crash_at)), "prep-1", max_files=1)
        except Crash:
            died = True
        for each in (sample, None):
            assert numbers(taken(bench, each)) == [0, 1, 2]
        label_files.tidy(bench.volume, "prep-2", max_files=1)
        assert label_files.listed(bench.volume, 1) == [SegmentName(1, "m00", 0, newest)]
        assert len(bench.volume.files.list(bench.volume.labels)) == 1
        for each in (sample, None):
            assert numbers(taken(bench, each)) == [0, 1, 2]
    assert crash_at > 6
