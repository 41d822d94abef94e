"""The generator stage: exactly the rows it was asked for, at the rate it was told, however often it dies."""

from __future__ import annotations

import math
import os
import time
from collections import namedtuple
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.generator.pacing import CATCH_UP_SECONDS, Pacer
from services.generator.population import population
from services.generator.stage import Generator, check
from services.generator.traffic import Traffic
from spearhead.control import Control
from spearhead.errors import ConfigurationError
from spearhead.files import Files
from spearhead.heartbeat import Heartbeat, Roster, worker_name
from spearhead.narrow import read_raw
from spearhead.schema import INGESTED_MAX
from spearhead.segment import SegmentInfo, SegmentName
from spearhead.settings import Settings
from spearhead.volume import Volume
from tests.faulting import Crash, FaultingFiles

SMALL = {"cards": 200, "merchants": 40, "segment_rows": 500, "generation_rate": "max", "disk_low_bytes": 0}


def stage_on(volume: Volume, **changes: object) -> Generator:
    """A stage as a fresh process has it, its first heartbeat written."""
    stage = Generator(Settings(flashblade_path=volume.root, **{**SMALL, **changes}), volume, worker_name())  # type: ignore[arg-type]
    beat(volume, stage.worker)
    stage.start()
    return stage


def beat(volume: Volume, worker: str, updated_at: str = "1") -> None:
    roster = Roster(volume, 15.0)
    roster.beat(Heartbeat(stage="generator", worker=worker, epoch=1, state="running", updated_at=updated_at))
    roster.close()


def kill(volume: Volume, stage: Generator) -> None:
    """What is left to see of a killed worker once the supervisor has noticed: nothing."""
    Roster(volume, 15.0).leave("generator", stage.worker)


def published(volume: Volume, producer: str = "g00") -> tuple[pa.Table, list[SegmentInfo]]:
    """All rows of a producer in order, and what its segments say."""
    found = [SegmentName.parse(name) for name in volume.files.list(volume.raw_ready(0))]
    names = sorted(name for name in found if name and name.producer == producer)
    parts = [read_raw(volume.raw_ready(0) / name.file) for name in names]
    assert [name.seq for name in names] == list(range(1, len(names) + 1))
    table = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch, _ in parts])
    return table, [info for _, info in parts]


def expected(rows: int, fraud_rate: float = 0.005) -> pa.Table:
    batch = Traffic(population(200, 40, 1), 1, 0, fraud_rate).take(rows).batch
    return pa.Table.from_batches([batch])


def same_rows(one: pa.Table, other: pa.Table) -> bool:
    names = [name for name in one.schema.names if name != "ingested_at"]
    plain = [
        [table[n].cast(pa.string()) if pa.types.is_dictionary(table[n].type) else table[n] for n in names]
        for table in (one, other)
    ]
    return all(a.equals(b) for a, b in zip(*plain, strict=True))


def run_to_end(stage: Generator, most: int = 100) -> int:
    rows = 0
    for _ in range(most):
        done = stage.step()
        rows += done
        if not done:
            return rows
    raise AssertionError("the run did not end")


def test_a_finite_run_publishes_exactly_its_rows_and_says_that_it_ended(volume: Volume) -> None:
    stage = stage_on(volume, rows=1_700)
    assert run_to_end(stage) == 1_700
    table, infos = published(volume)
    assert same_rows(table, expected(1_700))
    assert [info.rows for info in infos] == [500, 500, 500, 200]
    assert [info.ended for info in infos] == [False, False, False, True]
    assert all(info.finite for info in infos)
    assert infos[-1].watermark == table["event_time"].cast("int64").to_pylist()[-1]
    assert stage.figures["published"] == 1_700
    assert stage.figures["event_time"] == str(np.datetime64(infos[-1].watermark, "us")) + "Z"


def test_a_run_of_no_rows_ends_too(volume: Volume) -> None:
    stage = stage_on(volume, rows=0)
    stage.step()
    stage.step()
    table, infos = published(volume)
    assert table.num_rows == 0
    assert [info.ended for info in infos] == [True]


def test_a_raised_limit_goes_on_where_the_run_ended(volume: Volume) -> None:
    first = stage_on(volume, rows=700)
    run_to_end(first)
    kill(volume, first)
    run_to_end(stage_on(volume, rows=1_200))
    assert same_rows(published(volume)[0], expected(1_200))


class Disturbed:
    """A volume whose files crash, and on which stages are started again until the run is complete."""

    def __init__(self, root: Path, partitions: int) -> None:
        self.root = root
        self.partitions = partitions
        Volume(root, Files(fsync=False)).prepare(partitions)

    def run(self, crash_at: int) -> bool:
        """One process that is killed at its call ``crash_at``; whether it got to the end."""
        files = FaultingFiles(crash_at)
        files.fsync = False
        volume = Volume(self.root, files)
        worker = None
        try:
            stage = stage_on(volume, rows=1_300, partitions=self.partitions)
            worker = stage.worker
            run_to_end(stage)
        except Crash:
            Volume(self.root, Files(fsync=False))
            for name in os.listdir(volume.workers):
                (volume.workers / name).unlink()
            return False
        assert worker
        return True

    def rows(self) -> list[str]:
        volume = Volume(self.root, Files(fsync=False))
        ids: list[str] = []
        for partition in range(self.partitions):
            for name in volume.files.list(volume.raw_ready(partition)):
                ids += read_raw(volume.raw_ready(partition) / name)[0]["trans_num"].to_pylist()
        return ids


@pytest.mark.parametrize("partitions", [1, 3])
def test_killed_at_any_call_it_yields_each_row_once(partitions: int, tmp_path: Path) -> None:
    wanted = sorted(expected(1_300)["trans_num"].to_pylist())
    for crash_at in range(1, 200):
        root = tmp_path / str(crash_at)
        root.mkdir()
        volume = Disturbed(root, partitions)
        if volume.run(crash_at):
            assert crash_at > 20  # every call of a run was a place to be killed at
            return
        assert volume.run(10_000)
        assert sorted(volume.rows()) == wanted
    raise AssertionError("no run was long enough")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=8), st.sampled_from([1, 2]))
def test_killed_again_and_again_it_yields_each_row_once(crashes: list[int], partitions: int) -> None:
    with TemporaryDirectory() as folder:
        volume = Disturbed(Path(folder), partitions)
        for crash_at in crashes:
            volume.run(crash_at)
        assert volume.run(10_000)
        assert sorted(volume.rows()) == sorted(expected(1_300)["trans_num"].to_pylist())


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    class FullFiles(Files):
        full = False

        def step(self, call: str, path: Path) -> None:
            if self.full and call in ("open", "write"):
                raise OSError(28, "No space left on device", str(path))

    files = FullFiles(fsync=False)
    volume = Volume(tmp_path, files)
    volume.prepare()
    stage = stage_on(volume, rows=1_200)
    stage.step()
    for full in (True, True, False):
        files.full = full
        if full:
            with pytest.raises(OSError, match="No space"):
                stage.step()
    run_to_end(stage)
    assert same_rows(published(volume)[0], expected(1_200))


def test_a_reset_starts_the_source_again(volume: Volume) -> None:
    stage = stage_on(volume)
    stage.step()
    stage.step()
    stage.reset(volume.raise_epoch())
    stage.step()
    names = [SegmentName.parse(name) for name in volume.files.list(volume.raw_ready(0))]
    newest = max(name for name in names if name)
    assert newest == SegmentName(2, "g00", 0, 1)
    batch, info = read_raw(volume.raw_ready(0) / newest.file)
    assert info.rows_before == 0
    assert same_rows(pa.Table.from_batches([batch.replace_schema_metadata(None)]), expected(500))


def test_rows_say_when_they_came(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = stage_on(volume, generation_rate="1000", flush_seconds=0.1)
    stage.step()
    clock.now += 0.25
    before = clock.wall()
    assert stage.step() == 250
    came = published(volume)[0]["ingested_at"].cast("int64").to_numpy()
    assert came[-1] == before
    assert came[0] == pytest.approx(before - 249_000, abs=1_000)
    assert (np.diff(came) >= 0).all()


def test_many_rows_share_the_times_at_which_they_came(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = stage_on(volume, generation_rate="4000", flush_seconds=0.1, segment_rows=1_000)
    stage.step()
    clock.now += 0.25
    before = clock.wall()
    assert stage.step() == 1000
    came = published(volume)[0]["ingested_at"].cast("int64").to_numpy()
    exact = before - 250_000 + np.arange(1, 1001) * 250
    assert len(np.unique(came)) == INGESTED_MAX
    assert ((came >= exact) & (came - exact <= 250_000 / INGESTED_MAX)).all()
    assert came[-1] == before


class Clock:
    """A monotonic clock and a wall clock that stand still until told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        self._began = self.now
        stub = namedtuple("stub", "monotonic time_ns")(lambda: self.now, lambda: self.wall() * 1000)
        monkeypatch.setattr("services.generator.stage.time", stub)

    def wall(self) -> int:
        return 1_700_000_000_000_000 + round((self.now - self._began) * 1e6)


def test_a_new_rate_is_obeyed_at_once_and_flushes_are_regular(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = stage_on(volume, generation_rate="100", flush_seconds=0.1)
    stage.step()

    def rows_in(seconds: float) -> int:
        rows = 0
        for _ in range(round(seconds / 0.01)):
            clock.now += 0.01
            rows += stage.step()
        return rows

    assert rows_in(2.0) == pytest.approx(200, abs=12)
    assert len(published(volume)[1]) == pytest.approx(20, abs=2)
    stage.control = Control(rate="3000")
    assert rows_in(1.0) == pytest.approx(3_000, rel=0.15)
    stage.control = Control(rate="0")
    assert rows_in(1.0) <= 300
    assert rows_in(1.0) == 0
    stage.control = Control(rate="max")
    assert rows_in(0.05) == 5 * 500
    assert stage.figures["rate"] == "max"


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5_000), st.booleans()), max_size=40), st.floats(0.1, 1e6))
def test_the_pacer_never_owes_more_than_its_catch_up(steps: list[tuple[float, int, bool]], rate: float) -> None:
    now, taken = 0.0, 0
    pacer = Pacer(rate, now)
    for wait, rows, restart in steps:
        now += wait
        due = pacer.due(now)
        assert 0 <= due <= max(rate * CATCH_UP_SECONDS, 1.0)
        take = min(rows, int(due))
        pacer.taken(take)
        taken += take
        if restart:
            pacer.restart(now)
            assert pacer.due(now) == 0
    assert taken <= rate * now + 1


def test_flat_out_is_always_due() -> None:
    pacer = Pacer(math.inf, 0.0)
    assert pacer.due(0.0) == math.inf
    pacer.set_rate(10.0, 1.0)
    assert pacer.due(1.0) == 0
    assert pacer.due(1.5) == 5


def test_back_pressure_pauses_until_there_is_room(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = stage_on(volume, raw_transactions_critical=1_000, segment_rows=300, features_ready_critical=10**9)
    for _ in range(10):
        clock.now += 1.0
        stage.step()
    assert stage.state == "back_pressure"
    assert "1,200 rows wait" in stage.detail
    assert published(volume)[0].num_rows == 1_200
    waiting = iter([850, 799])
    monkeypatch.setattr(stage._backlog, "raw_transactions", lambda: next(waiting))
    clock.now += 1.0
    assert stage.step() == 0  # 850 is under the threshold, but not by enough
    clock.now += 1.0
    assert stage.step() == 300
    assert stage.state == "running"


def test_little_space_pauses_and_says_so(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = stage_on(volume, disk_low_bytes=10**18)
    assert stage.step() == 0
    assert stage.state == "disk_low"
    assert "bytes free" in stage.detail
    clock.now += 1.0
    monkeypatch.setattr("os.statvfs", lambda _: namedtuple("space", "f_bavail f_frsize")(10**18, 2))
    assert stage.step() == 500
    assert stage.state == "running"


def test_a_second_generator_takes_its_own_slot_once_the_first_is_seen_alive(volume: Volume, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    clock = Clock(monkeypatch)
    first, second = stage_on(volume), stage_on(volume)
    assert first.step() == 500
    for _ in range(3):
        clock.now += 1.0
        assert second.step() == 0  # the first one's heartbeat may be its last
    beat(volume, first.worker, "2")
    clock.now += 1.0
    assert second.step() == 500
    assert not set(published(volume, "g00")[0]["trans_num"].to_pylist()) & set(
        published(volume, "g01")[0]["trans_num"].to_pylist()
    )


def test_a_dead_generators_slot_is_taken_and_its_traffic_goes_on(volume: Volume) -> None:
    first, second = stage_on(volume), stage_on(volume)
    first.step()
    kill(volume, first)
    second.step()
    assert same_rows(published(volume)[0], expected(1_000))
    first.step()  # it was not dead: what it publishes now collides, and it lets go
    first.step()
    table, _ = published(volume)
    assert len(table["trans_num"].unique()) == table.num_rows


def test_a_second_generator_stands_by_in_a_finite_run(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    first, second = stage_on(volume, rows=900), stage_on(volume, rows=900)
    run_to_end(first)
    for turn in range(3):
        beat(volume, first.worker, str(turn))
        clock.now += 1.0
        assert second.step() == 0
    assert "stands by" in second.detail
    first.close()
    kill(volume, first)
    clock.now += 1.0
    assert second.step() == 0
    assert published(volume)[0].num_rows == 900


def test_settings_that_could_never_train_are_refused_with_the_arithmetic(volume: Volume) -> None:
    def settings_of(**changes: object) -> Settings:
        return Settings(flashblade_path=volume.root, **changes)  # type: ignore[arg-type]

    with pytest.raises(ConfigurationError) as refused:
        check(settings_of(cards=1_000_000), volume)
    for part in ("1,000,000 cards x 3", "7 days", "21,020,000", "3,500,000", "165,714 cards"):
        assert part in str(refused.value)
    check(settings_of(), volume)
    check(settings_of(merchants=1_000_000), volume)
    with pytest.raises(ConfigurationError, match="MERCHANTS or SEGMENT_ROWS must be 65,536 at most"):
        check(settings_of(merchants=65_537, segment_rows=65_537), volume)
    check(settings_of(cards=165_714), volume)
    check(settings_of(cards=1_000_000, label_delay_days=1), volume)
    check(settings_of(cards=1_000_000, rows=3_500_000), volume)
    with pytest.raises(ConfigurationError):
        check(settings_of(cards=165_715), volume)
    with pytest.raises(ConfigurationError):
        check(settings_of(cards=1_000_000, rows=3_500_001), volume)
    (volume.models / "current").write_text("v000001")
    check(settings_of(cards=1_000_000), volume)


def test_other_settings_on_the_same_volume_are_refused(volume: Volume) -> None:
    first = stage_on(volume)
    first.step()
    kill(volume, first)
    with pytest.raises(ConfigurationError, match=r"seed=1.*seed=2"):
        stage_on(volume, seed=2).step()
