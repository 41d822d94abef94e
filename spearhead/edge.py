"""The edge: rows in the Sparkov layout, as text, become rows of ``schema.RAW`` or are refused with a reason.

Replay, HTTP ingest and the inbox all come through here. Names, streets, jobs and card numbers stay outside: of the
cardholder only the first name and the last name's initial go on, of the card its token and last four digits.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from spearhead.schema import CATEGORIES, FIRST_NAME, MAX_AMOUNT_CENTS, MERCHANT, RAW, STATES, TIME, UNKNOWN_LABEL
from spearhead.tokens import Tokenizer

REQUIRED: Final = (
    "trans_date_trans_time", "cc_num", "merchant", "category", "amt", "first", "last", "state", "lat", "long",
    "city_pop", "dob", "trans_num", "merch_lat", "merch_long",
)  # fmt: skip
OPTIONAL: Final = ("is_fraud",)
MAX_ROWS: Final = 32_767  # in one batch: first names are coded in 15 bits

_LONG_NUMBER: Final = r"\d(?:[ -]?\d){10,}"
_MAX_TEXT: Final = 128
_MAX_ID: Final = 64
_QUESTION_MARK: Final = ord("?")
_PUBLIC_PREFIX: Final = "fraud_"  # the public file puts it before every merchant, fraud or not
_FIRST_TIME: Final = pl.datetime(1970, 1, 2)
_LAST_TIME: Final = pl.datetime(2100, 1, 1)
_FIRST_DOB: Final = pl.date(1890, 1, 1)


class Checked(NamedTuple):
    """Outcome for rows in their order: ``reason`` (n,) strings, null where a row is accepted, and the accepted rows."""

    reason: pl.Series
    accepted: pl.DataFrame  # columns as schema.RAW but ingested_at and scenario, plus cc_num; texts not yet coded
    positions: NDArray[np.int64]  # (accepted,) where the accepted rows are among all rows


def check(rows: pl.DataFrame) -> Checked:
    """Validate ``rows``: columns REQUIRED, optionally OPTIONAL, every value text (null or empty: missing).

    Where a row has several faults the first in the order of ``_faults`` is named.
    """
    parsed = _parse(rows)
    reason = pl.coalesce(
        *[pl.when(fault.fill_null(value=True)).then(pl.lit(text)) for text, fault in _faults()],
        pl.lit(None, pl.String),
    )
    parsed = parsed.with_columns(reason=reason).with_row_index("row")
    accepted = parsed.filter(pl.col("reason").is_null())
    positions = accepted["row"].to_numpy().astype(np.int64)
    return Checked(parsed["reason"], accepted.drop("row", "reason"), positions)


def to_batch(accepted: pl.DataFrame, tokens: Tokenizer) -> pa.RecordBatch:
    """Accepted rows (at most MAX_ROWS) as a batch of schema.RAW. ``ingested_at`` is the epoch: the caller sets it."""
    rows = accepted.height
    cards = accepted["cc_num"]
    unique = cards.unique(maintain_order=True)
    coded = pl.DataFrame({"cc_num": unique, "card": pl.Series(tokens.tokens(unique.to_list()), dtype=pl.UInt64)})
    columns: dict[str, pa.Array] = {
        "trans_num": accepted["trans_num"].to_arrow().cast(pa.string()),
        "event_time": accepted["event_time"].cast(pl.Int64).to_arrow().view(TIME),
        "ingested_at": pa.array(np.zeros(rows, np.int64)).view(TIME),
        "card": accepted.select("cc_num")
        .join(coded, on="cc_num", how="left", maintain_order="left")["card"]
        .to_arrow(),
        "last4": cards.str.slice(-4).cast(pl.UInt16).to_arrow(),
        "merchant": _coded(accepted["merchant"], MERCHANT),
        "first": _coded(accepted["first"], FIRST_NAME),
        "scenario": pa.array(np.zeros(rows, np.int8)),
    }
    for field in RAW:
        if field.name not in columns:
            columns[field.name] = accepted[field.name].to_arrow().cast(field.type)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in RAW], schema=RAW)


def _coded(texts: pl.Series, kind: pa.DictionaryType) -> pa.DictionaryArray:
    encoded = texts.to_arrow().cast(pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices.cast(kind.index_type), encoded.dictionary)


def _parse(rows: pl.DataFrame) -> pl.DataFrame:
    """Every column in its own type, null where that failed."""
    texts = rows.select(pl.col(name).str.strip_chars().replace("", None) for name in REQUIRED)
    label = pl.lit("", pl.String)
    if "is_fraud" in rows.columns:
        label = pl.col("is_fraud").str.strip_chars().fill_null("")
        texts = texts.with_columns(rows["is_fraud"])
    amount = pl.col("amt").cast(pl.Float64, strict=False)
    return texts.select(
        "trans_num",
        "cc_num",
        event_time=_time(pl.col("trans_date_trans_time")),
        amt=amount,
        amt_cents=(amount * 100).round(0).cast(pl.Int64, strict=False),
        category=_code(pl.col("category"), CATEGORIES),
        state=_code(pl.col("state").str.to_uppercase(), STATES),
        merchant=_no_numbers(pl.col("merchant").str.strip_prefix(_PUBLIC_PREFIX)),
        first=_no_numbers(pl.col("first")),
        last_initial=_initial(pl.col("last")),
        label=_label(label),
        home_lat=pl.col("lat").cast(pl.Float64, strict=False),
        home_long=pl.col("long").cast(pl.Float64, strict=False),
        merch_lat=pl.col("merch_lat").cast(pl.Float64, strict=False),
        merch_long=pl.col("merch_long").cast(pl.Float64, strict=False),
        city_pop=pl.col("city_pop").cast(pl.Float64, strict=False).cast(pl.Int32, strict=False),
        dob=pl.col("dob").str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False),
        last_present=pl.col("last").is_not_null(),
    )


def _time(text: pl.Expr) -> pl.Expr:
    """UTC from ``2019-01-07 13:04:44``, also with ``T``, fraction and ``Z``."""
    plain = text.str.replace("T", " ", literal=True).str.strip_suffix("Z").str.strip_suffix("+00:00")
    return plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)


def _code(text: pl.Expr, vocabulary: tuple[str, ...]) -> pl.Expr:
    codes = pl.Series(range(len(vocabulary)), dtype=pl.UInt8)
    return text.replace_strict(pl.Series(vocabulary), codes, default=None, return_dtype=pl.UInt8)


def _no_numbers(text: pl.Expr) -> pl.Expr:
    """Free text in which whatever may be a card number is made unreadable."""
    return text.str.replace_all(_LONG_NUMBER, "***********")


def _initial(last: pl.Expr) -> pl.Expr:
    """ASCII code of the capital that the last name begins with, '?' if it begins with none."""
    letter = last.str.to_uppercase().str.extract(r"^([A-Z])", 1)
    code = pl.Series([ord("A") + i for i in range(26)], dtype=pl.UInt8)
    alphabet = pl.Series([chr(ord("A") + i) for i in range(26)])
    return letter.replace_strict(alphabet, code, default=_QUESTION_MARK, return_dtype=pl.UInt8)


def _label(text: pl.Expr) -> pl.Expr:
    """1, 0, or -1 where it is missing; null where it is something else."""
    names = pl.Series(["1", "0", "true", "false", ""])
    codes = pl.Series([1, 0, 1, 0, UNKNOWN_LABEL], dtype=pl.Int8)
    return text.str.to_lowercase().replace_strict(names, codes, default=None, return_dtype=pl.Int8)


def _faults() -> list[tuple[str, pl.Expr]]:
    """Reasons to refuse a row, in the order in which they are looked for; an expression that is null is a fault."""
    col = pl.col
    day = col("event_time").dt.date()
    longest = col("merchant").str.len_chars() > _MAX_TEXT
    return [
        ("trans_num is missing", col("trans_num").is_null()),
        (
            f"trans_num is not 1 to {_MAX_ID} letters, digits or any of _.:-",
            ~col("trans_num").str.contains(rf"^[A-Za-z0-9_.:-]{{1,{_MAX_ID}}}$"),
        ),
        ("cc_num is missing", col("cc_num").is_null()),
        ("cc_num is not a card number of 11 to 19 digits", ~col("cc_num").str.contains(r"^[0-9]{11,19}$")),
        ("trans_num contains the card number", col("trans_num").str.contains(col("cc_num"), literal=True)),
        ("trans_date_trans_time is missing or not a time", col("event_time").is_null()),
        ("trans_date_trans_time is outside 1970 to 2099", ~col("event_time").is_between(_FIRST_TIME, _LAST_TIME)),
        ("amt is missing or not a number", ~col("amt").is_finite()),
        ("amt is negative", col("amt") < 0),
        ("amt is above $10,000,000.00", col("amt") * 100 > MAX_AMOUNT_CENTS),
        ("amt has more than two decimals", (col("amt") * 100 - col("amt_cents")).abs() > 1e-4),
        ("amt is zero", col("amt_cents") < 1),
        ("category is missing or unknown", col("category").is_null()),
        ("state is missing or unknown", col("state").is_null()),
        ("merchant is missing", col("merchant").is_null() | (col("merchant") == "")),
        (f"merchant is longer than {_MAX_TEXT} characters", longest),
        ("first is missing", col("first").is_null()),
        (f"first is longer than {_MAX_TEXT} characters", col("first").str.len_chars() > _MAX_TEXT),
        ("last is missing", ~col("last_present")),
        ("lat is missing or not between -90 and 90", ~col("home_lat").is_between(-90, 90)),
        ("long is missing or not between -180 and 180", ~col("home_long").is_between(-180, 180)),
        ("merch_lat is missing or not between -90 and 90", ~col("merch_lat").is_between(-90, 90)),
        ("merch_long is missing or not between -180 and 180", ~col("merch_long").is_between(-180, 180)),
        ("city_pop is missing or not between 0 and 100,000,000", ~col("city_pop").is_between(0, 100_000_000)),
        ("dob is missing or not a date", col("dob").is_null()),
        (
            "dob is not between 1890 and the transaction",
            ~col("dob").is_between(_FIRST_DOB, day),
        ),
        ("is_fraud is neither 0 nor 1", col("label").is_null()),
    ]


def empty() -> pl.DataFrame:
    """No accepted rows."""
    return check(pl.DataFrame(schema=dict.fromkeys(REQUIRED, pl.String))).accepted
