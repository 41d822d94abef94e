"""The competing-consumer hop and the ledger behind it, killed, frozen and called dead at every system call."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from faulting import Crash, FaultingFiles, Mode, Turns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spearhead.aggregate import Aggregate
from spearhead.dead import DeadCounter
from spearhead.files import Files
from spearhead.hop import MAX_KILLED, MAX_RAISED, Claim, Hop
from spearhead.ledger import Ledger, read_ledger
from spearhead.rejects import Reason
from spearhead.segment import SegmentInfo, SegmentName, read_segment, write_segment
from spearhead.volume import Volume

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


class Alive:
    """Who is alive, as the test decides."""

    def __init__(self, *workers: str) -> None:
        self.workers = set(workers)

    def alive(self) -> Collection[str]:
        return set(self.workers)


def segment_name(seq: int, producer: str = "g00", epoch: int = 1) -> str:
    return str(SegmentName(epoch, producer, 0, seq))


def add_segment(volume: Volume, seq: int, rows: int = 2, producer: str = "g00", epoch: int = 1) -> str:
    """A segment in features-ready; its rows hold its number."""
    name = segment_name(seq, producer, epoch)
    info = SegmentInfo(name=name, rows=rows, rows_before=rows * (seq - 1))
    batch = pa.RecordBatch.from_arrays([pa.array([seq] * rows, pa.int64())], schema=SCHEMA)
    write_segment(Files(fsync=False), volume.features / "ready" / f"{name}.arrow", batch, info)
    return name


def new_volume(path: Path, segments: int, files: Files | None = None) -> Volume:
    path.mkdir(parents=True, exist_ok=True)
    volume = Volume(path, files or Files(fsync=False))
    volume.prepare()
    for seq in range(1, segments + 1):
        add_segment(volume, seq)
    return volume


def stage(hop: Hop, volume: Volume, claims: Collection[Claim]) -> None:
    """What inference does: results and aggregate of every segment. Segment n has 10^n cents: sums tell who is in."""
    for claim in claims:
        write_segment(volume.files, hop.staged(claim, ".arrow"), claim.batch, claim.info)
        seq = int(claim.name.rsplit("-", 1)[1])
        aggregate = Aggregate(count=claim.info.rows, cents=10**seq)
        volume.files.create(hop.staged(claim, ".json"), msgspec.json.encode(aggregate))


def work(volume: Volume, worker: str, alive: Alive, max_rows: int = 4) -> None:
    """A whole life of a worker: recover, then take what waits until there is nothing, folding as it goes."""
    hop = Hop(volume, worker, alive)
    ledger = Ledger(volume, 0)
    hop.recover()
    while claims := hop.claim(max_rows):
        stage(hop, volume, claims)
        hop.finish(claims)
        ledger.fold()
    ledger.fold()
    ledger.close()


def on(volume: Volume, files: Files) -> Volume:
    """The same volume, seen through other files."""
    return Volume(volume.root, files)


def finish_and_check(volume: Volume, segments: int, log: list[tuple[str, Path]]) -> None:
    """After all others have died: one more worker, then everything must be there once and nothing else."""
    files = FaultingFiles(log=log)
    work(on(volume, files), "last", Alive("last"))
    Hop(on(volume, files), "inspector", Alive()).recover()
    Ledger(on(volume, files), 0).fold()
    dead = [file for file in files.list(volume.features / "dead") if file.endswith(".arrow")]
    names = [segment_name(seq) for seq in range(1, segments + 1) if f"{segment_name(seq)}.arrow" not in dead]
    for name in names:
        batch, info = read_segment(volume.result_file(name))
        assert info.name == name
        assert set(batch.column(0).to_pylist()) == {int(name.rsplit("-", 1)[1])}
    results = [volume.result_file(name) for name in names]
    published = Counter(path for call, path in log if call == "published")
    assert published == Counter(results + [volume.pending / f"{name}.json" for name in names])
    ledger = read_ledger(volume)
    assert ledger is not None
    assert ledger.amount_total_cents == sum(10 ** int(name.rsplit("-", 1)[1]) for name in names)
    assert ledger.transactions_analyzed == 2 * len(names)
    assert ledger.producers["g00"].segments == len(names)
    assert ledger.producers["g00"].rows == 2 * len(names)
    for folder in (volume.features / "ready", volume.features / "committed", volume.features / "tries"):
        assert os.listdir(folder) == []
    for folder in (volume.features / "claimed", volume.results / "staged", volume.pending):
        assert os.listdir(folder) == []


@pytest.fixture(autouse=True)
def _log_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    _note_publishes(monkeypatch)


def _note_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note every publish that was really done: the rename of an output to its place, however it was reported."""
    rename = os.rename

    def noted(source: Path, target: Path) -> None:
        rename(source, target)
        log = LOGS[-1]
        if "staged" in Path(source).parts:
            log.append(("published", Path(target)))

    monkeypatch.setattr(os, "rename", noted)


LOGS: list[list[tuple[str, Path]]] = [[]]


def new_log() -> list[tuple[str, Path]]:
    LOGS[:] = [[]]
    return LOGS[0]


def every_call(tmp_path: Path, run: Callable[[Path, int], bool]) -> int:
    """Run with a fault at call 1, 2, ... until a run ends without meeting it. How many calls there were."""
    k = 1
    while run(tmp_path / str(k), k):
        k += 1
    return k - 1


@pytest.mark.parametrize("mode", ["before", "torn"])
@pytest.mark.parametrize("max_rows", [2, 6])
def test_killed_before_every_call(tmp_path: Path, mode: Mode, max_rows: int) -> None:
    def run(path: Path, k: int) -> bool:
        log = new_log()
        volume = new_volume(path, 3)
        files = FaultingFiles(k, mode, log=log)
        with suppress(Crash):
            work(on(volume, files), "first", Alive("first"), max_rows)
        finish_and_check(volume, 3, log)
        return files.dead

    assert every_call(tmp_path, run) > 50


def test_killed_twice(tmp_path: Path) -> None:
    """The second worker, too, dies at every call, while it takes up what the first left at some."""
    for first in range(1, 80, 13):

        def run(path: Path, k: int, first: int = first) -> bool:
            log = new_log()
            volume = new_volume(path, 2)
            second = FaultingFiles(k, log=log)
            for worker, files in (("first", FaultingFiles(first, log=log)), ("second", second)):
                try:
                    work(on(volume, files), worker, Alive(worker))
                except Crash:
                    continue
            finish_and_check(volume, 2, log)
            return second.dead

        every_call(tmp_path / str(first), run)


@pytest.mark.parametrize("max_rows", [2, 6])
def test_frozen_reaped_and_woken_at_every_call(tmp_path: Path, max_rows: int) -> None:
    """A worker stops, others call it dead and do everything; then it goes on as if nothing had happened."""

    def run(path: Path, k: int) -> bool:
        log = new_log()
        volume = new_volume(path, 3)
        others = on(volume, FaultingFiles(log=log))
        files = FaultingFiles(k, frozen=lambda: work(others, "other", Alive("other")), log=log)
        with suppress(OSError):  # its folders are gone: it may notice that it was taken for dead
            work(on(volume, files), "sleeper", Alive("sleeper"), max_rows)
        finish_and_check(volume, 3, log)
        return files.calls >= k

    assert every_call(tmp_path, run) > 50


def test_reply_of_every_call_lost(tmp_path: Path) -> None:
    """A rename or link that was done is reported as failed: nothing is lost, though the worker may raise OSError."""

    def run(path: Path, k: int) -> bool:
        log = new_log()
        volume = new_volume(path, 3)
        files = FaultingFiles(k, "reply lost", log=log)
        with suppress(OSError):
            work(on(volume, files), "first", Alive("first"))
        finish_and_check(volume, 3, log)
        return files.calls >= k

    assert every_call(tmp_path, run) > 50


def test_commit_whose_reply_is_lost_counts(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, 1)
    hop = Hop(volume, "w", Alive("w"))
    claims = hop.claim(10)
    stage(hop, volume, claims)
    rename = volume.files.rename

    def lost(source: Path, target: Path) -> None:
        rename(source, target)
        if target.parent.name == "committed":
            raise FileNotFoundError(2, "repeated request")

    volume.files.rename = lost  # type: ignore[method-assign]
    assert hop.finish(claims) == claims
    assert volume.result_file(segment_name(1)).exists()


PLAN = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["go"] * 12 + ["kill", "suspect"])), max_size=220)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=PLAN)
def test_any_interleaving(tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, str]]) -> None:
    """Three workers at once, call by call; any is killed (a fresh one comes) or wrongly called dead at any moment."""
    log = new_log()
    volume = new_volume(tmp_path_factory.mktemp("volume"), 4)
    alive = Alive()
    turns = Turns()
    slots: list[tuple[int, str]] = []

    def start(slot: int) -> tuple[int, str]:
        name = f"w{len(turns.running())}x{slot}x{counter.pop()}"
        alive.workers.add(name)
        turns.add(lambda files: survive(files, name), log)
        return turns.count - 1, name

    def survive(files: Files, name: str) -> None:
        try:
            work(on(volume, files), name, alive)
        except OSError:  # its folders were taken away: it was called dead
            return

    counter = list(range(1000))
    slots = [start(slot) for slot in range(3)]
    try:
        for slot, action in plan:
            index, name = slots[slot]
            if action == "suspect":
                alive.workers.discard(name)
            elif action == "kill":
                turns.kill(index)
                alive.workers.discard(name)
                slots[slot] = start(slot)
            elif not turns.go(index):
                alive.workers.discard(name)
                slots[slot] = start(slot)
    finally:
        turns.close()
    finish_and_check(volume, 4, log)


def test_collector_looks_for_the_claim_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker commits between the collector's two looks: its outputs must stay."""
    log = new_log()
    volume = new_volume(tmp_path, 1)
    worker, collector = Hop(volume, "w", Alive("w")), Hop(volume, "collector", Alive("collector"))
    claims = worker.claim(10)
    stage(worker, volume, claims)
    lexists = os.path.lexists
    looks: list[Path] = []

    def look(path: Path) -> bool:
        there = lexists(path)
        looks.append(path)
        if len(looks) == 1:
            assert worker.commit(claims) == claims
        return there

    monkeypatch.setattr(os.path, "lexists", look)
    collector._collect(claims[0].attempt)
    monkeypatch.undo()
    _note_publishes(monkeypatch)
    assert looks
    worker.publish(claims)
    finish_and_check(volume, 1, log)


def test_worker_that_starts_during_a_recovery_is_not_called_dead(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, 1)
    alive = Alive("recoverer")
    started: list[list[Claim]] = []

    class Listing(Files):
        def list(self, path: Path) -> list[str]:
            if path == volume.features / "claimed" and not started:
                alive.workers.add("new")  # the heartbeat first
                started.append([])
                started[0] = Hop(volume, "new", alive).claim(10)
            return super().list(path)

    recovered = Hop(on(volume, Listing(fsync=False)), "recoverer", alive).recover()
    assert len(started[0]) == 1
    assert recovered.taken_back == 0


def test_durable_order(tmp_path: Path) -> None:
    """Staged files are synced before the commit, the commit before the publish, that before the commit is forgotten."""
    files = FaultingFiles(log=new_log())
    volume = new_volume(tmp_path, 3, files)
    files.log.clear()
    work(volume, "w", Alive("w"), max_rows=6)
    calls = [(call, path) for call, path in files.log if call != "published"]
    attempt = next(
        path.parent.name for call, path in calls if call == "rename" and path.parent.parent.name == "claimed"
    )
    for seq in range(1, 4):
        name = segment_name(seq)
        committed = volume.features / "committed" / f"{name}.{attempt}"
        commit = calls.index(("rename", committed))
        publish = calls.index(("rename", volume.result_file(name)))
        publish_json = calls.index(("rename", volume.pending / f"{name}.json"))
        forget = calls.index(("unlink", committed))
        staged = volume.results / "staged" / attempt
        for path in (staged / f"{name}.arrow", staged / f"{name}.json", staged, staged.parent):
            assert ("fsync", path) in calls[:commit]
        for path in (committed.parent, volume.features / "claimed" / attempt):
            assert ("fsync", path) in calls[commit:publish]
        for at, folder in ((publish, volume.result_file(name).parent), (publish_json, volume.pending)):
            assert ("fsync", folder) in calls[at:forget]
    assert len([path for call, path in calls if call == "fsync" and path == volume.features / "committed"]) == 1


def test_oldest_first_in_turn_over_producers(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, 0)
    for seq in (3, 1, 2):
        add_segment(volume, seq)
    add_segment(volume, 7, producer="h00")
    claims = Hop(volume, "w", Alive("w")).claim(100)
    order = [claim.name for claim in claims]
    assert [name for name in order if "g00" in name] == [segment_name(seq) for seq in (1, 2, 3)]
    assert order.index(segment_name(7, "h00")) < 2


def test_claim_stops_at_max_rows(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, 5)
    hop = Hop(volume, "w", Alive("w"))
    assert len(hop.claim(3)) == 2
    assert len(hop.claim(100, max_segments=1)) == 1


def test_third_try_sets_aside(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, 1)
    hop = Hop(volume, "w", Alive("w"))
    outcomes = []
    while claims := hop.claim(10):
        stage(hop, volume, claims)
        outcomes.append(hop.fail(claims[0], ValueError("card 4111111111111111 is odd")))
    assert outcomes == [False] * (MAX_RAISED - 1) + [True]
    assert hop.dead == 1
    reason = msgspec.json.decode(
        (volume.features / "dead" / f"{segment_name(1)}.reason.json").read_bytes(), type=Reason
    )
    assert (reason.tries, reason.rows) == (MAX_RAISED, 2)
    assert "ValueError" in reason.reason
    assert "4111" not in reason.reason
    assert (volume.features / "dead" / f"{segment_name(1)}.arrow").exists()
    assert os.listdir(volume.features / "tries") == []


def test_set_aside_killed_at_every_call(tmp_path: Path) -> None:
    """A segment that always raises ends in dead/, its reason beside it, and the next one is not held up."""

    def fail_all(volume: Volume, worker: str) -> None:
        hop = Hop(volume, worker, Alive(worker))
        hop.recover()
        while claims := hop.claim(1):
            if claims[0].name == segment_name(1):
                hop.fail(claims[0], ValueError("poison"))
            else:
                stage(hop, volume, claims)
                hop.finish(claims)

    def run(path: Path, k: int) -> bool:
        new_log()
        volume = new_volume(path, 2)
        files = FaultingFiles(k)
        try:
            fail_all(on(volume, files), "first")
        except Crash:
            fail_all(volume, "second")
        assert volume.files.list(volume.features / "dead") == [
            f"{segment_name(1)}.arrow",
            f"{segment_name(1)}.reason.json",
        ]
        assert volume.result_file(segment_name(2)).exists()
        assert os.listdir(volume.features / "ready") == []
        return files.dead

    assert every_call(tmp_path, run) > 20


def test_full_disk_is_no_try(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, 1)
    hop = Hop(volume, "w", Alive("w"))
    for _ in range(2 * MAX_RAISED):
        [claim] = hop.claim(10)
        assert not hop.fail(claim, OSError(28, "No space left on device"))
    assert os.listdir(volume.features / "tries") == []
    assert len(hop.claim(10)) == 1


def test_full_disk_leaves_no_claim_behind(tmp_path: Path) -> None:
    """Whatever call fails for want of space, the worker itself takes the segment up again, alive as it is."""
    for call in ("claim", "stage", "finish", "fail", "release"):
        for nth in range(1, 12):
            log = new_log()
            volume = new_volume(tmp_path / call / str(nth), 1)
            files = FullFiles(log=log)
            hop = Hop(on(volume, files), "w", Alive("w"))
            with suppress(OSError):
                files.left = nth if call == "claim" else 10**9
                claims = hop.claim(10)
                files.left = nth if call == "stage" else 10**9
                if call == "stage":
                    try_stage(hop, on(volume, files), claims)
                else:
                    stage(hop, on(volume, files), claims)
                files.left = nth
                end(hop, claims, call)
            files.left = 10**9
            hop.recover()
            while claims := hop.claim(10):
                stage(hop, on(volume, files), claims)
                hop.finish(claims)
            finish_and_check(volume, 1, log)


def end(hop: Hop, claims: list[Claim], how: str) -> None:
    if how == "finish":
        hop.finish(claims)
    elif how == "fail":
        hop.fail(claims[0], ValueError("x"))
    else:
        hop.release(claims)


def try_stage(hop: Hop, volume: Volume, claims: list[Claim]) -> None:
    """As inference does: what the volume refuses is given back."""
    try:
        stage(hop, volume, claims)
    except OSError:
        hop.release(claims)
        raise


class FullFiles(FaultingFiles):
    """A volume on which only ``left`` more calls succeed."""

    left = 10**9

    def step(self, call: str, path: Path) -> None:
        super().step(call, path)
        self.left -= 1
        if self.left < 0 and call != "unlink":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_five_workers_dead_on_one_segment(tmp_path: Path) -> None:
    """Killed workers are no tries, unless five in a row held this one segment alone."""
    volume = new_volume(tmp_path, 1)
    for n in range(MAX_KILLED):
        hop = Hop(volume, f"w{n}", Alive(f"w{n}"))
        hop.recover()
        assert [claim.name for claim in hop.claim(10)] == [segment_name(1)]
    hop = Hop(volume, "last", Alive("last"))
    hop.recover()
    assert hop.claim(10) == []
    assert (volume.features / "dead" / f"{segment_name(1)}.arrow").exists()


def test_workers_dead_on_a_group_blame_nobody(tmp_path: Path) -> None:
    """After a batch's worker died its segments come one by one, and each has all its lives."""
    volume = new_volume(tmp_path, 2)
    first = Hop(volume, "first", Alive("first"))
    assert len(first.claim(10)) == 2
    hop = Hop(volume, "w", Alive("w"))
    assert hop.recover().taken_back == 2
    for seq in (1, 2):
        claims = hop.claim(10)
        assert [claim.name for claim in claims] == [segment_name(seq)]
        stage(hop, volume, claims)
        hop.finish(claims)
    assert os.listdir(volume.features / "tries") == []
    assert os.listdir(volume.features / "dead") == []


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", os.urandom(5000)])
def test_damaged_segment(tmp_path: Path, content: bytes) -> None:
    volume = new_volume(tmp_path, 3)
    (volume.features / "ready" / f"{segment_name(2)}.arrow").write_bytes(content)
    log = new_log()
    work(volume, "w", Alive("w"))
    finish_and_check(volume, 3, log)
    reason = msgspec.json.decode(
        (volume.features / "dead" / f"{segment_name(2)}.reason.json").read_bytes(), type=Reason
    )
    assert reason.tries == MAX_RAISED
    assert reason.rows == 2  # as its neighbours say
    ledger = read_ledger(volume)
    assert ledger is not None
    assert (ledger.dead["features_ready"].segments, ledger.dead["features_ready"].rows) == (1, 2)


def test_foreign_file(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, 1)
    (volume.features / "ready" / "notes.txt").write_text("call 4111111111111111 back")
    (volume.features / "ready" / "folder").mkdir()
    (volume.features / "ready" / "folder" / "a.txt").write_text("4111 1111 1111 1111")
    hop = Hop(volume, "w", Alive("w"))
    assert len(hop.claim(10)) == 1
    assert "*" * 16 in (volume.features / "dead" / "e0001-stray-notes.txt").read_text()
    assert (volume.features / "dead" / "e0001-stray-notes.txt.reason.json").exists()
    counted = DeadCounter(volume)
    assert [counted.count(epoch)["features_ready"].segments for epoch in (1, 2)] == [2, 0]  # a reset forgets them
    assert (volume.features / "dead" / "e0001-stray-folder~a.txt").read_text() == "*" * 19
    assert os.listdir(volume.features / "ready") == []


def test_older_epochs_are_garbage(tmp_path: Path) -> None:
    new_log()
    volume = new_volume(tmp_path, 3)
    early = Hop(volume, "early", Alive("early"))
    [first, second, third] = early.claim(10)
    stage(early, volume, [first, second, third])
    early.finish([first])
    volume.raise_epoch()
    work(volume, "w", Alive("w", "early"))
    assert early.commit([second, third]) == []
    assert [path for path in volume.root.rglob("*e0001-*") if path.is_file()] == []
    ledger = read_ledger(volume)
    assert ledger is not None
    assert (ledger.epoch, ledger.transactions_analyzed) == (2, 0)


def test_nothing_grows(tmp_path: Path) -> None:
    """A week in miniature: as many files, folders and descriptors after 5,000 segments as after 500."""
    new_log()
    volume = new_volume(tmp_path, 0)
    alive = Alive("w")
    hop, ledger = Hop(volume, "w", alive), Ledger(volume, 0)

    def pass_through(first: int, last: int) -> tuple[int, int]:
        for seq in range(first, last + 1):
            add_segment(volume, seq, rows=1)
            if seq % 25 == 0:
                while claims := hop.claim(10):
                    stage_small(hop, volume, claims)
                    hop.finish(claims)
                ledger.fold()
                for done in range(seq - 24, seq + 1):  # what retention does
                    volume.result_file(segment_name(done)).unlink()
            if seq % 250 == 0:
                hop.recover()
        for folder in (volume.results / "ready").iterdir():
            folder.rmdir()
        entries = sum(1 for _ in volume.root.rglob("*"))
        return entries, len(os.listdir("/proc/self/fd"))

    early = pass_through(1, 500)
    late = pass_through(501, 5_000)
    assert late == early


def stage_small(hop: Hop, volume: Volume, claims: Collection[Claim]) -> None:
    for claim in claims:
        write_segment(volume.files, hop.staged(claim, ".arrow"), claim.batch, claim.info)
        volume.files.create(hop.staged(claim, ".json"), msgspec.json.encode(Aggregate(count=1)))
