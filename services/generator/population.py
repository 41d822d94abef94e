"""The people and merchants of synthetic traffic: a function of the seed, cached on the volume."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from services.generator import cache, habits
from services.generator.cities import Cities, cities
from services.generator.draws import below, between, draw, normal, subkey, unit
from services.generator.names import FIRST_NAMES, initial_weights
from spearhead.schema import CATEGORIES
from spearhead.volume import Volume

FORMAT: Final = 1
CARD: Final = np.dtype(
    [
        ("home_lat", "<f4"), ("home_long", "<f4"),  # degrees
        ("city_pop", "<i4"),
        ("dob", "<i4"),  # days since 1970
        ("level", "<f4"),  # logarithm of how much more than others this person spends at a time
        ("city", "<u2"), ("first", "<i2"), ("state", "u1"), ("initial", "u1"),
        ("profile", "u1"), ("roams", "u1"), ("pad", "<u4"),  # 32 bytes: no card needs more than one cache line or two
    ]
)  # fmt: skip
MERCHANT: Final = np.dtype(
    [
        ("price", "<f4"),  # logarithm of how much dearer than its category it is
        ("share", "<f4"),  # of all purchases
        ("city", "<u2"),  # where it is; a chain is everywhere
        ("chain", "u1"), ("pad", "u1"),
    ]
)  # fmt: skip

_KINDS: Final = len(CATEGORIES)
IS_NET: Final = np.array([name.endswith("_net") for name in CATEGORIES])
_FIRST_DOB, _LAST_DOB = (int(np.datetime64(day, "D").astype(int)) for day in ("1930-01-01", "2005-12-31"))
_CARDS, _MERCHANTS, _CHOICES = (np.uint64(n) for n in (1, 2, 3))  # purposes of subkeys


class Population(NamedTuple):
    """Everything about people and places that a kernel needs; arrays only."""

    cards: NDArray[np.void]  # CARD
    merchants: NDArray[np.void]  # MERCHANT; merchant m is of category m % 14
    local: NDArray[np.int32]  # (cities, 14, width): merchants that people of a city choose from, commoner ones repeated
    city_lat: NDArray[np.float32]
    city_long: NDArray[np.float32]
    city_lut: NDArray[np.uint16]  # (LUT,): cities as often as people live there
    starts: NDArray[np.int64]  # habits.Rhythm
    group_lut: NDArray[np.uint8]
    category_lut: NDArray[np.uint8]
    amount_mu: NDArray[np.float32]
    amount_sigma: NDArray[np.float32]


def population(cards: int, merchants: int, seed: int, volume: Volume | None = None) -> Population:
    """The population of these settings: from the volume's cache, or made (and cached there)."""
    towns = cities()
    name = f"v{FORMAT}-s{seed}-c{cards}-m{merchants}"
    made = cache.load(volume, name, [CARD, MERCHANT]) if volume else None
    if made is None:
        made = _make(cards, merchants, seed, towns)
        if volume:
            cache.store(volume, name, made)
    return assemble(*made, seed, towns)


def assemble(people: NDArray[np.void], shops: NDArray[np.void], seed: int, towns: Cities) -> Population:
    """Card and merchant records with the small tables that follow from them."""
    rhythm = habits.rhythm(len(people))
    mu, sigma = habits.amount_tables()
    return Population(
        people,
        shops,
        _choices(shops, len(towns.lat), np.uint64(seed)),
        towns.lat,
        towns.long,
        habits.lookup(towns.share).astype(np.uint16),
        rhythm.starts,
        rhythm.lut,
        habits.category_lut(),
        mu,
        sigma,
    )


def _make(cards: int, merchants: int, seed: int, towns: Cities) -> list[NDArray[np.void]]:
    people, shops = np.zeros(cards, CARD), np.zeros(merchants, MERCHANT)
    city_lut = habits.lookup(towns.share).astype(np.uint16)
    initials = habits.lookup(initial_weights()).astype(np.uint8)
    key = np.uint64(seed)
    _fill_cards(people, towns.lat, towns.long, towns.state, towns.people, city_lut, initials, key)
    _fill_merchants(shops, city_lut, key)
    choices = _choices(shops, len(towns.lat), key)
    shops["share"] = _shares(choices, towns, merchants)
    return [people, shops]


@njit(cache=True)
def _fill_cards(people, city_lat, city_long, city_state, city_people, city_lut, initials, seed):
    """Draw every card's person. ``people`` is CARD, filled in place."""
    for i in range(len(people)):
        key = subkey(seed, _CARDS, np.uint64(i))
        city = city_lut[draw(key, 0) >> np.uint64(52)]
        away = -np.log(1.0 - unit(draw(key, 1))) * 16.0  # km from the centre
        away = min(away, 90.0)
        angle = between(draw(key, 2), 0.0, 2.0 * np.pi)
        lat = city_lat[city]
        person = people[i]
        person.home_lat = lat + away * np.sin(angle) / 111.2
        person.home_long = city_long[city] + away * np.cos(angle) / (111.2 * np.cos(lat * np.pi / 180.0))
        person.city = city
        person.state = city_state[city]
        person.city_pop = city_people[city]
        if away > 14.0:  # a town of its own
            person.city_pop = int(np.exp(8.6 + 1.3 * normal(draw(key, 3))))
        spread = 0.5 * (unit(draw(key, 4)) + unit(draw(key, 5)))  # fewer of the youngest and the oldest
        person.dob = int(_FIRST_DOB + (_LAST_DOB - _FIRST_DOB) * spread)
        person.level = 0.35 * normal(draw(key, 6))
        skew = unit(draw(key, 7))
        person.first = int(FIRST_NAMES * skew * skew)
        person.initial = 65 + initials[draw(key, 8) >> np.uint64(52)]
        person.profile = below(draw(key, 9), habits.PROFILES)
        roams = unit(draw(key, 10))
        person.roams = int(10.0 + 60.0 * roams * roams)  # of 256 purchases, how many at no favourite merchant


@njit(cache=True)
def _fill_merchants(shops, city_lut, seed):
    """Draw every merchant's place and prices; the first sixth of each category (at least one) are chains."""
    chains = max(1, len(shops) // _KINDS // 6)
    for m in range(len(shops)):
        key = subkey(seed, _MERCHANTS, np.uint64(m))
        city = city_lut[draw(key, 0) >> np.uint64(52)]
        shop = shops[m]
        shop.city = city
        shop.price = 0.25 * normal(draw(key, 1))
        shop.chain = 1 if m // _KINDS < chains else 0


def _choices(shops: NDArray[np.void], towns: int, seed: np.uint64) -> NDArray[np.int32]:
    """Merchants that people of a city choose from: int32 (cities, 14, width), half local ones, half chains."""
    of_category = max(1, len(shops) // _KINDS)
    width = 16
    while width < 512 and width < 4 * of_category / towns:
        width *= 2
    local = np.full((towns, _KINDS, width), -1, np.int32)
    _fill_choices(local, shops["city"].copy(), shops["chain"].copy(), seed)
    return local


@njit(cache=True)
def _fill_choices(local, city, chain, seed):
    """Fill ``local``: up to half the width with the city's own merchants, the rest with chains, big ones more often."""
    towns, _, width = local.shape
    count = np.zeros((towns, _KINDS), np.int32)
    for m in range(len(city)):
        c = m % _KINDS
        if not chain[m] and count[city[m], c] < width // 2:
            local[city[m], c, count[city[m], c]] = m
            count[city[m], c] += 1
    chains = max(1, len(city) // _KINDS // 6)
    for town in range(towns):
        for c in range(_KINDS):
            key = subkey(seed, _CHOICES, np.uint64(town * _KINDS + c))
            for slot in range(count[town, c], width):
                skew = unit(draw(key, slot))
                local[town, c, slot] = c + _KINDS * int(chains * skew * skew)


def _shares(choices: NDArray[np.int32], towns: Cities, merchants: int) -> NDArray[np.float32]:
    """Each merchant's share of all purchases, expected: float32 (merchants,)."""
    width = choices.shape[2]
    weights = towns.share[:, None, None] * habits.category_shares()[None, :, None] / width
    in_shops = np.bincount(choices.ravel(), np.broadcast_to(weights, choices.shape).ravel(), merchants)
    category, rank = np.arange(merchants) % _KINDS, np.arange(merchants) // _KINDS
    of_category = np.bincount(category, minlength=_KINDS)[category]
    online = habits.category_shares()[category] * (np.sqrt((rank + 1) / of_category) - np.sqrt(rank / of_category))
    return np.where(IS_NET[category], online, in_shops).astype(np.float32)
