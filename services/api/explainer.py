"""Reasons of flagged transactions looked up: as they were kept, or computed with the model that scored them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from spearhead import evidence, shap, ubjson
from spearhead.evidence import Entry
from spearhead.pointer import VERSION
from spearhead.reasons import TEMPLATES, Reason
from spearhead.trees import UnsupportedError
from spearhead.volume import Volume

HELD: Final = 4  # models in memory, some MB each
NOT_KEPT: Final = "nothing is kept to explain it from: an older release scored it, or its file is damaged"


class Explanation(NamedTuple):
    """Reasons, strongest first, or a sentence that says why there are none."""

    reasons: list[Reason]
    note: str | None = None


class _Explainable(NamedTuple):
    paths: shap.Paths
    names: tuple[str, ...]
    slope: float


class _UnexplainedError(Exception):
    """No reasons; the message says why."""


class Explainer:
    """Used from several threads. ``count`` is told of each row whose reasons are computed here."""

    def __init__(self, volume: Volume, count: Callable[[], None]) -> None:
        self._volume = volume
        self._count = count
        self._models: dict[str, _Explainable] = {}
        self._lock = threading.Lock()

    def explain(self, version: str, entry: Entry | None) -> Explanation:
        """Reasons of a row that model ``version`` flagged, of what its segment kept (None: nothing). Raises OSError."""
        if entry is None:
            return Explanation([], NOT_KEPT)
        if isinstance(entry, list):
            return Explanation(entry)
        try:
            model = self._model(version)
            found = evidence.explain(entry, model.paths, model.names, model.slope)
        except (_UnexplainedError, ValueError) as error:
            return Explanation([], f"model {version}: {error}")
        self._count()
        return Explanation(found)

    def _model(self, version: str) -> _Explainable:
        with self._lock:  # also while it is read: of two look-ups one reads
            found = self._models.pop(version, None) or self._read(version)
            self._models[version] = found  # the last used comes last
            while len(self._models) > HELD:
                del self._models[next(iter(self._models))]
            return found

    def _read(self, version: str) -> _Explainable:
        if not VERSION.match(version):
            raise _UnexplainedError("no version has this name")
        folder = self._volume.models / version
        try:
            listed: dict[str, Any] = msgspec.json.decode((folder / "features.json").read_bytes(), type=dict[str, Any])
            weights = (folder / "model.ubj").read_bytes()
        except FileNotFoundError as error:
            raise _UnexplainedError("it is no longer kept, so nobody can say why it flagged this") from error
        if listed.get("sha256") not in {None, hashlib.sha256(weights).hexdigest()}:
            raise _UnexplainedError("model.ubj is damaged")
        try:
            names, slope = tuple(listed["features"]), float(listed.get("slope", 1.0))
            if not set(names) <= set(TEMPLATES):
                raise _UnexplainedError("it has features that this release has no words for")
            paths = shap.compile_paths(ubjson.decode(weights))
        except (ubjson.UbjsonError, UnsupportedError, KeyError, TypeError) as error:
            raise _UnexplainedError(f"its trees can't be explained here: {error}") from error
        return _Explainable(paths, names, slope)
