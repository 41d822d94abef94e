"""Universal Binary JSON, as XGBoost writes its models in: read without XGBoost, which is large."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

_NUMBERS: Final = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_CONSTANTS: Final = {b"Z": None, b"T": True, b"F": False}
_DEEPEST: Final = 64


class UbjsonError(ValueError):
    """Bytes that are no UBJSON, or not all of it."""


def decode(data: bytes) -> Any:
    """The value in ``data``; an array of numbers of one type is a NumPy array. Raises UbjsonError."""
    reader = _Reader(data)
    try:
        return reader.value(reader.take(1), 0)
    except UnicodeDecodeError as error:
        raise UbjsonError(f"a text is not UTF-8: {error}") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if size < 0 or self._at + size > len(self._data):
            raise UbjsonError(f"it ends within {size} bytes at {self._at}")
        self._at += size
        return self._data[self._at - size : self._at]

    def value(self, kind: bytes, depth: int) -> Any:
        if depth > _DEEPEST:
            raise UbjsonError("it is nested too deep")
        if kind in _NUMBERS:
            return self._numbers(kind, 1)[0].item()
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind == b"S":
            return self._text()
        if kind == b"C":
            return self.take(1).decode()
        if kind == b"[":
            return self._array(depth)
        if kind == b"{":
            return self._object(depth)
        raise UbjsonError(f"{kind!r} at {self._at} is no type")

    def _numbers(self, kind: bytes, count: int) -> Any:
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.take(dtype.itemsize * count), dtype)

    def _length(self, kind: bytes) -> int:
        if kind not in _NUMBERS or kind in b"dD":
            raise UbjsonError(f"{kind!r} at {self._at} is no type of a length")
        return int(self._numbers(kind, 1)[0])

    def _text(self, kind: bytes | None = None) -> str:
        return self.take(self._length(kind or self.take(1))).decode()

    def _head(self) -> tuple[bytes | None, int | None]:
        """Type and number of a container's values, where it says so; with neither, it ends with a bracket."""
        kind = None
        if self._next(b"$"):
            kind = self.take(1)
        if self._next(b"#"):
            count = self._length(self.take(1))
            if not 0 <= count <= len(self._data):  # an entry is a byte at least, but for constants
                raise UbjsonError(f"{count} entries at {self._at} are more than there can be")
            return kind, count
        if kind is not None:
            raise UbjsonError(f"a type without a count at {self._at}")
        return None, None

    def _next(self, mark: bytes) -> bool:
        found = self._data[self._at : self._at + 1] == mark
        self._at += found
        return found

    def _array(self, depth: int) -> Any:
        kind, count = self._head()
        if kind is not None and kind in _NUMBERS and count is not None:
            return self._numbers(kind, count)
        found: list[Any] = []
        while len(found) < count if count is not None else not self._next(b"]"):
            found.append(self.value(kind or self.take(1), depth + 1))
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        kind, count = self._head()
        found: dict[str, Any] = {}
        while len(found) < count if count is not None else not self._next(b"}"):
            name = self._text()
            found[name] = self.value(kind or self.take(1), depth + 1)
        return found
