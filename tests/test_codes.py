"""16-bit feature codes: a plain reference in numpy, and what a model may rely on."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from spearhead import codes
from spearhead.codes import MISSING, decode, encode

SMALLEST, LARGEST = 2.0**-28, (2 - 2.0**-8) * 2.0**34
numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


def reference(value: float) -> float:
    """The nearest number with 10 significant bits, ties to even; nothing below SMALLEST, nothing above LARGEST."""
    if np.isnan(value):
        return value
    magnitude = min(abs(value), LARGEST)
    if magnitude == 0:
        return 0.0
    step = 2.0 ** (np.frexp(magnitude)[1] - 10)
    rounded = min(np.round(magnitude / step) * step, LARGEST)
    return float(np.copysign(rounded if rounded >= SMALLEST else 0.0, value)) + 0.0


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=50))
def test_a_value_comes_back_as_the_nearest_with_ten_bits(values: list[float]) -> None:
    got = decode(encode(np.array(values, np.float32)))
    np.testing.assert_array_equal(got, np.array([reference(value) for value in values], np.float32))


@settings(deadline=None)
@given(st.lists(numbers.filter(lambda x: x == x), min_size=2, max_size=50))
def test_order_is_kept(values: list[float]) -> None:
    assert (np.diff(decode(encode(np.sort(np.array(values, np.float32))))) >= 0).all()


def test_every_code_stands_for_a_value_of_its_own() -> None:
    every = np.arange(1 << 16).astype(np.uint16)
    values = decode(every)
    made = ((every & 0x7FFF) >= 1 << 9) & ((every & 0x7FFF) <= codes.LARGEST)  # the others are never made
    assert (encode(values)[made] == every[made]).all()
    assert np.isnan(values[MISSING])
    assert np.isfinite(np.delete(values, MISSING)).all()


def test_whole_numbers_up_to_1024_are_exact() -> None:
    whole = np.arange(-1024, 1025).astype(np.float32)
    assert (decode(encode(whole)) == whole).all()


def test_a_column_holds_rows_and_may_be_sliced() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = codes.column(matrix)
    assert column.type == pa.list_(pa.uint16(), 3)
    assert (codes.values(column.slice(1, 2)) == matrix[1:3]).all()
    assert codes.values(column.slice(0, 0)).shape == (0, 3)
    assert (codes.values(codes.column(matrix[:, ::2])) == matrix[:, ::2]).all()


@settings(deadline=None)
@given(st.lists(numbers.filter(lambda x: x == x), min_size=1, max_size=20), st.lists(numbers, min_size=1, max_size=50))
def test_ranks_compare_as_values_do(limits: list[float], values: list[float]) -> None:
    found = encode(np.array(values, np.float32)).astype(np.int32)
    rank = np.where(found < 0x8000, found, -(found & 0x7FFF))
    known = decode(encode(np.array(values, np.float32)))
    assert codes.ranked(encode(np.array(values, np.float32))).tolist() == rank.tolist()
    for limit, lowest in zip(limits, codes.ranks(np.array(limits, np.float32)), strict=True):
        assert ((rank >= lowest) == (known >= np.float32(limit))).all()
