"""Decisions without a label outlive their result files, in little room, until their label comes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from faulting import Crash, FaultingFiles
from labelling import Bench, Said
from segments import raw_batch

from services.api.decisions import Decisions
from services.inference.retention import Limits, Retention
from spearhead import archive as module
from spearhead.archive import ARCHIVED, Archive
from spearhead.backlog import RawHeads
from spearhead.files import Files
from spearhead.schema import MERCHANT, RESULTS
from spearhead.segment import SegmentInfo, SegmentName, read_segment, write_segment
from spearhead.volume import Volume

DAY = 86_400.0
NOW = 1_700_000_000.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return endless(Bench(Volume(tmp_path, Files(fsync=False))))


def endless(bench: Bench) -> Bench:
    """With a producer that is not finite: else retention keeps everything."""
    name = SegmentName(1, "h00", 0, 1)
    info = SegmentInfo(name=str(name), rows=0, rows_before=0)
    write_segment(bench.volume.files, bench.volume.raw_ready(0) / name.file, raw_batch(0, 0), info)
    return bench


def score(bench: Bench, segments: int = 1, rows: int = 20) -> None:
    for _ in range(segments):
        bench.scorer.score(rows)
    bench.scorer.fold()


def prune(bench: Bench, files: Files | None = None) -> int:
    """Remove all results, as when time has passed."""
    volume = Volume(bench.volume.root, files or Files(fsync=False))
    retention = Retention(volume, RawHeads(volume), Limits(1), Limits(0, 60 * DAY))
    try:
        return retention.prune(1).files
    finally:
        retention.close()


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def named(*numbers: int) -> list[str]:
    return [f"{number:032x}" for number in numbers]


def find(bench: Bench, *numbers: int) -> list[dict[str, object]]:
    table = Decisions(bench.volume).find(1, named(*numbers), 0, lambda: False)
    return sorted(table.to_pylist(), key=lambda row: str(row["trans_num"]))


def archived(bench: Bench) -> list[Path]:
    return sorted(bench.volume.archive.iterdir())


def results(bench: Bench) -> list[Path]:
    return sorted((bench.volume.results / "ready").rglob("*.arrow"))


def test_the_archive_says_what_the_result_file_said(bench: Bench) -> None:
    score(bench, 3)
    before = find(bench, *range(0, 60, 7), 99)
    assert len(before) == 9
    assert prune(bench) == 3
    assert results(bench) == []
    assert find(bench, *range(0, 60, 7), 99) == before
    (path,) = archived(bench)
    batch, _ = read_segment(path)
    assert batch.num_rows == 60
    assert (np.diff(np.asarray(batch.column("trans")).astype(object)) > 0).all()
    assert path.stat().st_size < 60 * 100 + 4_000, "some 50 bytes a decision, and the schema once"


def test_a_label_weeks_later_finds_its_decision_and_counts_once(bench: Bench) -> None:
    score(bench)
    prune(bench)
    bench.drop([Said(3, 1, 10), Said(4, 0, 11), Said(3, 0, 12)])
    ledger = bench.settle()
    assert (ledger.feedback.applied, ledger.feedback.corrected, ledger.feedback.unmatched) == (2, 1, 0)
    assert ledger.unlabelled == 18
    merchants = {row["trans_num"]: row["merchant"] for row in bench.published()}
    assert merchants == {named(3)[0]: "a", named(4)[0]: "b"}


def test_rows_that_carry_their_label_are_not_archived(tmp_path: Path) -> None:
    bench = endless(Bench(Volume(tmp_path, Files(fsync=False)), labelled=True))
    score(bench)
    assert prune(bench) == 1
    assert archived(bench) == []


def test_pruning_killed_before_any_change_loses_no_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.retention.CHUNK_BYTES", 1)
    monkeypatch.setattr(module, "MAX_SMALL", 1)
    crash_at, died = 0, True
    while died:
        crash_at += 1
        bench = endless(Bench(Volume(made(tmp_path / f"{crash_at}"), Files(fsync=False))))
        score(bench, 3)
        want = find(bench, *range(60))
        died = False
        try:
            prune(bench, FaultingFiles(crash_at=crash_at))
        except Crash:
            died = True
        assert find(bench, *range(60)) == want
        prune(bench)
        assert find(bench, *range(60)) == want
        visible = [path for path in archived(bench) if not path.name.startswith(".")]
        assert sum(read_segment(path)[0].num_rows for path in visible) == 60, "once each"
    assert crash_at > 10


def test_small_files_are_merged_and_two_workers_at_once_lose_nothing(bench: Bench) -> None:
    one, other = Archive(bench.volume), Archive(bench.volume)
    for _ in range(module.MAX_SMALL):
        score(bench)
        one.put(1, results(bench)[-1:], NOW)
    other.put(1, results(bench)[:1], NOW)  # again, by one that was slow
    one.tidy(1, NOW, 0, 0)
    other.tidy(1, NOW, 0, 0)
    (path,) = archived(bench)
    assert read_segment(path)[0].num_rows == 20 * module.MAX_SMALL
    assert one.find(1, named(0, 319, 400)).num_rows == 2


def test_of_a_day_that_is_over_one_file_at_most_is_not_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL_ROWS", 50)
    archive = Archive(bench.volume)
    for _ in range(5):
        score(bench)
        archive.put(1, results(bench)[-1:], NOW)
    archive.tidy(1, NOW, 0, 0)
    assert len(archived(bench)) == 5, "today's may still grow"
    for _ in range(4):
        archive.tidy(1, NOW + DAY, 0, 0)
    assert sorted(read_segment(path)[0].num_rows for path in archived(bench)) == [40, 60]
    assert archive.find(1, named(*range(100))).num_rows == 100


def test_a_merged_file_may_hold_more_merchants_than_a_segment_has_codes_for(bench: Bench) -> None:
    archive = Archive(bench.volume)
    for first in (0, 40_000):
        score(bench, rows=40_000)
        path = results(bench)[-1]
        batch, info = read_segment(path)
        names = pa.array([f"merchant {first + row}" for row in range(40_000)])
        columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {
            "merchant": names.dictionary_encode().cast(MERCHANT)
        }
        varied = pa.RecordBatch.from_arrays([columns[field.name] for field in RESULTS], schema=RESULTS)
        path.unlink()
        write_segment(bench.volume.files, path, varied, info)
        archive.put(1, [path], NOW)
        path.unlink()
    archive.tidy(1, NOW + DAY, 0, 0)
    (merged,) = archived(bench)
    assert read_segment(merged)[0].num_rows == 80_000
    found = {row["trans_num"]: row["merchant"] for row in find(bench, 5, 79_999)}
    assert found == {named(5)[0]: "merchant 5", named(79_999)[0]: "merchant 79999"}


def test_the_oldest_days_go_first_by_age_and_by_bytes(bench: Bench) -> None:
    archive = Archive(bench.volume)
    for day in range(5):
        score(bench)
        archive.put(1, results(bench)[-1:], NOW + day * DAY)
    archive.tidy(1, NOW + 4 * DAY, 3 * DAY, 0)
    assert archive.find(1, named(0, 25, 95)).num_rows == 2
    size = archived(bench)[-1].stat().st_size
    archive.tidy(1, NOW + 4 * DAY, 0, 2 * size + 100)
    assert archive.find(1, named(25, 45, 65, 85)).num_rows == 2
    bench.volume.raise_epoch()
    archive.tidy(2, NOW + 4 * DAY, 0, 0)
    assert archived(bench) == []


def test_a_damaged_file_is_set_aside_and_the_others_still_answer(bench: Bench) -> None:
    archive = Archive(bench.volume)
    for _ in range(2):
        score(bench)
        archive.put(1, results(bench)[-1:], NOW)
    damaged = archived(bench)[0]
    os.truncate(damaged, 100)
    assert archive.find(1, named(1, 21)).num_rows == 1
    aside = sorted(path.name for path in (bench.volume.results / "dead").iterdir())
    assert aside == [f"{damaged.stem}.reason.json"]
    assert not damaged.exists()
    assert archive.find(1, named(1, 21)).num_rows == 1
    assert archive.find(1, []).schema.equals(ARCHIVED)


def test_decisions_that_are_archived_while_results_are_read_are_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(bench)
    seen = Decisions._places
    monkeypatch.setattr(Decisions, "_places", lambda *args: (prune(bench), seen(*args))[1])
    assert [row["trans_num"] for row in find(bench, 5)] == named(5)
