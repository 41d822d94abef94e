"""The command line of models: ``python -m spearhead models list | promote | rollback | import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from spearhead.options import JsonOption, VolumeOption, open_volume, refuse
from spearhead.volume import VolumeError

if TYPE_CHECKING:
    from spearhead.model import ModelStore
    from spearhead.pointer import Pointer

app = typer.Typer(
    help="Which model scores: see the versions, choose one, go back, bring one in.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_(
    volume: VolumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every version, its figures, and why it is or isn't in service."""
    store = _store(volume)
    service = _service(store)
    rows = [_row(store, version, service) for version in store.versions()]
    if as_json:
        answer = {"in_service": service.version if service else None, "versions": rows}
        typer.echo(msgspec.json.encode(answer).decode())
        return
    for row in rows:
        figures = " ".join(f"{name} {_short(row[name])}" for name in ("average_precision", "ece", "rows"))
        typer.echo(f"{row['version']}  {row['state']:<14} {figures}  {row['reason'] or ''}".rstrip())
    if not rows:
        typer.echo("no models")


@app.command()
def promote(version: Annotated[str, typer.Argument(help="Such as v000003")], volume: VolumeOption = None) -> None:
    """Put a version in service. The trainer replaces it only by one that beats it."""
    from spearhead.model import ModelError  # noqa: PLC0415

    store = _store(volume)
    try:
        store.promote(version)
    except ModelError as error:
        raise refuse(str(error)) from error
    typer.echo(f"{version} is in service")


@app.command()
def rollback(volume: VolumeOption = None) -> None:
    """Put the version that was in service before back, and withdraw the present one."""
    from spearhead.model import ModelError  # noqa: PLC0415

    store = _store(volume)
    try:
        after = store.rollback()
    except ModelError as error:
        raise refuse(str(error)) from error
    typer.echo(f"{after.version} is in service, {after.withdrawn[0]} is withdrawn")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="model.ubj and features.json, or a volume's models")],
    volume: VolumeOption = None,
) -> None:
    """Copy in weights trained elsewhere. They go into service only where there is no model: promote them."""
    from spearhead.model import ModelError  # noqa: PLC0415

    store = _store(volume)
    try:
        version = store.import_folder(folder)
        serves = store.current() == version
    except (ModelError, OSError) as error:
        raise refuse(str(error)) from error
    typer.echo(f"{version} is in service" if serves else f"{version} is here; in service is {store.current()}")


def _store(root: Path | None) -> ModelStore:
    """The models of an existing volume. Where this image has no XGBoost, or no volume is there, it says so."""
    try:
        from spearhead.model import ModelStore  # noqa: PLC0415, heavy, and not in every image

        return ModelStore(open_volume(root))
    except ModuleNotFoundError as error:
        raise refuse(f"there is no {error.name} here: run this in train or inference") from error
    except VolumeError as error:
        raise refuse(str(error)) from error


def _service(store: ModelStore) -> Pointer | None:
    from spearhead.model import ModelError  # noqa: PLC0415

    try:
        return store.service()
    except ModelError as error:
        raise refuse(str(error)) from error


def _row(store: ModelStore, version: str, service: Pointer | None) -> dict[str, Any]:
    from spearhead.model import ModelError  # noqa: PLC0415

    try:
        metrics = store.read(version, "metrics.json")
    except ModelError:  # weights trained elsewhere need none
        metrics = {}
    verdict = metrics.get("verdict") or {}
    return {
        "version": version,
        "state": _state(version, service, metrics.get("promoted")),
        "average_precision": metrics.get("average_precision"),
        "ece": (metrics.get("calibration") or {}).get("ece"),
        "rows": metrics.get("rows"),
        "reason": verdict.get("reason"),
    }


def _state(version: str, service: Pointer | None, promoted: bool | None) -> str:
    if service is not None:
        if version == service.version:
            return "in service"
        if version in service.withdrawn:
            return "withdrawn"
        if version in service.before:
            return "before"
    return "shadow" if promoted is False else "not in service"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
