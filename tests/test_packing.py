"""Packed features: what comes back is what went in, to the bit, whatever the rows and however many tuples they have."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.bytes import measure as bytes_written
from spearhead import codes, packing
from spearhead.codes import OWN, Packed
from spearhead.features import MERCHANT_LABELS, WIDTH, History
from spearhead.files import Files
from spearhead.model import Model
from spearhead.schema import IDENTITY, NO_RAW_ROWS
from spearhead.segment import SegmentError, SegmentInfo, read_segment, write_segment
from spearhead.settings import Settings
from spearhead.trees import BLOCK, compile_trees, margins
from tests.segments import raw_batch


def values_of(rng: np.random.Generator, rows: int, tuples: int) -> np.ndarray:
    """Rows with about so many different labels of merchants; zeros of both signs, missing and huge ones among them."""
    values = rng.normal(size=(rows, WIDTH)).astype(np.float32) * 1e3
    values[:, OWN:] = rng.normal(size=(tuples, WIDTH - OWN)).astype(np.float32)[rng.integers(0, tuples, rows)]
    for special in (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30):
        values[rng.random(values.shape) < 0.01] = special
    return values


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 300), tuples=st.integers(1, 50))
def test_what_is_packed_comes_back_to_the_bit(seed: int, rows: int, tuples: int) -> None:
    rng = np.random.default_rng(seed)
    values = values_of(rng, rows, tuples)
    batch = packing.attach(raw_batch(0, rows) if rows else NO_RAW_ROWS, values)
    packed = packing.of(batch)
    expected = codes.encode(values)
    assert batch.schema == packing.SCHEMA
    assert (packed.matrix() == expected).all()
    assert (packed.own.shape, packed.width) == ((rows, OWN), WIDTH)
    some = rng.integers(0, max(rows, 1), 20 if rows else 0)
    assert (packed.take(some) == expected[some]).all()
    begin = rows // 3
    assert (packing.of(batch.slice(begin, rows - begin)).matrix() == expected[begin:]).all()


def test_labels_of_merchants_are_written_once_as_long_as_they_stay() -> None:
    raw = raw_batch(0, 4_000)
    batch = packing.attach(raw, History().transform(raw))
    merchants = len(np.unique(np.asarray(raw.column("merchant").indices)))
    distinct = np.unique(packing.of(batch).matrix()[:, OWN:], axis=0)
    assert len(distinct) <= len(packing.of(batch).tuples) < raw.num_rows / 4
    assert len(packing.of(batch).tuples) >= merchants  # each has its own, though they may say the same


def test_more_tuples_than_can_be_numbered_are_no_loss() -> None:
    rows = codes.TUPLES_MAX + 1
    rng = np.random.default_rng(1)
    for tuples, schema in ((rows - 1, packing.SCHEMA), (rows, packing.PLAIN)):
        values = np.zeros((rows, WIDTH), np.float32)
        values[:, OWN] = np.minimum(np.arange(rows), tuples - 1)
        values[:, 0] = rng.random(rows)
        batch = packing.attach(one_merchant(rows), values)
        assert batch.schema == schema
        assert (packing.of(batch).matrix() == codes.encode(values)).all()


def one_merchant(rows: int) -> pa.RecordBatch:
    """Identity columns of rows at one merchant."""
    columns = [pa.nulls(rows, field.type) for field in IDENTITY]
    names = [field.name for field in IDENTITY]
    columns[names.index("merchant")] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.uint16)), ["Kirlin"])
    return pa.RecordBatch.from_arrays(columns, names=names)


def test_a_segment_holds_them_packed(tmp_path) -> None:
    raw = raw_batch(0, 2_000)
    values = History().transform(raw)
    batch = packing.attach(raw, values)
    info = SegmentInfo(name="e0001-g00-p00-000000000001", rows=batch.num_rows, rows_before=0)
    write_segment(Files(fsync=False), tmp_path / "a.arrow", batch, info)
    found = read_segment(tmp_path / "a.arrow")[0]
    assert found.schema.remove_metadata() == packing.SCHEMA
    assert (packing.of(found).matrix() == codes.encode(values)).all()


def damaged(numbers: list[int], kind: pa.DataType) -> pa.RecordBatch:
    raw = raw_batch(0, 3)
    batch = packing.attach(raw, np.zeros((3, WIDTH), np.float32))
    tuples = pa.array([[0] * len(MERCHANT_LABELS)], pa.list_(pa.uint16(), len(MERCHANT_LABELS)))
    column = pa.DictionaryArray.from_arrays(pa.array(numbers, kind), tuples, safe=False)
    place = batch.schema.get_field_index("merchant_labels")
    return batch.set_column(place, "merchant_labels", column)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (damaged([0, 1, 0], pa.uint16()), "tuple 1 of 1"),
        (damaged([0, 0, 0], pa.int32()), "merchant_labels is dictionary"),
        (damaged([0, None, 0], pa.uint16()), "with 1 nulls"),
    ],
)
def test_damaged_numbers_are_told(batch: pa.RecordBatch, message: str) -> None:
    with pytest.raises(SegmentError, match=message):
        packing.of(batch)


@pytest.mark.parametrize("threads", [1, 3])
def test_scores_of_packed_codes_are_those_of_all(threads: int) -> None:
    rng = np.random.default_rng(3)
    values = values_of(rng, 5 * BLOCK + 7, 40)
    known = codes.decode(codes.encode(values))
    label = (known[:, 0] > 0) ^ (known[:, -1] > 0)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 6, "seed": 1, "nthread": 1},
        xgb.DMatrix(known, label), num_boost_round=30,
    )  # fmt: skip
    trees = compile_trees(bytes(booster.save_raw("json")))
    packed = packing.of(packing.attach(raw_batch(0, len(values)), values))
    assert {int(column) >= OWN for column in trees.columns} == {False, True}
    assert (margins(trees, packed, threads) == margins(trees, packed.matrix())).all()
    for compiled in (trees, None):
        model = Model("v000001", booster, WIDTH, None, compiled)
        assert (model.score(packed) == model.score(packed.matrix())).all()
    with pytest.raises(ValueError, match="takes uint16"):
        model.score(Packed(packed.own, packed.numbers, packed.tuples[:, 1:]))


def test_a_written_segment_is_smaller_by_what_its_rows_share(tmp_path: Path) -> None:
    """On real traffic, by the count that docs/decisions/0017 goes by: 16 bytes a row become 5 at most."""
    found = bytes_written(Settings(_env_file=None), 2, tmp_path)  # type: ignore[call-arg]
    shared = 2 * len(MERCHANT_LABELS)
    assert found["features-ready"] < 2 * WIDTH - shared + 5
    assert found["all"] == pytest.approx(sum(size for topic, size in found.items() if topic != "all"), abs=0.3)
