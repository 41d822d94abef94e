"""Counter-based randomness: every draw is a hash of what it is for, so any row can be made without those before it.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np
from numba import njit

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32, _S11, _S52 = (np.uint64(n) for n in (27, 30, 31, 32, 11, 52))
_UNIT: Final = 2.0**-53

# Quantiles of the normal distribution at the middle of 4,096 equal steps: one look-up a draw, tails end at 3.7 sigma.
NORMAL: Final = np.array([NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)], np.float32)


@njit(inline="always")
def mix(x):
    """A bijection of 64 bits that looks random."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(inline="always")
def draw(key, index):
    """The draw number ``index`` (any integer) under ``key``: uint64."""
    return mix(key + (np.uint64(index) + np.uint64(1)) * GOLDEN)


@njit(inline="always")
def unit(bits):
    """Uniform in [0, 1) from 64 bits."""
    return float(bits >> _S11) * _UNIT


@njit(inline="always")
def below(bits, n):
    """Uniform integer in [0, n) from the upper 32 bits, n < 2^31."""
    return int(((bits >> _S32) * np.uint64(n)) >> _S32)


@njit(inline="always")
def normal(bits):
    """Standard normal from the upper 12 bits."""
    return NORMAL[bits >> _S52]


@njit(inline="always")
def between(bits, low, high):
    """Uniform in [low, high)."""
    return low + (high - low) * unit(bits)


@njit(cache=True)
def subkey(seed, purpose, number):
    """A key of its own for ``purpose`` and ``number``, from ``seed`` (all uint64)."""
    return mix(mix(mix(seed + GOLDEN) + purpose * GOLDEN) + number * GOLDEN)


def key_of(seed: int, purpose: int, number: int = 0) -> np.uint64:
    """``subkey`` for use outside kernels, where a uint64 must not become a Python int."""
    return np.uint64(subkey(np.uint64(seed), np.uint64(purpose), np.uint64(number)))


def uniform_of(key: np.uint64) -> float:
    """Uniform in [0, 1) from a key."""
    return float(int(key) >> 11) * _UNIT
