"""Models on the volume: how a version is stored, put in service, checked, loaded and brought in from elsewhere.

``models/v000001/`` is one version and never changes:

* ``model.ubj``: XGBoost's own binary format;
* ``features.json``: ordered feature names, the version of their meaning, SHA-256 of ``model.ubj``, the calibration;
* ``window.json``: event time and rows of the training, validation and test parts (``Window``);
* ``metrics.json``, ``thresholds.json``, ``params.json``: for people, the API and the promotion of later models;
* ``drift.json``: the bins and shares that drift is measured by (``drift.Reference``);
* ``card.md``, ``card.json``, ``calibration.png``, ``pr_curve.png``: the model card.

``models/current`` says which version is in service (``spearhead/pointer.py``). A version is built in
``models/.staging-*`` and renamed as a folder, so that it is whole or absent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import EllipsisType, MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from spearhead import codes, pointer, shap, trees
from spearhead.codes import Codes, Packed
from spearhead.drift import Reference, check_reference
from spearhead.features import FEATURES, FEATURES_VERSION
from spearhead.pointer import VERSION, Pointer
from spearhead.trees import Trees
from spearhead.volume import Volume

KEPT: Final = 50  # newest versions that are never pruned
STALE_STAGING_SECONDS: Final = 3600.0
_NEEDED: Final = ("model.ubj", "features.json")
_OPTIONAL: Final = ("window.json", "metrics.json", "thresholds.json", "params.json", "drift.json",
                    "card.md", "card.json", "calibration.png", "pr_curve.png")  # fmt: skip
_log = logging.getLogger(__name__)


class ModelError(ValueError):
    """A model that can't be used; the message says which and why."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a training window. Times are us since 1970, both ends belong to it."""

    start: int
    end: int
    rows: int
    frauds: int


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The event time that a model has seen. None where a part was empty."""

    train: Part | None = None
    valid: Part | None = None
    test: Part | None = None
    fit_end: int  # newest event time that shaped the trees: training and early stopping
    train_end: int  # newest event time used at all, promotion included: rows up to it are in sample


class FeatureList(msgspec.Struct, frozen=True, kw_only=True):
    """``features.json``. Weights trained elsewhere may lack ``sha256`` of the model file and the calibration."""

    features_version: int
    features: tuple[str, ...]
    sha256: str | None = None
    slope: float = 1.0  # a score is the sigmoid of slope times the trees' log-odds plus intercept
    intercept: float = 0.0


class Artifact(NamedTuple):
    """A trained model before it has a version."""

    booster: xgb.Booster
    window: Window
    metrics: Mapping[str, Any]
    thresholds: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]
    slope: float = 1.0
    intercept: float = 0.0
    card: Mapping[str, bytes] = MappingProxyType({})  # file name: contents
    reference: Reference | None = None  # None: no drift is measured


class Model:
    """A loaded version that scores: the trees' log-odds times ``slope`` plus ``intercept``, as probabilities."""

    def __init__(
        self,
        version: str,
        booster: xgb.Booster,
        width: int,
        window: Window | None,
        trees: Trees | None = None,
        threads: int = 1,
        slope: float = 1.0,
        intercept: float = 0.0,
        tables: shap.Tables | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.version = version
        self.booster = booster
        self.width = width
        self.window = window
        self.threads = threads
        self.slope = slope
        self.intercept = intercept
        self.reference = reference
        self._trees = trees  # the booster's, for spearhead.trees to sum; None: XGBoost predicts
        self._tables = tables  # of its contributions, for spearhead.shap; None: XGBoost explains

    @property
    def train_end(self) -> int:
        """Rows up to this event time, us, are in sample; a window that nobody knows covers all time."""
        return self.window.train_end if self.window else int(np.iinfo(np.int64).max)

    @property
    def uses_kernel(self) -> bool:
        """Whether our own kernel sums the trees, not XGBoost's predictor."""
        return self._trees is not None

    def score(self, features: Codes | Packed) -> NDArray[np.float32]:
        """Risk scores 0 to 1, float32 (n,), of C-contiguous 16-bit codes (n, width), or packed as the queue has them.

        Raises ValueError if the codes have another shape, type or layout.
        """
        packed = features if isinstance(features, Packed) else codes.plain(features)
        self._check(packed.own, np.dtype(np.uint16), packed.tuples.shape[1])
        if self._trees is None:
            return self.score_values(codes.decode(packed.matrix()))
        return trees.probabilities(trees.margins(self._trees, packed, self.threads), self.slope, self.intercept)

    def score_values(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same of C-contiguous float32 values, by XGBoost's own predictor: slow, and for any values."""
        self._check(features, np.dtype(np.float32))
        if len(features) == 0:
            return np.empty(0, np.float32)
        if (self.slope, self.intercept) == (1.0, 0.0):  # so that any objective that gives probabilities will do
            scores: NDArray[np.float32] = self.booster.inplace_predict(features, validate_features=False)
            return scores
        margins = self.booster.inplace_predict(features, predict_type="margin", validate_features=False)
        return trees.probabilities(margins, self.slope, self.intercept)

    def _check(self, features: NDArray[Any], dtype: np.dtype[Any], shared: int = 0) -> None:
        if features.dtype != dtype or features.ndim != 2 or features.shape[1] + shared != self.width:
            raise ValueError(
                f"model {self.version} takes {dtype} (n, {self.width}), not {features.dtype} {features.shape}"
            )
        if not features.flags.c_contiguous:
            raise ValueError("the feature matrix must be C-contiguous")

    @property
    def explains_fast(self) -> bool:
        """Whether our own kernel gives contributions, not XGBoost."""
        return self._tables is not None

    @property
    def explain_seconds(self) -> float:
        """What a row's contributions take, about, with trees as the trainer grows them."""
        return 25e-6 if self.explains_fast else 0.6e-3

    def contributions(self, features: Codes) -> NDArray[np.float32]:
        """What each feature adds to the score of each row, in log odds (TreeSHAP): float32 (n, width).

        ``features`` as for ``score``. Some 25 us a row, 0.6 ms where XGBoost explains.
        """
        self._check(features, np.dtype(np.uint16))
        if self._tables is None:
            return _contributions(self.booster, features) * np.float32(self.slope)
        return (shap.contributions(self._tables, features) * self.slope).astype(np.float32)


class ModelStore:
    """The versions under ``models/``. Many may read; writers never overwrite one another."""

    def __init__(
        self,
        volume: Volume,
        threads: int = 1,
        device: str = "cpu",
        features: Sequence[str] = FEATURES,
        features_version: int = FEATURES_VERSION,
        *,
        explains: bool = False,
    ) -> None:
        self.folder = volume.models
        self._files = volume.files
        self._threads = threads
        self._device = device
        self._features = tuple(features)
        self._features_version = features_version
        self._explains = explains  # whether loaded models are made ready to explain many rows

    def current(self) -> str | None:
        """Name of the version in service, None if there is none. Raises ModelError if the pointer is damaged."""
        service = self.service()
        return service.version if service else None

    def service(self) -> Pointer | None:
        """The version in service and those before it, None if there is none. Raises ModelError if it is damaged."""
        try:
            text = (self.folder / "current").read_text(errors="replace")
        except FileNotFoundError:
            return None
        found = pointer.parse(text)
        if found is None:
            raise ModelError(f"models/current says {text.strip()[:40]!r}, which is no version")
        return found

    def versions(self) -> list[str]:
        """Names of all versions, oldest first."""
        return sorted((n for n in self._files.list(self.folder) if VERSION.match(n)), key=lambda n: int(n[1:]))

    def load(self, version: str) -> Model:
        """Load and check a version. Raises ModelError if it is absent, damaged or of other features."""
        return self._load(self.folder / version, version)

    def read(self, version: str, file: str) -> Any:
        """One of a version's JSON files, decoded. Raises ModelError if it is absent or damaged."""
        return _read_json(self.folder / version / file, version)

    def publish(self, artifact: Artifact, *, promote: bool, over: str | EllipsisType | None = ...) -> str:
        """Store a trained model as the next version and put it in service if ``promote``. Returns its name.

        With ``over`` it goes into service only if that version is there still, None being no version.
        """
        model = bytes(artifact.booster.save_raw("ubj"))
        version = self._store(
            {
                "model.ubj": model,
                "features.json": self._feature_list(model, artifact.slope, artifact.intercept),
                "window.json": msgspec.json.encode(artifact.window),
                "metrics.json": msgspec.json.encode({**artifact.metrics, "promoted": promote}),
                "thresholds.json": msgspec.json.encode(artifact.thresholds),
                "params.json": msgspec.json.encode(artifact.params),
                **({"drift.json": msgspec.json.encode(artifact.reference)} if artifact.reference else {}),
                **artifact.card,
            }
        )
        if promote:
            self.promote(version, over)
        return version

    def promote(self, version: str, over: str | EllipsisType | None = ...) -> None:
        """Put a version in service; with ``over`` only in place of that one. Raises ModelError if it is unusable."""
        if not VERSION.match(version):
            raise ModelError(f"{version[:40]!r} is no version")
        if not (self.folder / version).is_dir():
            raise ModelError(f"there is no model {version}")
        self.load(version)
        now = self._readable_service()
        if over is ... or over == (now.version if now else None):
            after = now.promoted(version) if now else Pointer(version)
            self._files.replace(self.folder / "current", after.encode())

    def rollback(self) -> Pointer:
        """Put the version before back into service and withdraw the present one.

        Raises ModelError if there is none to go back to, or it is unusable; the present one then stays.
        """
        now = self.service()
        after = now.rolled_back() if now else None
        if after is None:
            raise ModelError("no model was in service before the present one" if now else "no model is in service")
        self.load(after.version)
        self._files.replace(self.folder / "current", after.encode())
        return after

    def import_folder(self, folder: Path) -> str:
        """Copy in weights trained elsewhere (``model.ubj`` and ``features.json`` at least); returns their version.

        A ``models`` folder of another volume stands for its version in service. Weights that are here already are
        not copied again. On a volume without a model they go into service. Raises ModelError if they can't be used.
        """
        folder = _resolve(folder)
        loaded = self._load(folder, str(folder))
        model = (folder / "model.ubj").read_bytes()
        listed = self._feature_list(model, loaded.slope, loaded.intercept)
        version = self._find(listed) or self._store(
            {"model.ubj": model, "features.json": listed}
            | {name: (folder / name).read_bytes() for name in _OPTIONAL if (folder / name).exists()}
        )
        self._files.put_if_absent(self.folder / "current", f"{version}\n".encode())
        return version

    def adopt(self) -> str | None:
        """On a volume where no model is in service, put weights that lie in ``models/`` into service.

        Versions first, newest first and those that lost their promotion last, then other folders, then loose files.
        Returns the version in service, None if there is nothing usable.
        """
        if (self.folder / "current").exists():
            return self.current()
        for version in sorted(self.versions(), key=lambda v: (self._won(v), int(v[1:])), reverse=True):
            if self._usable(self.folder / version):
                self._files.put_if_absent(self.folder / "current", f"{version}\n".encode())
                return self.current()
        others = [self.folder / n for n in self._files.list(self.folder) if not VERSION.match(n)]
        for folder in [*(path for path in others if path.is_dir()), self.folder]:
            if (folder / "model.ubj").exists() and self._usable(folder):
                self.import_folder(folder)
                return self.current()
        return None

    def last_good(self) -> Model | None:
        """What stands in while the one in service can't: of those that can be loaded the last that was in service.

        Where nobody knows which were, the newest that won its promotion. Never one that was withdrawn.
        """
        service = self._readable_service() or Pointer("")
        won = [version for version in reversed(self.versions()) if self._won(version)]
        for version in [*service.before, *(name for name in won if name not in service.withdrawn)]:
            if self._usable(self.folder / version):
                return self.load(version)
        return None

    def prune(self) -> list[str]:
        """Remove all but the newest 50 versions, the one in service and those before it; returns the names removed."""
        service = self.service()
        held = {service.version, *service.before} if service else set()
        old = [version for version in self.versions()[:-KEPT] if version not in held]
        for version in old:
            hidden = self.folder / f".old-{version}-{secrets.token_hex(6)}"
            try:
                self._files.rename(self.folder / version, hidden)
            except FileNotFoundError:  # another trainer prunes too
                continue
            self._remove_tree(hidden)
        return old

    def _feature_list(self, model: bytes, slope: float, intercept: float) -> bytes:
        return msgspec.json.encode(
            FeatureList(
                features_version=self._features_version,
                features=self._features,
                sha256=hashlib.sha256(model).hexdigest(),
                slope=slope,
                intercept=intercept,
            )
        )

    def _store(self, contents: Mapping[str, bytes]) -> str:
        staging = self.folder / f".staging-{secrets.token_hex(8)}"
        self._files.make_folder(staging)
        try:
            self._remove_stale_staging(now=staging.stat().st_mtime)
            for name, data in contents.items():
                self._files.create(staging / name, data)
            self._files.sync_folders([staging])
            version = self._rename_to_next(staging)
        except BaseException:
            self._remove_tree(staging)
            raise
        self._files.sync_folders([self.folder])
        return version

    def _rename_to_next(self, staging: Path) -> str:
        """Rename a finished folder to the next free version: a rename onto a version fails, as no version is empty."""
        inode = staging.stat().st_ino
        number = 1 + max((int(version[1:]) for version in self.versions()), default=0)
        while True:
            version = f"v{number:06d}"
            try:
                self._files.rename(staging, self.folder / version)
            except FileNotFoundError:  # on NFS the reply of a rename that succeeded may be lost
                if (self.folder / version).stat().st_ino != inode:
                    raise
            except OSError:
                if not (self.folder / version).exists():
                    raise
                number += 1
                continue
            return version

    def _readable_service(self) -> Pointer | None:
        try:
            return self.service()
        except ModelError:  # a pointer that can't be read says nothing of what was before
            return None

    def _find(self, features: bytes) -> str | None:
        """The newest version with these contents of ``features.json``, weights and calibration among them."""
        wanted = msgspec.json.decode(features, type=FeatureList)
        for version in reversed(self.versions()):
            try:
                found = _decode(self.folder / version / "features.json", version, FeatureList)
            except ModelError:  # a damaged version is no copy of these weights
                continue
            if found == wanted:
                return version
        return None

    def _won(self, version: str) -> bool:
        try:
            return bool(self.read(version, "metrics.json").get("promoted", True))
        except (ModelError, AttributeError):  # weights from elsewhere need no metrics
            return True

    def _usable(self, folder: Path) -> bool:
        try:
            self._load(folder, folder.name)
        except ModelError:
            return False
        return True

    def _load(self, folder: Path, version: str) -> Model:
        listed = _decode(folder / "features.json", version, FeatureList)
        self._check_features(listed, version)
        if not listed.slope > 0:  # it would turn the ranking over; JSON has no number that is not finite
            raise ModelError(f"model {version}: a calibration of slope {listed.slope} is none")
        try:
            data = (folder / "model.ubj").read_bytes()
        except OSError as error:
            raise ModelError(f"model {version}: model.ubj can't be read: {error.strerror}") from error
        if listed.sha256 is None:
            _try_elsewhere(folder / "model.ubj", version)
        elif hashlib.sha256(data).hexdigest() != listed.sha256:
            raise ModelError(f"model {version}: model.ubj is damaged (its SHA-256 differs from features.json)")
        window = _decode(folder / "window.json", version, Window) if (folder / "window.json").exists() else None
        booster = self._booster(data, version)
        found = None if self._device == "cuda" else _trees(booster, version)
        model = Model(
            version, booster, len(self._features), window, found, self._threads, listed.slope, listed.intercept,
            _tables(booster, version) if self._explains else None,
            self._reference(folder, version),
        )  # fmt: skip
        _check_scores(model)
        return model

    def _check_features(self, listed: FeatureList, version: str) -> None:
        if listed.features_version != self._features_version:
            raise ModelError(
                f"model {version} takes features of version {listed.features_version}, "
                f"this pipeline makes version {self._features_version}"
            )
        if listed.features != self._features:
            differ = sorted(set(listed.features) ^ set(self._features))
            raise ModelError(
                f"model {version} takes other features than this pipeline makes: "
                + (", ".join(differ) if differ else "the same in another order")
            )

    def _reference(self, folder: Path, version: str) -> Reference | None:
        """What drift is measured by. A model scores without it, so a damaged one is told and done without."""
        if not (folder / "drift.json").exists():
            return None
        try:
            found: Reference = _decode(folder / "drift.json", version, Reference)
            check_reference(found, self._features)
        except ValueError as error:
            _log.warning("no drift is measured: %s", error)
            return None
        return found

    def _booster(self, data: bytes, version: str) -> xgb.Booster:
        try:
            booster = xgb.Booster(
                {"nthread": self._threads, "device": self._device, "validate_parameters": False},
                model_file=bytearray(data),
            )
            width = booster.num_features()
        except (xgb.core.XGBoostError, ValueError) as error:
            raise ModelError(f"model {version}: model.ubj is no XGBoost model: {str(error).splitlines()[0]}") from error
        if width != len(self._features):
            raise ModelError(f"model {version} takes {width} features, this pipeline makes {len(self._features)}")
        return booster

    def _remove_stale_staging(self, now: float) -> None:
        """Remove what killed trainers left. ``now`` is the server's clock."""
        for path in self.folder.iterdir():
            if path.name.startswith((".staging-", ".old-")):
                try:
                    if now - path.stat().st_mtime > STALE_STAGING_SECONDS:
                        self._remove_tree(path)
                except FileNotFoundError:  # its own trainer was faster
                    continue

    def _remove_tree(self, folder: Path) -> None:
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return
        for name in names:
            self._files.remove(folder / name)
        self._files.remove_folder(folder)


def _try_elsewhere(path: Path, version: str) -> None:
    """Load weights without a checksum in a process of their own first: XGBoost aborts on a file that is cut short."""
    load = "import sys, xgboost; xgboost.Booster(model_file=sys.argv[1]).num_features()"
    if subprocess.run([sys.executable, "-c", load, str(path)], capture_output=True, check=False).returncode:
        raise ModelError(f"model {version}: {path.name} is no XGBoost model, or not a whole one")


def _trees(booster: xgb.Booster, version: str) -> Trees | None:
    """The booster's trees for our own kernel, once it has shown that it gives what XGBoost gives; else None."""
    try:
        found = trees.compile_trees(bytes(booster.save_raw("json")))
    except trees.UnsupportedError as error:
        _log.info("model %s is left to XGBoost's predictor: %s", version, error)
        return None
    rows = trees.probe(found, booster.num_features())
    ours = trees.margins(found, rows)
    theirs = booster.inplace_predict(codes.decode(rows), predict_type="margin", validate_features=False)
    if not np.allclose(ours, theirs, rtol=0, atol=1e-5):
        _log.warning("model %s is left to XGBoost's predictor: the tree kernel differs from it", version)
        return None
    return found


def _tables(booster: xgb.Booster, version: str) -> shap.Tables | None:
    """Tables of contributions, once they have shown that they give what XGBoost gives; else None."""
    try:
        paths = shap.compile_paths(msgspec.json.decode(booster.save_raw("json")))
        found = shap.tabulate(paths)
    except trees.UnsupportedError as error:
        _log.info("reasons of model %s are left to XGBoost: %s", version, error)
        return None
    rows = shap.probe(paths, booster.num_features())
    if not np.allclose(shap.contributions(found, rows), _contributions(booster, rows), rtol=1e-4, atol=1e-4):
        _log.warning("reasons of model %s are left to XGBoost: the kernel differs from it", version)
        return None
    return found


def _contributions(booster: xgb.Booster, features: Codes) -> NDArray[np.float32]:
    """By XGBoost itself, without the bias, which comes last."""
    rows = xgb.DMatrix(codes.decode(features), nthread=1)
    found: NDArray[np.float32] = booster.predict(rows, pred_contribs=True, validate_features=False)
    return found[:, :-1]


def _check_scores(model: Model) -> None:
    """A model that passes gives probabilities, missing values included."""
    probe = np.zeros((2, model.width), np.uint16)
    probe[1] = codes.MISSING
    try:
        scores = model.score(probe)
    except xgb.core.XGBoostError as error:
        raise ModelError(f"model {model.version} can't score: {str(error).splitlines()[0]}") from error
    if scores.shape != (2,) or not ((scores >= 0) & (scores <= 1)).all():
        raise ModelError(f"model {model.version} gives {scores.tolist()} where risk scores are 0 to 1")


def _resolve(folder: Path) -> Path:
    if not (folder / "model.ubj").exists():
        version = pointer.in_service(folder)
        folder = folder / version if version else folder
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is no model folder: {name} is missing")
    return folder


def _read_json(path: Path, version: str) -> Any:
    return _decode(path, version, Any)


def _decode(path: Path, version: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise ModelError(f"model {version}: {path.name} is missing") from error
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"model {version}: {path.name} can't be read: {error}") from error
