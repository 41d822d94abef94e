"""The transaction simulator of the Fraud Detection Handbook, as a source: a finite set of rows that is always the same.

Written from the description by Le Borgne, Siblini, Lebichot and Bontempi (ULB, 2022), so that figures of a model can
be laid beside published ones. Customers and terminals live on a square of 100 by 100; a customer uses the terminals in
reach. The draws are NumPy's legacy generator and Python's ``random``, seeded as described, one after the other, so the
set is made whole (about ten seconds) and kept on the volume like a population. Rows of one second stand in the order
of their customers: the description's sort leaves that order open.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.generator import cache
from services.generator.source import Chunk
from spearhead.schema import CATEGORIES, RAW, SCENARIOS, STATES, came_together
from spearhead.volume import Volume

START_US: Final = 1_522_540_800_000_000  # 2018-04-01T00:00Z
DAYS: Final = 183
CUSTOMERS: Final = 5_000
TERMINALS: Final = 10_000
PER_CARD_AND_DAY: Final = 1.92  # Poisson, 2 on average, less those that fall outside the day
_SIDE: Final = 100.0
_REACH: Final = 5.0
_DAY_S: Final = 86_400
_NOON_S, _SPREAD_S = 43_200, 20_000
_LARGE_CENTS: Final = 22_000
_TERMINALS_A_DAY, _TERMINAL_DAYS = 2, 28
_CUSTOMERS_A_DAY, _CUSTOMER_DAYS, _FACTOR = 3, 14, 5

# Our vocabulary of scenarios for the three: a large amount names none, a terminal that leaks is a compromised merchant,
# leaked credentials are used without the card.
LARGE_AMOUNT, TERMINAL, CREDENTIALS = 0, SCENARIOS.index("merchant_compromise"), SCENARIOS.index("card_not_present")

# The description knows no places, trades or persons: all live in one town, the square's side is 100 km.
_LAT, _LONG = 40.0, -100.0
_KM_LAT, _KM_LONG = 111.2, 111.2 * float(np.cos(np.radians(_LAT)))
_CONSTANT: Final = {
    "last4": 0, "category": CATEGORIES.index("misc_pos"), "state": STATES.index("NE"), "last_initial": ord("?"),
    "city_pop": CUSTOMERS, "dob": 0,
}  # fmt: skip
_ID, _ID_DIGITS = b"handbook-", 7

TRANSACTION: Final = np.dtype(
    [
        ("second", "<u4"),  # since START_US
        ("cents", "<i4"),
        ("customer", "<u2"), ("terminal", "<u2"),
        ("label", "u1"), ("scenario", "u1"), ("pad", "<u2"),
    ]
)  # fmt: skip
_FORMAT: Final = 1


class Customers(NamedTuple):
    """What a customer is; all (n,)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    mean: NDArray[np.float64]  # of an amount, dollars; the deviation is half of it
    rate: NDArray[np.float64]  # transactions a day


def customers(count: int = CUSTOMERS) -> Customers:
    """The first ``count`` customers."""
    drawn = np.random.RandomState(0).random_sample((count, 4))
    return Customers(*(np.array([0.0, 0.0, 5.0, 0.0]) + np.array([_SIDE, _SIDE, 95.0, 4.0]) * drawn).T.copy())


def terminals() -> NDArray[np.float64]:
    """Places of all terminals, (TERMINALS, 2)."""
    return np.random.RandomState(1).random_sample((TERMINALS, 2)) * _SIDE


def transactions(volume: Volume | None = None) -> NDArray[np.void]:
    """The whole set, ``TRANSACTION``, in order of time: from the volume's cache, or made (and cached there)."""
    name = f"handbook-v{_FORMAT}"
    made = cache.load(volume, name, [TRANSACTION]) if volume else None
    if made is None:
        made = [simulate()]
        if volume:
            cache.store(volume, name, made)
    return made[0]


def simulate(count: int = CUSTOMERS, days: int = DAYS) -> NDArray[np.void]:
    """The first ``count`` customers' transactions of the first ``days``, with the frauds among them."""
    people, places = customers(count), terminals()
    rows = np.concatenate([_stream(customer, people, places, days) for customer in range(count)])
    rows = rows[np.argsort(rows["second"], kind="stable")]
    _large_amounts(rows)
    _leaking_terminals(rows, days)
    _leaked_credentials(rows, days, count)
    # What rounds to nothing (42 rows) costs a cent: a transaction of $0.00 is none to prep.
    rows["cents"] = np.maximum(rows["cents"], 1)
    return rows


def _stream(customer: int, people: Customers, places: NDArray[np.float64], days: int) -> NDArray[np.void]:
    """One customer's transactions, day by day."""
    home = np.array([people.x[customer], people.y[customer]])
    reach = np.flatnonzero(np.sqrt(((home - places) ** 2).sum(axis=1)) < _REACH).tolist()
    choose, draws = random.Random(customer).choice, np.random.RandomState(customer)  # noqa: S311, as described
    mean, rate = float(people.mean[customer]), float(people.rate[customer])
    rows = []
    for day in range(days):
        for _ in range(draws.poisson(rate)):
            second = int(draws.normal(_NOON_S, _SPREAD_S))
            if 0 < second < _DAY_S:
                amount = draws.normal(mean, mean / 2)
                if amount < 0:
                    amount = draws.uniform(0, 2 * mean)
                if reach:
                    rows.append((day * _DAY_S + second, round(amount * 100), customer, choose(reach), 0, 0, 0))
    return np.array(rows, TRANSACTION)


def _large_amounts(rows: NDArray[np.void]) -> None:
    _mark(rows, np.flatnonzero(rows["cents"] > _LARGE_CENTS), LARGE_AMOUNT)


def _leaking_terminals(rows: NDArray[np.void], days: int) -> None:
    """Every day some terminals leak for weeks: all that is paid there is fraud."""
    for day in range(days - 1):
        leaking = np.random.RandomState(day).choice(TERMINALS, size=_TERMINALS_A_DAY, replace=False)
        first, last = _days(rows, day, _TERMINAL_DAYS)
        _mark(rows, first + np.flatnonzero(np.isin(rows["terminal"][first:last], leaking)), TERMINAL)


def _leaked_credentials(rows: NDArray[np.void], days: int, count: int) -> None:
    """Every day some customers' cards leak for weeks: a third of their transactions is fraud, at five times as much."""
    for day in range(days - 1):
        leaked = np.random.RandomState(day).choice(count, size=min(_CUSTOMERS_A_DAY, count), replace=False)
        first, last = _days(rows, day, _CUSTOMER_DAYS)
        theirs = (first + np.flatnonzero(np.isin(rows["customer"][first:last], leaked))).tolist()
        stolen = np.array(random.Random(day).sample(theirs, k=int(len(theirs) / 3)), np.int64)  # noqa: S311
        _mark(rows, stolen, CREDENTIALS)
        rows["cents"][stolen] *= _FACTOR


def _days(rows: NDArray[np.void], day: int, length: int) -> tuple[int, int]:
    """Rows of ``length`` days from ``day`` on: the first, and one past the last."""
    first, last = np.searchsorted(rows["second"], (day * _DAY_S, (day + length) * _DAY_S))
    return int(first), int(last)


def _mark(rows: NDArray[np.void], frauds: NDArray[np.int64], scenario: int) -> None:
    rows["label"][frauds] = 1
    rows["scenario"][frauds] = scenario


class Handbook:
    """The set as a source. It ends; ``rows`` is the whole set or, for tests, another."""

    finite = True

    def __init__(self, rows: NDArray[np.void], cursor: str = "") -> None:
        """Go on from ``cursor``. Raises ValueError if it is not one of this population."""
        self._rows = rows
        self._at = self._parse(cursor)
        people, places = customers(), terminals()
        square = {"home": np.stack([people.x, people.y], axis=1), "merch": places}
        self._lat = {name: _degrees(xy[:, 1], _LAT, _KM_LAT) for name, xy in square.items()}
        self._long = {name: _degrees(xy[:, 0], _LONG, _KM_LONG) for name, xy in square.items()}
        self._tokens = _tokens()
        self._names = pa.array([f"terminal {number:04d}" for number in range(TERMINALS)])

    def take(self, rows: int) -> Chunk:
        """The next ``rows`` rows, fewer only at the end."""
        first = self._at
        self._at = min(first + rows, len(self._rows))
        batch = self._batch(self._rows[first : self._at], first)
        seen = int(self._rows["second"][self._at - 1]) if self._at else 0
        return Chunk(batch, [], self.cursor, START_US + seen * 1_000_000, self._at == len(self._rows))

    @property
    def cursor(self) -> str:
        """Where the next ``take`` goes on."""
        return f"handbook at {self._at}"

    def _parse(self, cursor: str) -> int:
        settings, _, position = (cursor or "handbook at 0").partition(" at ")
        if settings != "handbook":
            raise ValueError(f"the traffic on the volume is {settings!r}, the settings ask for 'handbook'")
        return int(position)

    def _batch(self, rows: NDArray[np.void], first: int) -> pa.RecordBatch:
        """The rows, of which the first has the number ``first``, in schema.RAW."""
        customer, terminal, count = rows["customer"], rows["terminal"], len(rows)
        used, code = np.unique(terminal, return_inverse=True)
        columns = {
            "trans_num": _ids(first, count),
            "event_time": START_US + rows["second"].astype(np.int64) * 1_000_000,
            "ingested_at": came_together(count, 0),
            "card": self._tokens[customer],
            "amt_cents": rows["cents"],
            "merchant": pa.DictionaryArray.from_arrays(code.astype(np.uint16), self._names.take(pa.array(used))),
            "first": pa.DictionaryArray.from_arrays(np.zeros(count, np.int16), pa.array(["?"])),
            "label": rows["label"],
            "scenario": rows["scenario"],
            "home_lat": self._lat["home"][customer],
            "home_long": self._long["home"][customer],
            "merch_lat": self._lat["merch"][terminal],
            "merch_long": self._long["merch"][terminal],
        } | {name: np.full(count, value, np.int32) for name, value in _CONSTANT.items()}
        return pa.RecordBatch.from_arrays([_column(columns[f.name]).cast(f.type) for f in RAW], schema=RAW)


def _column(values: pa.Array | NDArray[np.generic]) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(np.ascontiguousarray(values))


def _degrees(place: NDArray[np.float64], middle: float, km: float) -> NDArray[np.float32]:
    return (middle + (place - _SIDE / 2) / km).astype(np.float32)


def _tokens() -> NDArray[np.uint64]:
    """A token a customer: no card number exists that it could be turned back into."""
    return np.random.RandomState(2).randint(0, 2**64, CUSTOMERS, dtype=np.uint64)


def _ids(first: int, count: int) -> pa.Array:
    """``handbook-`` and the row's number, (count,) strings of one length."""
    number = np.arange(first, first + count)[:, None] // 10 ** np.arange(_ID_DIGITS - 1, -1, -1) % 10
    text = np.empty((count, len(_ID) + _ID_DIGITS), np.uint8)
    text[:, : len(_ID)] = np.frombuffer(_ID, np.uint8)
    text[:, len(_ID) :] = number + ord("0")
    offsets = np.arange(count + 1, dtype=np.int32) * text.shape[1]
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))
