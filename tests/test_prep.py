"""Prep: which rows it refuses, what it passes on, its sample, its bounds, and who owns what."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from faulting import Crash, FaultingFiles
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import wait_until
from segments import Downstream, attached, drain, publish, raw_batch, raw_name, volume_at

from services.prep.ownership import Ownership, fair_shares
from services.prep.sample import sample
from services.prep.stage import Prep
from services.prep.validate import validate
from services.prep.work import FeatureWork
from spearhead import packing
from spearhead.codes import decode, encode, of
from spearhead.errors import ConfigurationError
from spearhead.features import WIDTH, History
from spearhead.hashing import hash_strings
from spearhead.heartbeat import Heartbeat, Roster
from spearhead.narrow import read_raw
from spearhead.partition import PartitionLog, newest_commit
from spearhead.producer import Producer
from spearhead.schema import IDENTITY, RAW
from spearhead.segment import SegmentInfo, read_segment, write_segment
from spearhead.settings import Settings
from spearhead.spool import MERGED, Spool, SpoolReader
from spearhead.volume import Volume


def with_column(batch: pa.RecordBatch, name: str, values: list[Any]) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    return batch.set_column(index, RAW.field(name), pa.array(values, RAW.field(name).type))


def beat(volume: Volume, stage: str, worker: str) -> None:
    Roster(volume, 15).beat(Heartbeat(stage=stage, worker=worker, epoch=volume.epoch(), state="running"))


def prep_at(volume: Volume, worker: str = "w", **more: Any) -> Prep:
    """A replica that has said it is alive, as the stage loop does first."""
    beat(volume, "prep", worker)
    stage = Prep(Settings(flashblade_path=volume.root, disk_low_bytes=0, **more), volume, worker)
    stage.start()
    return stage


def run_dry(stage: Prep) -> int:
    """Steps until there is nothing to do; the rows done."""
    rows = idle = 0
    while idle < 5:
        done = stage.step()
        rows += done
        idle = 0 if done else idle + 1
    return rows


def look(stage: Prep) -> None:
    """Let the replica look around at its next step."""
    stage._look_at = 0.0
    stage.step()


# Validation


def test_good_rows_are_passed_on_untouched() -> None:
    batch = raw_batch(0, 50)
    good, rejects = validate(batch)
    assert good is batch
    assert rejects == []
    assert validate(raw_batch(0, 0))[1] == []


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("amt_cents", None, "amt_cents is missing"),
        ("amt_cents", -5, "amount is not"),
        ("amt_cents", 0, "amount is not"),
        ("amt_cents", 1_000_000_001, "amount is not"),
        ("category", 14, "category is not known"),
        ("state", 200, "state is not known"),
        ("merch_lat", float("nan"), "merchant latitude"),
        ("home_long", float("inf"), "home longitude"),
        ("home_lat", 90.5, "home latitude"),
        ("event_time", -1, "event time"),
        ("event_time", 2**62, "event time"),
        ("label", 7, "label is not"),
        ("last4", 12345, "last4"),
        ("city_pop", -1, "city population"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason(column: str, value: Any, reason: str) -> None:
    batch = raw_batch(0, 9)
    values = batch.column(column)
    values = values.view(pa.int64()).to_pylist() if column == "event_time" else values.to_pylist()
    values[4] = value
    good, rejects = validate(with_column(batch, column, values))
    assert [reject.line for reject in rejects] == [5]
    assert rejects[0].reason.startswith(reason)
    assert json.loads(rejects[0].row)["trans_num"] == f"{4:032x}"
    assert good.column("trans_num").to_pylist() == [f"{n:032x}" for n in range(9) if n != 4]


def test_slices_are_validated_where_they_are() -> None:
    batch = with_column(raw_batch(0, 20), "amt_cents", [-1] * 10 + list(range(1, 11)))
    assert validate(batch.slice(10, 10))[1] == []
    assert len(validate(batch.slice(5, 10))[1]) == 5


def test_the_columns_of_features_are_the_segment_s_own_memory(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, [100])
    batch, _ = read_raw(volume.raw_ready(0) / raw_name(1).file)
    matrix = np.zeros((100, WIDTH), np.float32)
    out = attached(batch, matrix)
    for field in IDENTITY:
        buffers = zip(batch.column(field.name).buffers(), out.column(field.name).buffers(), strict=True)
        assert all(a is None or a.address == b.address for a, b in buffers)
    assert (decode(packing.of(out).matrix()) == matrix).all()
    assert out.schema.equals(packing.SCHEMA)


# Through the log, with the real history


def test_features_equal_those_of_one_long_run_after_kills(tmp_path: Path) -> None:
    """Killed every so many calls, again and again, until it is through; late ones of other workers included."""
    sizes = [300, 1, 700, 0, 500] * 3
    total = sum(sizes)
    options = Settings()
    expected = History().transform(raw_batch(0, total))
    for patience in (44, 37):
        root = tmp_path / str(patience)
        volume = volume_at(root)
        publish(volume, sizes)
        for life in range(1, 400):
            try:
                files = FaultingFiles(patience + life % 13)
                log = PartitionLog(Volume(root, files), 0, f"w{life}", FeatureWork(options))
                log.open(1)
                drain(log, checkpoint_each=2)
                break
            except Crash:
                continue
        assert life > 3
        downstream = Downstream(volume)
        downstream.take()
        rows = [row for _, rows in sorted(downstream.by_name().items()) for row in rows]
        assert [row["trans_num"] for row in rows] == [f"{n:032x}" for n in range(total)]
        features = np.array([row["features"] + row["merchant_labels"] for row in rows], np.uint16)
        assert features.tobytes() == encode(expected).tobytes()


def test_order_of_each_card_is_kept_with_two_partitions(tmp_path: Path) -> None:
    volume = volume_at(tmp_path, partitions=2)
    publish(volume, [200, 300], partitions=2)
    stage = prep_at(volume, partitions=2)
    assert run_dry(stage) == 500
    assert stage.figures["partitions"] == "0,1"
    downstream = Downstream(volume)
    downstream.take()
    seen: dict[int, list[str]] = {}
    for _, rows in sorted(downstream.by_name().items()):
        for row in rows:
            seen.setdefault(row["card"], []).append(row["trans_num"])
    assert sum(map(len, seen.values())) == 500
    assert all(rows == sorted(rows) for rows in seen.values())
    stage.close()


# The training sample


def test_hashes_depend_on_the_string_alone() -> None:
    mixed = pa.array(["", "a", "abcdefgh", "abcdefghi", "x" * 32, "abcdefgh", "a\0"])
    hashes = hash_strings(mixed)
    assert hashes[2] == hashes[5]
    assert len(set(hashes.tolist())) == 6
    for index in range(len(mixed)):
        assert hash_strings(mixed.slice(index, 1))[0] == hashes[index]


def test_the_sample_is_uniform_and_weighted() -> None:
    rows = 50_000
    raw = raw_batch(0, rows)
    features = attached(raw, np.arange(rows * WIDTH, dtype=np.float32).reshape(rows, WIDTH))
    chosen = sample(features, 0.1)
    assert chosen is not None
    assert 4_600 < chosen.num_rows < 5_400  # 6 sigma of a binomial
    assert set(chosen.column("weight").to_pylist()) == {10.0}
    again = sample(features.slice(20_000, 10_000), 0.1)
    assert again is not None
    inside = [row for row in chosen.to_pylist() if features.column("event_time")[20_000].as_py() <= row["event_time"]
              < features.column("event_time")[30_000].as_py()]  # fmt: skip
    assert inside == again.to_pylist()
    whole = sample(features, 1.0)
    assert whole is not None
    assert whole.num_rows == rows
    assert (of(whole.column("features")) == packing.of(features).matrix()).all()
    assert sample(features, 1e-12) is None


def put_sample(volume: Volume, seq: int, rows: int, producer: str = "g00") -> None:
    """A file of the spool, as prep publishes it."""
    name = raw_name(seq, producer)
    features = attached(raw_batch(seq * 100, rows), np.zeros((rows, WIDTH), np.float32))
    batch = sample(features, 1.0)
    assert batch is not None
    info = SegmentInfo(name=str(name), rows=rows, rows_before=0, watermark=seq)
    write_segment(volume.files, volume.training / "ready" / name.file, batch, info)


def test_the_oldest_samples_are_dropped(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    for seq in range(1, 11):
        put_sample(volume, seq, 10)
    spool = Spool(volume, "w", max_rows=35)
    assert spool.tidy() == 30
    assert [file.name.seq for file in SpoolReader(volume).files()] == [8, 9, 10]


def test_small_files_are_merged_and_no_row_is_there_twice_whenever_it_is_killed(tmp_path: Path) -> None:
    for call in range(1, 200):
        root = tmp_path / "v"
        volume = volume_at(root)
        for seq in range(1, 9):
            put_sample(volume, seq, 3)
        files = FaultingFiles(call)
        try:
            Spool(Volume(root, files), "first", max_rows=1000, max_files=5).tidy()
            killed = False
        except Crash:
            killed = True
        listed = SpoolReader(volume).files()
        rows = [row["event_time"] for file in listed for row in read_segment(file.path)[0].to_pylist()]
        assert len(rows) == len(set(rows)) == 24
        assert Spool(volume, "second", max_rows=1000, max_files=5).tidy() == 24
        listed = SpoolReader(volume).files()
        assert sum(file.info.rows for file in listed) == 24
        assert any(file.name.producer == MERGED for file in listed)
        assert len(list((volume.training / "ready").glob("*.arrow"))) == len(listed)
        shutil.rmtree(root)
        if not killed:
            break
    assert call > 10


def test_a_thin_stream_leaves_no_crowd_of_files(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    spool = Spool(volume, "w", max_rows=10_000, max_files=20)
    for seq in range(1, 301):
        put_sample(volume, seq, 1)
        rows = spool.tidy()
        assert len(list((volume.training / "ready").iterdir())) <= 21
    assert rows == 300


def test_a_full_sample_never_loses_much_at_once(tmp_path: Path) -> None:
    """The oldest rows are the matured ones: to drop a large merged file whole would leave nothing to train on."""
    volume = volume_at(tmp_path)
    spool = Spool(volume, "w", max_rows=1_000, max_files=30)
    kept = []
    for seq in range(1, 401):
        put_sample(volume, seq, 10)
        kept.append(spool.tidy())
    assert len(list((volume.training / "ready").iterdir())) <= 31
    assert min(kept[100:]) >= 850
    assert max(kept) <= 1_000


def test_samples_are_taken_only_with_a_trainer_or_before_the_first_model(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    (volume.models / "current").write_text("v000001")
    stage = prep_at(volume)
    publish(volume, [100])
    run_dry(stage)
    assert not list((volume.training / "ready").iterdir())
    beat(volume, "train", "t")
    look(stage)
    publish(volume, [100])
    run_dry(stage)
    (path,) = (volume.training / "ready").iterdir()
    batch, info = read_segment(path)
    assert (batch.num_rows, info.rows, info.name) == (100, 100, str(raw_name(2)))
    stage.close()


# The stage


def test_figures_and_rejects(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    producer = Producer(volume, "g00", 1, "p")
    producer.resume()
    producer.publish(raw_batch(0, 5, cents=[100, -1, 100, 100, 0]))
    stage = prep_at(volume)
    assert run_dry(stage) == 5
    look(stage)
    figures = stage.figures
    assert (figures["rows_in"], figures["rows_out"], figures["rejected"]) == (5, 3, 2)
    assert (figures["commit_step"], figures["cards"], figures["merchants"]) == (1, 3, 2)
    lines = (volume.raw / "dead" / f"{raw_name(1)}.prep.rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [2, 5]
    stage.close()
    assert len(list(volume.checkpoints(0).iterdir())) == 1
    assert not list((volume.control / "owners").iterdir())


def test_a_standby_takes_over_when_the_owner_s_heartbeat_goes(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, [50])
    owner, standby = prep_at(volume, "owner"), prep_at(volume, "standby")
    assert (run_dry(owner), run_dry(standby)) == (50, 0)
    assert standby.state == "idle"
    assert "standby" in standby.detail
    publish(volume, [50])
    look(standby)
    assert standby.step() == 0
    Roster(volume, 15).leave("prep", "owner")
    look(standby)
    assert newest_commit(volume, 0, 1).consumed + run_dry(standby) == 100  # type: ignore[union-attr]
    publish(volume, [50])
    owner.step()  # woken: either loses the step, or sees that it is not the owner any more
    look(owner)
    run_dry(standby)
    downstream = Downstream(volume)
    downstream.take()
    assert downstream.rows() == [f"{n:032x}" for n in range(150)]


def test_replicas_share_partitions_evenly_and_give_back(tmp_path: Path) -> None:
    volume = volume_at(tmp_path, partitions=5)
    first = prep_at(volume, "first", partitions=5)
    assert len(first._logs) == 5
    second = prep_at(volume, "second", partitions=5)
    look(first)
    look(second)
    assert (len(first._logs), len(second._logs)) == (3, 2)
    second.close()
    Roster(volume, 15).leave("prep", "second")
    look(first)
    assert len(first._logs) == 5
    first.close()


@given(
    owners=st.lists(st.sampled_from(["a", "b", "c", "gone", None]), min_size=1, max_size=12),
    replicas=st.sets(st.sampled_from(["a", "b", "c", "d"]), min_size=1),
)
def test_fair_shares(owners: list[str | None], replicas: set[str]) -> None:
    by_partition = dict(enumerate(owners))
    shares = fair_shares(by_partition, replicas)
    assert sum(shares.values()) == len(owners)
    assert max(shares.values()) - min(shares.values()) <= 1
    even = {p: sorted(replicas)[p % len(replicas)] for p in by_partition}
    assert fair_shares(even, replicas) == {r: list(even.values()).count(r) for r in replicas}


def test_an_owner_file_left_by_a_dead_worker_is_taken_by_one(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    for worker in ("dead", "a", "b"):
        Ownership(volume, 1, worker).balance([worker], {worker, "a", "b"} - {"dead"})
    a, b = (Ownership(volume, 1, worker) for worker in ("a", "b"))
    assert a.held(0) is True
    assert b.balance(["a", "b"], {"a", "b"}) == (set(), set())
    b.release(0)
    assert a.held(0)
    a.release(0)
    assert b.balance(["b"], {"b"}) == ({0}, set())
    assert [path.name for path in (volume.control / "owners").iterdir()] == ["p00"]


@pytest.mark.parametrize(
    "setting",
    [
        {"label_delay_days": 3.0},
        {"card_state_max": 10},
        {"merchant_state_max": 10},
        {"partitions": 2},
        {"card_idle_days": 30.0},
    ],
)
def test_a_history_made_under_other_settings_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    arrays = FeatureWork(Settings(flashblade_path=tmp_path)).arrays()
    FeatureWork(Settings(flashblade_path=tmp_path)).restore(arrays)
    with pytest.raises(ConfigurationError, match="reset"):
        FeatureWork(Settings(flashblade_path=tmp_path, **setting)).restore(arrays)


def test_a_history_of_another_version_is_refused(tmp_path: Path) -> None:
    work = FeatureWork(Settings(flashblade_path=tmp_path))
    arrays = dict(work.arrays())
    arrays["numbers"] = np.array([1, *arrays["numbers"][1:]])
    with pytest.raises(ConfigurationError, match=r"format and features \[1.*reset"):
        work.restore(arrays)


def test_it_pauses_for_inference_and_goes_on(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, [40] * 10)
    stage = prep_at(volume, features_ready_critical=100)
    done = run_dry(stage)
    assert (stage.state, done) == ("back_pressure", 200)  # 40 alone, then one step beyond the threshold
    waiting = sorted((volume.features / "ready").iterdir())
    for path in waiting[:2]:
        path.unlink()
    stage._backlog_at = 0.0
    assert (stage.step(), stage.state) == (0, "back_pressure")  # 120 rows: over the threshold
    waiting[2].unlink()
    stage._backlog_at = 0.0
    assert (stage.step(), stage.state) == (0, "back_pressure")  # 80 rows: under it, but not by enough
    waiting[3].unlink()
    stage._backlog_at = 0.0
    assert stage.step() == 160
    Downstream(volume).take()
    stage._backlog_at = 0.0
    assert (run_dry(stage), stage.state) == (40, "idle")


def test_it_pauses_when_the_disk_is_nearly_full_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = volume_at(tmp_path)
    publish(volume, [40])
    stage = prep_at(volume)
    free = [10]
    monkeypatch.setattr(stage, "_free_bytes", lambda: free[0])
    monkeypatch.setattr(stage, "settings", stage.settings.model_copy(update={"disk_low_bytes": 30}))
    look(stage)
    assert (stage.step(), stage.state) == (0, "disk_low")
    free[0] = 16
    look(stage)
    run_dry(stage)
    assert newest_commit(volume, 0, 1).consumed == 40  # type: ignore[union-attr]


def test_reset_forgets_everything(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, [40, 40])
    stage = prep_at(volume)
    run_dry(stage)
    before = Downstream(volume)
    before.take()
    epoch = volume.raise_epoch()
    stage.reset(epoch)
    publish(volume, [80])
    run_dry(stage)
    after = Downstream(volume)
    after.take()
    (rows,) = after.by_name().values()
    features = np.array([row["features"] + row["merchant_labels"] for row in rows], np.uint16)
    assert features.tobytes() == encode(History().transform(raw_batch(0, 80))).tobytes()
    look(stage)
    assert (stage.figures["rows_in"], stage.figures["commit_step"]) == (80, 1)
    assert all(path.name.startswith("e0002") for path in (volume.training / "ready").iterdir())


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.sampled_from(["a", "b", "produce", "kill a", "kill b", "reset"]), max_size=25))
def test_two_replicas_killed_and_reset_in_any_order(steps: list[str]) -> None:
    """Whole stages, heartbeats and all: each epoch's rows come through once, with the features of one long run."""
    with TemporaryDirectory() as folder:
        volume = volume_at(Path(folder))
        stages = {name: prep_at(volume, name) for name in "ab"}
        published = lives = 0
        downstream = Downstream(volume)
        for step in steps:
            match step.split():
                case ["produce"]:
                    publish(volume, [7, 5])
                    published += 12
                case ["kill", name]:
                    Roster(volume, 15).leave("prep", stages[name].worker)
                    lives += 1
                    stages[name] = prep_at(volume, f"{name}{lives}")
                case ["reset"]:
                    epoch = volume.raise_epoch()
                    published = 0
                    for stage in stages.values():
                        stage.reset(epoch)
                    for path in (volume.features / "ready").iterdir():
                        path.unlink()
                    downstream = Downstream(volume)
                case [name]:
                    look(stages[name])
            downstream.take()
        for stage in (*stages.values(), *stages.values()):
            look(stage)
            run_dry(stage)
        downstream.take()
        rows = [row for _, rows in sorted(downstream.by_name().items()) for row in rows]
        assert [row["trans_num"] for row in rows] == [f"{n:032x}" for n in range(published)]
        features = np.array([row["features"] + row["merchant_labels"] for row in rows], np.uint16)
        assert features.tobytes() == encode(History().transform(raw_batch(0, published))).tobytes()


# Processes


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Any]:
    """Starts real replicas on one volume; ends them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(worker: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "FLASHBLADE_PATH": str(tmp_path), "WORKER_ID": worker, "LEASE_SECONDS": "1", "HEARTBEAT_SECONDS": "0.2",
            "CHECKPOINT_SECONDS": "0.2", "FSYNC": "false", "DISK_LOW_BYTES": "0",
        }  # fmt: skip
        command = [sys.executable, "-m", "services.prep"]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_an_owner_stopped_reaped_and_woken_and_one_killed(tmp_path: Path, replicas: Any) -> None:
    volume = volume_at(tmp_path)
    owner_file = volume.control / "owners" / "p00"
    publish(volume, [100] * 20)

    def consumed() -> int:
        commit = newest_commit(volume, 0, 1)
        return commit.consumed if commit else 0

    workers = {name: replicas(name) for name in ("worker1", "worker2")}
    wait_until(lambda: consumed() == 2000, "the first rows")
    frozen = owner_file.read_text()
    workers[frozen].send_signal(signal.SIGSTOP)
    publish(volume, [100] * 20)
    wait_until(lambda: consumed() == 4000, "the standby's take-over")
    successor = owner_file.read_text()
    assert successor != frozen
    workers[frozen].send_signal(signal.SIGCONT)
    publish(volume, [100] * 20)
    wait_until(lambda: consumed() == 6000, "both awake")
    workers[successor].kill()
    publish(volume, [100] * 20)
    wait_until(lambda: consumed() == 8000, "the woken one's take-over")
    downstream = Downstream(volume)
    wait_until(lambda: len(list((volume.features / "ready").iterdir())) == 80, "the last step's outputs")
    downstream.take()
    rows = [row for _, rows in sorted(downstream.by_name().items()) for row in rows]
    assert [row["trans_num"] for row in rows] == [f"{n:032x}" for n in range(8000)]
    features = np.array([row["features"] + row["merchant_labels"] for row in rows], np.uint16)
    assert features.tobytes() == encode(History().transform(raw_batch(0, 8000))).tobytes()
    workers[frozen].terminate()
    assert workers[frozen].wait(timeout=30) == 0
