"""What the model folders say: JSON beside the weights, read once a version. The weights themselves are not opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from services.api.snapshot import Models, Version
from spearhead.drift import Reference, check_reference
from spearhead.pointer import VERSION, in_service
from spearhead.volume import Volume

SHOWN_VERSIONS: Final = 40


class ModelReader:
    """Reads ``models/`` again and again; a version's files never change, so each is read once."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._versions: dict[str, Version] = {}
        self._shown = Models()

    def read(self) -> Models:
        """The model in service and the newest versions. Raises OSError. A damaged file is told in ``problem``."""
        names = [name for name in self._volume.files.list(self._volume.models) if VERSION.match(name)]
        names = sorted(names, key=lambda name: int(name[1:]))[-SHOWN_VERSIONS:]
        current = in_service(self._volume.models)
        problem = None
        for name in names:
            if name not in self._versions:
                try:
                    self._versions[name] = self._version(name)
                except FileNotFoundError:  # pruned meanwhile
                    continue
                except msgspec.DecodeError as error:
                    problem = f"models/{name}: {error}"
        versions = tuple(self._versions[name] for name in names if name in self._versions)
        if current != self._shown.current:
            self._shown = self._details(current)
        self._versions = {version.name: version for version in versions}
        return self._shown._replace(versions=versions, problem=problem or self._shown.problem)

    def _version(self, name: str) -> Version:
        folder = self._volume.models / name
        return Version(name, folder.stat().st_mtime, _json(folder / "metrics.json") or {})

    def _details(self, current: str | None) -> Models:
        """The files of the model in service. Weights trained elsewhere may lack any of them."""
        if current is None:
            return Models()
        folder = self._volume.models / current
        try:
            return Models(
                current=current,
                thresholds=tuple(_json(folder / "thresholds.json") or ()),
                window=_json(folder / "window.json"),
                parameters=_json(folder / "params.json"),
                reference=_reference(folder / "drift.json"),
            )
        except msgspec.DecodeError as error:
            return Models(current=current, problem=f"models/{current}: {error}")


def _reference(path: Path) -> Reference | None:
    """What drift is measured by. Raises msgspec.DecodeError if it is damaged."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
        check_reference(found, found.edges.features)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        raise
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from error
    return found


def _json(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return None
