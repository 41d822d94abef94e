"""``spearhead models`` as an operator runs it, beside a pipeline that scores."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import xgboost as xgb
from processes import Up, command, wait_until

from spearhead.control import Control, write_control
from spearhead.features import WIDTH
from spearhead.ledger import LedgerFile
from spearhead.model import Artifact, ModelStore, Window
from spearhead.pointer import Pointer
from spearhead.volume import Volume

Start = Callable[..., Up]
SMALL = {"CARDS": 500, "MERCHANTS": 50, "FSYNC": "false", "HEARTBEAT_SECONDS": 0.2}


def artifact(seed: int) -> Artifact:
    rng = np.random.default_rng(seed)
    features = rng.random((400, WIDTH), dtype=np.float32)
    label = (features[:, 0] + rng.random(400) > 1.3).astype(int)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(features, label), num_boost_round=3)
    metrics = {"average_precision": 0.5, "calibration": {"ece": 0.001}, "verdict": {"reason": "a test"}}
    return Artifact(booster, Window(fit_end=0, train_end=0), metrics, [], {})


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Two versions, the first in service."""
    volume = Volume(tmp_path / "volume")
    volume.root.mkdir()
    volume.prepare()
    store = ModelStore(volume)
    store.publish(artifact(0), promote=True)
    store.publish(artifact(1), promote=False)
    return store


def models(store: ModelStore, *arguments: str) -> str:
    done = command("models", *arguments, "--volume", str(store.folder.parent))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(store: ModelStore, *arguments: str) -> str:
    done = command("models", *arguments, "--volume", str(store.folder.parent))
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("spearhead: ")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def states(store: ModelStore) -> dict[str, str]:
    listed = msgspec.json.decode(models(store, "list", "--json"))
    assert listed["in_service"] == store.current()
    return {row["version"]: row["state"] for row in listed["versions"]}


def test_inference_obeys_an_operator_and_refuses_what_is_broken(store: ModelStore) -> None:
    root = store.folder.parent
    pipeline = Up(root, "--rate", "2000", "--no-train", "--no-api", **SMALL)
    ledger = root / "metrics" / ".metrics.json"

    def scored(version: str) -> int:
        found = msgspec.json.decode(ledger.read_bytes(), type=LedgerFile) if ledger.exists() else None
        return found.models.get(version, 0) if found else 0

    def takes_over(version: str) -> None:
        before = scored(version)
        wait_until(lambda: scored(version) > before, f"{version} scores\n{pipeline.output}")

    try:
        takes_over("v000001")
        assert scored("v000002") == 0
        assert models(store, "promote", "v000002") == "v000002 is in service\n"
        takes_over("v000002")
        assert models(store, "rollback") == "v000001 is in service, v000002 is withdrawn\n"
        takes_over("v000001")
        assert states(store) == {"v000001": "in service", "v000002": "withdrawn"}
        weights = store.folder / "v000002" / "model.ubj"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert "v000002: model.ubj is damaged" in refused(store, "promote", "v000002")
        assert "no model was in service before" in refused(store, "rollback")
        takes_over("v000001")
    finally:
        pipeline.kill()


def test_the_trainer_judges_by_the_operators_choice_and_leaves_it_in_service(tmp_path: Path) -> None:
    """No model is better by a whole 1: what is in service is the first model, or what an operator chose."""
    settings = SMALL | {"LABEL_DELAY_DAYS": 0.5, "TRAIN_FIRST_ROWS": 2000, "TRAIN_INTERVAL_SECONDS": 0.5,
                        "TRAIN_MAX_ROWS": 10_000, "FRAUD_RATE": 0.05, "PROMOTE_MARGIN": 1}  # fmt: skip
    pipeline = Up(tmp_path / "volume", "--rate", "3000", "--no-api", **settings)
    store = ModelStore(Volume(tmp_path / "volume"))

    def judged_against(version: str) -> list[str]:
        verdicts = [store.read(name, "metrics.json")["verdict"] for name in store.versions()]
        return [verdict["reason"] for verdict in verdicts if verdict["version"] == version]

    try:
        wait_until(lambda: store.folder.exists() and judged_against("v000001"), f"a challenger\n{pipeline.output}")
        assert store.current() == "v000001"
        # Retraining is nice to everything else: on a machine that other tests load it would wait for ever.
        write_control(Volume(tmp_path / "volume"), Control(priority="training"))
        models(store, "promote", "v000002")
        wait_until(lambda: len(judged_against("v000002")) >= 2, f"two challengers of v000002\n{pipeline.output}")
        assert store.current() == "v000002"
        before = len(judged_against("v000001"))
        models(store, "rollback")
        wait_until(lambda: len(judged_against("v000001")) >= before + 2, f"challengers of v000001\n{pipeline.output}")
        assert store.service() == Pointer("v000001", withdrawn=("v000002",))
        assert not any(reason.startswith("average precision 0") and "against" in reason
                       for reason in judged_against("v000001"))  # fmt: skip
    finally:
        pipeline.kill()


def test_models_are_listed_for_people_too(store: ModelStore) -> None:
    first, second = models(store, "list").splitlines()
    assert first.split() == ["v000001", "in", "service", "average_precision", "0.5000", "ece", "0.0010",
                             "rows", "-", "a", "test"]  # fmt: skip
    assert second.split()[:2] == ["v000002", "shadow"]


def test_import_brings_weights_in_and_promote_puts_them_in_service(store: ModelStore, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("model.ubj", "features.json"):
        (other / name).write_bytes((store.folder / "v000002" / name).read_bytes())
    assert models(store, "import", str(other)) == "v000002 is here; in service is v000001\n", "the same weights"
    listed = msgspec.json.decode((other / "features.json").read_bytes())
    (other / "features.json").write_bytes(msgspec.json.encode(listed | {"slope": 0.5}))
    assert models(store, "import", str(other)) == "v000003 is here; in service is v000001\n"
    models(store, "promote", "v000003")
    assert store.load(store.current() or "").slope == 0.5
    assert states(store) == {"v000001": "before", "v000002": "shadow", "v000003": "in service"}
    (other / "features.json").write_bytes(msgspec.json.encode(listed | {"features_version": 999}))
    assert "features of version 999" in refused(store, "import", str(other))
    assert "is no model folder" in refused(store, "import", str(tmp_path))
    assert len(store.versions()) == 3


def test_what_is_not_there_is_refused(store: ModelStore, tmp_path: Path) -> None:
    assert "there is no model v000009" in refused(store, "promote", "v000009")
    assert "'../models/v000002' is no version" in refused(store, "promote", "../models/v000002")
    done = command("models", "list", "--volume", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    (store.folder / "current").write_text("garbage")
    assert "is no version" in refused(store, "list")


def test_an_image_without_xgboost_says_where_to_run_it(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the images of generator, prep and api."""
    monkeypatch.setenv("PYTHONPATH", str(store.folder.parent.parent))
    (store.folder.parent.parent / "sitecustomize.py").write_text("import sys\nsys.modules['xgboost'] = None\n")
    assert sys.modules["xgboost"] is not None
    assert "there is no xgboost here: run this in train or inference" in refused(store, "list")
