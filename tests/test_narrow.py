"""Narrow raw-transactions: what is read is what was published, to the bit, whatever the rows; a lie is found out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.generator.population import population
from services.generator.traffic import Traffic
from services.prep.validate import validate
from spearhead.companion import companion, read_features
from spearhead.files import Files
from spearhead.narrow import narrow, read_raw, widen
from spearhead.partition import Outcome, newest_commit
from spearhead.schema import IDENTITY, NO_RAW_ROWS, RAW, TIME
from spearhead.segment import SegmentError, SegmentInfo, read_segment, write_segment
from spearhead.volume import Volume
from tests.segments import Chain, drain, publish, raw_batch, raw_name, volume_at
from tests.test_partition import open_log

FILES = Files(fsync=False)


def integers(kind: str) -> st.SearchStrategy[int]:
    limits = np.iinfo(kind)
    return st.integers(int(limits.min), int(limits.max))


def floats() -> st.SearchStrategy[float]:
    return st.floats(width=32)


HOSTILE = {
    "trans_num": st.text(max_size=5),
    "event_time": integers("int64"),
    "card": integers("uint64"),
    "last4": integers("uint16"),
    "amt_cents": integers("int32"),
    "category": integers("uint8"),
    "state": integers("uint8"),
    "merchant": st.text(max_size=3),
    "first": st.text(max_size=3),
    "last_initial": integers("uint8"),
    "label": integers("int8"),
    "scenario": integers("int8"),
    "home_lat": floats(),
    "home_long": floats(),
    "merch_lat": floats(),
    "merch_long": floats(),
    "city_pop": integers("int32"),
    "dob": integers("int32"),
}


def array(name: str, values: list[object]) -> pa.Array:
    """A column of schema.RAW of plain values: times as microseconds, dates as days."""
    kind = RAW.field(name).type
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int64() if kind == TIME else pa.int32()).view(kind)
    return pa.array(values, kind)


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    """Rows as the generator's; in some columns whatever their types hold, and nulls; at times a slice of others."""
    rows = draw(st.integers(1, 30))
    batch = raw_batch(draw(st.integers(0, 10_000)), rows)
    for name in draw(st.sets(st.sampled_from(sorted(HOSTILE)), max_size=6)):
        value = HOSTILE[name] if draw(st.booleans()) else st.none() | HOSTILE[name]
        column = array(name, draw(st.lists(value, min_size=rows, max_size=rows)))
        batch = batch.set_column(RAW.get_field_index(name), RAW.field(name), column)
    begin = draw(st.integers(0, rows))
    return batch.slice(begin, draw(st.integers(0, rows - begin)))


def bits(batch: pa.RecordBatch) -> list[list[object]]:
    """The values; times and dates as numbers, floats as the integers of their bits, for no NaN is equal to itself."""
    return [numbers(column).to_pylist() for column in batch.columns]


def numbers(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return numbers(column.dictionary).take(column.indices)
    fixed = {TIME: pa.int64(), pa.date32(): pa.int32(), pa.float32(): pa.int32()}
    return column.view(fixed.get(column.type, column.type))


@settings(deadline=None, max_examples=100)
@given(batch=batches())
def test_what_is_written_comes_back_to_the_bit(batch: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "x.arrow"
    path.unlink(missing_ok=True)
    write_segment(FILES, path, narrow(batch), SegmentInfo(name="x", rows=batch.num_rows, rows_before=0))
    found, info = read_raw(path)
    assert info.name == "x"
    found.validate(full=True)
    assert found.schema.equals(RAW)
    assert bits(found) == bits(batch)
    again, rejects = validate(found)
    expected, refused = validate(batch)
    assert rejects == refused
    assert bits(again) == bits(expected)


def test_a_segment_without_rows_comes_back() -> None:
    assert widen(narrow(NO_RAW_ROWS)).schema.equals(RAW)


def test_texts_of_one_length_have_no_offsets() -> None:
    assert narrow(raw_batch(0, 100)).column("trans_num").type == pa.binary(32)


@pytest.mark.parametrize("texts", [["a", "bb", ""], ["", "", ""], ["a", "bcd", "ef"], ["ab", None, "cd"]])
def test_other_texts_stay_as_they_are(texts: list[str | None]) -> None:
    batch = with_ids(raw_batch(0, 3), array("trans_num", texts))
    assert narrow(batch).column("trans_num").equals(batch.column("trans_num"))


def test_a_text_that_is_missing_is_not_taken_for_one_of_its_length() -> None:
    _, offsets, data = raw_batch(0, 3).column("trans_num").buffers()
    texts = pa.StringArray.from_buffers(3, offsets, data, pa.py_buffer(b"\x05"))
    assert narrow(with_ids(raw_batch(0, 3), texts)).column("trans_num").equals(texts)


def test_texts_are_read_over_their_own_memory() -> None:
    batch = narrow(raw_batch(0, 100))
    assert widen(batch).column("trans_num").buffers()[2].address == batch.column("trans_num").buffers()[1].address


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 2_000, 65_536])
def test_the_generator_s_ids_have_one_length(rows: int) -> None:
    batch = Traffic(population(1_000, 100, 1), 1, 0, 0.01).take(rows).batch
    narrowed = narrow(batch)
    assert narrowed.column("trans_num").type == pa.binary(11)
    assert widen(narrowed).equals(batch)
    assert widen(narrow(batch.slice(1))).equals(batch.slice(1))


# Damage


def with_ids(batch: pa.RecordBatch, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(0, pa.field("trans_num", column.type, nullable=False), column)


DAMAGED = {
    "a text that is missing": (pa.array([b"ab", None, b"cd"], pa.binary(2)), "trans_num is 3 texts"),
    "texts that are not UTF-8": (pa.array([b"\xff\xff"] * 3, pa.binary(2)), "Invalid UTF8"),
}
ONLY_PREP_TELLS = {"texts that are not UTF-8"}


def lying(case: str) -> pa.RecordBatch:
    return with_ids(narrow(raw_batch(0, 3)), DAMAGED[case][0])


@pytest.mark.parametrize("case", sorted(set(DAMAGED) - ONLY_PREP_TELLS))
def test_a_column_that_lies_is_an_error(case: str) -> None:
    with pytest.raises(SegmentError, match=DAMAGED[case][1]):
        widen(lying(case))


@pytest.mark.parametrize("case", sorted(DAMAGED))
def test_a_segment_that_lies_goes_to_dead_and_the_next_one_is_taken(case: str, tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    publish(volume, (3, 5))
    first = volume.raw_ready(0) / raw_name(1).file
    _, info = read_segment(first)
    first.unlink()
    write_segment(FILES, first, lying(case), info)
    log = open_log(volume)
    drain(log)
    commit = newest_commit(volume, 0, 1)
    assert commit is not None
    assert (commit.emitted, commit.dead_rows, commit.dead_segments) == (5, 3, 1)
    assert DAMAGED[case][1] in (volume.raw / "dead" / f"{raw_name(1)}.reason.json").read_text()


@pytest.mark.parametrize("case", sorted(set(DAMAGED) - ONLY_PREP_TELLS))
def test_features_whose_companion_lies_are_an_error(case: str, tmp_path: Path) -> None:
    volume, path = waiting(tmp_path)
    _, info = read_segment(companion(volume, path.stem))
    companion(volume, path.stem).unlink()
    write_segment(FILES, companion(volume, path.stem), lying(case), info)
    with pytest.raises(SegmentError, match=DAMAGED[case][1]):
        read_features(volume, path)


class Whole(Chain):
    """Passes every column of schema.RAW on that features share with it."""

    def apply(self, batch: pa.RecordBatch) -> Outcome:
        return Outcome(batch.select([field.name for field in IDENTITY]), [])


def waiting(root: Path) -> tuple[Volume, Path]:
    """A volume with three rows of features that wait, and where they do."""
    volume = volume_at(root)
    publish(volume, (3,))
    drain(open_log(volume, work=Whole()))
    return volume, volume.features / "ready" / raw_name(1).file


@pytest.mark.parametrize("width", [7_920, 70_000, 1 << 20, (1 << 31) - 1])
def test_a_width_that_lies_is_an_error(width: int, tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    batch = with_ids(raw_batch(0, 50), array("trans_num", ["x" * 7_919] * 50))
    write_segment(FILES, path, narrow(batch), SegmentInfo(name="x", rows=50, rows_before=0))
    written = path.read_bytes()
    truth, lie = (number.to_bytes(4, "little") for number in (7_919, width))
    assert written.count(truth) == 2, "in the schema, which a file has twice"
    path.write_bytes(written.replace(truth, lie))
    with pytest.raises(SegmentError, match=r"trans_num|FixedSizeBinary"):
        read_raw(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
def test_a_segment_cut_short_is_an_error(share: float, tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    write_segment(FILES, path, narrow(raw_batch(0, 300)), SegmentInfo(name="x", rows=300, rows_before=0))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SegmentError):
        read_raw(path)


def test_bytes_that_flip_are_an_error_or_other_rows(tmp_path: Path) -> None:
    """Never a crash: what is read can be read to its end, or is refused."""
    path = tmp_path / "x.arrow"
    write_segment(FILES, path, narrow(raw_batch(0, 40)), SegmentInfo(name="x", rows=40, rows_before=0))
    whole = path.read_bytes()
    rng = np.random.default_rng(7)
    for place in rng.integers(0, len(whole), 300):
        path.write_bytes(whole[:place] + bytes([int(rng.integers(256))]) + whole[place + 1 :])
        try:
            batch, _ = read_raw(path)
            batch.validate(full=True)
        except (SegmentError, pa.ArrowInvalid):
            continue
        if batch.schema.equals(RAW):
            assert sum(map(len, bits(batch))) == 40 * len(RAW)
