"""The command line, ``python -m spearhead up | verify | status | reset | bench | models | warm``: library calls."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from pydantic import ValidationError

from spearhead import cli_models
from spearhead.errors import ConfigurationError
from spearhead.files import Files
from spearhead.options import JsonOption, VolumeOption, default_volume, open_volume, refuse
from spearhead.settings import Settings, explain
from spearhead.volume import Volume, VolumeError

app = typer.Typer(
    name="spearhead",
    help="A real-time card-fraud appliance: five stages that talk only through files.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # it would take "[env FLASHBLADE_PATH]" for a style, and not show it
    pretty_exceptions_enable=False,
)
app.add_typer(cli_models.app, name="models")
WARM = (  # what compiles a stage's kernels: an image holds only its own stage
    ("generator", "services.generator.warm", "run"),
    ("prep", "spearhead.features", "warm"),
    ("prep", "spearhead.codes", "warm"),
    ("train", "spearhead.codes", "warm"),
    ("train", "spearhead.trees", "warm"),
    ("inference", "spearhead.codes", "warm"),
    ("inference", "spearhead.trees", "warm"),
    ("inference", "spearhead.shap", "warm"),
    ("inference", "spearhead.scoring", "warm"),
    ("inference", "spearhead.binning", "warm"),
    ("api", "spearhead.codes", "warm"),
)


@app.command()
def up(
    volume: VolumeOption = None,
    rate: Annotated[str | None, typer.Option(help="Rows a second, or max  [50000]")] = None,
    source: Annotated[Path | None, typer.Option(help="CSV or Parquet file to replay")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Replay the source for ever")] = False,
    population: Annotated[str | None, typer.Option(help="synthetic or handbook traffic  [synthetic]")] = None,
    rows: Annotated[int | None, typer.Option(help="End the traffic after so many rows")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the synthetic traffic")] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit when every row is scored and counted")] = False,
    duration: Annotated[float | None, typer.Option(help="Stop after so many seconds", min=0)] = None,
    prep: Annotated[int, typer.Option(help="Prep processes", min=0)] = 1,
    inference: Annotated[int, typer.Option(help="Inference processes", min=0)] = 1,
    model: Annotated[Path | None, typer.Option(help="Import a model folder first")] = None,
    no_train: Annotated[bool, typer.Option("--no-train", help="Don't train")] = False,
    no_api: Annotated[bool, typer.Option("--no-api", help="Don't serve the API")] = False,
    port: Annotated[int | None, typer.Option(help="Port of the API  [8000]")] = None,
) -> None:
    """Run the stages as processes on this host until Ctrl-C."""
    from spearhead.console import Console  # noqa: PLC0415, the other commands don't need it
    from spearhead.supervisor import Plan, Supervisor  # noqa: PLC0415

    overrides: dict[str, Any] = {
        "FLASHBLADE_PATH": (volume or default_volume()).expanduser().absolute(),
        "GENERATION_RATE": rate,
        "SOURCE": None if source is None else source.expanduser().absolute(),
        "LOOP": "true" if loop else None,
        "POPULATION": population,
        "ROWS": rows,
        "SEED": seed,
        "PORT": port,
    }
    environment = os.environ | {name: str(value) for name, value in overrides.items() if value is not None}
    settings = _settings(environment)
    if once and not settings.finite:
        raise refuse("--once needs an end: give --rows, --source without --loop, or --population handbook")
    if settings.loop and settings.source is None:
        raise refuse("--loop needs --source")
    if settings.finite:  # it keeps all its results
        environment |= {"RESULTS_RETENTION_BYTES": "0", "RESULTS_RETENTION_SECONDS": "0"}
    stages = {"generator": 1, "prep": prep, "train": int(not no_train), "inference": inference, "api": int(not no_api)}
    plan = Plan(
        {stage: count for stage, count in stages.items() if count}, _single_threaded(environment), once, duration
    )
    try:
        opened = _prepare(settings)
        if model is not None:
            _import_model(opened, model)
        if once and no_train:
            _need_model(opened)
        code = Supervisor(plan, settings, opened, Console()).run()
    except (ConfigurationError, VolumeError) as error:
        raise refuse(str(error)) from error
    raise typer.Exit(code)


@app.command()
def verify(volume: VolumeOption = None, as_json: JsonOption = False) -> None:
    """Audit a volume, running or not: is every published row accounted for exactly once?"""
    from spearhead.audit import audit  # noqa: PLC0415, only this command needs polars

    try:
        report = audit(open_volume(volume))
    except VolumeError as error:
        raise refuse(str(error)) from error
    typer.echo(msgspec.json.encode(report).decode() if as_json else report.text())
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def status(volume: VolumeOption = None, as_json: JsonOption = False) -> None:
    """What the volume says of itself: workers, backlogs, totals, model."""
    from spearhead.status import read_status  # noqa: PLC0415

    try:
        report = read_status(open_volume(volume), _settings().lease_seconds)
    except VolumeError as error:
        raise refuse(str(error)) from error
    typer.echo(msgspec.json.encode(report).decode() if as_json else report.text())


@app.command()
def reset(volume: VolumeOption = None) -> None:
    """Begin anew: every total, queue and history of the volume is forgotten, models stay."""
    try:
        opened = open_volume(volume)
        epoch = opened.raise_epoch()
    except VolumeError as error:
        raise refuse(str(error)) from error
    typer.echo(f"epoch {epoch} began on {opened.root}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def bench(context: typer.Context, as_json: JsonOption = False) -> None:
    """Measure throughput and latency on this machine, beside the in-memory floor (from a checkout of the code)."""
    if importlib.util.find_spec("bench") is None:
        raise refuse("bench/ lies beside the code and is not installed: run this in a checkout")
    pipeline = importlib.import_module("bench.pipeline")
    figures = pipeline.measure(pipeline.arguments(context.args))
    typer.echo(msgspec.json.encode(figures).decode() if as_json else pipeline.text(figures))


@app.command()
def warm() -> None:
    """Compile the numeric kernels, so that no stage has to at its start."""
    for stage, module, function in WARM:
        if importlib.util.find_spec(f"services.{stage}") is not None:
            getattr(importlib.import_module(module), function)()


def main() -> None:
    app()


def _settings(environment: dict[str, str] | None = None) -> Settings:
    """Settings from the environment, or from the one given, which then is this process's own."""
    if environment is not None:
        os.environ.update(environment)
    try:
        return Settings()
    except ValidationError as error:
        raise refuse(explain(error)) from error


def _prepare(settings: Settings) -> Volume:
    """The volume of ``up``, made if it isn't there. Raises VolumeError."""
    volume = Volume(settings.flashblade_path, Files(settings.fsync))
    try:
        volume.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VolumeError(f"can't make the volume {volume.root}: {error.strerror}") from error
    volume.prepare(settings.partitions)
    return volume


def _single_threaded(environment: dict[str, str]) -> dict[str, str]:
    """Each stage says itself how many threads it wants: libraries must not start one per core unasked."""
    return {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | environment


def _import_model(volume: Volume, folder: Path) -> None:
    from spearhead.model import ModelError, ModelStore  # noqa: PLC0415

    try:
        ModelStore(volume).import_folder(folder)
    except (ModelError, OSError) as error:
        raise ConfigurationError(f"--model {folder}: {error}") from error


def _need_model(volume: Volume) -> None:
    if not (volume.models / "current").exists():
        raise ConfigurationError("--once with --no-train needs a model, or nothing is ever scored: give --model DIR")
