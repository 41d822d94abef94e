"""What people buy, for how much and when: the tables that make synthetic traffic look like a bank's."""

from __future__ import annotations

from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spearhead.schema import CATEGORIES

HOURS: Final = 168  # of a week that starts on Monday
LUT: Final = 4096


class Spending(NamedTuple):
    """One category: its share of purchases, and log-normal amounts."""

    weight: float
    median: float  # dollars
    sigma: float  # of the logarithm
    hours: str  # which entry of _PREFERRED


SPENDING: Final = {
    "entertainment": Spending(94, 28, 0.75, "evening"),
    "food_dining": Spending(110, 19, 0.65, "meals"),
    "gas_transport": Spending(125, 36, 0.45, "commute"),
    "grocery_net": Spending(42, 58, 0.55, "evening"),
    "grocery_pos": Spending(125, 44, 0.70, "day"),
    "health_fitness": Spending(66, 34, 0.80, "day"),
    "home": Spending(70, 42, 0.95, "day"),
    "kids_pets": Spending(80, 30, 0.75, "day"),
    "misc_net": Spending(60, 14, 1.15, "evening"),
    "misc_pos": Spending(65, 16, 0.95, "day"),
    "personal_care": Spending(68, 22, 0.70, "day"),
    "shopping_net": Spending(85, 36, 0.95, "evening"),
    "shopping_pos": Spending(90, 40, 0.95, "day"),
    "travel": Spending(22, 95, 1.10, "commute"),
}
# How much likelier a purchase is at night (0-5), in the morning (6-11), afternoon (12-17), evening (18-23).
_PREFERRED: Final = {
    "day": (0.3, 1.1, 1.3, 0.8),
    "evening": (1.3, 0.7, 0.9, 1.4),
    "meals": (0.8, 0.8, 1.2, 1.2),
    "commute": (0.9, 1.3, 1.1, 0.8),
}
# Favourites: what a kind of person buys more often than others do.
_PROFILES: Final = (
    {},
    {"shopping_net": 2.5, "misc_net": 2.2, "grocery_net": 2.0, "shopping_pos": 0.5},
    {"kids_pets": 2.4, "grocery_pos": 1.6, "home": 1.5, "entertainment": 0.7},
    {"food_dining": 2.2, "entertainment": 1.9, "personal_care": 1.3, "home": 0.5},
    {"travel": 4.0, "food_dining": 1.6, "gas_transport": 0.7, "shopping_net": 1.3},
    {"gas_transport": 1.8, "home": 1.6, "shopping_net": 0.3, "misc_net": 0.3, "grocery_net": 0.2},
)
PROFILES: Final = len(_PROFILES)

# Purchases by hour of day, relative, of early risers, ordinary people, the evening crowd and night owls.
_RHYTHMS: Final = (
    (1, 1, 1, 2, 6, 22, 42, 55, 60, 62, 64, 66, 68, 64, 60, 58, 55, 48, 38, 26, 15, 8, 4, 2),
    (3, 2, 1, 1, 2, 5, 16, 32, 44, 50, 54, 62, 70, 66, 60, 60, 64, 72, 74, 66, 50, 32, 17, 8),
    (9, 5, 3, 2, 2, 3, 6, 14, 24, 32, 40, 50, 58, 56, 54, 56, 62, 72, 84, 88, 80, 62, 40, 20),
    (46, 36, 26, 16, 9, 5, 4, 6, 10, 16, 24, 34, 42, 44, 44, 46, 50, 56, 64, 72, 76, 76, 70, 58),
)
_RHYTHM_SHARES: Final = (0.18, 0.47, 0.27, 0.08)
_WEEKDAYS: Final = (0.96, 0.90, 0.92, 0.97, 1.12, 1.22, 0.91)  # Monday to Sunday

LEVELS: Final = 16  # of activity: some cards are used ten times as often as others
GROUPS: Final = len(_RHYTHMS) * LEVELS  # cards of one rhythm and level
_ACTIVITY_SIGMA: Final = 0.6


class Rhythm(NamedTuple):
    """When which cards are used. Cards of group g are ``starts[g]`` to ``starts[g + 1] - 1``."""

    starts: NDArray[np.int64]  # (GROUPS + 1,)
    lut: NDArray[np.uint8]  # (HOURS, LUT): group by hour of the week and 12 random bits
    shares: NDArray[np.float64]  # (HOURS,): purchases in an hour of the week; the mean is 1


def rhythm(cards: int) -> Rhythm:
    """The rhythm of a population of ``cards`` cards."""
    shares = np.repeat(np.array(_RHYTHM_SHARES) / LEVELS, LEVELS)
    edges = np.floor(np.concatenate([[0.0], np.cumsum(shares)]) * cards + 1e-9).astype(np.int64)
    edges[-1] = cards
    activity = np.exp(_ACTIVITY_SIGMA * np.array([NormalDist().inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS)]))
    size = np.diff(edges) * np.tile(activity, len(_RHYTHMS))
    by_hour = np.array(_RHYTHMS, np.float64)
    by_hour /= by_hour.sum(axis=1, keepdims=True)
    weights = (
        np.outer(np.array(_WEEKDAYS), np.ones(24)).ravel()[:, None]
        * size
        * np.repeat(by_hour, LEVELS, 0).T[np.tile(np.arange(24), 7)]
    )
    lut = np.stack([lookup(row) for row in weights]).astype(np.uint8)
    hours = weights.sum(axis=1)
    return Rhythm(edges, lut, hours / hours.mean())


def amount_tables() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and sigma of the logarithm of an amount in cents, by category."""
    rows = [SPENDING[name] for name in CATEGORIES]
    return (
        np.array([np.log(row.median * 100) for row in rows], np.float32),
        np.array([row.sigma for row in rows], np.float32),
    )


def category_shares() -> NDArray[np.float64]:
    """Share of purchases by category over all people."""
    weights = np.array([SPENDING[name].weight for name in CATEGORIES], np.float64)
    return weights / weights.sum()


def category_lut() -> NDArray[np.uint8]:
    """Category by (profile, quarter of the day, 12 random bits): uint8 (PROFILES, 4, LUT)."""
    lut = np.empty((PROFILES, 4, LUT), np.uint8)
    for profile, liked in enumerate(_PROFILES):
        for quarter in range(4):
            weights = [
                SPENDING[name].weight * liked.get(name, 1.0) * _PREFERRED[SPENDING[name].hours][quarter]
                for name in CATEGORIES
            ]
            lut[profile, quarter] = lookup(np.array(weights))
    return lut


def lookup(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices 0..len(weights)-1, LUT of them, each as often as its weight says to within one entry."""
    cumulative = np.cumsum(weights) / np.sum(weights)
    return np.minimum(np.searchsorted(cumulative, (np.arange(LUT) + 0.5) / LUT), len(weights) - 1)
