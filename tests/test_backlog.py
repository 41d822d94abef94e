"""Waiting rows of each topic, against a plain count, while segments come, go, are claimed and damaged."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spearhead.backlog
from spearhead.aggregate import Aggregate
from spearhead.backlog import Backlog, Backlogs, RawHeads, runs
from spearhead.files import Files
from spearhead.hop import Hop
from spearhead.ledger import Ledger
from spearhead.partition import Commit
from spearhead.segment import SegmentInfo, SegmentName, write_segment
from spearhead.volume import Volume

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path, Files(fsync=False))
    volume.prepare(partitions=2)
    return volume


def add(volume: Volume, folder: Path, name: SegmentName, rows: int, rows_before: int, **info: int | bool) -> Path:
    batch = pa.RecordBatch.from_arrays([pa.array(range(rows), pa.int64())], schema=SCHEMA)
    path = folder / name.file
    write_segment(
        volume.files,
        path,
        batch,
        SegmentInfo(name=str(name), rows=rows, rows_before=rows_before, **info),  # type: ignore[arg-type]
    )
    return path


def commit(volume: Volume, partition: int, step: int, consumed: int, epoch: int = 1) -> None:
    content = Commit(epoch=epoch, partition=partition, step=step, attempt="w.0", consumed=consumed)
    path = volume.commits(partition) / f"{epoch:06d}-{step:012d}.json"
    path.write_bytes(msgspec.json.encode(content))


def test_empty_volume(volume: Volume) -> None:
    assert Backlog(volume).rows() == Backlogs()


def test_raw_is_published_less_consumed(volume: Volume) -> None:
    backlog = Backlog(volume)
    for partition, producer, rows in ((0, "g00", 10), (1, "g00", 20), (0, "h00", 5)):
        for seq in (1, 2):
            name = SegmentName(1, producer, partition, seq)
            add(volume, volume.raw_ready(partition), name, rows, rows * (seq - 1))
    assert backlog.raw_transactions() == 70
    commit(volume, 0, 1, 10)
    commit(volume, 0, 2, 15)
    commit(volume, 1, 1, 40)
    assert backlog.raw_transactions() == 15
    for partition in (0, 1):  # what is consumed goes, but for the newest
        (volume.raw_ready(partition) / SegmentName(1, "g00", partition, 1).file).unlink()
    assert backlog.raw_transactions() == 15
    volume.raise_epoch()
    assert backlog.raw_transactions() == 0


def test_features_wait_until_they_are_committed(volume: Volume) -> None:
    backlog = Backlog(volume)
    for seq in range(1, 6):
        add(volume, volume.features / "ready", SegmentName(1, "g00", 0, seq), 10 * seq, sum(range(seq)) * 10)
    assert backlog.features_ready() == 150
    hop = Hop(volume, "w", _Nobody())
    claims = hop.claim(30)
    assert [claim.info.rows for claim in claims] == [10, 20]
    assert backlog.features_ready() == 150
    hop.commit(claims)
    assert backlog.features_ready() == 120
    (volume.features / "ready" / SegmentName(1, "g00", 0, 4).file).write_bytes(b"damaged")
    assert Backlog(volume).features_ready() == 120  # the neighbours tell
    (volume.features / "ready" / SegmentName(1, "g00", 0, 5).file).unlink()
    assert Backlog(volume).features_ready() == 30


def test_results_wait_for_the_ledger(volume: Volume) -> None:
    backlog = Backlog(volume)
    for seq in (1, 2):
        path = volume.pending / f"{SegmentName(1, 'g00', 0, seq)}.json"
        path.write_bytes(msgspec.json.encode(Aggregate(count=seq)))
    assert backlog.inference_results() == 3
    Ledger(volume, 0).fold()
    assert backlog.inference_results() == 0
    path.write_bytes(msgspec.json.encode(Aggregate(count=2)))  # counted, but its folder died before it removed it
    assert backlog.inference_results() == 0


def test_training_queue(volume: Volume) -> None:
    add(volume, volume.training / "ready", SegmentName(1, "g00", 0, 1), 7, 0)
    add(volume, volume.training / "ready", SegmentName(1, "g00", 0, 3), 5, 9)
    assert Backlog(volume).training_queue() == 12


def test_a_footer_is_read_once(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    for seq in range(1, 50):
        add(volume, volume.features / "ready", SegmentName(1, "g00", 0, seq), 2, 2 * (seq - 1))
        add(volume, volume.raw_ready(0), SegmentName(1, "g00", 0, seq), 3, 3 * (seq - 1))
    reads: list[str] = []
    read_info = spearhead.backlog.read_info

    def noted(path: Path) -> SegmentInfo:
        reads.append(path.name)
        return read_info(path)

    monkeypatch.setattr(spearhead.backlog, "read_info", noted)
    backlog = Backlog(volume)
    for _ in range(10):
        assert backlog.rows() == Backlogs(raw_transactions=147, features_ready=98)
    assert len(reads) == 3


def test_heads_are_what_all_partitions_have_reached(volume: Volume) -> None:
    for partition, watermark, ended in ((0, 50, True), (1, 40, False)):
        name = SegmentName(1, "g00", partition, 9)
        add(volume, volume.raw_ready(partition), name, 1, 8, watermark=watermark, ended=ended, finite=True)
    head = RawHeads(volume).producers(1)["g00"]
    assert (head.rows, head.watermark, head.ended, head.finite) == (18, 40, False, True)


def test_a_damaged_head_falls_back_to_the_one_before(volume: Volume) -> None:
    for seq in (1, 2):
        path = add(volume, volume.raw_ready(0), SegmentName(1, "g00", 0, seq), 1, seq - 1, watermark=seq)
    path.write_bytes(b"damaged")
    assert RawHeads(volume).producers(1)["g00"].watermark == 1


@given(
    st.sets(st.builds(SegmentName, st.just(1), st.sampled_from(["g00", "h00"]), st.integers(0, 1), st.integers(1, 9)))
)
def test_runs_are_the_names_without_gaps(names: set[SegmentName]) -> None:
    found = runs(names)
    assert sorted(name for run in found for name in run) == sorted(names)
    for run in found:
        assert [name.seq for name in run] == list(range(run[0].seq, run[0].seq + len(run)))
        assert len({name._replace(seq=0) for name in run}) == 1
        assert run[-1]._replace(seq=run[-1].seq + 1) not in names


class _Nobody:
    def alive(self) -> set[str]:
        return set()
