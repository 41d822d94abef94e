"""Folding: once each, whatever dies or freezes; labels mature; damage never stops it; readers never go back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from faulting import Crash, FaultingFiles, Turns
from hypothesis import given, settings
from hypothesis import strategies as st

from spearhead.aggregate import (
    HOUR_US,
    MAX_SIGNALS,
    Aggregate,
    AmountBucket,
    Group,
    HourOutcomes,
    Outcomes,
    Signal,
    merge,
)
from spearhead.files import Files
from spearhead.ledger import (
    KEPT_VERSIONS,
    MINUTES,
    Ledger,
    LedgerError,
    LedgerFile,
    LedgerReader,
    decode_ledger,
    find_newest,
    read_ledger,
)
from spearhead.segment import SegmentInfo, SegmentName, write_segment
from spearhead.volume import Volume

DAY_US = 24 * HOUR_US
SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


def segment_name(seq: int, producer: str = "g00", partition: int = 0, epoch: int = 1) -> str:
    return str(SegmentName(epoch, producer, partition, seq))


def new_volume(path: Path) -> Volume:
    path.mkdir(parents=True, exist_ok=True)
    volume = Volume(path, Files(fsync=False))
    volume.prepare(partitions=2)
    return volume


def on(volume: Volume, files: Files) -> Volume:
    return Volume(volume.root, files)


def add_pending(volume: Volume, seq: int, aggregate: Aggregate | None = None, **name: int | str) -> None:
    """Publish a segment's aggregate: by default one row of 10^seq cents."""
    path = volume.pending / f"{segment_name(seq, **name)}.json"  # type: ignore[arg-type]
    path.write_bytes(msgspec.json.encode(aggregate or Aggregate(count=1, cents=10**seq)))


def add_raw(volume: Volume, seq: int, watermark: int, partition: int = 0, ended: bool = False) -> None:
    """The newest segment of producer g00 in a partition."""
    name = segment_name(seq, partition=partition)
    info = SegmentInfo(name=name, rows=0, rows_before=0, watermark=watermark, ended=ended)
    batch = pa.RecordBatch.from_arrays([pa.array([], pa.int64())], schema=SCHEMA)
    write_segment(Files(fsync=False), volume.raw_ready(partition) / f"{name}.arrow", batch, info)


def read(volume: Volume) -> LedgerFile:
    ledger = read_ledger(volume)
    assert ledger is not None
    return ledger


def shown(volume: Volume) -> LedgerFile:
    return decode_ledger(volume.metrics_json)


def ticking() -> Iterator[float]:
    now = 0.0
    while True:
        now += 1.0
        yield now


def new_ledger(volume: Volume, delay: int = 0) -> Ledger:
    """A folder for which a second passes between two folds."""
    return Ledger(volume, delay, clock=ticking().__next__)


# Folding


def test_starts_at_zero(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    assert read_ledger(volume) is None
    new_ledger(volume).fold()
    content = msgspec.json.decode(volume.metrics_json.read_bytes())
    assert (content["format"], content["epoch"], content["version"]) == (1, 1, 1)
    assert (content["transactions_analyzed"], content["amount_total"], content["flagged_count"]) == (0, 0, 0)
    assert content["updated_at"].endswith("Z")
    assert content["labelled"] == {
        "tp": 0, "fp": 0, "tn": 0, "fn": 0, "pending": 0, "in_sample": {"tp": 0, "fp": 0, "tn": 0, "fn": 0},
    }  # fmt: skip


def test_folds_each_segment_once(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    first, second = new_ledger(volume), new_ledger(volume)
    for seq in range(1, 6):
        add_pending(volume, seq)
        assert (first if seq % 2 else second).fold().segments == 1
    assert first.fold().segments == second.fold().segments == 0
    ledger = read(volume)
    assert ledger.amount_total_cents == 111_110
    assert ledger.amount_total == 1111.10
    assert ledger.producers["g00"].segments == 5
    assert shown(volume) == ledger
    assert os.listdir(volume.pending) == []
    assert len(os.listdir(volume.ledger)) == KEPT_VERSIONS


def test_nothing_new_makes_no_version(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    ledger = new_ledger(volume)
    ledger.fold()
    version = read(volume).version
    ledger.fold()
    assert read(volume).version == version


def test_epoch_starts_at_zero(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    reader = LedgerReader(volume)
    add_pending(volume, 1)
    ledger = new_ledger(volume)
    ledger.fold()
    add_pending(volume, 2)
    volume.raise_epoch()
    after = reader.read()
    assert after is not None
    assert (after.epoch, after.transactions_analyzed) == (2, 0)
    add_pending(volume, 3, epoch=2)
    ledger.fold()
    assert (read(volume).epoch, read(volume).amount_total_cents) == (2, 1000)
    assert os.listdir(volume.pending) == []


def fold_twice(volume: Volume) -> None:
    ledger = new_ledger(volume)
    ledger.fold()
    ledger.fold()


def check_once(volume: Volume, segments: int) -> None:
    fold_twice(volume)
    ledger = read(volume)
    assert ledger.amount_total_cents == sum(10**seq for seq in range(1, segments + 1))
    assert ledger.producers["g00"].segments == segments
    assert os.listdir(volume.pending) == []


@pytest.mark.parametrize("mode", ["before", "torn"])
def test_killed_at_every_call(tmp_path: Path, mode: str) -> None:
    k, died = 0, True
    while died:
        k += 1
        volume = new_volume(tmp_path / str(k))
        fold_twice(volume)
        for seq in (1, 2):
            add_pending(volume, seq)
        files = FaultingFiles(k, mode)  # type: ignore[arg-type]
        with suppress(Crash):
            fold_twice(on(volume, files))
        died = files.dead
        add_pending(volume, 3)
        check_once(volume, 3)
    assert k > 12


class Hiding(Files):
    """A stale listing that does not show one file yet."""

    def __init__(self, hidden: str) -> None:
        super().__init__(fsync=False)
        self.hidden = hidden

    def list(self, path: Path) -> list[str]:
        return [name for name in super().list(path) if name != self.hidden]


@pytest.mark.parametrize("folds", [1, 2 + KEPT_VERSIONS])
@pytest.mark.parametrize("stale", [False, True])
def test_frozen_at_every_call(tmp_path: Path, folds: int, stale: bool) -> None:
    """A folder stops, others add one version or more than are kept, it wakes up; they may not see what it saw."""
    k, reached = 0, True
    while reached:
        k += 1
        volume = new_volume(tmp_path / str(k))
        fold_twice(volume)
        add_pending(volume, 1)

        def others(volume: Volume = volume) -> None:
            for seq in range(2, 2 + folds):
                add_pending(volume, seq)
                new_ledger(on(volume, Hiding(f"{segment_name(1)}.json")) if stale else volume).fold()

        files = FaultingFiles(k, frozen=others)
        fold_twice(on(volume, files))
        reached = files.calls >= k
        if reached:
            check_once(volume, 1 + folds)
    assert k > 10


def test_what_a_stale_listing_lacks_is_not_forgotten(tmp_path: Path) -> None:
    """A folder died before it removed what it had counted, and the next one's listing does not show the file."""
    volume = new_volume(tmp_path)
    add_pending(volume, 1)
    new_ledger(volume).fold()
    add_pending(volume, 1)  # as if it had not been removed
    add_pending(volume, 2)
    new_ledger(on(volume, Hiding(f"{segment_name(1)}.json"))).fold()
    check_once(volume, 2)


def test_reply_of_every_call_lost(tmp_path: Path) -> None:
    k, reached = 0, True
    while reached:
        k += 1
        volume = new_volume(tmp_path / str(k))
        add_pending(volume, 1)
        files = FaultingFiles(k, "reply lost")
        with suppress(OSError):
            fold_twice(on(volume, files))
        reached = files.calls >= k
        check_once(volume, 1)


@settings(max_examples=100, deadline=None)
@given(plan=st.lists(st.integers(0, 31), max_size=200))
def test_any_interleaving(tmp_path_factory: pytest.TempPathFactory, plan: list[int]) -> None:
    """Three folders, call by call, killed now and then, while segments come in."""
    volume = new_volume(tmp_path_factory.mktemp("volume"))
    turns, segments = Turns(), 0

    def start() -> int:
        turns.add(lambda files: fold_twice(on(volume, files)))
        return turns.count - 1

    slots = [start() for _ in range(3)]
    try:
        for choice in plan:
            if choice >= 30 and segments < 12:
                segments += 1
                add_pending(volume, segments)
            elif choice >= 28:
                turns.kill(slots[choice % 3])
                slots[choice % 3] = start()
            elif not turns.go(slots[choice % 3]):
                slots[choice % 3] = start()
    finally:
        turns.close()
    fold_twice(volume)
    assert read(volume).amount_total_cents == sum(10**seq for seq in range(1, segments + 1))
    assert os.listdir(volume.pending) == []


def test_stale_listing_counts_nothing_twice(tmp_path: Path) -> None:
    """A listing may show a file that was folded and removed, or miss one that is there."""

    class Stale(Files):
        def list(self, path: Path) -> list[str]:
            names = super().list(path)
            if path == volume.pending:
                return sorted({*names, f"{segment_name(1)}.json"}) if self.shows else []
            return names

        shows = True

    volume = new_volume(tmp_path)
    files = Stale(fsync=False)
    ledger = new_ledger(on(volume, files))
    add_pending(volume, 1)
    ledger.fold()
    for seq, shows in ((2, False), (2, True), (3, False), (3, True)):
        add_pending(volume, seq) if not shows else None
        files.shows = shows
        ledger.fold()
        new_ledger(on(volume, files)).fold()
    assert read(volume).amount_total_cents == 1110


def test_link_of_a_woken_folder_is_no_base(tmp_path: Path) -> None:
    """Between listing and reading, the version is removed as old and a woken folder links its own of that number."""
    volume = new_volume(tmp_path)
    fold_twice(volume)
    woken = read(volume)
    listings = 0

    class Frozen(Files):
        def list(self, path: Path) -> list[str]:
            nonlocal listings
            names = super().list(path)
            listings += path == volume.ledger
            if path == volume.ledger and listings == 2:
                for seq in range(1, 2 + KEPT_VERSIONS):
                    add_pending(volume, seq)
                    new_ledger(volume).fold()
                add_pending(volume, 9)
                woken.applied = [segment_name(9)]
                assert volume.files.put_if_absent(volume.ledger / woken.key.file, msgspec.json.encode(woken))
            return names

    new_ledger(on(volume, Frozen(fsync=False))).fold()
    assert listings > 2
    fold_twice(volume)
    assert read(volume).amount_total_cents == 11_110 + 10**9


# Labels


def labelled(hour: int, seq: int = 1) -> Aggregate:
    outcomes = HourOutcomes(Outcomes(tp=1, fn=2), Outcomes(tn=3))
    return Aggregate(count=6, pending_labels={f"g00/{hour}": outcomes})


def test_labels_mature_by_what_their_producer_has_published(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    ledger = new_ledger(volume, 7 * DAY_US)
    add_pending(volume, 1, labelled(100))
    ledger.fold()
    assert read(volume).labelled.pending == 6
    due = 101 * HOUR_US + 7 * DAY_US
    add_raw(volume, 1, due - 1)
    ledger.fold()
    assert read(volume).labelled.pending == 6
    add_raw(volume, 2, due)
    ledger.fold()
    outcome = read(volume).labelled
    assert (outcome.tp, outcome.fn, outcome.in_sample.tn, outcome.pending) == (1, 2, 3, 0)


def test_labels_wait_for_every_partition(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    ledger = new_ledger(volume, DAY_US)
    add_pending(volume, 1, labelled(1))
    add_raw(volume, 1, 10 * DAY_US, partition=0)
    add_raw(volume, 1, 0, partition=1)
    ledger.fold()
    assert read(volume).labelled.pending == 6
    add_raw(volume, 2, 10 * DAY_US, partition=1)
    ledger.fold()
    assert read(volume).labelled.pending == 0


def test_labels_mature_when_the_source_has_ended(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    ledger = new_ledger(volume, 7 * DAY_US)
    add_raw(volume, 1, 0, ended=True)
    add_pending(volume, 1, labelled(100))
    ledger.fold()
    assert read(volume).labelled.tp == 1
    assert read(volume).pending_labels == {}


# Damage


def test_damaged_aggregate_is_set_aside(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    (volume.pending / f"{segment_name(1)}.json").write_bytes(b'{"count": 1, "ce')
    (volume.pending / "notes.txt").write_bytes(b"?")
    add_pending(volume, 2)
    assert new_ledger(volume).fold().dead == 2
    assert read(volume).amount_total_cents == 100
    assert read(volume).dead["metrics"].segments == 2
    assert read(volume).dead["metrics"].unknown_segments == 1  # a foreign file has no rows
    assert os.listdir(volume.pending) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 99, "epoch": 1, "updated_at": "2026-01-01T00:00:00Z"}'])
def test_damaged_copy_stops_no_reader(tmp_path: Path, content: bytes) -> None:
    volume = new_volume(tmp_path)
    add_pending(volume, 1)
    ledger = new_ledger(volume)
    ledger.fold()
    volume.metrics_json.write_bytes(content)
    for reader in (LedgerReader(volume).read, lambda: read_ledger(volume)):
        found = reader()
        assert found is not None
        assert found.amount_total_cents == 10
    with pytest.raises(LedgerError, match=r"\.metrics\.json"):
        shown(volume)
    add_pending(volume, 2)
    ledger.fold()
    assert shown(volume).amount_total_cents == 110


def test_damaged_version_is_replaced_by_its_copy(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    for seq in (1, 2):
        add_pending(volume, seq)
        new_ledger(volume).fold()
    newest = find_newest(volume).top
    (volume.ledger / newest.file).write_bytes(b"\0" * 100)
    assert read(volume).amount_total_cents == 110
    add_pending(volume, 3)
    new_ledger(volume).fold()
    assert read(volume).amount_total_cents == 1110
    assert read(volume).damaged_versions == 1
    assert read(volume).key > newest


def test_all_versions_damaged_is_a_clear_error(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    new_ledger(volume).fold()
    for path in [volume.metrics_json, *volume.ledger.iterdir()]:
        path.write_bytes(b"?")
    with pytest.raises(LedgerError, match="reset"):
        read_ledger(volume)
    with pytest.raises(LedgerError, match="reset"):
        new_ledger(volume).fold()


# Readers


def test_reader_never_goes_back(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    reader, ledger = LedgerReader(volume), new_ledger(volume)
    assert reader.read() is None
    add_pending(volume, 1)
    ledger.fold()
    old = volume.metrics_json.read_bytes()
    add_pending(volume, 2)
    ledger.fold()
    newest = reader.read()
    volume.files.replace(volume.metrics_json, old)
    assert reader.read() == newest
    volume.metrics_json.unlink()
    assert reader.read() == newest


def test_older_copy_is_not_put_over_a_newer_one(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    slow = new_ledger(volume)
    slow.fold()
    add_pending(volume, 1)
    new_ledger(volume).fold()
    slow.close()
    assert shown(volume).amount_total_cents == 10


def test_close_shows_the_last_fold(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    ledger = Ledger(volume, 0, clock=lambda: 5.0)
    ledger.fold()
    add_pending(volume, 1)
    ledger.fold()
    assert shown(volume).amount_total_cents == 0
    ledger.close()
    assert shown(volume).amount_total_cents == 10


# Merging

GROUPS = st.dictionaries(st.sampled_from("abc"), st.builds(Group, *[st.integers(0, 9)] * 5))
OUTCOMES = st.builds(Outcomes, *[st.integers(0, 9)] * 4)
SIGNALS = st.builds(
    Signal,
    trans_num=st.text("0123456789abcdef", min_size=8, max_size=8),
    event_time=st.just(0),
    scored_at=st.integers(0, 3),
    score=st.just(1),
    cents=st.just(1),
    merchant=st.just("m"),
    category=st.just("home"),
    state=st.just("NY"),
    last4=st.just(1),
    cardholder=st.just("A B."),
    model=st.just("v000001"),
)
AGGREGATES = st.builds(
    Aggregate,
    count=st.integers(0, 9),
    cents=st.integers(0, 10**15),
    flagged=st.integers(0, 9),
    score_bins=st.lists(st.integers(0, 9), min_size=20, max_size=20),
    bands=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    categories=GROUPS,
    states=GROUPS,
    minutes=st.dictionaries(st.sampled_from("123"), st.builds(Group, st.integers(0, 9))),
    latency=st.dictionaries(st.sampled_from("123"), st.integers(0, 9)),
    flagged_amounts=st.dictionaries(st.sampled_from("123"), st.builds(AmountBucket, st.integers(0, 9))),
    pending_labels=st.dictionaries(st.sampled_from("123"), st.builds(HourOutcomes, OUTCOMES, OUTCOMES)),
    models=st.dictionaries(st.sampled_from("ab"), st.integers(0, 9)),
    signals=st.lists(SIGNALS, max_size=30, unique_by=lambda signal: signal.trans_num),
    first_scored_at=st.integers(0, 9),
    last_scored_at=st.integers(0, 9),
)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(AGGREGATES, max_size=5), order=st.randoms())
def test_totals_do_not_depend_on_the_order(parts: list[Aggregate], order: object) -> None:
    before = msgspec.json.encode(parts)
    one, other = Aggregate(), Aggregate()
    merge(one, parts)
    shuffled = list(parts)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for part in shuffled:
        merge(other, [part])
    assert one == other
    assert msgspec.json.encode(parts) == before
    assert one.cents == sum(part.cents for part in parts)
    assert len(one.signals) == min(MAX_SIGNALS, sum(len(part.signals) for part in parts))


def test_only_the_newest_minutes_are_kept(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    minutes = {str(minute): Group(count=1) for minute in range(95, 95 + MINUTES + 10)}
    add_pending(volume, 1, Aggregate(count=len(minutes), minutes=minutes))
    new_ledger(volume).fold()
    assert sorted(map(int, read(volume).minutes)) == list(range(105, 105 + MINUTES))
