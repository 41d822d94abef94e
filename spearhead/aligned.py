"""Arrays that begin on a cache line: a record of 128 bytes is on two of them, not three, and a vector on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE: Final = 64  # bytes


def aligned(make: Callable[..., NDArray[Any]], shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A C-contiguous array of a shape and dtype at the start of a cache line, by ``make``: np.zeros or np.empty."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = make(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size].view(dtype).reshape(shape)
