"""Rows at the edge: exact cents, one clear reason for each refusal, nothing personal goes through."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal, InvalidOperation

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparkov import HEADER, ROW, SLICE, row
from sparkov_reference import slow_reading

from spearhead import edge
from spearhead.schema import CATEGORIES, MAX_AMOUNT_CENTS, RAW, STATES
from spearhead.tokens import Tokenizer

TOKENS = Tokenizer(b"a key for tests only")
CARD_LIKE = "trans_num looks like a card number: 11 to 19 digits and no letter"


def table(*records: dict[str, str | None]) -> pl.DataFrame:
    return pl.DataFrame(list(records), schema=dict.fromkeys(HEADER, pl.String))


def reasons(*records: dict[str, str | None]) -> list[str | None]:
    return edge.check(table(*records)).reason.to_list()


def test_a_good_row_becomes_a_row_of_the_raw_schema() -> None:
    checked = edge.check(table(row()))
    batch = edge.to_batch(checked.accepted, TOKENS)
    assert batch.schema.equals(RAW)
    (only,) = batch.to_pylist()
    assert only["event_time"] == dt.datetime(2019, 1, 7, 13, 4, 44, tzinfo=dt.UTC)
    assert only["amt_cents"] == 8303
    assert only["card"] == TOKENS.tokens([ROW["cc_num"]])[0]
    assert only["last4"] == 7245
    assert CATEGORIES[only["category"]] == "home"
    assert STATES[only["state"]] == "TN"
    assert (only["merchant"], only["first"], chr(only["last_initial"])) == ("Medhurst Inc", "Mary", "M")
    assert (only["label"], only["scenario"], only["city_pop"]) == (0, 0, 5577)
    assert only["dob"] == dt.date(1964, 12, 30)
    assert math.isclose(only["merch_long"], -89.220738, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("amt", "", "amt is missing or not a number"),
        ("amt", "NaN", "amt is missing or not a number"),
        ("amt", "inf", "amt is missing or not a number"),
        ("amt", "twelve", "amt is missing or not a number"),
        ("amt", "-3.20", "amt is negative"),
        ("amt", "0", "amt is zero"),
        ("amt", "1.005", "amt has more than two decimals"),
        ("amt", "10000000.01", "amt is above $10,000,000.00"),
        ("amt", "1e300", "amt is above $10,000,000.00"),
        ("category", "weapons", "category is missing or unknown"),
        ("category", "", "category is missing or unknown"),
        ("state", "ZZ", "state is missing or unknown"),
        ("cc_num", "1" * 30, "cc_num is not a card number of 11 to 19 digits"),
        ("cc_num", "1" * 10, "cc_num is not a card number of 11 to 19 digits"),
        ("cc_num", "4599-7354-0787-7245", "cc_num is not a card number of 11 to 19 digits"),
        ("cc_num", "", "cc_num is missing"),
        ("trans_num", "", "trans_num is missing"),
        ("trans_num", "a b", "trans_num is not 1 to 64 letters, digits or any of _.:-"),
        ("trans_num", "x" * 65, "trans_num is not 1 to 64 letters, digits or any of _.:-"),
        ("trans_num", f"id-{ROW['cc_num']}", "trans_num contains the card number"),
        ("trans_num", ROW["cc_num"], "trans_num contains the card number"),
        ("trans_num", "4111111111111111", CARD_LIKE),
        ("trans_num", "4111-1111-1111-1111", CARD_LIKE),
        ("trans_num", "4:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1", CARD_LIKE),
        ("trans_num", "-4111.1111_11111112:", CARD_LIKE),
        ("trans_num", "1" * 11, CARD_LIKE),
        ("trans_num", "1" * 19, CARD_LIKE),
        ("trans_date_trans_time", "yesterday", "trans_date_trans_time is missing or not a time"),
        ("trans_date_trans_time", "2019-02-30 00:00:00", "trans_date_trans_time is missing or not a time"),
        ("trans_date_trans_time", "1850-01-01 00:00:00", "trans_date_trans_time is outside 1970 to 2099"),
        ("lat", "91", "lat is missing or not between -90 and 90"),
        ("long", "", "long is missing or not between -180 and 180"),
        ("merch_lat", "nan", "merch_lat is missing or not between -90 and 90"),
        ("merch_long", "-181", "merch_long is missing or not between -180 and 180"),
        ("city_pop", "-1", "city_pop is missing or not between 0 and 100,000,000"),
        ("city_pop", "1e12", "city_pop is missing or not between 0 and 100,000,000"),
        ("dob", "30/12/1964", "dob is missing or not a date"),
        ("dob", "1964-12-30 or so", "dob is missing or not a date"),
        ("dob", "1964-02-30", "dob is missing or not a date"),
        ("amt", "83.0300001", "amt has more than two decimals"),
        ("merchant", "a\x00b", "merchant has control characters"),
        ("first", "a\x1bb", "first has control characters"),
        ("dob", "2020-01-01", "dob is not between 1890 and the transaction"),
        ("merchant", "", "merchant is missing"),
        ("merchant", "fraud_", "merchant is missing"),
        ("merchant", "m" * 129, "merchant is longer than 128 characters"),
        ("first", "", "first is missing"),
        ("last", " ", "last is missing"),
        ("is_fraud", "maybe", "is_fraud is neither 0 nor 1"),
    ],
)
def test_each_fault_has_its_reason(column: str, value: str, reason: str) -> None:
    assert reasons(row(), row(**{column: value}), row()) == [None, reason, None]


@pytest.mark.parametrize(
    "trans_num",
    ["1" * 10, "1" * 20, "0" * 32, "a4111111111111111", "tx-4111111111111111", "550e8400-e29b-41d4-a716-446655440000"],
)
def test_ids_that_are_no_card_number_alone_are_kept(trans_num: str) -> None:
    """Counters, hexadecimal hashes that are digits by chance, prefixed numbers and UUIDs stay as callers know them."""
    assert edge.check(table(row(trans_num=trans_num))).accepted["trans_num"].to_list() == [trans_num]


def test_null_counts_as_missing() -> None:
    assert reasons({**row(), "amt": None}) == ["amt is missing or not a number"]


def test_of_several_faults_the_first_is_named() -> None:
    assert reasons(row(amt="-1", category="weapons", cc_num="")) == ["cc_num is missing"]


@pytest.mark.parametrize("text", ["2019-01-07T13:04:44Z", "2019-01-07 13:04:44.000", "2019-01-07T13:04:44+00:00"])
def test_times_may_be_iso(text: str) -> None:
    (time,) = edge.check(table(row(trans_date_trans_time=text))).accepted["event_time"]
    assert time == dt.datetime(2019, 1, 7, 13, 4, 44)


def test_without_label_column_the_label_is_unknown() -> None:
    checked = edge.check(table(row()).drop("is_fraud"))
    assert checked.accepted["label"].to_list() == [-1]


def test_card_numbers_in_free_text_are_masked() -> None:
    accepted = edge.check(table(row(merchant="Shop 4599 7354 0787 7245", first="4599735407877245"))).accepted
    assert accepted["merchant"].to_list() == ["Shop ***********"]
    assert accepted["first"].to_list() == ["***********"]


@settings(deadline=None)
@given(st.lists(st.one_of(st.decimals(-5, 10_000_100, places=2), st.decimals(0, 100, places=3)), min_size=1))
def test_cents_are_exact(amounts: list[Decimal]) -> None:
    checked = edge.check(table(*(row(amt=str(a)) for a in amounts)))
    expected = [a * 100 for a in amounts]
    fine = [int(c) for c in expected if c == c.to_integral_value() and 1 <= c <= MAX_AMOUNT_CENTS]
    assert checked.accepted["amt_cents"].to_list() == fine


def slow_cents(text: str) -> int | None:
    """The amount by the standard library alone; None if it is no amount."""
    try:
        cents = Decimal(text) * 100
    except InvalidOperation:
        return None
    return int(cents) if cents.is_finite() and cents == cents.to_integral_value() else None


def test_the_real_slice_passes_whole_and_equals_a_slow_reading() -> None:
    rows = pl.read_csv(SLICE, infer_schema=False)
    checked = edge.check(rows)
    assert checked.reason.null_count() == rows.height == 13_614
    assert checked.accepted["amt_cents"].to_list() == [slow_cents(text) for text in rows["amt"]]
    assert checked.accepted["amt_cents"].sum() == 99_415_217
    assert checked.accepted["label"].sum() == 172
    seconds = checked.accepted["event_time"].dt.strftime("%Y-%m-%d %H:%M:%S")
    assert seconds.to_list() == rows["trans_date_trans_time"].to_list()
    assert [CATEGORIES[code] for code in checked.accepted["category"]] == rows["category"].to_list()


values = {
    "trans_num": st.sampled_from(
        ["t1", "", "a b", "x" * 64, "4599735407877245", "a4599735407877245", "4111111111111111", "4111-11111-11"]
    ),
    "cc_num": st.sampled_from(["4599735407877245", "1" * 11, "1" * 10, "2" * 19, "3" * 30, "", "45997354078772x5"]),
    "trans_date_trans_time": st.one_of(
        st.datetimes(dt.datetime(1960, 1, 1), dt.datetime(2110, 1, 1)).map(lambda t: t.isoformat(" ", "seconds")),
        st.datetimes(dt.datetime(1980, 1, 1), dt.datetime(2090, 1, 1)).map(lambda t: t.isoformat() + "Z"),
        st.sampled_from(["", "soon", "2019-01-07", "2019-13-01 00:00:00"]),
    ),
    "amt": st.one_of(
        st.decimals(-2, 10_000_100, places=2).map(str),
        st.floats(0, 1e8).map(repr),
        st.integers(1, 10**9).map(lambda cents: repr(cents / 100)),
        st.sampled_from(["", "0", "0.00", "1.005", "inf", "nan", "x", "1e3", "4.3500000000000001"]),
    ),
    "category": st.sampled_from([*CATEGORIES, "", "weapons"]),
    "state": st.sampled_from([*STATES, "", "ZZ", "tn"]),
    "merchant": st.text(max_size=140),
    "last": st.sampled_from(["Myers", "o'Neil", "Ödegaard", " ", ""]),
    "lat": st.floats(-100, 100).map(repr),
    "long": st.floats().map(repr),
    "city_pop": st.integers(-10, 2 * 10**8).map(str),
    "dob": st.one_of(st.dates(dt.date(1880, 1, 1), dt.date(2030, 1, 1)).map(str), st.sampled_from(["", "old"])),
    "is_fraud": st.sampled_from(["0", "1", "", "2", "True", "1.0"]),
}


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=values).map(lambda some: row(**some)), min_size=1, max_size=6))
def test_it_agrees_with_a_reading_row_by_row(records: list[dict[str, str]]) -> None:
    checked = edge.check(table(*records))
    accepted = iter(checked.accepted.to_dicts())
    assert checked.positions.tolist() == [i for i, reason in enumerate(checked.reason) if reason is None]
    for record, reason in zip(records, checked.reason, strict=True):
        expected = slow_reading(record)
        if isinstance(expected, str):
            assert reason == expected
        else:
            assert reason is None, record
            got = next(accepted)
            assert {name: got[name] for name in expected} == expected


def test_as_text_keeps_neither_last_name_nor_card() -> None:
    text = edge.as_text({"cc_num": ROW["cc_num"], "last": "Myers", "amt": None, "merchant": "Shop 4599-7354-0787-7245"})
    assert text == f"{'*' * 16},M,,Shop {'*' * 19}"


def test_no_card_number_passes() -> None:
    rows = pl.read_csv(SLICE, infer_schema=False)
    batch = edge.to_batch(edge.check(rows).accepted, TOKENS)
    written = b"".join(bytes(b) for column in batch.columns for b in _buffers(column))
    assert not [number for number in rows["cc_num"].unique() if number.encode() in written]


def _buffers(column: object) -> list[memoryview]:
    arrays = [column, column.dictionary] if hasattr(column, "dictionary") else [column]
    return [memoryview(b) for array in arrays for b in array.buffers() if b is not None]
