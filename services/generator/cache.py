"""What takes a while to make and is the same for the same settings, kept on the volume: arrays of records.

``raw-data/population/<name>.bin`` is ``HEADER`` (magic, CRC-32 of the rest, number of records of the first and the
second array), then the records, little-endian. A file that is not exactly that counts as none.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spearhead.volume import Volume

HEADER: Final = struct.Struct("<8sIQQ")
MAGIC: Final = b"SPHDPOP1"

logger = logging.getLogger(__name__)


def store(volume: Volume, name: str, arrays: Sequence[NDArray[np.void]]) -> None:
    """Keep one or two arrays under ``name``."""
    target = path(volume, name)
    volume.files.make_folder(target.parent)
    volume.files.replace(target, _header(arrays) + b"".join(array.tobytes() for array in arrays))


def load(volume: Volume, name: str, kinds: Sequence[np.dtype[np.void]]) -> list[NDArray[np.void]] | None:
    """The arrays, one of each of ``kinds``, kept under ``name``; None if there are none or they are damaged."""
    source = path(volume, name)
    try:
        with source.open("rb") as file:
            header = file.read(HEADER.size)
            lengths = HEADER.unpack(header)[2:] if len(header) == HEADER.size else (0, 0)
            size = sum(length * kind.itemsize for length, kind in zip(lengths, kinds, strict=False))
            # Lengths are believed only if the file is as long as they say: they decide how much memory is taken.
            whole = len(header) == HEADER.size and HEADER.size + size == source.stat().st_size
            arrays = [np.empty(n if whole else 0, kind) for n, kind in zip(lengths, kinds, strict=False)]
            parts = [memoryview(array.view(np.uint8)) for array in arrays]
            whole = whole and all(file.readinto(part) == len(part) for part in parts)
    except FileNotFoundError:
        return None
    if not whole or header != _header(arrays):
        logger.warning("population cache %s is damaged: making it anew", source.name)
        return None
    return arrays


def path(volume: Volume, name: str) -> Path:
    return volume.raw_data / "population" / f"{name}.bin"


def _header(arrays: Sequence[NDArray[np.void]]) -> bytes:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(array.view(np.uint8), crc)
    lengths = [len(array) for array in arrays] + [0] * (2 - len(arrays))
    return HEADER.pack(MAGIC, crc, *lengths)
