"""What the operator has ordered: a small file on the volume that every stage reads twice a second."""

from __future__ import annotations

from typing import Literal

import msgspec

from spearhead.volume import Volume

Priority = Literal["inference", "training", "balanced"]


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """Orders in force. ``rate`` is rows a second or ``"max"``; None means the producer's own setting."""

    running: bool = True
    rate: str | None = None
    priority: Priority = "balanced"


def read_control(volume: Volume) -> Control:
    """The orders in force; the defaults if none were given. Raises msgspec.DecodeError on a damaged file."""
    try:
        return msgspec.json.decode((volume.control / "orders.json").read_bytes(), type=Control)
    except FileNotFoundError:
        return Control()


def write_control(volume: Volume, control: Control) -> None:
    """Put new orders into force for every stage."""
    volume.files.replace(volume.control / "orders.json", msgspec.json.encode(control))
