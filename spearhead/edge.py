"""The edge: rows in the Sparkov layout, as text, become rows of ``schema.RAW`` or are refused with a reason.

Replay, HTTP ingest and the inbox all come through here. Names, streets, jobs and card numbers stay outside: of the
cardholder only the first name and the last name's initial go on, of the card its token and last four digits.

Columns whose values repeat (a card's number, home and birthday; a merchant's name) are read once for each distinct
value of a chunk and spread over the rows by its number; only five columns are read row by row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from spearhead.mask import LONG_NUMBER, mask
from spearhead.schema import (
    CATEGORIES,
    FIRST_NAME,
    MAX_AMOUNT_CENTS,
    MERCHANT,
    RAW,
    STATES,
    TIME,
    UNKNOWN_LABEL,
    came_together,
)
from spearhead.tokens import Tokenizer

REQUIRED: Final = (
    "trans_date_trans_time", "cc_num", "merchant", "category", "amt", "first", "last", "state", "lat", "long",
    "city_pop", "dob", "trans_num", "merch_lat", "merch_long",
)  # fmt: skip
OPTIONAL: Final = ("is_fraud",)
MAX_ROWS: Final = 32_767  # in one batch: first names are coded in 15 bits

_MAX_TEXT: Final = 128
_MAX_ID: Final = 64
_MOST: Final = 1e12  # dollars: far above what is allowed, far below what int64 holds in cents
_QUESTION_MARK: Final = ord("?")
_PUBLIC_PREFIX: Final = "fraud_"  # the public file puts it before every merchant, fraud or not
_FIRST_TIME: Final = dt.datetime(1970, 1, 2)  # UTC; the zone is added with the schema
_LAST_TIME: Final = dt.datetime(2100, 1, 1)
_FIRST_DOB: Final = dt.date(1890, 1, 1)

_BAD_ID: Final = f"trans_num is not 1 to {_MAX_ID} letters, digits or any of _.:-"
_CARD_LIKE: Final = "trans_num looks like a card number: 11 to 19 digits and no letter"

# Why a row is refused; of several faults the one that comes first here is named.
REASONS: Final = (
    "trans_num is missing",
    _BAD_ID,
    "cc_num is missing",
    "cc_num is not a card number of 11 to 19 digits",
    "trans_num contains the card number",
    _CARD_LIKE,
    "trans_date_trans_time is missing or not a time",
    "trans_date_trans_time is outside 1970 to 2099",
    "amt is missing or not a number",
    "amt is negative",
    "amt is above $10,000,000.00",
    "amt has more than two decimals",
    "amt is zero",
    "category is missing or unknown",
    "state is missing or unknown",
    "merchant is missing",
    f"merchant is longer than {_MAX_TEXT} characters",
    "merchant has control characters",
    "first is missing",
    f"first is longer than {_MAX_TEXT} characters",
    "first has control characters",
    "last is missing",
    "lat is missing or not between -90 and 90",
    "long is missing or not between -180 and 180",
    "merch_lat is missing or not between -90 and 90",
    "merch_long is missing or not between -180 and 180",
    "city_pop is missing or not between 0 and 100,000,000",
    "dob is missing or not a date",
    "dob is not between 1890 and the transaction",
    "is_fraud is neither 0 nor 1",
)
_FINE: Final = len(REASONS)


class Checked(NamedTuple):
    """Outcome for rows in their order: ``reason`` (n,) strings, null where a row is accepted, and the accepted rows."""

    reason: pl.Series
    accepted: pl.DataFrame  # columns as schema.RAW but ingested_at and scenario, plus cc_num; texts not yet coded
    positions: NDArray[np.int64]  # (accepted,) where the accepted rows are among all rows


class _Reading(NamedTuple):
    """How a column of the layout is read."""

    columns: dict[str, pl.Expr]  # what becomes of its ``text``; a name with an underscore is only for ``fault``
    fault: pl.Expr  # of ``columns``: the code of the first thing wrong, or _FINE


def check(rows: pl.DataFrame) -> Checked:
    """Validate ``rows``: columns REQUIRED, optionally OPTIONAL, every value text (null or empty: missing).

    Where a row has several faults the first in the order of REASONS is named.
    """
    frames = [_read(_text(rows, name), reading) for name, reading in _EACH.items()]
    for name, reading in _REPEATED.items():
        values, codes = _distinct(_text(rows, name))
        frames.append(_read(values, reading)[codes])
    faults = [frame.drop_in_place("fault") for frame in frames]
    parsed = pl.concat(frames, how="horizontal")
    faults.append(parsed.select(_TOGETHER).to_series())
    fault = np.minimum.reduce([codes.to_numpy() for codes in faults])
    fine = fault == _FINE
    if fine.all():
        return Checked(pl.Series([None], dtype=pl.String).new_from_index(0, rows.height), parsed, np.flatnonzero(fine))
    return Checked(pl.Series([*REASONS, None]).gather(fault), parsed.filter(pl.Series(fine)), np.flatnonzero(fine))


def to_batch(accepted: pl.DataFrame, tokens: Tokenizer) -> pa.RecordBatch:
    """Accepted rows (at most MAX_ROWS) as a batch of schema.RAW. ``ingested_at`` is the epoch: the caller sets it."""
    rows = accepted.height
    cards, codes = _distinct(accepted["cc_num"])
    last4 = cards.str.slice(-4).cast(pl.UInt16).to_numpy()
    columns: dict[str, pa.Array] = {
        "trans_num": accepted["trans_num"].to_arrow().cast(pa.string()),
        "event_time": accepted["event_time"].cast(pl.Int64).to_arrow().view(TIME),
        "ingested_at": came_together(rows, 0),
        "card": pa.array(tokens.tokens(cards.to_list())[codes]),
        "last4": pa.array(last4[codes]),
        "merchant": _coded(accepted["merchant"], MERCHANT),
        "first": _coded(accepted["first"], FIRST_NAME),
        "scenario": pa.array(np.zeros(rows, np.int8)),
    }
    for field in RAW:
        if field.name not in columns:
            columns[field.name] = accepted[field.name].to_arrow().cast(field.type)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in RAW], schema=RAW)


def as_text(row: Mapping[str, str | None]) -> str:
    """A refused row in one line: its values in order, without what must not be kept.

    Of the last name the initial is left, and whatever may be a card number is turned into stars.
    """
    kept = {name: value or "" for name, value in row.items()}
    if "last" in kept:
        kept["last"] = kept["last"][:1]
    return mask(",".join(kept.values()))


def empty() -> pl.DataFrame:
    """No accepted rows."""
    return check(pl.DataFrame(schema=dict.fromkeys(REQUIRED, pl.String))).accepted


def _text(rows: pl.DataFrame, name: str) -> pl.Series:
    """A column without nulls; an optional one that isn't there is empty."""
    if name not in rows.columns:
        return pl.Series(name, [""]).new_from_index(0, rows.height)
    return rows[name].fill_null("") if rows[name].null_count() else rows[name]


def _distinct(texts: pl.Series) -> tuple[pl.Series, NDArray[np.int32]]:
    """Distinct values in order of appearance, and the number of each row's: int32 (n,)."""
    encoded = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.newest()).dictionary_encode()
    return pl.Series(encoded.dictionary, dtype=pl.String), encoded.indices.to_numpy()


def _coded(texts: pl.Series, kind: pa.DictionaryType) -> pa.DictionaryArray:
    values, codes = _distinct(texts)
    indices = pa.array(codes).cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(indices, values.to_arrow().cast(kind.value_type))


def _read(texts: pl.Series, reading: _Reading) -> pl.DataFrame:
    """The columns that ``texts`` become, and ``fault``."""
    kept = [name for name in reading.columns if not name.startswith("_")]
    return texts.alias("text").to_frame().select(**reading.columns).select(*kept, fault=reading.fault)


def _first(*faults: tuple[str, pl.Expr]) -> pl.Expr:
    """Code of the first of ``faults`` (reason, where it is true or null), _FINE where there is none."""
    code = pl.lit(_FINE, pl.UInt8)
    for reason, found in reversed(faults):
        code = pl.when(found.fill_null(value=True)).then(pl.lit(REASONS.index(reason), pl.UInt8)).otherwise(code)
    return code


def _code(text: pl.Expr, vocabulary: tuple[str, ...]) -> pl.Expr:
    codes = pl.Series(range(len(vocabulary)), dtype=pl.UInt8)
    return text.replace_strict(pl.Series(vocabulary), codes, default=None, return_dtype=pl.UInt8)


def _number(text: pl.Expr) -> pl.Expr:
    return text.cast(pl.Float64, strict=False)


def _no_numbers(text: pl.Expr) -> pl.Expr:
    """Free text in which whatever may be a card number is made unreadable."""
    return text.str.replace_all(LONG_NUMBER, "***********")


def _initial(last: pl.Expr) -> pl.Expr:
    """ASCII code of the capital that the last name begins with, '?' if it begins with none."""
    letter = last.str.to_uppercase().str.extract(r"^([A-Z])", 1)
    code = pl.Series([ord("A") + i for i in range(26)], dtype=pl.UInt8)
    alphabet = pl.Series([chr(ord("A") + i) for i in range(26)])
    return letter.replace_strict(alphabet, code, default=_QUESTION_MARK, return_dtype=pl.UInt8)


def _label(text: pl.Expr) -> pl.Expr:
    """1, 0, or -1 where it is missing; null where it is something else."""
    names = pl.Series(["1", "0", "1.0", "0.0", "true", "false", ""])
    codes = pl.Series([1, 0, 1, 0, 1, 0, UNKNOWN_LABEL], dtype=pl.Int8)
    return text.str.to_lowercase().replace_strict(names, codes, default=None, return_dtype=pl.Int8)


def _times(texts: pl.Series) -> pl.Series:
    """UTC from ``2019-01-07 13:04:44``, the fast way, or else also with ``T``, fraction and ``Z``."""
    times = texts.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    others = times.is_null().arg_true()
    if len(others):
        plain = texts.gather(others).str.strip_chars().str.replace("T", " ", literal=True)
        plain = plain.str.strip_suffix("Z").str.strip_suffix("+00:00")
        times.scatter(others, plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False))
    return times


def _cents(amounts: pl.Series) -> pl.Series:
    """Dollars as the whole number of cents whose float64 they are; null where they are none."""
    dollars = np.nan_to_num(amounts.to_numpy(), nan=0.005, posinf=0.005, neginf=0.005).clip(-_MOST, _MOST)
    cents = np.rint(dollars * 100)
    whole = pl.Series(cents / 100 == dollars)  # Polars divides by a constant less exactly
    return pl.Series(cents.astype(np.int64)).set(~whole, None)


def _name(column: str, text: pl.Expr) -> _Reading:
    """A free text that goes on."""
    faults = (
        (f"{column} is missing", pl.col(column) == ""),
        (f"{column} is longer than {_MAX_TEXT} characters", pl.col(column).str.len_chars() > _MAX_TEXT),
        (f"{column} has control characters", pl.col(column).str.contains(r"[\x00-\x1f\x7f]")),
    )
    return _Reading({column: _no_numbers(text)}, _first(*faults))


def _degrees(column: str, source: str, most: int) -> _Reading:
    reason = f"{source} is missing or not between -{most} and {most}"
    return _Reading({column: _number(_TEXT)}, _first((reason, ~pl.col(column).is_between(-most, most))))


_TEXT: Final = pl.col("text").str.strip_chars()
_AMOUNT: Final = _number(_TEXT)
_DATE: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T]00:00:00(\.0+)?)?$"

# The columns that differ from row to row, then those whose values repeat.
_EACH: Final = {
    "trans_num": _Reading(
        {"trans_num": _TEXT},
        _first(
            ("trans_num is missing", pl.col("trans_num") == ""),
            (_BAD_ID, ~pl.col("trans_num").str.contains(rf"^[A-Za-z0-9_.:-]{{1,{_MAX_ID}}}$")),
            # It may be the card number of any row, and check digits are no help: cc_num needs none either.
            (_CARD_LIKE, pl.col("trans_num").str.contains(r"^[_.:-]*(?:[0-9][_.:-]*){11,19}$")),
        ),
    ),
    "trans_date_trans_time": _Reading(
        {"event_time": pl.col("text").map_batches(_times, return_dtype=pl.Datetime("us"))},
        _first(
            ("trans_date_trans_time is missing or not a time", pl.col("event_time").is_null()),
            (
                "trans_date_trans_time is outside 1970 to 2099",
                ~pl.col("event_time").is_between(_FIRST_TIME, _LAST_TIME, closed="left"),
            ),
        ),
    ),
    "amt": _Reading(
        {"_amt": _AMOUNT, "amt_cents": _AMOUNT.map_batches(_cents, return_dtype=pl.Int64)},
        _first(
            ("amt is missing or not a number", ~pl.col("_amt").is_finite()),
            ("amt is negative", pl.col("_amt") < 0),
            ("amt is above $10,000,000.00", pl.col("_amt") * 100 > MAX_AMOUNT_CENTS),
            ("amt has more than two decimals", pl.col("amt_cents").is_null()),
            ("amt is zero", pl.col("amt_cents") < 1),
        ),
    ),
    "merch_lat": _degrees("merch_lat", "merch_lat", 90),
    "merch_long": _degrees("merch_long", "merch_long", 180),
}
_REPEATED: Final = {
    "cc_num": _Reading(
        {"cc_num": _TEXT},
        _first(
            ("cc_num is missing", pl.col("cc_num") == ""),
            ("cc_num is not a card number of 11 to 19 digits", ~pl.col("cc_num").str.contains(r"^[0-9]{11,19}$")),
        ),
    ),
    "category": _Reading(
        {"category": _code(_TEXT, CATEGORIES)}, _first(("category is missing or unknown", pl.col("category").is_null()))
    ),
    "state": _Reading(
        {"state": _code(_TEXT.str.to_uppercase(), STATES)},
        _first(("state is missing or unknown", pl.col("state").is_null())),
    ),
    "merchant": _name("merchant", _TEXT.str.strip_prefix(_PUBLIC_PREFIX)),
    "first": _name("first", _TEXT),
    "last": _Reading(
        {"_last": _TEXT, "last_initial": _initial(_TEXT)}, _first(("last is missing", pl.col("_last") == ""))
    ),
    "lat": _degrees("home_lat", "lat", 90),
    "long": _degrees("home_long", "long", 180),
    "city_pop": _Reading(
        {"city_pop": _number(_TEXT).cast(pl.Int32, strict=False)},
        _first(
            ("city_pop is missing or not between 0 and 100,000,000", ~pl.col("city_pop").is_between(0, 100_000_000))
        ),
    ),
    "dob": _Reading(
        {"dob": pl.when(_TEXT.str.contains(_DATE)).then(_TEXT.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False))},
        _first(("dob is missing or not a date", pl.col("dob").is_null())),
    ),
    "is_fraud": _Reading({"label": _label(_TEXT)}, _first(("is_fraud is neither 0 nor 1", pl.col("label").is_null()))),
}
# Faults that two columns have together; null where one of them has a fault of its own.
_TOGETHER: Final = _first(
    (
        "trans_num contains the card number",
        pl.col("trans_num").str.replace_all(r"[_.:-]", "").str.contains(pl.col("cc_num"), literal=True),
    ),
    (
        "dob is not between 1890 and the transaction",
        ~pl.col("dob").is_between(_FIRST_DOB, pl.col("event_time").dt.date()),
    ),
)
