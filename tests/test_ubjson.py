"""spearhead.ubjson reads what XGBoost writes, and refuses what is damaged."""

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearhead import shap
from spearhead.ubjson import UbjsonError, decode
from tests.test_trees import grown

MODEL = bytes(grown(1, rounds=2, max_depth=2).save_raw("ubj"))


def test_a_model_is_the_same_as_in_json():
    booster = grown(2, max_depth=5)
    ours = shap.compile_paths(decode(bytes(booster.save_raw("ubj"))))
    theirs = shap.compile_paths(msgspec.json.decode(bytes(booster.save_raw("json"))))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"Z", None), (b"T", True), (b"F", False), (b"i\xff", -1), (b"U\xff", 255), (b"I\x01\x00", 256),
        (b"l\x00\x01\x00\x00", 65536), (b"L" + bytes(7) + b"\x05", 5), (b"d\x3f\x80\x00\x00", 1.0),
        (b"D\x3f\xf0" + bytes(6), 1.0), (b"Si\x02ab", "ab"), (b"Ca", "a"), (b"[i\x01T]", [1, True]),
        (b"[#i\x02i\x01Z", [1, None]), (b"{i\x01ai\x02}", {"a": 2}), (b"{$i#i\x01i\x01a\x02", {"a": 2}),
        (b"[$S#i\x01i\x01x", ["x"]),
    ],
)  # fmt: skip
def test_every_type(data, value):
    assert decode(data) == value


def test_numbers_of_one_type_are_an_array():
    np.testing.assert_array_equal(decode(b"[$d#i\x02\x3f\x80\x00\x00\x40\x00\x00\x00"), np.array([1, 2], np.float32))


@given(cut=st.integers(0, len(MODEL) - 1))
def test_a_model_cut_short_is_refused(cut):
    with pytest.raises(UbjsonError):
        decode(MODEL[:cut])


@given(st.binary(max_size=60))
def test_nonsense_raises_nothing_else(data):
    with contextlib.suppress(UbjsonError):
        decode(data)


@pytest.mark.parametrize("data", [b"[$Z#L\x40" + bytes(7), b"[#i\xff", b"{$Z#L\x40" + bytes(7), b"[" * 100, b"[$dS"])
def test_counts_and_depths_that_cannot_be_are_refused(data):
    with pytest.raises(UbjsonError):
        decode(data)
