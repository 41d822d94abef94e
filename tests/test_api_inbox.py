"""The hot folder: every format, exactly once whenever the process dies, bad rows masked, files deleted when durable."""

from __future__ import annotations

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
from spearhead.files import Files
from spearhead.segment import read_segment
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer
from spearhead.volume import Volume

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
    return Inbox(Volume(volume.root, files or Files(fsync=False)), settings, lambda: TOKENS, lambda: held_back, log)


def take(box: Inbox) -> None:
    """Two looks: the second finds the files as they were."""
    box.look()
    box.look()


def published(volume: Volume) -> list[str]:
    paths = sorted(path for path in volume.raw_ready(0).iterdir() if "-i00-" in path.name)
    return [number for path in paths for number in read_segment(path)[0].column("trans_num").to_pylist()]


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
    card = "4599735407877245"
    write(folder / "a.csv", [row(trans_num="a"), row(trans_num="b", amt="x"), row(trans_num=card), row(trans_num="c")])
    (folder / "b.ndjson").write_text(json.dumps(row(trans_num="d")) + "\nnot json " + card + "\n")
    box = inbox(volume)
    take(box)
    assert published(volume) == ["a", "c", "d"]
    dead = "".join(path.read_text() for path in (volume.raw / "dead").iterdir())
    assert [json.loads(line)["line"] for line in dead.splitlines()] == [2, 3, 2]
    for path in volume.root.rglob("*"):
        assert not path.is_file() or card.encode() not in path.read_bytes(), path
    box.close()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("a.csv", b"x,y\n1,2\n", "columns are missing"), ("a.parquet", b"PAR1 nothing", "not a Parquet file"),
     ("a.txt", b"hello", "must end in one of"), ("a.csv", b"", "columns are missing")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused_with_its_reason(
    volume: Volume, folder: Path, name: str, content: bytes, reason: str
) -> None:
    (folder / name).write_bytes(content)
    write(folder / "z.csv", rows(3))
    box = inbox(volume)
    take(box)
    assert reason in json.loads((folder / f"{name}.reason.json").read_bytes())["reason"]
    assert (folder / f"{name}.refused").read_bytes() == content
    assert len(published(volume)) == 3  # the others are not held up
    take(box)
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
    assert read_segment(path)[0].column("label").to_pylist() == [1, -1, 0]
    box.close()


def test_records_skips_what_is_done(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", rows(25))
    assert pl.concat(module.records(tmp_path / "a.csv", 20))["trans_num"].to_list() == [
        f"t{i:06d}" for i in range(20, 25)
    ]
