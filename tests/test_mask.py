"""Nothing that may be a card number is left readable, whatever is around it and however it is written."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spearhead.mask import LONG_NUMBER, mask, mask_bytes, mask_start

ROOT = Path(__file__).parent.parent
SEPARATORS = " \t\u00a0\u2007\u2009\u202f._/\u2010\u2011\u2012\u2013\u2014\u2015-"
TEXT = st.text(max_size=30)
BETWEEN = st.text(SEPARATORS, max_size=3)


@st.composite
def written_number(draw: st.DrawFn) -> tuple[str, str]:
    """The digits of a card number, and a way of writing them."""
    digits = draw(st.text("0123456789", min_size=11, max_size=19))
    between = draw(st.sampled_from([BETWEEN, st.text(":", max_size=3)]))
    return digits, digits[0] + "".join(draw(between) + digit for digit in digits[1:])


def runs(text: str) -> list[str]:
    """Digits in a row, separators left out: found otherwise than by the expression that is tested."""
    ways = ("".join("" if character in signs else character for character in text) for signs in (SEPARATORS, ":"))
    return [run for joined in ways for run in re.findall(r"\d+", joined)]


@given(TEXT, written_number(), TEXT)
@example("e0001-g00-", ("40123456789", "40123456789"), "")
@example("", ("4599735407877245", "4.599735407877245"), "e15")
def test_a_number_is_unreadable_whatever_is_around_it(before: str, number: tuple[str, str], after: str) -> None:
    digits, written = number
    text = f"{before}{written}{after}"
    hidden = mask(text)
    assert len(hidden) == len(text)
    assert digits not in runs(hidden)
    assert mask(hidden) == hidden
    for where in range(len(text) + 1):  # a cut anywhere leaves no more than a whole text does
        assert not any(digits.startswith(run) and len(run) > 10 for run in runs(mask_start(text, where)))


@given(TEXT, written_number(), TEXT)
def test_bytes_and_columns_are_masked_alike(before: str, number: tuple[str, str], after: str) -> None:
    text = f"{before}{number[1]}{after}"
    assert mask_bytes(text.encode("utf-8", "surrogatepass")) == mask(text).encode("utf-8", "surrogatepass")
    column = pl.Series([text]).str.replace_all(LONG_NUMBER, "*")[0]
    assert number[0] not in runs(column)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_stay_as_they_are(content: bytes) -> None:
    digits = sum(48 <= byte < 58 for byte in content)
    assert digits > 10 or mask_bytes(content) == content


@given(st.lists(st.text("0123456789", min_size=1, max_size=10), max_size=5).map(",".join))
def test_shorter_numbers_stay(text: str) -> None:
    assert mask(text) == text


@given(st.integers(0, 9999), st.sampled_from("ghi"), st.integers(0, 99), st.integers(0, 99), st.integers(0, 10**11 - 1))
def test_names_of_segments_stay(epoch: int, kind: str, slot: int, partition: int, seq: int) -> None:
    for name in (
        f"e{epoch:04d}-{kind}{slot:02d}-p{partition:02d}-{seq:012d}",
        f"e{epoch:04d}-{kind}{slot:02d}-{seq:012d}",
    ):
        assert mask(f"in {name}.arrow: card 4111111111111111") == f"in {name}.arrow: card {'*' * 16}"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("card 45997354078, ok", "card ***********, ok"),
        ("4111 1111 1111 1111", "*" * 19),
        ("4111-1111-1111-1111.", "*" * 19 + "."),
        ("4111\u20131111\u20131111\u20131111", "*" * 19),
        ("4.599735407877245e15", "*" * 17 + "e15"),
        ("4111:1111:1111:1111", "*" * 19),
        ("2019-01-07 13:04:44,1234567890", "2019-01-07 13:04:44,1234567890"),
        ("at 2026-01-07T13:04:44.123456Z", "at 2026-01-07T13:04:44.123456Z"),
        ("\uff14" * 16, "*" * 16),
    ],
)
def test_whatever_may_be_a_card_number_is_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_there_is_one_way_to_mask() -> None:
    for file in [*ROOT.glob("spearhead/*.py"), *ROOT.glob("services/*/*.py")]:
        assert file.name == "mask.py" or not re.search(r"\\d\{1\d,|\{1\d,\}|\(\?:.*\\d\)\{", file.read_text()), file
