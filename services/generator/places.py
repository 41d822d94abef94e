"""Kernels shared by everyday purchases and episodes: who buys, at which merchant, for how much, where."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from services.generator.draws import below, between, draw, normal, subkey, unit
from services.generator.population import IS_NET
from spearhead.schema import CATEGORIES

DAY_US: Final = 86_400_000_000
HOUR_US: Final = 3_600_000_000
HOME: Final = 65_535  # "where" of a purchase in the cardholder's own city
KINDS: Final = len(CATEGORIES)
NEW_EVERY: Final = 10  # of the cards, one in so many is an account that is closed and opened anew
NEW_REST: Final = 7
LIFETIME_DAYS: Final = 48  # of such an account

_ACCOUNT, _TRIP, _FAVOURITE, _TOKEN = (np.uint64(n) for n in (11, 12, 13, 14))
_TRIP_DAYS: Final = 28  # a card makes at most one trip in so many days
_TRIPS: Final = np.uint64(80)  # of 1,024 such spans, how many see a trip
_MAX_CENTS: Final = 2_500_000
_S52, _S44 = np.uint64(52), np.uint64(44)
_LOW12: Final = np.uint64(0xFFF)


@njit(inline="always")
def card_at(pop, week_hour, bits):
    """A card that is used at this hour of the week, busy ones more often."""
    group = pop.group_lut[week_hour, bits & _LOW12]
    first = pop.starts[group]
    return first + below(bits, pop.starts[group + 1] - first)


@njit(inline="always")
def account_age(key, card, day):
    """Days since this card's account was opened, and which account it is; (-1, 0) for one older than all traffic."""
    if card % NEW_EVERY != NEW_REST:
        return -1, 0
    lived = day + 400 * LIFETIME_DAYS + below(subkey(key, _ACCOUNT, np.uint64(card)), LIFETIME_DAYS)
    return lived % LIFETIME_DAYS, lived // LIFETIME_DAYS


@njit(inline="always")
def card_token(key, card, day):
    """The 64-bit token of the card's account: no card number exists that it could be turned back into."""
    account = account_age(key, card, day)[1]
    return subkey(key, _TOKEN, (np.uint64(account) << np.uint64(32)) | np.uint64(card))


@njit(inline="always")
def trip(pop, key, card, time):
    """(city, progress): the city a card travels to at ``time`` (HOME when at home), and how much of the way is done.

    ``progress`` is 1 there and less on the way, which takes six hours each way: no one travels at impossible speed.
    """
    stay = subkey(key, _TRIP, np.uint64(card))
    moved = time + below(stay, _TRIP_DAYS) * DAY_US
    bits = draw(stay, moved // (_TRIP_DAYS * DAY_US))
    if bits & np.uint64(1023) >= _TRIPS:
        return HOME, 1.0
    into = moved % (_TRIP_DAYS * DAY_US)
    start = int((bits >> np.uint64(10)) & np.uint64(0xFF)) % 20 * DAY_US + 6 * HOUR_US
    start += int((bits >> np.uint64(18)) & np.uint64(0x7)) * HOUR_US
    end = start + (2 + int((bits >> np.uint64(21)) & np.uint64(0x3))) * DAY_US + 5 * HOUR_US
    if into < start or into >= end:
        return HOME, 1.0
    city = int(pop.city_lut[(bits >> np.uint64(24)) & _LOW12])
    return city, min((into - start) / (6.0 * HOUR_US), (end - into) / (6.0 * HOUR_US), 1.0)


@njit(inline="always")
def merchants_of(pop, category):
    """How many merchants a category has: they are category, category + 14, ..."""
    return (len(pop.merchants) - category + KINDS - 1) // KINDS


@njit(inline="always")
def any_merchant(pop, category, bits):
    """A merchant of a category, each as likely: seldom one the cardholder knows."""
    return category + KINDS * below(bits, merchants_of(pop, category))


@njit(inline="always")
def common_merchant(pop, category, city, bits):
    """A merchant as people of ``city`` choose one: online shops by fame, others from what is there."""
    if IS_NET[category]:
        fame = unit(bits)
        return category + KINDS * int(merchants_of(pop, category) * fame * fame)
    return pop.local[city, category, below(bits, pop.local.shape[2])]


@njit(inline="always")
def usual_merchant(pop, key, card, category, city, bits):
    """A merchant as the cardholder chooses one: mostly one of three favourites, at times any that is common."""
    if int(bits & np.uint64(0xFF)) < pop.cards[card].roams:
        return common_merchant(pop, category, city, draw(bits, 0))
    rank = (int(bits >> np.uint64(8)) & 7) // 3  # 0, 1 and 2 in the ratio 3 : 3 : 2
    favourite = subkey(key, _FAVOURITE, np.uint64(card * KINDS + category))
    return common_merchant(pop, category, city, draw(favourite, rank + 3 * int(city)))


@njit(inline="always")
def cents_of(pop, card, merchant, boost, bits):
    """An amount in cents: log-normal by category, person and merchant; ``boost`` is added to its logarithm."""
    category = merchant % KINDS
    log = pop.amount_mu[category] + pop.amount_sigma[category] * normal(bits)
    log += pop.cards[card].level + pop.merchants[merchant].price + boost
    return min(max(int(np.exp(log)), 50), _MAX_CENTS)


@njit(inline="always")
def tiny_cents(bits):
    """An amount of half a dollar to six, small ones more often."""
    skew = unit(bits)
    return 50 + int(550 * skew * skew)


@njit(inline="always")
def place(pop, card, merchant, where):
    """(latitude, longitude) of a purchase: a branch near home or in the city visited; where the buyer is if online."""
    spot = draw(np.uint64(merchant), where)
    if where == HOME:
        lat, long = pop.cards[card].home_lat, pop.cards[card].home_long
    else:
        lat, long = pop.city_lat[where], pop.city_long[where]
    return lat + between(spot, -0.12, 0.12), long + between(draw(spot, 0), -0.15, 0.15)


@njit(inline="always")
def place_on_way(pop, card, merchant, city, progress):
    """(latitude, longitude) of a purchase between home and ``city``."""
    lat, long = place(pop, card, merchant, HOME)
    return lat + progress * (pop.city_lat[city] - lat), long + progress * (pop.city_long[city] - long)


@njit(inline="always")
def far_city(pop, city, key):
    """A city at least 900 km from ``city`` (of eight tried; the last otherwise), big ones more often."""
    other = 0
    for attempt in range(8):
        other = int(pop.city_lut[draw(key, attempt) >> _S52])
        north = (pop.city_lat[other] - pop.city_lat[city]) * 111.2
        east = (pop.city_long[other] - pop.city_long[city]) * 85.0
        if north * north + east * east > 900.0**2:
            break
    return other
