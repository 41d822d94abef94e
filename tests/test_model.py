"""spearhead/model.py: versions are whole or absent, broken ones are refused, the one in service stays."""

import os
import threading

import msgspec
import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st

from spearhead import codes, trees
from spearhead.files import Files
from spearhead.model import Artifact, Model, ModelError, ModelStore, Part, Window
from spearhead.pointer import Pointer, parse
from spearhead.volume import Volume

NAMES = ("amt", "hour", "gap")


@pytest.fixture
def volume(tmp_path):
    volume = Volume(tmp_path, Files(fsync=False))
    volume.prepare()
    return volume


@pytest.fixture
def store(volume):
    return ModelStore(volume, features=NAMES, features_version=7)


def booster(seed: int = 0, width: int = len(NAMES), **parameter) -> xgb.Booster:
    rng = np.random.default_rng(seed)
    features = rng.random((400, width), dtype=np.float32)
    label = (features[:, 0] + rng.random(400) > 1.3).astype(int)
    parameter = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1} | parameter
    return xgb.train(parameter, xgb.DMatrix(features, label), num_boost_round=5)


def artifact(seed: int = 0, made: xgb.Booster | None = None) -> Artifact:
    window = Window(train=Part(start=0, end=10, rows=5, frauds=1), fit_end=12, train_end=20)
    return Artifact(made or booster(seed), window, {"average_precision": 0.5}, [{"threshold": 0.5}], {"max_depth": 3})


def matrix(rows: int = 50) -> np.ndarray:
    """Codes, as the queue carries them."""
    return codes.encode(np.random.default_rng(9).random((rows, len(NAMES)), dtype=np.float32))


def values(rows: int = 50) -> np.ndarray:
    return codes.decode(matrix(rows))


def test_a_published_model_scores_as_the_trained_one(store):
    trained = artifact()
    version = store.publish(trained, promote=True)
    model = store.load(version)
    assert version == store.current() == "v000001"
    scores = model.score(matrix())
    assert scores.dtype == np.float32
    assert scores.tolist() == trained.booster.inplace_predict(values()).tolist()
    assert model.train_end == 20
    assert store.read(version, "metrics.json") == {"average_precision": 0.5, "promoted": True}
    assert sorted(path.name for path in (store.folder / version).iterdir()) == [
        "features.json", "metrics.json", "model.ubj", "params.json", "thresholds.json", "window.json",
    ]  # fmt: skip


@pytest.mark.parametrize("depth", [3, 9])  # of 9: the tree kernel leaves it to XGBoost's predictor
def test_a_calibration_is_kept_and_applied_wherever_the_model_goes(store, volume, tmp_path, depth):
    made = artifact(made=booster(max_depth=depth))._replace(slope=0.5, intercept=-2.0)
    version = store.publish(made, promote=True)
    model = store.load(version)
    margins = made.booster.inplace_predict(values(), predict_type="margin")
    assert model.score(matrix()) == pytest.approx(1 / (1 + np.exp(2.0 - 0.5 * margins)), rel=1e-5)
    (tmp_path / "other").mkdir()
    other = Volume(tmp_path / "other", Files(fsync=False))
    other.prepare()
    theirs = ModelStore(other, features=NAMES, features_version=7)
    moved = theirs.import_folder(store.folder / version)
    assert theirs.load(moved).score(matrix()).tolist() == model.score(matrix()).tolist()
    assert theirs.import_folder(store.folder / version) == moved
    plain = store.publish(made._replace(slope=1.0, intercept=0.0), promote=False)
    assert theirs.import_folder(store.folder / plain) != moved, "other scores, so another model"


def test_a_calibration_that_turns_the_ranking_over_is_refused(store):
    version = store.publish(artifact()._replace(slope=-1.0), promote=False)
    with pytest.raises(ModelError, match="a calibration of slope -1"):
        store.load(version)


def test_score_takes_the_matrix_as_it_is_or_refuses_it(store):
    model = store.load(store.publish(artifact(), promote=True))
    assert model.score(matrix(0)).shape == (0,)
    for wrong in (matrix().astype(np.float64), values(), matrix()[:, :2], matrix()[0]):
        with pytest.raises(ValueError, match=r"takes uint16 \(n, 3\)"):
            model.score(wrong)
    with pytest.raises(ValueError, match="C-contiguous"):
        model.score(np.asfortranarray(matrix()))


def test_a_loser_is_kept_but_not_in_service(store):
    store.publish(artifact(0), promote=True)
    assert store.publish(artifact(1), promote=False) == "v000002"
    assert store.current() == "v000001"
    assert store.versions() == ["v000001", "v000002"]
    assert store.read("v000002", "metrics.json")["promoted"] is False


def test_trainers_that_publish_at_once_get_different_versions(volume):
    barrier, versions = threading.Barrier(4), []

    def publish(seed):
        store = ModelStore(volume, features=NAMES, features_version=7)
        made = artifact(seed)
        barrier.wait()
        versions.extend(store.publish(made, promote=False) for _ in range(5))

    threads = [threading.Thread(target=publish, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [f"v{n:06d}" for n in range(1, 21)]
    store = ModelStore(volume, features=NAMES, features_version=7)
    assert all(isinstance(store.load(version), Model) for version in versions)


def test_no_model_and_a_damaged_pointer(store):
    assert store.current() is None
    assert store.adopt() is None
    (store.folder / "current").write_bytes(b"\xff\xfe../../etc")
    with pytest.raises(ModelError, match="which is no version"):
        store.current()


def test_rollback_goes_back_one_by_one_and_promotion_ends_a_withdrawal(store):
    versions = [store.publish(artifact(seed), promote=True) for seed in range(3)]
    assert versions == ["v000001", "v000002", "v000003"]
    assert store.rollback().version == store.current() == "v000002"
    assert store.service().withdrawn == ("v000003",)
    assert store.rollback().version == "v000001"
    with pytest.raises(ModelError, match="no model was in service before the present one"):
        store.rollback()
    assert store.current() == "v000001"
    store.promote("v000003")
    assert store.service() == Pointer("v000003", before=("v000001",), withdrawn=("v000002",))
    assert store.rollback().version == "v000001"
    with pytest.raises(ModelError, match="no model is in service"):
        ModelStore(Volume(store.folder, Files(fsync=False)), features=NAMES, features_version=7).rollback()


def test_a_version_that_was_rolled_back_does_not_stand_in_for_a_broken_one(store):
    for seed in range(3):
        store.publish(artifact(seed), promote=True)
    store.rollback()
    damage_model(store.folder / "v000002")
    assert store.last_good().version == "v000001"
    with pytest.raises(ModelError, match="is damaged"):
        store.promote("v000002")
    store.promote("v000001")
    damage_model(store.folder / "v000001")
    assert store.last_good() is None, "the only one left is the one that was withdrawn"


def test_rollback_to_a_broken_version_is_refused_and_the_present_one_stays(store):
    for seed in range(2):
        store.publish(artifact(seed), promote=True)
    damage_model(store.folder / "v000001")
    with pytest.raises(ModelError, match=r"v000001: model\.ubj is damaged"):
        store.rollback()
    assert store.current() == "v000002"


def test_a_promotion_over_another_version_than_the_one_in_service_is_none(store):
    first, second = (store.publish(artifact(seed), promote=seed == 0) for seed in range(2))
    store.promote(second, over=None)
    store.promote(second, over="v000009")
    assert store.current() == first
    store.promote(second, over=first)
    assert store.current() == second


versions = st.integers(1, 30).map("v{:06d}".format)


@given(st.lists(st.one_of(versions, st.none()), max_size=40))
def test_the_pointer_is_bounded_and_read_back_as_it_was_written(orders):
    """None is a rollback, a name a promotion."""
    now, served = Pointer("v000001"), ["v000001"]
    for order in orders:
        after = now.promoted(order) if order else now.rolled_back()
        if after is None:
            assert now.before == ()
            continue
        assert parse(after.encode().decode()) == after
        assert max(len(after.before), len(after.withdrawn)) <= 10
        assert len({after.version, *after.before, *after.withdrawn}) == 1 + len(after.before) + len(after.withdrawn)
        if order is None:
            assert after.version in served, "only what was in service comes back"
        served.append(after.version)
        now = after


def damage_model(folder):
    data = bytearray((folder / "model.ubj").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.ubj").write_bytes(data)


BROKEN = {
    "one bit": (damage_model, "is damaged"),
    "cut short": (lambda f: (f / "model.ubj").write_bytes((f / "model.ubj").read_bytes()[:100]), "is damaged"),
    "no model file": (lambda f: (f / "model.ubj").unlink(), "model.ubj can't be read"),
    "no feature list": (lambda f: (f / "features.json").unlink(), "features.json is missing"),
    "feature list is no JSON": (lambda f: (f / "features.json").write_bytes(b"{"), "features.json can't be read"),
    "window is no window": (lambda f: (f / "window.json").write_bytes(b'{"a": 1}'), "window.json can't be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_version_is_refused_and_never_promoted(store, kind):
    breaks, reason = BROKEN[kind]
    store.publish(artifact(0), promote=True)
    version = store.publish(artifact(1), promote=False)
    breaks(store.folder / version)
    with pytest.raises(ModelError, match=f"model {version}: {reason}|model {version}: .*{reason}"):
        store.load(version)
    with pytest.raises(ModelError):
        store.promote(version)
    assert store.current() == "v000001"
    assert store.last_good().version == "v000001"


def foreign(folder, names=NAMES, version=7, data=None):
    """Weights trained elsewhere: no checksum, no window."""
    folder.mkdir()
    (folder / "model.ubj").write_bytes(booster(width=len(names)).save_raw("ubj") if data is None else data)
    (folder / "features.json").write_bytes(msgspec.json.encode({"features_version": version, "features": names}))
    return folder


@pytest.mark.parametrize("cut", [0, 17, 1000, -1])
def test_torn_weights_without_a_checksum_are_refused(store, tmp_path, cut):
    whole = bytes(booster().save_raw("ubj"))
    with pytest.raises(ModelError, match="no XGBoost model"):
        store.import_folder(foreign(tmp_path / "w", data=whole[:cut]))
    assert store.versions() == []


@pytest.mark.parametrize(
    ("names", "version", "reason"),
    [
        (("amt", "gap", "hour"), 7, "the same in another order"),
        (("amt", "hour"), 7, "other features than this pipeline makes: gap"),
        (NAMES, 6, "features of version 6, this pipeline makes version 7"),
    ],
)
def test_a_model_of_other_features_is_refused(store, tmp_path, names, version, reason):
    with pytest.raises(ModelError, match=reason):
        store.import_folder(foreign(tmp_path / "w", names, version))
    assert store.current() is None


def test_a_model_whose_width_is_not_its_list_is_refused(store, tmp_path):
    data = bytes(booster(width=2).save_raw("ubj"))
    with pytest.raises(ModelError, match="takes 2 features, this pipeline makes 3"):
        store.import_folder(foreign(tmp_path / "w", data=data))


def test_a_model_that_gives_no_probability_is_refused(store, tmp_path):
    data = bytes(booster(objective="reg:squarederror", base_score=-3).save_raw("ubj"))
    with pytest.raises(ModelError, match="where risk scores are 0 to 1"):
        store.import_folder(foreign(tmp_path / "w", data=data))


def test_import_puts_weights_into_service_only_where_there_are_none(store, tmp_path):
    first = store.import_folder(foreign(tmp_path / "a"))
    assert store.current() == first == "v000001"
    assert store.import_folder(tmp_path / "a") == first, "the same weights are not copied again"
    second = store.publish(artifact(5), promote=False)
    assert store.current() == first
    assert store.versions() == [first, second]
    assert store.load(first).train_end == np.iinfo(np.int64).max, "an unknown window: all rows are in sample"


def test_import_from_a_models_folder_takes_the_one_in_service(store, volume, tmp_path):
    (tmp_path / "other").mkdir()
    other = Volume(tmp_path / "other", Files(fsync=False))
    other.prepare()
    theirs = ModelStore(other, features=NAMES, features_version=7)
    theirs.publish(artifact(1), promote=True)
    theirs.publish(artifact(2), promote=False)
    version = store.import_folder(other.models)
    assert store.load(version).score(matrix()).tolist() == theirs.load("v000001").score(matrix()).tolist()
    assert store.load(version).train_end == 20
    with pytest.raises(ModelError, match="is no model folder"):
        store.import_folder(volume.control)


def test_weights_already_in_models_are_adopted(store):
    foreign(store.folder / "from-elsewhere")
    assert store.adopt() == "v000001"
    assert store.adopt() == "v000001"
    assert store.versions() == ["v000001"]


def test_loose_weights_are_adopted(store, tmp_path):
    for path in foreign(tmp_path / "w").iterdir():
        (store.folder / path.name).write_bytes(path.read_bytes())
    assert store.adopt() == "v000001"


def test_a_trainer_killed_before_it_promoted_is_made_up_for(store):
    store.publish(artifact(0), promote=True)
    store.publish(artifact(1), promote=False)
    broken = store.publish(artifact(2), promote=True)
    (store.folder / broken / "model.ubj").unlink()
    (store.folder / "current").unlink()
    assert store.adopt() == "v000001", "the newest that won and is whole"


def test_prune_keeps_fifty_and_the_one_in_service(store):
    made = artifact()
    store.publish(made, promote=True)
    for _ in range(52):
        store.publish(made, promote=False)
    assert store.prune() == ["v000002", "v000003"]
    assert store.versions() == ["v000001", *(f"v{n:06d}" for n in range(4, 54))]
    assert store.prune() == []
    assert store.publish(made, promote=False) == "v000054"


def test_prune_keeps_what_can_be_rolled_back_to(store):
    made = artifact()
    for _ in range(2):
        store.publish(made, promote=True)
    for _ in range(52):
        store.publish(made, promote=False)
    assert store.prune() == ["v000003", "v000004"]
    assert store.rollback().version == "v000001"


class CrashError(Exception):
    pass


class Crashing(Files):
    """Dies before the n-th changing call."""

    def __init__(self, calls: int) -> None:
        super().__init__(fsync=True)
        self.calls = calls

    def step(self, call, path):
        self.calls -= 1
        if self.calls < 0:
            raise CrashError(call)


def test_killed_at_any_call_a_publish_is_whole_or_absent(volume):
    made, calls, done = artifact(3), 0, False
    while not done:
        before = ModelStore(volume, features=NAMES, features_version=7)
        had = before.versions()
        try:
            ModelStore(Volume(volume.root, Crashing(calls)), features=NAMES, features_version=7).publish(
                made, promote=True
            )
            done = True
        except CrashError:
            calls += 1
        for version in before.versions():
            before.load(version)
        if before.current() is not None:
            before.load(before.current())
        assert len(before.versions()) - len(had) in (0, 1)
    assert calls > 15
    assert before.current() == before.versions()[-1]


def test_stale_staging_folders_are_removed(store):
    stale = store.folder / ".staging-dead"
    stale.mkdir()
    (stale / "model.ubj").write_bytes(b"half")
    fresh = store.folder / ".staging-alive"
    fresh.mkdir()
    os.utime(stale, (1, 1))
    store.publish(artifact(), promote=True)
    assert not stale.exists()
    assert fresh.exists()


def test_trees_that_the_kernel_can_not_sum_are_left_to_xgboost(store):
    made = booster(booster="dart")
    model = store.load(store.publish(artifact(made=made), promote=True))
    assert not model.uses_kernel
    assert model.score(matrix()).tolist() == made.inplace_predict(values()).tolist()


def test_a_kernel_that_differs_from_xgboost_is_not_used(store, monkeypatch):
    version = store.publish(artifact(), promote=True)
    assert store.load(version).uses_kernel
    right = trees.margins
    monkeypatch.setattr(trees, "margins", lambda *arguments: right(*arguments) + np.float32(0.001))
    model = store.load(version)
    assert not model.uses_kernel
    assert model.score(matrix()).tolist() == artifact().booster.inplace_predict(values()).tolist()


@pytest.mark.parametrize("rows", [1, 511, 512, 513, 1025, 5000])
def test_threads_share_the_rows(volume, rows):
    one, three = (ModelStore(volume, threads, features=NAMES, features_version=7) for threads in (1, 3))
    version = one.publish(artifact(), promote=True)
    assert three.load(version).score(matrix(rows)).tolist() == one.load(version).score(matrix(rows)).tolist()
