"""A checkpoint: what prep's state was after a step of a partition's log, so that only later steps are replayed.

The file ``checkpoints/pNN/<epoch:06d>-<step:012d>.state`` begins with 24 bytes, little endian: the magic ``SPHSTATE``,
the format (32 bits), the CRC-32 of the header, the header's length (64 bits). Then comes the header, a JSON object
(``Header``), and the bytes of each array in the header's order.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from spearhead.files import Files

FORMAT: Final = 1
MAGIC: Final = b"SPHSTATE"
SUFFIX: Final = ".state"
_START = struct.Struct("<8sIIQ")
_NAME = re.compile(r"^(\d{6,})-(\d{12})\.state$")

Arrays = Mapping[str, NDArray[Any]]


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says why."""


class UnknownFormatError(CheckpointError):
    """A checkpoint of another version of the product: not damaged, so not to be thrown away."""


class ArraySpec(msgspec.Struct, frozen=True):
    name: str
    dtype: str  # as numpy writes it, byte order included
    shape: tuple[int, ...]


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the arrays are and which step they are after; ``seqs`` is the highest number taken of each producer."""

    epoch: int
    step: int
    seqs: dict[str, int]
    arrays: list[ArraySpec]
    crc32: int  # of all array bytes


class CheckpointName(NamedTuple):
    epoch: int
    step: int

    @property
    def file(self) -> str:
        return f"{self.epoch:06d}-{self.step:012d}{SUFFIX}"

    @classmethod
    def parse(cls, file: str) -> CheckpointName | None:
        match = _NAME.match(file)
        return None if match is None else cls(int(match[1]), int(match[2]))


def write_checkpoint(files: Files, path: Path, step: CheckpointName, seqs: Mapping[str, int], arrays: Arrays) -> None:
    """Put a whole checkpoint at ``path``. Raises OSError."""
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = Header(
        epoch=step.epoch,
        step=step.step,
        seqs=dict(seqs),
        arrays=[ArraySpec(name, array.dtype.str, array.shape) for name, array in whole.items()],
        crc32=_crc(whole.values()),
    )
    encoded = msgspec.json.encode(header)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        files.step("open", temporary)
        with open(temporary, "xb") as file:
            files.step("write", temporary)
            file.write(_START.pack(MAGIC, FORMAT, zlib.crc32(encoded), len(encoded)) + encoded)
            for array in whole.values():
                file.write(_bytes(array))
        files.sync_file(temporary)
        files.rename(temporary, path)
    except OSError:
        files.remove(temporary)
        raise
    files.sync_folders([path.parent])


def read_header(path: Path) -> Header:
    """Only the header. Raises as ``read_checkpoint`` does."""
    with open(path, "rb") as file:
        return _read_header(path, file)[0]


def read_checkpoint(path: Path) -> tuple[Header, dict[str, NDArray[Any]]]:
    """Header and arrays (writable).

    Raises CheckpointError if it is damaged, UnknownFormatError if another version wrote it, FileNotFoundError.
    """
    with open(path, "rb") as file:
        header, offset = _read_header(path, file)
    content = np.fromfile(path, dtype=np.uint8)
    arrays = {}
    for spec in header.arrays:
        dtype = np.dtype(spec.dtype)
        size = dtype.itemsize * int(np.prod(spec.shape, dtype=np.int64))
        part = content[offset : offset + size]
        if part.size != size:
            raise CheckpointError(f"{path.name}: ends within array {spec.name}")
        arrays[spec.name] = part.copy().view(dtype).reshape(spec.shape)
        offset += size
    if _crc(arrays.values()) != header.crc32:
        raise CheckpointError(f"{path.name}: its checksum is wrong")
    return header, arrays


def _read_header(path: Path, file: BinaryIO) -> tuple[Header, int]:
    """The header, and where the arrays begin."""
    start = file.read(_START.size)
    if len(start) < _START.size or not start.startswith(MAGIC):
        raise CheckpointError(f"{path.name}: not a checkpoint")
    _, found, crc, length = _START.unpack(start)
    if found != FORMAT:
        raise UnknownFormatError(f"{path.name}: format {found}, this version reads {FORMAT}")
    end = _START.size + length
    if end > os.fstat(file.fileno()).st_size or zlib.crc32(encoded := file.read(length)) != crc:
        raise CheckpointError(f"{path.name}: its header is damaged")
    return msgspec.json.decode(encoded, type=Header), end


def _crc(arrays: Iterable[NDArray[Any]]) -> int:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(_bytes(array), crc)
    return crc


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
