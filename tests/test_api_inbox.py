"""The hot folder: every format, exactly once whenever the process dies, bad rows masked, files deleted when durable."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from sparkov import row, rows, write_csv

from services.api import inbox as module
from services.api.inbox import Inbox
from services.api.taker import Means
from spearhead import rejects
from spearhead.dead import DeadCounter
from spearhead.files import Files
from spearhead.narrow import read_raw
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer
from spearhead.volume import Volume

CARD = "4599735407877245"
GROUPED = "4599-7354 0787-7245"
S = "*" * 16
TOKENS = Tokenizer(b"a key for tests only")


class KilledError(BaseException):
    """Stands for the process's end."""


class Killed(Files):
    """Dies before the nth change of the volume, and stays dead."""

    def __init__(self, after: int) -> None:
        super().__init__(fsync=False)
        self.left = after

    def step(self, call: str, path: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise KilledError


def inbox(volume: Volume, files: Files | None = None, held_back: bool = False) -> Inbox:
    settings = Settings(flashblade_path=volume.root, fsync=False, lease_seconds=0.05)
    log = structlog.wrap_logger(structlog.ReturnLogger())
    means = Means(Volume(volume.root, files or Files(fsync=False)), settings, lambda: held_back, log)
    return Inbox(means, lambda: TOKENS)


def take(box: Inbox) -> None:
    """Two looks: the second finds the files as they were."""
    box.look()
    box.look()


def published(volume: Volume) -> list[str]:
    paths = sorted(path for path in volume.raw_ready(0).iterdir() if "-i00-" in path.name)
    return [number for path in paths for number in read_raw(path)[0].column("trans_num").to_pylist()]


def write(path: Path, records: list[dict[str, str]]) -> None:
    if path.suffix == ".csv":
        write_csv(path, records)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{**record, "amt": float(record["amt"])} for record in records]), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(volume: Volume) -> Path:
    return volume.raw_data / "inbox"


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.ndjson", "a.JSONL"])
def test_every_format_is_taken_and_the_file_deleted(volume: Volume, folder: Path, name: str) -> None:
    write(folder / name, rows(70))
    box = inbox(volume)
    take(box)
    assert published(volume) == [record["trans_num"] for record in rows(70)]
    assert list(folder.iterdir()) == []
    box.close()


def test_files_of_a_folder_are_taken_too(volume: Volume, folder: Path, tmp_path: Path) -> None:
    (folder / "monday" / "north").mkdir(parents=True)
    write(folder / "monday" / "north" / "a.csv", [row(trans_num="a")])
    (folder / "monday" / "b.csv").write_text(f"x\n{CARD}\n")
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "c.csv", [row(trans_num="c")])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    box = inbox(volume)
    take(box)
    assert published(volume) == ["a"]
    assert [path.name for path in folder.rglob("*") if path.is_file() and "link" not in path.parts] == []
    assert (tmp_path / "elsewhere" / "c.csv").exists()
    assert_no_card(volume, CARD)
    box.close()


def test_a_file_that_still_grows_is_left_alone(volume: Volume, folder: Path) -> None:
    box = inbox(volume)
    write(folder / "a.csv", rows(5))
    box.look()
    write(folder / "a.csv", rows(9))
    box.look()
    assert published(volume) == []
    box.look()
    assert len(published(volume)) == 9
    write(folder / "b.csv.part", rows(5))
    write(folder / ".c.csv", rows(5))
    take(box)
    assert len(published(volume)) == 9
    box.close()


def test_bad_rows_are_set_aside_masked(volume: Volume, folder: Path) -> None:
    write(folder / "a.csv", [row(trans_num="a"), row(trans_num="b", amt="x"), row(trans_num=CARD), row(trans_num="c")])
    another = "4111:1111:1111:1111"
    records = [row(trans_num="d"), row(trans_num=another)]
    (folder / "b.ndjson").write_text("\n".join([*map(json.dumps, records), f"not json {CARD}", ""]))
    box = inbox(volume)
    take(box)
    assert published(volume) == ["a", "c", "d"]
    dead = "".join(path.read_text() for path in (volume.raw / "dead").iterdir())
    assert [json.loads(line)["line"] for line in dead.splitlines()] == [2, 3, 2, 3]
    assert "trans_num looks like a card number" in dead
    assert_no_card(volume, CARD)
    assert "4111:1111" not in dead
    box.close()


def parquet(records: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink, compression="none")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def dead_reasons(volume: Volume) -> dict[str, dict[str, Any]]:
    paths = (volume.raw / "dead").glob("*.reason.json")
    return {path.name: json.loads(path.read_bytes()) for path in paths}


def damaged_page(card: str) -> bytes:
    """A file whose footer is whole and whose pages are not."""
    whole = parquet([row(trans_num=f"t{i}") | {"note": card} for i in range(50)])
    return whole[:4] + b"\xff" * 400 + whole[404:]


@pytest.mark.parametrize(
    ("name", "content", "reason", "kept"),
    [
        ("a.csv", f"x,cc\n1,{CARD}\n2,{GROUPED}\n".encode(), "columns are missing", f"x,cc\n1,{S}\n2,{S}***\n"),
        ("a.csv", f"x,caf\u00e9\n1,{CARD}\n".encode("latin-1"), "columns are missing", f"x,caf\ufffd\n1,{S}\n"),
        ("a.csv", f"x,cc\n1,{CARD}\n".encode("utf-16"), "columns are missing", None),
        (f"{CARD}.txt", f"card {CARD}".encode(), "must end in one of", f"card {S}"),
        ("a.csv", b"", "columns are missing", ""),
        ("a.csv", b"1" * 1_100_000, "longer than", "*" * 1_100_000),
        ("a.parquet", b"PAR1 nothing " + CARD.encode(), "not a Parquet file", f"PAR1 nothing {S}"),
        ("a.parquet", parquet([{"cc_num": int(CARD), "note": CARD}]), "columns are missing", None),
        ("a.parquet", damaged_page(CARD), "a.parquet", None),
        ("a.parquet", parquet([row() | {"merchant": b"\xff\xfe"}]), "not a Parquet file of such rows", None),
        ("a.gz", gzip.compress(CARD.encode(), 0, mtime=0), "must end in one of", None),
    ],
)
def test_a_file_that_cannot_be_read_is_set_aside_with_no_card_number_in_clear(
    volume: Volume, folder: Path, name: str, content: bytes, reason: str, kept: str | None
) -> None:
    (folder / name).write_bytes(content)
    write(folder / "z.csv", rows(3))
    box = inbox(volume)
    take(box)
    ((told, why),) = dead_reasons(volume).items()
    assert reason in why["reason"]
    assert why["rows"] == 0
    assert ("were not kept" in why["reason"]) == (kept is None)
    copies = [path.read_text() for path in (volume.raw / "dead").iterdir() if path.name != told]
    assert copies == ([] if kept is None else [kept])
    assert len(published(volume)) == 3  # the others are not held up
    assert list(folder.iterdir()) == []
    counted = DeadCounter(volume).count(volume.epoch())["raw_transactions"]
    assert (counted.segments, counted.rows, counted.unknown_segments) == (1, 0, 0)
    assert DeadCounter(volume).count(volume.epoch() + 1)["raw_transactions"].segments == 0  # after a reset
    take(box)
    box.close()
    assert_no_card(volume, CARD)


def assert_no_card(volume: Volume, card: str) -> None:
    """Not in a name, nor in any byte, as text of any kind or as a number."""
    shapes = [card.encode(), GROUPED.encode(), card.encode("utf-16-le"), int(card).to_bytes(8, "little")]
    for path in volume.root.rglob("*"):
        if path.is_symlink():
            continue
        assert card not in path.name
        for shape in shapes:
            assert not path.is_file() or shape not in path.read_bytes(), path


def test_a_refused_file_is_kept_up_to_a_bound(volume: Volume, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "KEPT_BYTES", 30)
    (folder / "a.csv").write_text(f"a,b\n1,2\n3,4\n5,6\n7,8\n9,{CARD}\n1,2\n")
    box = inbox(volume)
    take(box)
    (kept,) = (volume.raw / "dead").glob("*.csv")
    assert kept.read_text() == "a,b\n1,2\n3,4\n5,6\n7,8\n9," + "*" * 8
    box.close()


def test_killed_while_a_file_is_refused(volume: Volume, folder: Path) -> None:
    for after in range(100):
        (folder / "a.csv").write_text(f"x,{after}\n1,{CARD}\n")
        identity = inbox(volume)._dropped.identity("a.csv")
        box = inbox(volume, Killed(after))
        try:
            take(box)
            finished = True
        except KilledError:
            finished = False
        for path in volume.workers.glob("ingest-*"):
            path.unlink()
        successor = inbox(volume)
        take(successor)
        successor.close()
        name = module.set_aside_name(1, "a.csv", identity)
        assert (volume.raw / "dead" / name).read_text() == f"x,{after}\n1,{'*' * 16}\n"
        assert "columns are missing" in dead_reasons(volume)[f"{name}.reason.json"]["reason"]
        assert list(folder.iterdir()) == []
        if finished:
            break
    assert after > 5
    assert_no_card(volume, CARD)


def test_rows_before_a_fault_are_taken_and_the_reason_says_how_many(
    volume: Volume, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 10)
    write(folder / "a.csv", rows(25))
    with (folder / "a.csv").open("a") as file:
        file.write("x" * 1_100_000)
    box = inbox(volume)
    take(box)
    ((_, why),) = dead_reasons(volume).items()
    assert "rows taken before: 10" in why["reason"]
    assert len(published(volume)) == 10
    assert list(folder.iterdir()) == []
    box.close()


def test_killed_before_any_change_every_row_counts_once(
    volume: Volume, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 10)
    expected: list[str] = []
    for after in range(400):
        records = [record | {"trans_num": f"k{after}-{i}"} for i, record in enumerate(rows(35))]
        write(folder / f"{after:03d}.csv", records)
        expected += [record["trans_num"] for record in records]
        box = inbox(volume, Killed(after))
        try:
            take(box)
            finished = True
        except KilledError:
            finished = False
        for path in volume.workers.glob("ingest-*"):
            path.unlink()
        successor = inbox(volume)
        take(successor)
        successor.close()
        assert published(volume) == expected, after
        assert list(folder.iterdir()) == []
        if finished:
            break
    assert after > 20


def test_the_same_name_dropped_again_is_another_file(volume: Volume, folder: Path) -> None:
    box = inbox(volume)
    for part in ("a", "b"):
        write(folder / "daily.csv", [record | {"trans_num": f"{part}{i}"} for i, record in enumerate(rows(4))])
        take(box)
    assert published(volume) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
    box.close()


def test_labels_of_files_are_kept(volume: Volume, folder: Path) -> None:
    write(folder / "a.csv", [row(trans_num="a", is_fraud="1"), row(trans_num="b", is_fraud=""), row(trans_num="c")])
    box = inbox(volume)
    take(box)
    (path,) = [path for path in volume.raw_ready(0).iterdir() if "-i00-" in path.name]
    assert read_raw(path)[0].column("label").to_pylist() == [1, -1, 0]
    box.close()


def test_records_skips_what_is_done(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", rows(25))
    assert pl.concat(module.records(tmp_path / "a.csv", 20))["trans_num"].to_list() == [
        f"t{i:06d}" for i in range(20, 25)
    ]


@pytest.mark.parametrize("begun_is_seen_first", [True, False])
def test_a_file_that_was_begun_is_finished_before_any_other(
    volume: Volume, folder: Path, monkeypatch: pytest.MonkeyPatch, begun_is_seen_first: bool
) -> None:
    """One that sorts before it would else take its place in the cursor, and its rows would be published again."""
    monkeypatch.setattr(module, "BATCH", 10)
    write(folder / "b.csv", rows(35))
    box = inbox(volume)
    box.look()
    publish = box._publish

    def once(*arguments: Any) -> None:
        publish(*arguments)
        box._stop.set()

    monkeypatch.setattr(box, "_publish", once)
    box.look()
    box.close()
    assert len(published(volume)) == 10
    write(folder / "a.csv", [row(trans_num="other")])
    box = inbox(volume)
    if not begun_is_seen_first:  # a listing may lack what is there
        names = box._dropped._names
        monkeypatch.setattr(box._dropped, "_names", lambda at: [name for name in names(at) if name != "b.csv"])
        take(box)
        monkeypatch.setattr(box._dropped, "_names", names)
    take(box)
    assert published(volume) == [*(record["trans_num"] for record in rows(35)), "other"]
    box.close()
