"""What the commands share: their options, the volume they work on, and how they refuse in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from spearhead.stage import EXIT_CONFIGURATION
from spearhead.volume import Volume, VolumeError

VolumeOption = Annotated[Path | None, typer.Option("--volume", help="Root of the volume [env FLASHBLADE_PATH]")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output")]
DEFAULT_VOLUME: Final = Path("var")  # without --volume and FLASHBLADE_PATH: a folder beside the code


def default_volume() -> Path:
    return Path(os.environ["FLASHBLADE_PATH"]) if os.environ.get("FLASHBLADE_PATH") else DEFAULT_VOLUME


def open_volume(root: Path | None) -> Volume:
    """An existing volume. Raises VolumeError if it is none, or can't be read."""
    volume = Volume(root or default_volume())
    try:
        volume.epoch()
    except OSError as error:
        raise VolumeError(f"volume {volume.root} can't be read: {error.strerror}") from error
    return volume


def refuse(message: str) -> typer.Exit:
    """Says why in one line; to be raised."""
    sys.stderr.write(f"spearhead: {' '.join(message.split())}\n")
    return typer.Exit(EXIT_CONFIGURATION)
