"""The edge's rules once more, one row at a time with the standard library: slow and obvious."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal

from spearhead.schema import CATEGORIES, MAX_AMOUNT_CENTS, STATES

WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
Value = str | int | float | dt.datetime | dt.date


class Refused(Exception):  # noqa: N818
    """Says why."""


def slow_reading(row: dict[str, str]) -> dict[str, Value] | str:
    """What some of the row's columns become, or why it is refused."""
    row = {name: text.strip(WHITE_SPACE) for name, text in row.items()}
    try:
        return _reading(row)
    except Refused as refused:
        return str(refused)


def _reading(row: dict[str, str]) -> dict[str, Value]:
    _id(row["trans_num"])
    _need(bool(row["cc_num"]), "cc_num is missing")
    _need(re.fullmatch("[0-9]{11,19}", row["cc_num"]), "cc_num is not a card number of 11 to 19 digits")
    _need(row["cc_num"] not in row["trans_num"], "trans_num contains the card number")
    digits = row["trans_num"].translate(dict.fromkeys(map(ord, "_.:-")))
    _need(
        not (digits.isdigit() and 11 <= len(digits) <= 19),
        "trans_num looks like a card number: 11 to 19 digits and no letter",
    )
    time = _time(row["trans_date_trans_time"])
    cents = _cents(row["amt"])
    _need(row["category"] in CATEGORIES, "category is missing or unknown")
    _need(row["state"].upper() in STATES, "state is missing or unknown")
    merchant = _name("merchant", row["merchant"].removeprefix("fraud_"))
    _need(bool(row["last"]), "last is missing")
    initial = row["last"][0].upper()
    lat, long = _degrees("lat", row["lat"], 90), _degrees("long", row["long"], 180)
    people = int(row["city_pop"])
    _need(0 <= people <= 100_000_000, "city_pop is missing or not between 0 and 100,000,000")
    return {
        "trans_num": row["trans_num"],
        "event_time": time,
        "amt_cents": cents,
        "category": CATEGORIES.index(row["category"]),
        "state": STATES.index(row["state"].upper()),
        "merchant": merchant,
        "last_initial": ord(initial if "A" <= initial <= "Z" else "?"),
        "home_lat": lat,
        "home_long": long,
        "city_pop": people,
        "dob": _dob(row["dob"], time),
        "label": _label(row["is_fraud"]),
    }


def _need(holds: object, reason: str) -> None:
    if not holds:
        raise Refused(reason)


def _id(text: str) -> None:
    _need(text, "trans_num is missing")
    _need(re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text), "trans_num is not 1 to 64 letters, digits or any of _.:-")


def _parsed(parse: Callable[[str], Value], text: str, reason: str) -> Value:
    try:
        return parse(text)
    except ValueError:
        raise Refused(reason) from None


def _time(text: str) -> dt.datetime:
    _need(len(text) > 10, "trans_date_trans_time is missing or not a time")
    time = _parsed(dt.datetime.fromisoformat, text, "trans_date_trans_time is missing or not a time")
    assert isinstance(time, dt.datetime)
    time = time.replace(tzinfo=None)
    inside = dt.datetime(1970, 1, 2) <= time < dt.datetime(2100, 1, 1)
    _need(inside, "trans_date_trans_time is outside 1970 to 2099")
    return time


def _cents(text: str) -> int:
    amount = _parsed(float, text, "amt is missing or not a number")
    assert isinstance(amount, float)
    _need(math.isfinite(amount), "amt is missing or not a number")
    _need(amount >= 0, "amt is negative")
    _need(amount * 100 <= MAX_AMOUNT_CENTS, "amt is above $10,000,000.00")
    cents = (Decimal(text) * 100).to_integral_value(ROUND_HALF_EVEN)
    _need(float(cents / 100) == amount, "amt has more than two decimals")
    _need(cents > 0, "amt is zero")
    return int(cents)


def _name(column: str, text: str) -> str:
    _need(text, f"{column} is missing")
    masked = re.sub(r"\d(?:[ \t\u00a0\u2007\u2009\u202f._/\u2010-\u2015-]{0,3}\d){10,}", "*" * 11, text)
    _need(len(masked) <= 128, f"{column} is longer than 128 characters")
    _need(not re.search(r"[\x00-\x1f\x7f]", masked), f"{column} has control characters")
    return masked


def _degrees(column: str, text: str, most: int) -> float:
    degrees = float(text)
    _need(-most <= degrees <= most, f"{column} is missing or not between -{most} and {most}")
    return degrees


def _dob(text: str, time: dt.datetime) -> dt.date:
    dob = _parsed(dt.date.fromisoformat, text, "dob is missing or not a date")
    assert isinstance(dob, dt.date)
    _need(dt.date(1890, 1, 1) <= dob <= time.date(), "dob is not between 1890 and the transaction")
    return dob


def _label(text: str) -> int:
    labels = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0, "": -1}
    _need(text.lower() in labels, "is_fraud is neither 0 nor 1")
    return labels[text.lower()]
