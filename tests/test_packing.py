"""Packed features: what comes back is what went in, to the bit, whatever the rows and however many tuples they have."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.bytes import measure as bytes_written
from services.generator.population import population
from services.generator.traffic import Traffic
from spearhead import codes, packing
from spearhead.codes import OWN, Packed
from spearhead.features import MERCHANT_LABELS, WIDTH, History
from spearhead.files import Files
from spearhead.history import DAY_US
from spearhead.model import Model
from spearhead.schema import IDENTITY, NO_RAW_ROWS
from spearhead.segment import SegmentError, SegmentInfo, read_segment, write_segment
from spearhead.settings import Settings
from spearhead.trees import BLOCK, compile_trees, margins
from tests.segments import attached, packed_slowly, raw_batch


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
    batch = attached(raw_batch(0, rows) if rows else NO_RAW_ROWS, values)
    packed = packing.of(batch)
    expected = codes.encode(values)
    assert batch.schema == packing.SCHEMA
    assert (packed.matrix() == expected).all()
    assert (packed.own.shape, packed.width) == ((rows, OWN), WIDTH)
    some = rng.integers(0, max(rows, 1), 20 if rows else 0)
    assert (packed.take(some) == expected[some]).all()
    begin = rows // 3
    assert (packing.of(batch.slice(begin, rows - begin)).matrix() == expected[begin:]).all()


def assert_encoded(history: History, again: History, batch: pa.RecordBatch) -> Packed:
    """``encode`` of one history is ``transform`` of another, row by row the same tuples' numbers too."""
    merchants = np.asarray(batch.column("merchant").indices)
    found, expected = history.encode(batch), packed_slowly(again.transform(batch), merchants)
    assert found.own.flags.c_contiguous
    for got, wanted in zip(found, expected, strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert (got == wanted).all()
    return found


def test_codes_are_made_while_rows_are_at_hand_and_are_those_of_their_values() -> None:
    """On real traffic, whose labels mature as it goes; stores grow and are emptied in the middle of a block."""
    source = Traffic(population(3_000, 200, 1), 1, 0, 0.005)
    history, again = (History(card_max=2_000, label_delay_us=DAY_US) for _ in range(2))
    sizes = (1, 31, 32, 33, 4_000, 65_536, 20_000)
    found = [assert_encoded(history, again, source.take(size).batch) for size in sizes]
    assert history.evicted_cards > 0
    assert len(np.unique(found[-1].matrix()[:, OWN:], axis=0)) > 200, "labels have matured"
    assert history.encode(NO_RAW_ROWS).matrix().shape == (0, WIDTH)
    assert all(one.tobytes() == history.arrays()[name].tobytes() for name, one in again.arrays().items())


def test_labels_of_merchants_are_written_once_as_long_as_they_stay() -> None:
    raw = raw_batch(0, 4_000)
    batch = packing.attach(raw, History().encode(raw))
    merchants = len(np.unique(np.asarray(raw.column("merchant").indices)))
    distinct = np.unique(packing.of(batch).matrix()[:, OWN:], axis=0)
    assert len(distinct) <= len(packing.of(batch).tuples) < raw.num_rows / 4
    assert len(packing.of(batch).tuples) >= merchants  # each has its own, though they may say the same


def test_a_segment_of_more_rows_than_tuples_can_be_numbered_is_packed_in_parts() -> None:
    raw = Traffic(population(1_000, 50, 1), 1, 0, 0.005).take(2 * codes.TUPLES_MAX + 100).batch
    packed, values = History().encode(raw), History().transform(raw)
    assert packing.attach(raw, packed).schema == packing.SCHEMA
    assert (packed.matrix() == codes.encode(values)).all()


def parts(rng: np.random.Generator, sizes: Sequence[int]) -> list[Packed]:
    """Rows packed in parts, each row with a tuple of its own."""
    own = [rng.integers(0, 0x7F00, (size, OWN)).astype(np.uint16) for size in sizes]
    tuples = [rng.integers(0, 0x7F00, (size, WIDTH - OWN)).astype(np.uint16) for size in sizes]
    numbers = [rng.permutation(size).astype(np.uint16) for size in sizes]
    return [Packed(*part) for part in zip(own, numbers, tuples, strict=True)]


@pytest.mark.parametrize(("last", "schema"), [(535, packing.SCHEMA), (536, packing.PLAIN)])
def test_more_tuples_than_can_be_numbered_are_no_loss(last: int, schema: pa.Schema) -> None:
    rng = np.random.default_rng(1)
    some = [*parts(rng, (60_000, 5_001, last)), Packed(*(array[:0] for array in parts(rng, (1,))[0]))]
    batch = packing.attach(one_merchant(65_001 + last), codes.joined(some))
    assert batch.schema == schema
    assert (packing.of(batch).matrix() == np.concatenate([part.matrix() for part in some])).all()


def one_merchant(rows: int) -> pa.RecordBatch:
    """Identity columns of rows at one merchant."""
    columns = [pa.nulls(rows, field.type) for field in IDENTITY]
    names = [field.name for field in IDENTITY]
    columns[names.index("merchant")] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.uint16)), ["Kirlin"])
    return pa.RecordBatch.from_arrays(columns, names=names)


def test_a_segment_holds_them_packed(tmp_path) -> None:
    raw = raw_batch(0, 2_000)
    values = History().transform(raw)
    batch = packing.attach(raw, History().encode(raw))
    info = SegmentInfo(name="e0001-g00-p00-000000000001", rows=batch.num_rows, rows_before=0)
    write_segment(Files(fsync=False), tmp_path / "a.arrow", batch, info)
    found = read_segment(tmp_path / "a.arrow")[0]
    assert found.schema.remove_metadata() == packing.SCHEMA
    assert (packing.of(found).matrix() == codes.encode(values)).all()


def damaged(numbers: list[int], kind: pa.DataType) -> pa.RecordBatch:
    raw = raw_batch(0, 3)
    batch = attached(raw, np.zeros((3, WIDTH), np.float32))
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
    packed = packing.of(attached(raw_batch(0, len(values)), values))
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
