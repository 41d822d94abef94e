"""Compiles every kernel of the generator into numba's cache, so that a first start takes no longer than any other."""

from __future__ import annotations

from services.generator.population import population
from services.generator.traffic import Traffic
from spearhead.delimited import cut


def run() -> None:
    """Make a tiny population and a few rows, and cut a line, on the very types that the stage uses."""
    Traffic(population(1000, 100, 1), 1, 0, 0.01).take(4096)
    cut(b"1,2\n", ("a", "b"), ("a", "b"))


if __name__ == "__main__":
    run()
