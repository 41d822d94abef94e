"""Replay: every row once, in the file's order, however it is cut and wherever it is resumed."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sparkov import HEADER, SLICE, row, rows, write_csv

from services.generator import replay
from services.generator.replay import Replay, ReplayError
from services.generator.source import Reject
from spearhead.mask import mask
from spearhead.tokens import Tokenizer

TOKENS = Tokenizer(b"a key for tests only")


def drain(source: Replay, sizes: list[int], most: int = 10**9) -> tuple[list[dict[str, object]], list[Reject], str]:
    """Take chunks of the given sizes in turn until the source ends or ``most`` rows have come."""
    out: list[dict[str, object]] = []
    rejected: list[Reject] = []
    turn = 0
    while True:
        chunk = source.take(sizes[turn % len(sizes)])
        turn += 1
        out += chunk.batch.to_pylist()
        rejected += chunk.rejected
        if chunk.ended or len(out) + len(rejected) >= most:
            return out, rejected, chunk.cursor


def messy(path: Path) -> Path:
    """A file with good rows and rows malformed in every way, some blocks of it clean."""
    write_csv(path, [*rows(40), row(amt="-1", trans_num="n1"), row(category="weapons", trans_num="n2")])
    lines = path.read_bytes().split(b"\n")[:-1]
    lines[5:5] = [b"too,few,fields", b"", b'7,"an open quote,' + b",".join([b"x"] * 21), b"\xff\xfe" + lines[3]]
    lines[20:20] = [lines[4] + b",one field more", b'8,"another open quote' + b"," * 21]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BLOCK_BYTES", 3_000)
    monkeypatch.setattr(replay, "BLOCK_ROWS", 14)


def test_the_real_slice() -> None:
    out, rejected, _ = drain(Replay(SLICE, TOKENS, loop=False), [5_000])
    assert len(out) == len({r["trans_num"] for r in out}) == 13_614
    assert not rejected
    assert sum(int(r["amt_cents"]) for r in out) == 99_415_217  # type: ignore[call-overload]
    assert [r["trans_num"] for r in out] == pl.read_csv(SLICE, infer_schema=False)["trans_num"].to_list()


@pytest.mark.usefixtures("small_blocks")
def test_malformed_lines_are_refused_with_line_and_reason(tmp_path: Path) -> None:
    path = messy(tmp_path / "messy.csv")
    out, rejected, _ = drain(Replay(path, TOKENS, loop=False), [1_000])
    assert [r["trans_num"] for r in out] == [f"t{i:06d}" for i in range(40)]
    assert [(r.line, r.reason) for r in rejected] == [
        (6, "line has 3 fields, the header has 23"),
        (8, "line has a quote that is never closed"),
        (9, "line is not UTF-8"),
        (21, "line has 24 fields, the header has 23"),
        (22, "line has a quote that is never closed"),
        (48, "amt is negative"),
        (49, "category is missing or unknown"),
    ]
    text = path.read_bytes().split(b"\n")
    assert all(r.row == mask(text[r.line - 1].decode(errors="replace")) for r in rejected[:5])


@pytest.mark.parametrize(
    "number", ["4599735407877245", "4599-7354-0787-7245", "4.599735407877245e15", "4599 7354 0787 7245"]
)
def test_what_is_refused_is_told_without_what_must_not_be_kept(tmp_path: Path, number: str) -> None:
    path = write_csv(tmp_path / "rows.csv", [row(cc_num=number, amt="-1", city="Tiptonville")])
    path.write_bytes(path.read_bytes() + f"7,{number},torn".encode())
    _, rejected, _ = drain(Replay(path, TOKENS, loop=False), [10])
    assert [r.line for r in rejected] == [2, 3]
    assert "83.03" not in rejected[0].row
    assert "-1" in rejected[0].row
    for personal in (number, number[-4:], "Myers", "Tiptonville", "Pamela", "Geochemist"):
        assert not any(personal in r.row for r in rejected), personal


def test_a_line_longer_than_any_record_is_one_refused_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "rows.csv", rows(6))
    lines = path.read_bytes().splitlines(keepends=True)
    for bytes_in_block in (3_000, 400_000):
        monkeypatch.setattr(replay, "BLOCK_BYTES", bytes_in_block)
        for length in (replay.LONGEST_LINE - 1, replay.LONGEST_LINE, 300_000):
            path.write_bytes(b"".join([*lines[:3], b"x" * length + b"\n", *lines[3:]]))
            out, rejected, _ = drain(Replay(path, TOKENS, loop=False), [100])
            assert len(out) == 6
            fault = (
                "line has 1 field, the header has 23"
                if length < replay.LONGEST_LINE
                else "line has 65,536 bytes or more"
            )
            assert [(r.line, r.reason, len(r.row)) for r in rejected] == [(4, fault, replay.LONGEST_TEXT)]


def test_byte_order_mark_crlf_and_column_order_do_not_matter(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", rows(5), sorted(HEADER, reverse=True))
    expected, _, _ = drain(Replay(path, TOKENS, loop=False), [9])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").rstrip())
    assert drain(Replay(path, TOKENS, loop=False), [9])[:2] == (expected, [])
    assert len(expected) == 5


@pytest.mark.usefixtures("small_blocks")
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
def test_how_it_is_cut_changes_nothing(tmp_path: Path, sizes: list[int]) -> None:
    path = messy(tmp_path / "messy.csv")
    whole = drain(Replay(path, TOKENS, loop=False), [1_000])[:2]
    assert drain(Replay(path, TOKENS, loop=False), sizes)[:2] == whole


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("loop", [False, True])
def test_resumed_at_every_row_it_is_as_if_never_stopped(tmp_path: Path, loop: bool) -> None:
    path = messy(tmp_path / "messy.csv")
    most, first = (100, 40) if loop else (47, 1)  # a loop is resumed about its first turn's end
    whole, refused, _ = drain(Replay(path, TOKENS, loop), [most], most)
    assert len(whole) + len(refused) == most
    for at in range(first, first + 46):
        before, refused_before, cursor = drain(Replay(path, TOKENS, loop), [at], at)
        after, refused_after, _ = drain(Replay(path, TOKENS, loop, cursor), [most - at], most - at)
        assert (before + after, refused_before + refused_after) == (whole, refused), at


@pytest.mark.usefixtures("small_blocks")
def test_a_loop_shifts_time_and_renames(tmp_path: Path) -> None:
    path = messy(tmp_path / "messy.csv")
    out, rejected, _ = drain(Replay(path, TOKENS, loop=True), [10], 150)
    first, second = out[:40], out[40:80]
    times = [r["event_time"] for r in out]
    assert len({r["trans_num"] for r in out}) == len(out)
    assert [r["trans_num"] for r in second] == [f"{r['trans_num']}~1" for r in first]
    assert {b - a for a, b in zip(times[:40], times[40:80], strict=True)} == {dt.timedelta(days=1)}  # type: ignore[operator]
    assert min(times[80:120]) > max(times[40:80])  # type: ignore[type-var]
    assert [r["amt_cents"] for r in second] == [r["amt_cents"] for r in first]
    assert len(rejected) == 7  # refused once, not again at each turn


def test_a_loop_ends_before_event_times_do(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", rows(3))
    cursor = msgspec.json.decode(Replay(path, TOKENS, loop=True).take(3).cursor)
    turns = (dt.date(6999, 12, 31) - dt.date(2019, 1, 7)).days
    source = Replay(path, TOKENS, True, msgspec.json.encode(cursor | {"turn": turns, "skip": 0}).decode())
    chunk = source.take(3)
    assert chunk.ended
    assert str(chunk.batch["event_time"][0].as_py()) == "6999-12-31 00:00:00+00:00"


def test_a_loop_over_nothing_usable_ends(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bad.csv", [row(amt="-1")] * 3)
    out, rejected, _ = drain(Replay(path, TOKENS, loop=True), [2])
    assert (len(out), len(rejected)) == (0, 3)


@pytest.mark.usefixtures("small_blocks")
def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", rows(60))
    frame = pl.read_csv(path, try_parse_dates=True, schema_overrides={"cc_num": pl.Int64})
    frame.write_parquet(tmp_path / "rows.parquet", row_group_size=25)
    expected, _, _ = drain(Replay(path, TOKENS, loop=False), [9])
    source = Replay(tmp_path / "rows.parquet", TOKENS, loop=False)
    head, _, cursor = drain(source, [11], 33)
    tail, _, _ = drain(Replay(tmp_path / "rows.parquet", TOKENS, loop=False, cursor=cursor), [13])
    assert head + tail == expected


def test_parquet_values_of_any_type_read_as_text_does(tmp_path: Path) -> None:
    expected, _, _ = drain(Replay(write_csv(tmp_path / "rows.csv", rows(9)), TOKENS, loop=False), [9])
    frame = pl.read_csv(tmp_path / "rows.csv", try_parse_dates=True, schema_overrides={"cc_num": pl.Int64})
    times = pl.col("trans_date_trans_time").cast(pl.Datetime("ns"))
    for change in (
        times.dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York"),
        pl.col("amt").cast(pl.Float32),
        pl.col("amt").cast(pl.Decimal(12, 4)),
        pl.col("category").cast(pl.Categorical),
        pl.col("is_fraud").cast(pl.Float64),
        pl.col("is_fraud").cast(pl.Boolean),
        pl.col("dob").cast(pl.Datetime("us")),
        pl.col("city_pop").cast(pl.Float64),
        pl.col("cc_num").cast(pl.String),
    ):
        frame.with_columns(change).write_parquet(tmp_path / "rows.parquet")
        assert drain(Replay(tmp_path / "rows.parquet", TOKENS, loop=False), [9])[:2] == (expected, []), change


def test_parquet_types_that_lose_a_card_number_are_refused(tmp_path: Path) -> None:
    frame = pl.read_csv(write_csv(tmp_path / "rows.csv", rows(3)))
    for change in (pl.col("cc_num").cast(pl.Float64), pl.concat_list("lat").alias("lat")):
        frame.with_columns(change).write_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ReplayError, match="has type"):
            Replay(tmp_path / "rows.parquet", TOKENS, loop=False)


@pytest.mark.usefixtures("small_blocks")
def test_a_damaged_row_group_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.read_csv(write_csv(tmp_path / "rows.csv", rows(60))).write_parquet(path, row_group_size=20)
    meta = pq.ParquetFile(path).metadata.row_group(1)
    data = bytearray(path.read_bytes())
    for column in range(meta.num_columns):
        at = meta.column(column).dictionary_page_offset or meta.column(column).data_page_offset
        data[at : at + meta.column(column).total_compressed_size] = b"\xff" * meta.column(column).total_compressed_size
    path.write_bytes(data)
    whole = drain(Replay(path, TOKENS, loop=False), [100])
    assert [r["trans_num"] for r in whole[0]] == [f"t{i:06d}" for i in (*range(20), *range(40, 60))]
    assert [r.line for r in whole[1]] == [21]
    assert "rows 21 to 40" in whole[1][0].reason
    for at in (20, 21, 22):
        head = drain(Replay(path, TOKENS, loop=False), [at], at)
        tail = drain(Replay(path, TOKENS, False, head[2]), [100])
        assert (head[0] + tail[0], head[1] + tail[1]) == whole[:2]


@pytest.mark.parametrize("missing", ["amt", "cc_num", "merch_long"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    path = write_csv(tmp_path / "rows.csv", rows(3), [name for name in HEADER if name != missing])
    with pytest.raises(ReplayError, match=f"column {missing} missing"):
        Replay(path, TOKENS, loop=False)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing more")
    for name, reason in (("empty.csv", "empty"), ("torn.parquet", "Parquet"), ("absent.csv", "can't be read")):
        with pytest.raises(ReplayError, match=reason):
            Replay(tmp_path / name, TOKENS, loop=False)
    with pytest.raises(ReplayError, match="can't be read"):
        Replay(tmp_path, TOKENS, loop=False)


def test_a_file_that_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", rows(5))
    cursor = Replay(path, TOKENS, loop=False).take(2).cursor
    write_csv(path, rows(6))
    with pytest.raises(ReplayError, match="changed"):
        Replay(path, TOKENS, loop=False, cursor=cursor)
    path.write_bytes(write_csv(path, rows(5)).read_bytes().replace(b"t000004", b"t000009"))  # as long as before
    with pytest.raises(ReplayError, match="changed"):
        Replay(path, TOKENS, loop=False, cursor=cursor)


def test_of_several_missing_columns_all_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", rows(1), [name for name in HEADER if name not in ("amt", "lat")])
    with pytest.raises(ReplayError, match="columns amt, lat missing"):
        Replay(path, TOKENS, loop=False)


def test_a_header_without_rows_ends_at_once(tmp_path: Path) -> None:
    chunk = Replay(write_csv(tmp_path / "none.csv", []), TOKENS, loop=False).take(10)
    assert chunk.ended
    assert not chunk.batch.num_rows
