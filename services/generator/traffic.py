"""Synthetic traffic: rows as a function of (seed, slot, cards, merchants, fraud rate, position), on a clock of its own.

Event time starts on Monday, 2024-01-01 and runs as fast as keeps a card at three purchases a day. It is cut into
blocks of at most a day; a block's everyday purchases are drawn in order of time, and the episodes of ``scenarios`` are
merged in.
A cursor ends in ``block:everyday:episode``, what was given so far: going on from it costs the same anywhere.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from services.generator import habits
from services.generator.draws import between, draw, key_of, mix, uniform_of, unit
from services.generator.names import first_names, merchant_names
from services.generator.places import (
    DAY_US,
    HOME,
    HOUR_US,
    KINDS,
    card_at,
    card_token,
    cents_of,
    place,
    place_on_way,
    trip,
    usual_merchant,
)
from services.generator.population import Population
from services.generator.scenarios import (
    EPISODE_DAYS,
    FRAUD,
    INNOCENT,
    LEAK,
    LEAK_SHARE,
    Purchases,
    episodes,
    leaking,
    leaks,
    no_purchases,
)
from services.generator.source import Chunk
from spearhead.narrow import texts_of
from spearhead.schema import CATEGORIES, RAW, came_together

START_US: Final = 1_704_067_200_000_000  # 2024-01-01T00:00Z, a Monday
PER_CARD_AND_DAY: Final = 3.0
BLOCK_ROWS: Final = 65_536
ID_BYTES: Final = 11
_AHEAD: Final = 32

_SLOT, _BLOCK, _ID, _COUNT = 31, 32, 33, 34  # purposes of keys
_BIG_TICKET: Final = 0.004  # share of purchases that are far larger than usual
_ONLINE: Final = np.array([CATEGORIES.index(n) for n in ("shopping_net", "misc_net", "grocery_net", "shopping_net")])
_SYMBOLS: Final = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-", np.uint8)
_LETTERS: Final = np.frombuffer(b"abcdefghijklmnop", np.uint8)  # the first one: an id is no option, number or file


class Columns(NamedTuple):
    """A chunk's columns as arrays, named as in schema.RAW."""

    trans_num: NDArray[np.uint8]  # (rows * ID_BYTES,)
    event_time: NDArray[np.int64]
    card: NDArray[np.uint64]
    last4: NDArray[np.uint16]
    amt_cents: NDArray[np.int32]
    category: NDArray[np.uint8]
    state: NDArray[np.uint8]
    merchant: NDArray[np.int32]
    first: NDArray[np.int16]
    last_initial: NDArray[np.uint8]
    label: NDArray[np.int8]
    scenario: NDArray[np.int8]
    home_lat: NDArray[np.float32]
    home_long: NDArray[np.float32]
    merch_lat: NDArray[np.float32]
    merch_long: NDArray[np.float32]
    city_pop: NDArray[np.int32]
    dob: NDArray[np.int32]


def columns(rows: int) -> Columns:
    """Columns of ``rows`` rows to be filled in."""
    kinds = (
        np.int64, np.uint64, np.uint16, np.int32, np.uint8, np.uint8, np.int32, np.int16, np.uint8, np.int8, np.int8,
        np.float32, np.float32, np.float32, np.float32, np.int32, np.int32,
    )  # fmt: skip
    return Columns(np.empty(rows * ID_BYTES, np.uint8), *(np.empty(rows, kind) for kind in kinds))


class Ahead(NamedTuple):
    """Everyday purchases that come next: working memory of ``fill``."""

    time: NDArray[np.int64]
    key: NDArray[np.uint64]
    card: NDArray[np.int64]
    profile: NDArray[np.uint8]


class Block(NamedTuple):
    """What a block's rows depend on."""

    key: np.uint64  # of everyday purchases
    account_key: np.uint64  # of cards, habits and trips
    id_key: np.uint64
    id_base: np.uint64  # slot and number of the block
    start: int  # us since the start of the traffic
    end: int
    everyday: int  # rows


@njit(inline="always")
def _write_id(out, at, bits):
    """Eleven characters from 64 bits, four in the first and six in each other: different bits, different text."""
    start = at * ID_BYTES
    out[start] = _LETTERS[int(bits >> np.uint64(60))]
    for i in range(1, ID_BYTES):
        out[start + i] = _SYMBOLS[int(bits >> np.uint64(60 - 6 * i)) & 63]


@njit(inline="always")
def _write(pop, block, out, at, number, time, card, merchant, cents, spot, scenario):
    """Write row ``at``; ``number`` is its number in the block, ``spot`` its latitude and longitude."""
    person = pop.cards[card]
    token = card_token(block.account_key, card, time // DAY_US)
    _write_id(out.trans_num, at, mix((block.id_base | np.uint64(number)) + block.id_key))
    out.event_time[at] = START_US + time
    out.card[at] = token
    out.last4[at] = draw(token, 0) % np.uint64(10_000)
    out.amt_cents[at] = cents
    out.category[at] = merchant % KINDS
    out.state[at] = person.state
    out.merchant[at] = merchant
    out.first[at] = person.first
    out.last_initial[at] = person.initial
    out.label[at] = scenario > 0
    out.scenario[at] = scenario
    out.home_lat[at] = person.home_lat
    out.home_long[at] = person.home_long
    out.merch_lat[at] = spot[0]
    out.merch_long[at] = spot[1]
    out.city_pop[at] = person.city_pop
    out.dob[at] = person.dob


@njit(inline="always")
def _write_everyday(pop, block, leak, out, at, number, key, time, card, profile):
    """Write an everyday purchase: who is up at that hour buys what they usually buy, where they are."""
    hour = time // HOUR_US
    where, progress = trip(pop, block.account_key, card, time)
    bits = draw(key, 2)
    if progress < 1.0:
        category = _ONLINE[bits >> np.uint64(62)]
    else:
        category = int(pop.category_lut[profile, hour % 24 // 6, bits >> np.uint64(52)])
    city = int(pop.cards[card].city) if where == HOME else where
    merchant = usual_merchant(pop, block.account_key, card, category, city, draw(key, 3))
    bits = draw(key, 4)
    boost = 0.0
    if unit(bits) < _BIG_TICKET:
        boost = between(draw(key, 5), 0.6, 2.0)
    scenario = 0
    if leak[merchant] > 0 and unit(draw(key, 6)) < leak[merchant]:
        scenario = LEAK
        boost += between(draw(key, 7), 0.3, 1.3)
    cents = cents_of(pop, card, merchant, boost, draw(key, 8))
    spot = place_on_way(pop, card, merchant, where, progress) if progress < 1.0 else place(pop, card, merchant, where)
    _write(pop, block, out, at, number, time, card, merchant, cents, spot, scenario)


@njit(cache=True, _nrt=False)
def fill(pop, block, shares, leak, extra, last_extra, everyday, episode, number, out, at, ahead):
    """Write rows of ``block`` until it or ``out`` ends, in order of time.

    ``shares`` (168,) weighs the hours of the week; ``extra`` are the day's episode purchases by time, the block's end
    before ``last_extra``. ``everyday`` and ``episode`` say how many of each were written before, ``number`` how many of
    this block. ``ahead`` is working memory. Returns (everyday, episode, number, at) after.

    Without reference counts (``_nrt``): they would cost as much as the rest, and nothing is allocated here.
    """
    rows = len(out.card)
    total = 0.0
    hour = block.start // HOUR_US
    while hour * HOUR_US < block.end:
        total += shares[hour % 168] * (min((hour + 1) * HOUR_US, block.end) - max(hour * HOUR_US, block.start))
        hour += 1
    hour = block.start // HOUR_US
    begin = block.start
    weight = shares[hour % 168]
    before = 0.0
    length = weight * (min((hour + 1) * HOUR_US, block.end) - begin)
    ready, used = 0, 0
    while at < rows:
        if used == ready and everyday < block.everyday:
            # Times and cards of the next few rows at once: their records come from memory side by side.
            ready, used = min(len(ahead.time), block.everyday - everyday), 0
            for i in range(ready):
                key = draw(block.key, everyday + i)
                position = (everyday + i + unit(draw(key, 0))) / block.everyday * total
                while position >= before + length and (hour + 1) * HOUR_US < block.end:
                    before += length
                    hour += 1
                    begin = hour * HOUR_US
                    weight = shares[hour % 168]
                    length = weight * (min(begin + HOUR_US, block.end) - begin)
                card = card_at(pop, hour % 168, draw(key, 1))
                latest = min((hour + 1) * HOUR_US, block.end) - 1
                ahead.time[i] = min(begin + int((position - before) / weight), latest)
                ahead.key[i] = key
                ahead.card[i] = card
                ahead.profile[i] = pop.cards[card].profile
        time = ahead.time[used] if used < ready else block.end
        if episode < last_extra and extra.time[episode] < time:
            card, merchant = extra.card[episode], extra.merchant[episode]
            _write(
                pop, block, out, at, number, extra.time[episode], card, merchant, extra.cents[episode],
                place(pop, card, merchant, extra.where[episode]), extra.scenario[episode],
            )  # fmt: skip
            episode += 1
        elif used < ready:
            _write_everyday(
                pop, block, leak, out, at, number, ahead.key[used], time, ahead.card[used], ahead.profile[used]
            )
            used += 1
            everyday += 1
        else:
            break
        number += 1
        at += 1
    return everyday, episode, number, at


@njit(cache=True)
def _compact(codes, size):
    """Renumber codes 0..size-1 by first appearance, in place; the codes that occur, in that order."""
    place_of = np.full(size, -1, np.int32)
    used = np.empty(min(size, len(codes)), np.int32)
    count = 0
    for i in range(len(codes)):
        code = codes[i]
        if place_of[code] < 0:
            place_of[code] = count
            used[count] = code
            count += 1
        codes[i] = place_of[code]
    return used[:count]


class Traffic:
    """The endless source of synthetic rows of one producer slot."""

    finite = False

    def __init__(self, pop: Population, seed: int, slot: int, fraud_rate: float, cursor: str = "") -> None:
        """Go on from ``cursor``. Raises ValueError if it is not one of this very traffic."""
        self._pop = pop
        self._settings = (
            f"synthetic seed={seed} cards={len(pop.cards)} merchants={len(pop.merchants)} fraud={fraud_rate:g}"
        )
        self._slot = slot
        self._account_key = key_of(seed, _SLOT, slot)
        self._id_key = key_of(seed, _ID)
        self._fraud_rate = fraud_rate
        self._shares = habits.rhythm(len(pop.cards)).shares
        self._rows_per_day = PER_CARD_AND_DAY * len(pop.cards)
        in_episodes = sum(kind.share for kind in INNOCENT) + fraud_rate * (1.0 - LEAK_SHARE)
        in_episodes += fraud_rate * sum(kind.share / kind.rows for kind in FRAUD if kind.name == "geo_anomaly")
        self._everyday_share = 1.0 - in_episodes
        self._leaks = leaks(pop, fraud_rate, self._everyday_share)
        self._blocks_per_day = max(1, math.ceil(self._rows_per_day / BLOCK_ROWS))
        self._merchants = merchant_names(len(pop.merchants))
        self._first_names = first_names()
        self._ahead = Ahead(*(np.empty(_AHEAD, kind) for kind in (np.int64, np.uint64, np.int64, np.uint8)))
        self._day = -1
        self._carried = no_purchases()
        number, everyday, episode = self._parse(cursor)
        self._enter(number)
        self._everyday, self._episode, self._number = everyday, self._first_extra + episode, everyday + episode

    def take(self, rows: int) -> Chunk:
        """The next ``rows`` rows, exactly."""
        out = columns(rows)
        at = 0
        while True:
            self._everyday, self._episode, self._number, at = fill(
                self._pop, self._block, self._shares, self._leak, self._extra, self._last_extra, self._everyday,
                self._episode, self._number, out, at, self._ahead,
            )  # fmt: skip
            if at == rows:
                break
            self._enter(self._block_number + 1)
        return Chunk(self._batch(out), [], self.cursor, int(out.event_time[-1]) if rows else START_US, False)

    @property
    def cursor(self) -> str:
        """Where the next ``take`` goes on."""
        position = f"{self._block_number}:{self._everyday}:{self._episode - self._first_extra}"
        return f"{self._settings} at {position}"

    def leaking(self, day: int) -> NDArray[np.float32]:
        """Chance by merchant, (merchants,), that an everyday purchase on ``day`` is fraud for it is compromised."""
        return leaking(self._leaks, self._account_key, day, len(self._pop.merchants))

    def _parse(self, cursor: str) -> tuple[int, int, int]:
        """(block, everyday rows, episode rows) of a cursor."""
        if not cursor:
            return 0, 0, 0
        settings, _, position = cursor.partition(" at ")
        if settings != self._settings:
            raise ValueError(f"the traffic on the volume is {settings!r}, the settings ask for {self._settings!r}")
        block, everyday, episode = (int(part) for part in position.split(":"))
        return block, everyday, episode

    def _enter(self, number: int) -> None:
        """Make ``number`` the block at hand."""
        day, part = divmod(number, self._blocks_per_day)
        self._enter_day(day)
        start = day * DAY_US + DAY_US * part // self._blocks_per_day
        end = day * DAY_US + DAY_US * (part + 1) // self._blocks_per_day
        self._block_number = number
        luck = uniform_of(key_of(int(self._account_key), _COUNT, number))
        self._block = Block(
            key_of(int(self._account_key), _BLOCK, number),
            self._account_key,
            self._id_key,
            np.uint64((self._slot << 56) | (number << 24)),
            start,
            end,
            int(self._expected(start, end) + luck),
        )
        self._first_extra, self._last_extra = (int(i) for i in np.searchsorted(self._extra.time, (start, end)))
        self._everyday, self._episode, self._number = 0, self._first_extra, 0

    def _expected(self, start: int, end: int) -> float:
        """Everyday rows between two times of one day, on average."""
        edges = np.arange(start // HOUR_US, -(-end // HOUR_US) + 1) * HOUR_US
        spans = np.diff(np.clip(edges, start, end)) / DAY_US
        weights = self._shares[(edges[:-1] // HOUR_US) % habits.HOURS]
        return float(spans @ weights) * self._rows_per_day * self._everyday_share

    def _enter_day(self, day: int) -> None:
        """Episodes and compromised merchants of ``day``; those that go on after it are carried over."""
        if day == self._day:
            return
        first = day if day == self._day + 1 and self._day >= 0 else day - EPISODE_DAYS + 1
        if first != day:
            self._carried = no_purchases()
        parts = [self._carried, *(self._starting(d) for d in range(first, day + 1))]
        every = Purchases(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        later = every.time >= (day + 1) * DAY_US
        self._carried = Purchases(*(column[later] for column in every))
        today = ~later & (every.time >= day * DAY_US)
        order = np.flatnonzero(today)[np.argsort(every.time[today], kind="stable")]
        self._extra = Purchases(*(column[order] for column in every))
        self._leak = self.leaking(day)
        self._day = day

    def _starting(self, day: int) -> Purchases:
        week_hour = day % 7 * 24
        hours = habits.lookup(self._shares[week_hour : week_hour + 24]).astype(np.uint8)
        return episodes(self._pop, self._account_key, day, hours, self._rows_per_day, self._fraud_rate)

    def _batch(self, out: Columns) -> pa.RecordBatch:
        """The columns as a batch of schema.RAW, without a copy."""
        rows = len(out.card)
        used = _compact(out.merchant, len(self._merchants))
        given = {
            "trans_num": texts_of(pa.py_buffer(out.trans_num), ID_BYTES, rows),
            "ingested_at": came_together(rows, 0),
            "merchant": pa.DictionaryArray.from_arrays(
                out.merchant.astype(np.uint16), self._merchants.take(pa.array(used))
            ),
            "first": pa.DictionaryArray.from_arrays(out.first, self._first_names),
        }
        return pa.RecordBatch.from_arrays(
            [_arrow(given.get(field.name, getattr(out, field.name, None)), field.type) for field in RAW], schema=RAW
        )


def _arrow(column: pa.Array | NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    """An Arrow array over the column's own memory."""
    if isinstance(column, pa.Array):
        return column
    return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(column)])
