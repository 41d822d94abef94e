"""Episodes: purchases of one card that belong together, the fraudulent ones and the innocent ones that look alike.

Each episode is a function of (key, day it starts, kind, number). Compromised merchants are no episode: see ``leaks``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from services.generator.draws import GOLDEN, below, between, draw, key_of, mix, subkey, uniform_of, unit
from services.generator.places import (
    DAY_US,
    HOME,
    HOUR_US,
    LIFETIME_DAYS,
    NEW_EVERY,
    NEW_REST,
    account_age,
    any_merchant,
    card_at,
    cents_of,
    common_merchant,
    far_city,
    tiny_cents,
    usual_merchant,
)
from services.generator.population import IS_NET, Population
from spearhead.schema import CATEGORIES, SCENARIOS

EPISODE_DAYS: Final = 5  # no episode lasts longer
MINUTE_US: Final = 60_000_000


class Kind(NamedTuple):
    """A kind of episode: its share of fraudulent (or, for innocent kinds, of all) rows and its size."""

    name: str
    share: float
    rows: float  # of an episode, on average, that count for the share
    most: int  # rows of any episode


FRAUD: Final = (
    Kind("card_not_present", 0.26, 7.5, 10),
    Kind("account_takeover", 0.22, 8.0, 11),
    Kind("velocity_attack", 0.20, 15.5, 24),
    Kind("geo_anomaly", 0.11, 3.0, 5),
    Kind("synthetic_identity", 0.09, 10.0, 13),
)
INNOCENT: Final = (
    Kind("mall_visit", 0.008, 5.0, 7),
    Kind("online_spree", 0.004, 4.5, 6),
    Kind("small_change", 0.003, 6.0, 8),
    Kind("night_out", 0.004, 4.5, 6),
    Kind("new_home", 0.002, 4.0, 5),
)
LEAK_SHARE: Final = 1.0 - sum(kind.share for kind in FRAUD)  # merchant_compromise
EPISODES: Final = FRAUD + INNOCENT


class Purchases(NamedTuple):
    """Purchases that episodes make, one entry each."""

    time: NDArray[np.int64]  # us since the start of the traffic
    card: NDArray[np.int32]
    merchant: NDArray[np.int32]
    cents: NDArray[np.int32]
    where: NDArray[np.uint16]  # city, or HOME
    scenario: NDArray[np.int8]  # 0: innocent


def no_purchases(rows: int = 0) -> Purchases:
    """``rows`` entries to be filled in."""
    return Purchases(
        np.empty(rows, np.int64),
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, np.uint16),
        np.empty(rows, np.int8),
    )


_SCENARIO: Final = {name: code for code, name in enumerate(SCENARIOS)}
_CNP, _ATO, _VELOCITY, _GEO, _SYNTHETIC = (_SCENARIO[kind.name] for kind in FRAUD)
LEAK: Final = _SCENARIO["merchant_compromise"]
_EPISODE: Final = np.uint64(21)
_LUCK: Final = 22


def _codes(*names: str) -> NDArray[np.int64]:
    """Category codes to choose from, one entry a chance."""
    return np.array([CATEGORIES.index(name) for name in names])


_ONLINE: Final = _codes("shopping_net", "shopping_net", "shopping_net", "misc_net", "misc_net", "grocery_net")
_TAKEN: Final = _codes("shopping_net", "shopping_net", "misc_net", "shopping_pos", "travel", "home", "entertainment")
_TESTED: Final = _codes("misc_net", "shopping_net", "misc_net", "grocery_net")
_ABROAD: Final = _codes("shopping_pos", "misc_pos", "gas_transport", "grocery_pos", "shopping_pos")
_BUST: Final = _codes("shopping_pos", "shopping_net", "travel", "home", "misc_net", "shopping_pos")
_MALL: Final = _codes("shopping_pos", "shopping_pos", "food_dining", "misc_pos", "kids_pets", "personal_care")
_CHANGE: Final = _codes("misc_pos", "food_dining", "misc_net", "gas_transport", "entertainment")
_NIGHT: Final = _codes("food_dining", "entertainment", "gas_transport", "food_dining")
_MOVE: Final = _codes("home", "shopping_pos", "shopping_net", "travel", "home")


@njit(inline="always")
def _put(out, at, time, card, merchant, cents, where, scenario):
    out.time[at] = time
    out.card[at] = card
    out.merchant[at] = merchant
    out.cents[at] = cents
    out.where[at] = where
    out.scenario[at] = scenario
    return at + 1


@njit(inline="always")
def _wait(bits, mean_us):
    """Exponential waiting time in us, at most five times its mean."""
    return int(min(-np.log(1.0 - unit(bits)), 5.0) * mean_us) + 1_000_000


@njit(inline="always")
def _one_of(codes, bits):
    return codes[below(bits, len(codes))]


@njit(inline="always")
def _card_not_present(pop, out, at, key, start, card):
    """Five to ten online purchases within hours, at shops that are new to the card."""
    time = start
    for i in range(5 + below(draw(key, 0), 6)):
        step = draw(key, 100 + i)
        merchant = any_merchant(pop, _one_of(_ONLINE, step), draw(step, 0))
        cents = cents_of(pop, card, merchant, between(draw(step, 1), 0.3, 1.7), draw(step, 2))
        at = _put(out, at, time, card, merchant, cents, HOME, _CNP)
        time += _wait(draw(step, 3), 12 * MINUTE_US)
    return at


@njit(inline="always")
def _account_takeover(pop, out, at, key, day, card):
    """Five to eleven purchases over one to four days, mostly at night: new merchants, more than the owner spends."""
    days = 1 + below(draw(key, 0), 4)
    for i in range(5 + below(draw(key, 1), 7)):
        step = draw(key, 100 + i)
        hour = between(step, 0.0, 6.0) if unit(draw(step, 0)) < 0.65 else between(step, 6.0, 24.0)
        time = day * DAY_US + below(draw(step, 1), days) * DAY_US + int(hour * HOUR_US)
        merchant = any_merchant(pop, _one_of(_TAKEN, draw(step, 2)), draw(step, 3))
        cents = cents_of(pop, card, merchant, between(draw(step, 4), 0.6, 2.1), draw(step, 5))
        at = _put(out, at, time, card, merchant, cents, HOME, _ATO)
    return at


@njit(inline="always")
def _velocity_attack(pop, out, at, key, start, card):
    """A stolen number is tested with 8 to 21 tiny payments in minutes at one or two shops, then used for real."""
    shops = (
        any_merchant(pop, _one_of(_TESTED, draw(key, 0)), draw(key, 1)),
        any_merchant(pop, _one_of(_TESTED, draw(key, 2)), draw(key, 3)),
    )
    time = start
    for i in range(8 + below(draw(key, 4), 14)):
        step = draw(key, 100 + i)
        merchant = shops[0] if unit(step) < 0.7 else shops[1]
        at = _put(out, at, time, card, merchant, tiny_cents(draw(step, 0)), HOME, _VELOCITY)
        time += _wait(draw(step, 1), 30_000_000)
    for i in range(1 + below(draw(key, 5), 2)):
        step = draw(key, 200 + i)
        time += _wait(draw(step, 0), 10 * MINUTE_US)
        merchant = any_merchant(pop, _ONLINE[0], draw(step, 1))
        cents = cents_of(pop, card, merchant, between(draw(step, 2), 1.3, 2.6), draw(step, 3))
        at = _put(out, at, time, card, merchant, cents, HOME, _VELOCITY)
    return at


@njit(inline="always")
def _geo_anomaly(pop, out, at, key, start, card):
    """The owner pays at home; within two hours a copy of the card is used in shops of a city far away."""
    home = int(pop.cards[card].city)
    merchant = usual_merchant(pop, key, card, _MALL[2], home, draw(key, 0))
    at = _put(out, at, start, card, merchant, cents_of(pop, card, merchant, 0.0, draw(key, 1)), HOME, 0)
    city = far_city(pop, home, draw(key, 2))
    time = start + int(between(draw(key, 3), 12.0, 110.0) * MINUTE_US)
    for i in range(2 + below(draw(key, 4), 3)):
        step = draw(key, 100 + i)
        merchant = common_merchant(pop, _one_of(_ABROAD, step), city, draw(step, 0))
        cents = cents_of(pop, card, merchant, between(draw(step, 1), 0.0, 1.2), draw(step, 2))
        at = _put(out, at, time, card, merchant, cents, city, _GEO)
        time += _wait(draw(step, 3), 35 * MINUTE_US)
    return at


@njit(inline="always")
def _synthetic_identity(pop, out, at, key, day, account_key):
    """A young account that has behaved for at least nine days spends what it can within two days, and is gone."""
    card = -1
    for attempt in range(64):
        tried = NEW_EVERY * below(draw(key, 1000 + attempt), max(1, len(pop.cards) // NEW_EVERY)) + NEW_REST
        if tried < len(pop.cards) and 9 <= account_age(account_key, tried, day)[0] < LIFETIME_DAYS - 12:
            card = tried
            break
    if card < 0:
        return at
    time = day * DAY_US + int(between(draw(key, 0), 8.0, 20.0) * HOUR_US)
    home = int(pop.cards[card].city)
    for i in range(7 + below(draw(key, 1), 7)):
        step = draw(key, 100 + i)
        merchant = common_merchant(pop, _one_of(_BUST, step), home, draw(step, 0))
        cents = cents_of(pop, card, merchant, between(draw(step, 1), 1.8, 3.0), draw(step, 2))
        at = _put(out, at, time, card, merchant, cents, HOME, _SYNTHETIC)
        time += _wait(draw(step, 3), 60 * MINUTE_US)
    return at


@njit(inline="always")
def _outing(pop, out, at, key, start, card, codes, least, more, mean_us, boost):
    """Purchases in shops of the own city, one after the other: a visit to the mall, a night out, a new home."""
    home = int(pop.cards[card].city)
    time = start
    for i in range(least + below(draw(key, 0), more)):
        step = draw(key, 100 + i)
        merchant = common_merchant(pop, _one_of(codes, step), home, draw(step, 0))
        cents = cents_of(pop, card, merchant, between(draw(step, 1), 0.0, boost), draw(step, 2))
        at = _put(out, at, time, card, merchant, cents, HOME, 0)
        time += _wait(draw(step, 3), mean_us)
    return at


@njit(inline="always")
def _online_spree(pop, out, at, key, start, card):
    """The owner shops online for hours: known shops and famous ones."""
    time = start
    for i in range(3 + below(draw(key, 0), 4)):
        step = draw(key, 100 + i)
        merchant = usual_merchant(pop, key, card, _one_of(_ONLINE, step), 0, draw(step, 0))
        cents = cents_of(pop, card, merchant, between(draw(step, 1), 0.0, 0.9), draw(step, 2))
        at = _put(out, at, time, card, merchant, cents, HOME, 0)
        time += _wait(draw(step, 3), 30 * MINUTE_US)
    return at


@njit(inline="always")
def _small_change(pop, out, at, key, start, card):
    """Tolls, vending machines, a game's extra lives: several tiny payments within an hour."""
    home = int(pop.cards[card].city)
    category = _one_of(_CHANGE, draw(key, 1))
    merchant = common_merchant(pop, category, home, draw(key, 2))
    time = start
    for i in range(4 + below(draw(key, 0), 5)):
        step = draw(key, 100 + i)
        at = _put(out, at, time, card, merchant, tiny_cents(draw(step, 0)), HOME, 0)
        time += _wait(draw(step, 1), 6 * MINUTE_US)
    return at


@njit(cache=True)
def _episodes(pop, out, key, account_key, day, hours, counts):
    """All episodes that start on ``day``. ``hours`` (LUT) is the hour of day by 12 random bits, ``counts`` how many of
    each kind. Returns the rows written."""
    at = 0
    for kind in range(len(counts)):
        for number in range(counts[kind]):
            own = subkey(key, _EPISODE + np.uint64(kind), np.uint64(day + 1000) * GOLDEN + np.uint64(number))
            hour = int(hours[draw(own, 50) >> np.uint64(52)])
            start = day * DAY_US + hour * HOUR_US + below(draw(own, 51), HOUR_US // 1000) * 1000
            card = card_at(pop, day % 7 * 24 + hour, mix(draw(own, 52)))
            if kind == 0:
                start = start if unit(draw(own, 53)) < 0.6 else day * DAY_US + int(unit(draw(own, 54)) * DAY_US)
                at = _card_not_present(pop, out, at, own, start, card)
            elif kind == 1:
                at = _account_takeover(pop, out, at, own, day, card)
            elif kind == 2:
                at = _velocity_attack(pop, out, at, own, start, card)
            elif kind == 3:
                at = _geo_anomaly(pop, out, at, own, start, card)
            elif kind == 4:
                at = _synthetic_identity(pop, out, at, own, day, account_key)
            elif kind == 5:
                at = _outing(pop, out, at, own, start, card, _MALL, 3, 5, 35 * MINUTE_US, 0.6)
            elif kind == 6:
                at = _online_spree(pop, out, at, own, start, card)
            elif kind == 7:
                at = _small_change(pop, out, at, own, start, card)
            elif kind == 8:
                late = day * DAY_US + 20 * HOUR_US + int(unit(draw(own, 55)) * 5 * HOUR_US)
                at = _outing(pop, out, at, own, late, card, _NIGHT, 3, 4, 50 * MINUTE_US, 0.8)
            else:
                at = _outing(pop, out, at, own, start, card, _MOVE, 3, 3, 8 * HOUR_US, 1.6)
    return at


def episodes(
    pop: Population, key: np.uint64, day: int, hours: NDArray[np.uint8], rows_per_day: float, fraud_rate: float
) -> Purchases:
    """The purchases of all episodes that start on ``day`` (which may be before the first), in no order of time."""
    expected = [fraud_rate * kind.share * rows_per_day / kind.rows for kind in FRAUD]
    expected += [kind.share * rows_per_day / kind.rows for kind in INNOCENT]
    counts = np.array(
        [int(mean + uniform_of(key_of(int(key), _LUCK, (day + 1000) * 64 + n))) for n, mean in enumerate(expected)],
        np.int64,
    )
    out = no_purchases(int(sum(count * kind.most for count, kind in zip(counts, EPISODES, strict=True))))
    rows = _episodes(pop, out, key, key, day, hours, counts)
    return Purchases(*(column[:rows].copy() for column in out))


class Leaks(NamedTuple):
    """How compromised merchants are chosen: ``slots`` at a time, each for weeks, then the next one."""

    merchants: NDArray[np.int64]  # those that may be
    chance: NDArray[np.float64]  # that a purchase there is fraud while it is
    slots: int


_LEAK: Final = 23
_LEAK_CHANCE: Final = 0.8
_SLOTS_MAX: Final = 4096


def leaks(pop: Population, fraud_rate: float, everyday: float) -> Leaks:
    """Shops that may be compromised so that their fraud is LEAK_SHARE of all fraud.

    ``everyday`` is the share of rows that are everyday purchases: only these are made at compromised terminals.
    """
    share = pop.merchants["share"].astype(np.float64) * everyday
    wanted = fraud_rate * LEAK_SHARE
    shops = np.flatnonzero(~IS_NET[np.arange(len(share)) % len(CATEGORIES)] & (share > 0))
    shops = shops[pop.merchants["chain"][shops] == 0] if (pop.merchants["chain"][shops] == 0).any() else shops
    if wanted <= 0 or not len(shops):
        return Leaks(shops[:0], np.empty(0), 0)
    typical = float(np.quantile(share[shops], 0.6))
    slots = int(min(max(1, round(wanted / (_LEAK_CHANCE * typical))), _SLOTS_MAX, len(shops)))
    chance = wanted / slots / share[shops]
    near = np.argsort(np.abs(np.log(chance / _LEAK_CHANCE)), kind="stable")[: max(3 * slots, len(shops) // 8)]
    return Leaks(shops[near], np.minimum(chance[near], 0.95), slots)


def leaking(chosen: Leaks, key: np.uint64, day: int, merchants: int) -> NDArray[np.float32]:
    """Chance by merchant that an everyday purchase on ``day`` is fraud: float32 (merchants,)."""
    table = np.zeros(merchants, np.float32)
    for slot in range(chosen.slots):
        bits = int(key_of(int(key), _LEAK, slot))
        weeks = 6 + bits % 3  # six to eight weeks each
        campaign = (day + 1000 + (bits >> 8) % (7 * weeks)) // (7 * weeks)
        turn = int(key_of(int(key), _LEAK, (campaign << 16) + slot + _SLOTS_MAX))
        own = np.arange(slot, len(chosen.merchants), chosen.slots)  # slots never share a merchant
        pick = own[turn % len(own)]
        table[chosen.merchants[pick]] = chosen.chance[pick]
    return table
