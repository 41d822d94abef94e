"""services/inference: scores every segment exactly once, with the model in service, whatever happens meanwhile."""

import ctypes
import errno
import mmap
import multiprocessing
import os
import signal
import time
from collections import Counter

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from services.inference.retention import Limits, Retention
from services.inference.stage import Inference
from services.inference.watch import ModelWatch
from spearhead import codes, shap
from spearhead.aggregate import Aggregate
from spearhead.backlog import RawHeads
from spearhead.features import FEATURES, WIDTH
from spearhead.files import Files
from spearhead.heartbeat import Heartbeat, Roster
from spearhead.ledger import read_ledger
from spearhead.model import ModelError, ModelStore
from spearhead.reasons import strongest
from spearhead.schema import CATEGORIES, RESULTS, STATES, TIME, came_together, features_schema
from spearhead.segment import SegmentInfo, SegmentName, read_segment, write_segment
from spearhead.settings import Settings
from spearhead.volume import Volume
from tests.test_model import artifact, booster

DAY_US = 86_400_000_000


@pytest.fixture
def volume(tmp_path):
    volume = Volume(tmp_path, Files(fsync=False))
    volume.prepare()
    return volume


@pytest.fixture
def store(volume):
    return ModelStore(volume)


def settings(volume, **changed) -> Settings:
    return Settings(_env_file=None, flashblade_path=volume.root, fsync=False, fold_seconds=0.01, **changed)


def replica(volume, worker: str = "worker0001", **changed) -> Inference:
    """A stage whose heartbeat is there, as the loop sees to."""
    stage = Inference(settings(volume, **changed), volume, worker)
    roster = Roster(volume, 15.0)
    roster.beat(Heartbeat(stage="inference", worker=worker, epoch=stage.epoch, state="running"))
    roster.close()
    stage.start()
    return stage


def wide(seed: int = 0):
    return artifact(made=booster(seed, width=WIDTH))


def publish_features(volume, seq: int, rows: int = 40, width: int = WIDTH, producer: str = "g00", **columns) -> str:
    """Put a segment into features-ready, as prep does; its name."""
    rng = np.random.default_rng(seq)
    name = SegmentName(volume.epoch(), producer, 0, seq)
    made = {
        "trans_num": [f"{producer}-{seq}-{i}" for i in range(rows)],
        "event_time": np.sort(rng.integers(0, DAY_US, rows)),
        "ingested_at": came_together(rows, time.time_ns() // 1000 - 1000),
        "card": rng.integers(0, 2**63, rows, dtype=np.uint64),
        "last4": rng.integers(0, 10_000, rows).astype(np.uint16),
        "amt_cents": rng.integers(1, 500_000, rows).astype(np.int32),
        "category": rng.integers(0, len(CATEGORIES), rows).astype(np.uint8),
        "state": rng.integers(0, len(STATES), rows).astype(np.uint8),
        "merchant": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["Kirlin and Sons"]),
        "first": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int16)), ["Jennifer"]),
        "last_initial": np.full(rows, ord("B"), np.uint8),
        "label": rng.integers(0, 2, rows).astype(np.int8),
        "scenario": np.zeros(rows, np.int8),
        "features": codes.column(rng.random((rows, width), dtype=np.float32)),
    } | columns  # fmt: skip
    schema = features_schema(width)
    arrays = [made[f.name] if isinstance(made[f.name], pa.Array) else pa.array(made[f.name], f.type) for f in schema]
    staged = volume.features / "staged" / name.file
    info = SegmentInfo(name=str(name), rows=rows, rows_before=0, watermark=DAY_US)
    write_segment(volume.files, staged, pa.RecordBatch.from_arrays(arrays, schema=schema), info)
    os.rename(staged, volume.features / "ready" / name.file)
    return str(name)


def result_files(volume) -> list:
    return sorted((volume.results / "ready").rglob("*.arrow"))


def results(volume) -> pl.DataFrame:
    return pl.concat([pl.from_arrow(pa.Table.from_batches([read_segment(path)[0]])) for path in result_files(volume)])


def drain(stage: Inference) -> int:
    done = 0
    while rows := stage.step():
        done += rows
    return done


def test_segments_are_scored_and_counted(volume, store):
    store.publish(wide(), promote=True)
    names = [publish_features(volume, seq) for seq in range(1, 6)]
    stage = replica(volume)
    assert drain(stage) == 200
    stage.close()
    assert [path.stem for path in result_files(volume)] == names
    assert all(volume.result_file(name).exists() for name in names)
    ledger = read_ledger(volume)
    table = results(volume)
    assert ledger.transactions_analyzed == len(table) == 200
    assert ledger.flagged_count == (table["decision"].cast(str) == "flagged").sum() > 0
    assert volume.files.list(volume.features / "ready") == []
    assert volume.files.list(volume.features / "committed") == []
    assert stage.figures["rows_scored"] == 200
    assert stage.figures["model_version"] == "v000001"


def resident_pages(path) -> int:
    """Pages of a file that are in memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        there = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mapped)))
        assert ctypes.CDLL(None).mincore(place, ctypes.c_size_t(len(mapped)), there) == 0
        return sum(page & 1 for page in there)


def forgets(folder) -> bool:
    """Whether the folder's file system has pages to let go (one in memory has not)."""
    probe = folder / "probe"
    with open(probe, "wb") as file:
        file.write(bytes(100_000))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_pages(probe) == 0


@pytest.mark.parametrize("fsync", [True, False])
def test_what_was_scored_leaves_memory_once_it_is_durable(tmp_path, fsync):
    if not forgets(tmp_path):
        pytest.skip("the file system keeps its files in memory")
    volume = Volume(tmp_path, Files(fsync=fsync))
    volume.prepare()
    ModelStore(volume).publish(wide(), promote=True)
    name = publish_features(volume, 1, rows=1_000)
    raw = volume.raw_ready(0) / f"{name}.arrow"
    volume.files.create(raw, bytes(100_000))
    assert resident_pages(raw) > 20
    assert replica(volume).step() == 1_000
    for path in (raw, volume.result_file(name)):
        assert (resident_pages(path) == 0) is fsync


def test_scores_are_those_of_the_model_and_the_schema_is_the_contract(volume, store):
    store.publish(wide(), promote=True)
    name = publish_features(volume, 1)
    batch, _ = read_segment(volume.features / "ready" / f"{name}.arrow")
    features = codes.of(batch.column("features"))
    replica(volume).step()
    made, info = read_segment(volume.result_file(name))
    assert made.schema.remove_metadata() == RESULTS
    assert info.name == name
    assert made.column("risk_score").to_pylist() == store.load("v000001").score(features).tolist()
    assert made.column("trans_num").to_pylist() == batch.column("trans_num").to_pylist()
    aggregate = msgspec.json.decode((volume.pending / f"{name}.json").read_bytes(), type=Aggregate)
    assert aggregate.count == 40
    scored_at, ingested_at = (made.column(name).cast(TIME).cast(pa.int64()) for name in ("scored_at", "ingested_at"))
    late = scored_at.to_numpy() - ingested_at.to_numpy()
    assert aggregate.latency_us == late.sum() > 0


def test_without_a_model_features_wait_and_the_status_says_why(volume, store):
    publish_features(volume, 1)
    stage = replica(volume)
    assert stage.step() == 0
    assert (stage.state, stage.detail) == ("no_model", "no model yet, and no trainer is running")
    assert len(volume.files.list(volume.features / "ready")) == 1
    assert result_files(volume) == []
    store.publish(wide(), promote=True)
    stage._watch._look_due._next = 0.0
    assert drain(stage) == 40
    assert stage.state != "no_model"


def test_progress_towards_the_first_model_is_the_trainers(volume):
    roster = Roster(volume, 15.0)
    figures = {"matured_rows": 700, "needed_rows": 20_000, "cannot_train": None}
    roster.beat(Heartbeat(stage="train", worker="t", epoch=1, state="running", figures=figures))
    roster.close()
    stage = replica(volume)
    stage.step()
    assert stage.detail == "no model yet: 700 of 20000 matured rows"


def test_models_are_swapped_between_segments(volume, store):
    store.publish(wide(0), promote=True)
    publish_features(volume, 1)
    stage = replica(volume)
    drain(stage)
    store.publish(wide(1), promote=True)
    publish_features(volume, 2)
    stage._watch._look_due._next = 0.0
    drain(stage)
    versions = results(volume).group_by("model_version").len().sort(pl.col("model_version").cast(str))
    assert versions["model_version"].cast(str).to_list() == ["v000001", "v000002"]
    assert versions["len"].to_list() == [40, 40]


def test_a_broken_model_is_refused_and_the_champion_goes_on(volume, store):
    store.publish(wide(0), promote=True)
    stage = replica(volume)
    stage.step()
    version = store.publish(wide(1), promote=True)
    (store.folder / version / "model.ubj").write_bytes(b"torn")
    publish_features(volume, 1)
    stage._watch._look_due._next = 0.0
    drain(stage)
    assert results(volume)["model_version"].cast(str).unique().to_list() == ["v000001"]
    assert stage.figures["model_load_errors"] == 1
    assert "damaged" in stage.figures["model_error"]
    # A replica that starts now has no champion in memory, and stands by the same one.
    publish_features(volume, 2)
    assert drain(replica(volume, "worker0002")) == 40
    assert results(volume)["model_version"].cast(str).unique().to_list() == ["v000001"]


def test_the_watch_comes_back_from_a_refused_version(volume, store):
    store.publish(wide(0), promote=True)
    watch = ModelWatch(store)
    assert watch.model().version == "v000001"
    (store.folder / "current").write_text("garbage")
    watch._look_due._next = 0.0
    assert watch.model().version == "v000001"
    assert watch.errors == 1
    store.publish(wide(1), promote=True)
    watch._look_due._next = 0.0
    assert watch.model().version == "v000002"
    assert watch.error is None


def test_a_segment_that_can_not_be_scored_is_set_aside_alone(volume, store):
    store.publish(wide(), promote=True)
    good = publish_features(volume, 1)
    bad = publish_features(volume, 2, width=WIDTH - 1)
    unknown = publish_features(volume, 3, category=np.full(40, 200, np.uint8))
    torn = SegmentName(1, "g00", 0, 4).file
    (volume.features / "ready" / torn).write_bytes(b"torn")
    last = publish_features(volume, 5)
    stage = replica(volume)
    for _ in range(12):
        stage.step()
    assert [path.stem for path in result_files(volume)] == [good, last]
    dead = volume.files.list(volume.features / "dead")
    assert [name for name in dead if name.endswith(".arrow")] == [f"{bad}.arrow", f"{unknown}.arrow", torn]
    reason = (volume.features / "dead" / f"{unknown}.reason.json").read_bytes()
    assert b"unknown category code 200" in reason
    assert stage.dead == 3
    assert volume.files.list(volume.results / "staged") == []


class FullDisk(Files):
    """No space for outputs until told otherwise."""

    def __init__(self) -> None:
        super().__init__(fsync=False)
        self.full = False

    def step(self, call, path):
        if self.full and call in ("open", "write") and "staged" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_loses_nothing_and_heals(volume, store):
    store.publish(wide(), promote=True)
    for seq in range(1, 4):
        publish_features(volume, seq)
    files = FullDisk()
    stage = replica(Volume(volume.root, files))
    files.full = True
    for _ in range(5):
        with pytest.raises(OSError, match="No space"):
            stage.step()
    assert len(volume.files.list(volume.features / "ready")) == 3, "given back, and no try counted"
    assert volume.files.list(volume.features / "dead") == []
    files.full = False
    assert drain(stage) == 120


def test_reset_forgets_the_old_epoch_and_keeps_the_model(volume, store):
    store.publish(wide(), promote=True)
    stage = replica(volume)
    publish_features(volume, 1)
    epoch = volume.raise_epoch()
    stage.reset(epoch)
    name = publish_features(volume, 1)
    assert drain(stage) == 40
    stage.close()
    assert read_ledger(volume).transactions_analyzed == 40
    assert name in [path.stem for path in result_files(volume)]


def work_until(root, worker, stop) -> None:
    """A replica in a process of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    volume = Volume(root, Files(fsync=False))
    stage = replica(volume, worker, lease_seconds=0.4)
    roster = Roster(volume, 0.4)
    while not stop.is_set():
        roster.beat(Heartbeat(stage="inference", worker=worker, epoch=stage.epoch, state="running"))
        if not stage.step():
            time.sleep(0.005)
    stage.close()


def test_replicas_that_are_killed_score_every_segment_once(volume, store):
    store.publish(wide(), promote=True)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    processes = []

    def start(number: int):
        process = context.Process(target=work_until, args=(volume.root, f"worker{number:04d}", stop))
        process.start()
        processes.append(process)
        return process

    segments, victims = 150, [start(number) for number in range(2)]
    rng = np.random.default_rng(0)
    for seq in range(1, segments + 1):
        publish_features(volume, seq, rows=50)
        if seq % 50 == 0:
            victim = victims.pop(0)
            deadline = time.monotonic() + 60
            while len(result_files(volume)) < seq // 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(float(rng.random()) * 0.02)
            os.kill(victim.pid, signal.SIGKILL)
            victims.append(start(10 + seq))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ledger = read_ledger(volume)
        if ledger is not None and ledger.transactions_analyzed >= segments * 50:
            break
        time.sleep(0.05)
    stop.set()
    for process in processes:
        process.join()
    table = results(volume)
    assert Counter(table["trans_num"].to_list()) == Counter(
        f"g00-{seq}-{i}" for seq in range(1, segments + 1) for i in range(50)
    )
    ledger = read_ledger(volume)
    assert ledger.transactions_analyzed == segments * 50
    assert ledger.flagged_count == (table["decision"].cast(str) == "flagged").sum()
    assert volume.files.list(volume.features / "dead") == []


def raw_head(volume, *, finite: bool) -> None:
    """A producer, as far as its newest raw segment tells."""
    name = SegmentName(volume.epoch(), "g00", 0, 1)
    info = SegmentInfo(name=str(name), rows=0, rows_before=0, finite=finite, watermark=0)
    batch = pa.RecordBatch.from_pydict({"x": pa.array([], pa.int8())})
    write_segment(volume.files, volume.raw_ready(0) / name.file, batch, info)


def old_results(volume, store, count: int) -> list:
    store.publish(wide(), promote=True)
    for seq in range(998, 998 + count):
        publish_features(volume, seq)
    stage = replica(volume, results_retention_bytes=0, results_retention_seconds=0)
    drain(stage)
    stage.close()
    stage._ledger.fold()
    paths = result_files(volume)
    now = paths[0].stat().st_mtime
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (now - 100 * age - 50, now - 100 * age - 50))
    return paths


def test_retention_in_seconds_removes_the_oldest_and_empty_folders(volume, store):
    raw_head(volume, finite=False)
    paths = old_results(volume, store, 6)  # two in the folder of the first thousand
    retention = Retention(volume, RawHeads(volume), Limits(0, 300), Limits())
    pruned = retention.prune(volume.epoch())
    retention.close()
    assert pruned.files == 3
    assert result_files(volume) == paths[3:]
    assert len(volume.files.list(volume.results / "ready")) == 1


def test_retention_in_bytes_removes_the_oldest(volume, store):
    raw_head(volume, finite=False)
    paths = old_results(volume, store, 5)
    size = paths[0].stat().st_size
    Retention(volume, RawHeads(volume), Limits(3 * size), Limits()).prune(volume.epoch())
    assert result_files(volume) == paths[-2:] or result_files(volume) == paths[-3:]
    assert sum(path.stat().st_size for path in result_files(volume)) <= 3 * size


def test_retention_keeps_what_the_ledger_has_not_counted(volume, store):
    raw_head(volume, finite=False)
    paths = old_results(volume, store, 3)
    (volume.pending / f"{paths[0].stem}.json").write_bytes(b"{}")
    Retention(volume, RawHeads(volume), Limits(1), Limits()).prune(volume.epoch())
    assert result_files(volume) == paths[:1]


@pytest.mark.parametrize("limits", [(1, 1), (0, 0)])
def test_a_finite_run_or_no_limit_keeps_all(volume, store, limits):
    raw_head(volume, finite=limits == (1, 1))
    paths = old_results(volume, store, 3)
    assert Retention(volume, RawHeads(volume), Limits(*limits), Limits()).prune(volume.epoch()).files == 0
    assert result_files(volume) == paths


def test_feature_names_are_the_models(store):
    with pytest.raises(ModelError):
        ModelStore(Volume(store.folder.parent), features=FEATURES[:-1]).load(store.publish(wide(), promote=True))


def same_reasons(found, expected):
    """Our kernel and XGBoost add in different orders: contributions agree to within float32."""
    assert (found is None) == (expected is None)
    for one, other in zip(found or [], expected or [], strict=True):
        assert (one.feature, one.value) == (other.feature, other.value)
        assert one.contribution == pytest.approx(other.contribution, abs=1e-4)


@pytest.mark.parametrize("most", [0, 8, 1000])
def test_the_dearest_flagged_rows_have_reasons_that_are_the_models(volume, store, most):
    """A budget of 0.5 s: of 8 a second 4 rows, of 0 none, of 1000 all. Signals carry theirs into the ledger."""
    store.publish(wide(), promote=True)
    name = publish_features(volume, 1)
    batch, _ = read_segment(volume.features / "ready" / f"{name}.arrow")
    stage = replica(volume, reasons_max_per_s=most)
    stage.step()
    stage.close()
    table = results(volume)
    loss = table["risk_score"] * table["amt"]
    flagged = [row for row in loss.arg_sort(descending=True) if table["decision"].cast(str)[row] == "flagged"]
    features = codes.values(batch.column("features"))
    added = store.load("v000001").contributions(codes.of(batch.column("features")))
    expected = {table["trans_num"][row]: strongest(features[[row]], added[[row]])[0] for row in flagged[: most // 2]}
    ledger = read_ledger(volume)
    assert len(flagged) > 4
    assert ledger.reasons_computed == len(expected)
    assert ledger.reasons_deferred == ledger.flagged_count - len(expected)
    shown = {signal.trans_num: signal.reasons for signal in ledger.recent_signals}
    for trans_num, found in shown.items():
        same_reasons(found, expected.get(trans_num))
    assert any(shown.values()) == (most > 0)


@pytest.mark.parametrize("explains_fast", [True, False])
def test_a_step_explains_no_more_than_its_time_allows(volume, store, monkeypatch, explains_fast):
    """Of a burst of 250 rows XGBoost gets 20 ms worth, our kernel all that were flagged."""
    store.publish(wide(), promote=True)
    if not explains_fast:
        monkeypatch.setattr(shap, "MAX_TABLE_BYTES", 0)  # as for a model of too many trees
    for number in range(1, 5):
        publish_features(volume, number)
    stage = replica(volume, reasons_max_per_s=500)
    stage.step()
    stage.close()
    ledger = read_ledger(volume)
    assert ledger.flagged_count > 33
    assert ledger.reasons_computed == (min(250, ledger.flagged_count) if explains_fast else 33)
    assert ledger.reasons_computed + ledger.reasons_deferred == ledger.flagged_count


def test_contributions_add_up_to_the_score(volume, store):
    """With the calibrated bias they are the whole log odds: a row's differ from another's as their log odds do."""
    store.publish(wide(), promote=True)
    model = store.load("v000001")
    features = codes.encode(np.random.default_rng(1).random((50, WIDTH), dtype=np.float32))
    scores = model.score(features).astype(np.float64)
    odds = np.log(scores / (1 - scores))
    added = model.contributions(features).sum(axis=1, dtype=np.float64)
    assert added.shape == (50,)
    np.testing.assert_allclose(added - added[0], odds - odds[0], atol=1e-3)
