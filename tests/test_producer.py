"""Exactly once out of a producer, whatever is killed, frozen or full."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from faulting import Crash, FaultingFiles, Turns
from hypothesis import given, settings
from hypothesis import strategies as st
from segments import Chain, Downstream, drain, publish, raw_batch, raw_name, volume_at

from spearhead.files import Files
from spearhead.narrow import read_raw
from spearhead.partition import PartitionLog
from spearhead.producer import Producer, SupersededError, split
from spearhead.rejects import Reject
from spearhead.segment import SegmentError, read_info
from spearhead.volume import Volume

CARD_NUMBER = "4532015112830366"
SIZES = (5, 3, 8, 4)


def emit(producer: Producer, total: int, size: int) -> None:
    """What a stage does: resume, then publish until the source has ended; every 3rd row is set aside at the edge."""
    position = producer.resume()
    while not position.ended:
        row = int(position.cursor or 0)
        end = min(row + (size if position.redo_rows is None else position.redo_rows), total)
        bad = [n for n in range(row, end) if n % 3 == 2]
        good = raw_batch(row, end - row).take([n - row for n in range(row, end) if n % 3 != 2])
        rejected = [Reject(n, "third", f"{n},{CARD_NUMBER}") for n in bad]
        position = producer.publish(good, rejected=rejected, cursor=str(end), watermark=end, ended=end == total)


def published_rows(volume: Volume, partitions: int) -> list[str]:
    rows = []
    for partition in range(partitions):
        before = 0
        for path in sorted(volume.raw_ready(partition).glob("*.arrow")):
            batch, info = read_raw(path)
            assert info.rows_before == before
            before += info.rows
            rows += batch.column("trans_num").to_pylist()
    return sorted(rows)


def expected_rows(total: int) -> list[str]:
    return [f"{n:032x}" for n in range(total) if n % 3 != 2]


def rejected_lines(volume: Volume) -> list[int]:
    files = sorted((volume.raw / "dead").glob("*.rows.jsonl"))
    return [json.loads(line)["line"] for path in files for line in path.read_text().splitlines()]


def test_resumes_where_its_segments_end(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, SIZES)
    position = Producer(volume, "g00", 1, "second").resume()
    assert (position.seq, position.cursor, position.rows, position.watermark) == (4, "20", 20, 20)
    assert not position.ended
    publish(volume, [2], finite=True)
    position = Producer(volume, "g00", 1, "third").resume()
    assert (position.seq, position.rows, position.ended) == (5, 22, True)
    assert Producer(volume, "g01", 1, "other").resume().seq == 0


@pytest.mark.parametrize(("partitions", "mode"), [(1, "before"), (1, "torn"), (3, "before")])
def test_a_kill_at_any_call_loses_and_doubles_nothing(tmp_path: Path, partitions: int, mode: str) -> None:
    total, size = 20, 7
    for crash_at in range(1, 1000):
        root = tmp_path / "v"
        files = FaultingFiles(crash_at, mode)  # type: ignore[arg-type]
        volume = volume_at(root, partitions=partitions)
        try:
            emit(Producer(Volume(root, files), "g00", partitions, "first"), total, size)
            killed = False
        except Crash:
            killed = True
        emit(Producer(volume, "g00", partitions, "second"), total, size + 2)
        assert published_rows(volume, partitions) == expected_rows(total)
        assert rejected_lines(volume) == [n for n in range(total) if n % 3 == 2]
        position = Producer(volume, "g00", partitions, "third").resume()
        assert (position.rows, position.rejected, position.ended) == (14, 6, True)
        assert not list((volume.raw / "staged").rglob("*.arrow"))
        shutil.rmtree(root)
        if not killed:
            break
    assert crash_at > 20


def test_lost_replies_of_links_change_nothing(tmp_path: Path) -> None:
    for call in range(1, 60):
        root = tmp_path / "v"
        volume = volume_at(root)
        files = FaultingFiles(call, "reply lost")
        producer = Producer(Volume(root, files), "g00", 1, "first")
        try:
            emit(producer, 20, 7)
        except FileNotFoundError:  # of a reject file's rename: the stage resumes
            emit(producer, 20, 7)
        assert published_rows(volume, 1) == expected_rows(20)
        shutil.rmtree(root)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.integers(0, 2), max_size=150),
    kills=st.dictionaries(st.integers(0, 149), st.integers(0, 1), max_size=1),
)
def test_two_producers_of_one_slot_beside_a_consumer(turns: list[int], kills: dict[int, int]) -> None:
    """A zombie and its successor publish by turns, while prep consumes and removes what they published."""
    total = 24
    with TemporaryDirectory() as folder:
        volume = volume_at(Path(folder))
        downstream = Downstream(volume)

        def produce(files: Files) -> None:
            producer = Producer(Volume(volume.root, files), "g00", 1, f"w{id(files)}")
            while True:
                try:
                    return emit(producer, total, 5)
                except SupersededError:
                    continue

        def consume(files: Files) -> None:
            log = PartitionLog(Volume(volume.root, files), 0, "prep", Chain())
            log.open(1)
            drain(log, checkpoint_each=1)

        players = Turns()
        for work in (produce, produce, consume):
            players.add(work)
        for index, turn in enumerate(turns):
            if index in kills:
                players.kill(kills[index])
            players.go(turn)
            downstream.take()
        players.close()
        emit(Producer(volume, "g00", 1, "last"), total, 5)
        log = PartitionLog(volume, 0, "prep2", Chain())
        log.open(1)
        drain(log, checkpoint_each=1)
        downstream.take()
        assert downstream.rows() == expected_rows(total)
        assert log.commit.consumed == len(expected_rows(total))


@settings(max_examples=100, deadline=None)
@given(
    turns=st.lists(st.integers(0, 3), max_size=250),
    kills=st.dictionaries(st.integers(0, 249), st.integers(0, 1), max_size=2),
)
def test_a_flush_of_a_source_that_repeats_nothing_is_in_all_partitions_or_in_none(
    turns: list[int], kills: dict[int, int]
) -> None:
    """As requests over HTTP are: two owners of one slot, killed or frozen anywhere, beside prep of two partitions."""
    with TemporaryDirectory() as folder:
        volume = volume_at(Path(folder), partitions=2)
        downstream = Downstream(volume)
        returned: list[int] = []

        def produce(files: Files, first: int) -> None:
            producer = Producer(Volume(volume.root, files), "h00", 2, f"w{first}")
            producer.resume()
            for start in range(first, first + 40, 10):
                while True:
                    try:
                        producer.publish(raw_batch(start, 7), cursor=str(start))
                        break
                    except (SupersededError, FileNotFoundError):  # the other one has cleared what was being staged
                        producer.resume()
                returned.append(start)

        def consume(files: Files, partition: int) -> None:
            log = PartitionLog(Volume(volume.root, files), partition, f"prep{partition}", Chain())
            log.open(1)
            drain(log, checkpoint_each=1)

        players = Turns()
        for work, argument in ((produce, 100), (produce, 200), (consume, 0), (consume, 1)):
            players.add(lambda files, work=work, argument=argument: work(files, argument))  # type: ignore[misc]
        for index, turn in enumerate(turns):
            if index in kills:
                players.kill(kills[index])
            players.go(turn)
            downstream.take()
        players.close()
        assert Producer(volume, "h00", 2, "last").resume().redo_rows is None
        for partition in (0, 1):
            log = PartitionLog(volume, partition, f"last{partition}", Chain())
            log.open(1)
            drain(log, checkpoint_each=1)
        downstream.take()
        rows = sorted(int(number, 16) for number in downstream.rows())
        starts = sorted({row // 10 * 10 for row in rows})
        assert rows == [row for start in starts for row in range(start, start + 7)]
        assert set(returned) <= set(starts)


def test_a_zombie_finds_that_it_was_superseded(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    zombie = Producer(volume, "g00", 1, "zombie")
    zombie.resume()
    publish(volume, SIZES)
    with pytest.raises(SupersededError):  # its number is taken
        zombie.publish(raw_batch(0, 5))
    zombie = Producer(volume, "g00", 1, "zombie")
    zombie.resume()
    publish(volume, SIZES)
    (volume.raw_ready(0) / raw_name(5).file).unlink()  # consumed meanwhile
    with pytest.raises(SupersededError):  # its number is free, and higher ones are there
        zombie.publish(raw_batch(0, 5))
    with pytest.raises(RuntimeError, match="resume"):
        zombie.publish(raw_batch(0, 5))


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """Whatever call finds the disk full, the same publish works once there is space."""

    class FullFiles(FaultingFiles):
        def step(self, call: str, path: Path) -> None:
            super().step(call, path)
            if self.calls == self.full_at:
                raise OSError(errno.ENOSPC, "No space left on device")

    for full_at in range(1, 40):
        root = tmp_path / "v"
        files = FullFiles()
        files.full_at = 0
        producer = Producer(Volume(volume_at(root, partitions=2).root, files), "g00", 2, "first")
        producer.resume()
        files.full_at = files.calls + full_at
        for row in (0, 9):
            chunk = {"rejected": [Reject(row, "bad", "x")], "cursor": str(row + 9), "watermark": row}
            try:
                producer.publish(raw_batch(row, 9), **chunk)
            except OSError:
                producer.publish(raw_batch(row, 9), **chunk)
        volume = Volume(root)
        assert published_rows(volume, 2) == [f"{n:032x}" for n in range(18)]
        assert Producer(volume, "g00", 2, "next").resume()[:4] == (2, "18", 18, 2)
        shutil.rmtree(root)


def test_rejects_are_masked(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    producer = Producer(volume, "g00", 1, "w")
    producer.resume()
    producer.publish(raw_batch(0, 1), rejected=[Reject(7, f"bad amount {CARD_NUMBER}", f"x,{CARD_NUMBER},1.5")])
    (path,) = (volume.raw / "dead").iterdir()
    assert path.name == f"{raw_name(1)}.rows.jsonl"
    assert json.loads(path.read_text()) == {"line": 7, "reason": "bad amount " + "*" * 16, "row": f"x,{'*' * 16},1.5"}


def test_rows_of_a_damaged_newest_segment_are_made_again(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, SIZES)
    (volume.raw_ready(0) / raw_name(4).file).write_bytes(b"ARROW1\0\0damaged")
    position = Producer(volume, "g00", 1, "next").resume()
    assert (position.seq, position.cursor, position.rows) == (4, "16", 16)
    publish(volume, [4])
    assert read_info(volume.raw_ready(0) / raw_name(5).file).rows_before == 16


def test_a_redo_must_bring_the_same_rows(tmp_path: Path) -> None:
    volume = volume_at(tmp_path, partitions=2)
    publish(volume, SIZES, partitions=2)
    (volume.raw_ready(1) / raw_name(4, partition=1).file).unlink()
    producer = Producer(volume, "g00", 2, "next")
    position = producer.resume()
    assert (position.seq, position.cursor, position.rows, position.redo_rows) == (3, "16", 16, 4)
    with pytest.raises(ValueError, match="had 4 rows, its redo has 3"):
        producer.publish(raw_batch(16, 3), cursor="19")
    producer.publish(raw_batch(16, 4), cursor="20")
    assert published_rows(volume, 2) == [f"{n:032x}" for n in range(20)]


def test_changed_partition_count_is_refused(tmp_path: Path) -> None:
    volume = volume_at(tmp_path, partitions=2)
    publish(volume, SIZES)
    with pytest.raises(SegmentError, match="partition count"):
        Producer(volume, "g00", 2, "next").resume()


def test_a_new_epoch_starts_afresh(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, SIZES)
    volume.raise_epoch()
    assert Producer(volume, "g00", 1, "next").resume().seq == 0


def test_split_keeps_the_order_of_each_card() -> None:
    batch = raw_batch(0, 100)
    parts = split(batch, 3)
    assert sum(part.num_rows for part in parts) == 100
    for partition, part in enumerate(parts):
        assert set(np.asarray(part.column("card")) % 3) <= {partition}
        assert part.column("trans_num").to_pylist() == sorted(part.column("trans_num").to_pylist())
    assert split(batch, 1)[0] is batch
