"""Replay: every row once, in the file's order, however it is cut and wherever it is resumed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sparkov import HEADER, SLICE, row, rows, write_csv

from services.generator import replay
from services.generator.replay import Replay, ReplayError
from services.generator.source import Reject
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
    monkeypatch.setattr(replay, "BLOCK_BYTES", 1_500)
    monkeypatch.setattr(replay, "BLOCK_ROWS", 7)


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
        (8, "line is not CSV: unexpected end of data"),
        (9, "line is not UTF-8"),
        (21, "line has 24 fields, the header has 23"),
        (22, "line is not CSV: unexpected end of data"),
        (48, "amt is negative"),
        (49, "category is missing or unknown"),
    ]
    text = path.read_bytes().split(b"\n")
    assert all(r.row == text[r.line - 1].decode(errors="replace") for r in rejected[:5])


@pytest.mark.usefixtures("small_blocks")
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_how_it_is_cut_changes_nothing(tmp_path: Path, sizes: list[int]) -> None:
    path = messy(tmp_path / "messy.csv")
    whole = drain(Replay(path, TOKENS, loop=False), [1_000])[:2]
    assert drain(Replay(path, TOKENS, loop=False), sizes)[:2] == whole


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("loop", [False, True])
def test_resumed_at_every_row_it_is_as_if_never_stopped(tmp_path: Path, loop: bool) -> None:
    path = messy(tmp_path / "messy.csv")
    most = 47 if not loop else 100
    whole, refused, _ = drain(Replay(path, TOKENS, loop), [most], most)
    assert len(whole) + len(refused) == most
    for at in range(1, most):
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
    assert [r["trans_num"] for r in second] == [f"{r['trans_num']}.1" for r in first]
    assert min(times[40:80]) > max(times[:40])  # type: ignore[type-var]
    assert [r["amt_cents"] for r in second] == [r["amt_cents"] for r in first]
    assert len(rejected) == 7  # refused once, not again at each turn


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


def test_a_header_without_rows_ends_at_once(tmp_path: Path) -> None:
    chunk = Replay(write_csv(tmp_path / "none.csv", []), TOKENS, loop=False).take(10)
    assert chunk.ended
    assert not chunk.batch.num_rows
