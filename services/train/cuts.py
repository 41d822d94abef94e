"""Where the bins of features begin, for XGBoost's histograms: exact quantiles, from one sort of each column.

XGBoost finds its own from a sketch of all rows, which takes longer than binning them by what it has found. Fraud is
rare and lies at the ends of many columns (the largest amounts, the shortest gaps), so bins are finer there.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

END_CUTS: Final = 3 / 32  # of the cuts, at each end: bins of one row, then of more and more
END_SHARE: Final = 1 / 256  # of the rows are an end

Values = NDArray[np.float32]


def cuts(features: Values, most: int) -> Values:
    """Values (``most``, width) that cut each column of ``features`` (n, width) into bins of about as many rows.

    But for the ends, where bins are smaller. Ascending; what a column does not need repeats its largest. One with at
    most so many different values has them all, so that it loses nothing. Missing values are no one's bin; a column of
    nothing else has zeros.
    """
    found = np.zeros((most, features.shape[1]), np.float32)
    for column in range(features.shape[1]):
        values = np.sort(features[:, column])
        values = _chosen(values[: np.searchsorted(values, np.nan)], most)  # missing ones are last
        if len(values):
            found[: len(values), column] = values
            found[len(values) :, column] = values[-1]
    return found


def _chosen(ascending: Values, most: int) -> Values:
    """Of ascending values (n,) at most ``most`` different ones, (k,).

    A value that fills a bin on its own is one, and takes no more from the others than that.
    """
    n = len(ascending)
    first = np.flatnonzero(np.append(n > 0, ascending[1:] != ascending[:-1])[:n])
    if len(first) <= most:
        return ascending[first]
    rows = np.diff(np.append(first, n))
    chosen = rows * most >= n
    ends = _ends(n, int((most - chosen.sum()) * END_CUTS))
    chosen[np.searchsorted(first, ends, side="right") - 1] = True
    before = np.cumsum(np.where(chosen, 0, rows))
    left = most - int(chosen.sum())
    chosen[np.searchsorted(before, (np.arange(left) + 0.5) / left * before[-1])] = True
    return ascending[first[chosen]]


def _ends(n: int, bins: int) -> NDArray[np.int64]:
    """Places among ``n`` ascending rows at which so many bins of each end begin, at most."""
    sizes = np.unique(np.geomspace(1, max(1.0, n * END_SHARE), bins).round().astype(np.int64))
    return np.concatenate([sizes - 1, n - sizes])
