"""``verify`` finds what is lost, doubled, waiting or pruned, and raises no false alarm while segments move."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import polars as pl
import pytest
from processes import Up, wait_until

from spearhead.audit import Results, audit
from spearhead.balance import BalanceReader
from spearhead.files import Files
from spearhead.ledger import LedgerFile
from spearhead.segment import SegmentName, read_segment, write_segment
from spearhead.status import latency_quantile
from spearhead.volume import Volume

ROWS = 20_000
SETTINGS = {
    "CARDS": 1_000, "MERCHANTS": 100, "SEGMENT_ROWS": 2_000, "TRAIN_FIRST_ROWS": 2_000, "ROWS": ROWS, "FSYNC": "false",
}  # fmt: skip


def run(root: Path, *options: str, **settings: object) -> None:
    pipeline = Up(root, "--no-api", "--rate", "max", *options, **(SETTINGS | settings))
    try:
        assert pipeline.wait() == 0, pipeline.output
    finally:
        pipeline.kill()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finite run, all scored and counted."""
    root = tmp_path_factory.mktemp("finished") / "volume"
    run(root, "--once")
    return root


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume whose features nobody scores."""
    root = tmp_path_factory.mktemp("waiting") / "volume"
    pipeline = Up(root, "--no-api", "--no-train", "--inference", "0", "--rate", "max", **SETTINGS)
    try:
        reader = wait_until(
            lambda: (root / "control" / "epochs" / "000001").exists() and BalanceReader(Volume(root)), ""
        )
        wait_until(lambda: reader.read().ended and not reader.read().waiting_raw, f"all features\n{pipeline.output}")
        assert pipeline.stop() == 0
    finally:
        pipeline.kill()
    return root


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Volume:
    return opened(finished, tmp_path)


@pytest.fixture
def waiting_copy(waiting: Path, tmp_path: Path) -> Volume:
    return opened(waiting, tmp_path)


def opened(root: Path, tmp_path: Path) -> Volume:
    shutil.copytree(root, tmp_path / "copy")
    return Volume(tmp_path / "copy", Files(fsync=False))


def results(volume: Volume) -> list[Path]:
    return sorted((volume.results / "ready").glob("*/*.arrow"))


def rows_of(path: Path) -> int:
    return read_segment(path)[1].rows


def change_ledger(volume: Volume, rows: int) -> None:
    """Add rows to what the newest ledger version says."""
    path = sorted(volume.ledger.glob("*.json"))[-1]
    ledger = msgspec.json.decode(path.read_bytes(), type=LedgerFile)
    ledger.transactions_analyzed += rows
    path.write_bytes(msgspec.json.encode(ledger))


def test_a_finished_run_is_in_order(copy: Volume) -> None:
    report = audit(copy)
    assert report.ok
    assert report.settled
    assert (report.published, report.scored, report.ledger, report.result_rows) == (ROWS,) * 4
    assert (report.waiting, report.pruned, report.lost, report.duplicated, report.dead) == (0,) * 5
    assert BalanceReader(copy).read().finished


def test_what_waits_is_not_lost(waiting_copy: Volume) -> None:
    report = audit(waiting_copy)
    assert report.ok
    assert (report.published, report.waiting_features, report.scored) == (ROWS, ROWS, 0)
    assert not BalanceReader(waiting_copy).read().finished


def test_a_claimed_or_committed_segment_is_somewhere(waiting_copy: Volume) -> None:
    features = waiting_copy.features
    claimed, committed = sorted((features / "ready").glob("*.arrow"))[:2]
    (features / "claimed" / "dead.1").mkdir()
    claimed.rename(features / "claimed" / "dead.1" / claimed.name)
    rows = rows_of(committed)
    committed.rename(features / "committed" / f"{committed.stem}.dead.1")
    report = audit(waiting_copy)
    assert report.ok
    assert (report.waiting, report.scored) == (ROWS - rows, rows)


def test_a_feature_segment_that_vanished_is_lost(waiting_copy: Volume) -> None:
    victim = sorted((waiting_copy.features / "ready").glob("*.arrow"))[1]
    rows = rows_of(victim)
    victim.unlink()
    report = audit(waiting_copy)
    assert not report.ok
    assert report.lost == rows > 0


def test_a_raw_segment_that_vanished_is_lost_and_named(waiting_copy: Volume) -> None:
    """As if prep had not come to them yet."""
    for path in waiting_copy.commits(0).glob("*.json"):
        path.unlink()
    for path in (waiting_copy.features / "ready").glob("*.arrow"):
        path.unlink()
    kept = sorted(waiting_copy.raw_ready(0).glob("*.arrow"))
    victims = kept[:-1][-1:]
    lost = sum(read_segment(path)[1].rows for path in victims)
    missing = read_segment(kept[0])[1].rows_before  # removed after a checkpoint had covered them
    for path in victims:
        path.unlink()
    report = audit(waiting_copy)
    assert not report.ok
    assert report.lost == lost + missing > 0
    assert set(report.missing_segments) <= {str(SegmentName(1, "g00", 0, seq)) for seq in range(1, 100)}


def test_pruned_results_stay_counted(copy: Volume) -> None:
    victim = results(copy)[0]
    rows = rows_of(victim)
    victim.unlink()
    report = audit(copy)
    assert report.ok
    assert report.pruned == rows > 0


def test_a_segment_counted_twice_is_doubled(copy: Volume) -> None:
    change_ledger(copy, +7)
    report = audit(copy)
    assert not report.ok
    assert (report.duplicated, report.lost) == (7, 0)


def test_a_segment_never_counted_is_lost(copy: Volume) -> None:
    change_ledger(copy, -7)
    report = audit(copy)
    assert not report.ok
    assert (report.duplicated, report.lost) == (0, 7)


def test_a_row_in_two_result_files_is_doubled_and_named(copy: Volume) -> None:
    batch, info = read_segment(results(copy)[0])
    other = SegmentName(1, "g09", 0, 1)
    path = copy.result_file(str(other))
    path.parent.mkdir()
    twice = batch.slice(0, 3)
    write_segment(copy.files, path, twice, msgspec.structs.replace(info, name=str(other), rows=3))
    report = audit(copy)
    assert not report.ok
    assert report.duplicated == 3
    assert set(report.duplicate_trans_nums) == set(pl.Series(batch.column("trans_num")).head(3))


def test_the_comparison_is_the_same_in_many_passes(copy: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, info = read_segment(results(copy)[0])
    other = SegmentName(1, "g09", 0, 1)
    path = copy.result_file(str(other))
    path.parent.mkdir()
    write_segment(copy.files, path, batch, msgspec.structs.replace(info, name=str(other)))
    monkeypatch.setattr("spearhead.audit.HASHES_AT_ONCE", 1_000)
    assert Results(copy, 1).doubled_rows() == info.rows


def test_an_unreadable_result_file_is_told(copy: Volume) -> None:
    victim = results(copy)[0]
    victim.write_bytes(victim.read_bytes()[:500])
    report = audit(copy)
    assert not report.ok
    assert report.unreadable_results == [victim.name]


def test_an_older_epoch_does_not_count(copy: Volume) -> None:
    copy.raise_epoch()
    report = audit(copy)
    assert report.ok
    assert (report.published, report.scored, report.result_rows) == (0, 0, 0)


def test_no_false_alarm_while_it_runs(finished: Path, tmp_path: Path) -> None:
    settings = {"SEGMENT_ROWS": 200, "ROWS": "", "CHECKPOINT_SECONDS": 0.5, "RESULTS_RETENTION_SECONDS": 2}
    options = ("--no-api", "--no-train", "--model", str(finished / "models"), "--rate", "20000", "--inference", "2")
    pipeline = Up(tmp_path / "volume", *options, **(SETTINGS | settings))
    try:
        volume = Volume(tmp_path / "volume", Files(fsync=False))
        ready = volume.results / "ready"
        wait_until(lambda: any(ready.glob("*/*.arrow")), f"results\n{pipeline.output}")
        reports = [audit(volume) for _ in range(10)]
        assert [report for report in reports if not report.ok] == []
        assert reports[-1].ledger > reports[0].ledger
        assert pipeline.stop() == 0
    finally:
        pipeline.kill()
    after = audit(volume)
    assert after.ok
    assert after.settled


def test_latency_quantiles_come_from_the_buckets() -> None:
    assert latency_quantile({}, 0.5) is None
    assert latency_quantile({"350": -3}, 0.5) is None
    median = latency_quantile({"100": 1, "349": 98, "500": 1}, 0.5)
    assert median == pytest.approx(1.02**350 / 1000)
    assert latency_quantile({"100": 1, "349": 98, "500": 1}, 1.0) == pytest.approx(1.02**501 / 1000)
