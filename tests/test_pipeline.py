"""The whole pipeline on the real slice and on bad input: what goes in comes out, once, and counts say so."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import polars as pl
import pytest
from processes import Up, command, scores, verified, wait_until
from sparkov import rows, write_csv

from spearhead.ledger import LedgerFile

Start = Callable[..., Up]
ROWS, CENTS, FRAUDS = 13_614, 99_415_217, 172


def ledger(root: Path) -> LedgerFile:
    return msgspec.json.decode((root / "metrics" / ".metrics.json").read_bytes(), type=LedgerFile)


def replayed(root: Path, source: Path, *options: str, **settings: object) -> Up:
    pipeline = Up(root, "--source", str(source), "--once", "--no-api", *options, **settings)
    assert pipeline.wait() == 0, pipeline.output
    return pipeline


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume on which the real slice was replayed to its end."""
    source = Path(__file__).parent.parent.parent / "shared" / "data" / "sparkov_slice.csv"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    root = tmp_path_factory.mktemp("real") / "volume"
    replayed(root, source)
    return root


def test_every_row_of_the_real_file_is_scored_once(real: Path) -> None:
    results = scores(real)
    assert results.height == ROWS
    assert results["trans_num"].n_unique() == ROWS
    assert results["risk_score"].is_between(0, 1).all()
    assert results["risk_score"].n_unique() > 1000
    assert set(results["decision"]) == {"approved", "flagged"}
    assert results["is_fraud"].sum() == FRAUDS
    assert (results["decision"] == "flagged").eq(results["risk_score"] >= 0.52).all()


def test_the_ledger_counts_them_to_the_cent(real: Path) -> None:
    counted = ledger(real)
    assert counted.transactions_analyzed == ROWS
    assert (counted.amount_total_cents, counted.amount_total) == (CENTS, CENTS / 100)
    assert counted.flagged_count == scores(real).filter(pl.col("decision") == "flagged").height
    labelled, inside = counted.labelled, counted.labelled.in_sample
    assert labelled.pending == 0
    assert inside.tp + inside.fn == FRAUDS
    assert inside.tp + inside.fp + inside.tn + inside.fn == ROWS
    # Every row was in the training window, so nothing can be said about precision.
    assert (labelled.tp, labelled.fp, labelled.tn, labelled.fn) == (0, 0, 0, 0)


def test_verify_agrees(real: Path) -> None:
    report = verified(real)
    assert report["ok"]
    keys = ("published", "waiting", "scored", "ledger", "pruned", "lost", "duplicated", "dead")
    assert [report[key] for key in keys] == [ROWS, 0, ROWS, ROWS, 0, 0, 0, 0]
    assert command("verify", "--volume", str(real)).returncode == 0


def test_no_card_number_of_the_input_is_in_any_byte_of_the_volume(real: Path, sparkov_slice: Path) -> None:
    with sparkov_slice.open(newline="") as file:
        numbers = {row["cc_num"].encode() for row in csv.DictReader(file)}
    assert len(numbers) > 100
    digits = re.compile(rb"\d{11,19}")
    for path in real.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not numbers & set(digits.findall(data)), path
            assert not any(int(n).to_bytes(8, order) in data for n in numbers for order in ("little", "big")), path


def test_a_finished_run_can_be_taken_up_and_adds_nothing(real: Path, sparkov_slice: Path) -> None:
    before = scores(real)
    replayed(real, sparkov_slice)
    assert scores(real).equals(before)
    assert ledger(real).transactions_analyzed == ROWS


def test_a_finished_run_goes_on_if_more_rows_are_wanted_and_refuses_another_source(tmp_path: Path) -> None:
    """What an earlier run ended says nothing about this one."""
    root, settings = tmp_path / "volume", {
        "CARDS": 500, "MERCHANTS": 50, "LABEL_DELAY_DAYS": 0.5, "TRAIN_FIRST_ROWS": 1_000, "FSYNC": "false",
    }  # fmt: skip
    for wanted in (3_000, 4_000):
        done = command("up", "--volume", str(root), "--once", "--no-api", "--rows", str(wanted), **settings)
        assert done.returncode == 0, done.stderr
        assert ledger(root).transactions_analyzed == wanted
    other = tmp_path / "other.csv"
    write_csv(other, rows(20))
    for source in (("--source", str(other)), ("--population", "handbook")):
        done = command("up", "--volume", str(root), "--once", "--no-api", *source, **settings)
        assert (done.returncode, done.stdout.count("rows dead")) == (2, 1), done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
        assert "use the settings of before, another volume, or 'reset'" in done.stderr
    assert ledger(root).transactions_analyzed == 4_000


# Bad input


@pytest.fixture
def broken(sparkov_slice: Path, tmp_path: Path) -> Path:
    """The first 2,000 rows of the slice, five of them spoilt."""
    with sparkov_slice.open(newline="") as file:
        rows = list(csv.DictReader(file))[:2_000]
    rows[10]["amt"] = ""
    rows[20]["amt"] = "-5.00"
    rows[30]["category"] = "gambling"
    rows[40]["cc_num"] = "123456789012345678901234567890"
    rows[50]["trans_date_trans_time"] = "yesterday"
    path = tmp_path / "broken.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_bad_rows_are_set_aside_with_line_and_reason(broken: Path, tmp_path: Path) -> None:
    root = tmp_path / "volume"
    replayed(root, broken, TRAIN_FIRST_ROWS=1_000)
    report = verified(root)
    assert report["ok"]
    assert (report["published"], report["ledger"], report["dead"]) == (2_000, 1_995, 5)
    lines = b"".join(path.read_bytes() for path in (root / "queue" / "raw-transactions" / "dead").glob("*.rows.jsonl"))
    rejects = {reject["line"]: reject for reject in map(msgspec.json.decode, lines.splitlines())}
    assert sorted(rejects) == [12, 22, 32, 42, 52]
    assert all(reject["reason"] for reject in rejects.values())
    assert b"123456789012345678901234567890" not in lines
    assert b"*" * 30 in lines


def test_a_file_with_a_missing_column_is_refused_before_anything_starts(broken: Path, tmp_path: Path) -> None:
    with broken.open(newline="") as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "narrow.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "merchant"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    done = command("up", "--volume", str(tmp_path / "volume"), "--source", str(path), "--once", "--no-api")
    assert done.returncode == 2
    assert "merchant" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_source_that_no_model_can_be_trained_on_ends_with_its_reason(sparkov_slice: Path, tmp_path: Path) -> None:
    with sparkov_slice.open() as file:
        lines = [file.readline() for _ in range(30)]
    path = tmp_path / "short.csv"
    path.write_text("".join([lines[0], *(line for line in lines[1:] if line.rstrip().endswith(",0"))]))
    done = command("up", "--volume", str(tmp_path / "volume"), "--source", str(path), "--once", "--no-api")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no model, and none can be trained: " in done.stderr


def test_damaged_and_foreign_files_in_the_queues_are_set_aside(up: Start, sparkov_slice: Path) -> None:
    pipeline = up("--source", str(sparkov_slice), "--once", "--no-api", "--rate", "3000", SEGMENT_ROWS=300)
    raw = pipeline.root / "queue" / "raw-transactions"
    features = pipeline.root / "queue" / "features-ready"
    wait_until(lambda: any((features / "ready").glob("*.arrow")), f"features\n{pipeline.output}")
    (raw / "ready" / "p00" / "letter.txt").write_bytes(b"Dear Sir or Madam")
    (features / "ready" / "e0001-g77-p00-000000000001.arrow").write_bytes(b"\x00\xff" * 5_000)
    whole = wait_until(lambda: sorted((features / "ready").glob("*g00*.arrow"))[:1], "a segment")[0]
    torn = features / "ready" / "e0001-g78-p00-000000000001.arrow"
    torn.write_bytes(whole.read_bytes()[:1_000])
    assert pipeline.wait() == 0, pipeline.output
    report = verified(pipeline.root)
    assert report["ok"], report
    assert report["ledger"] == ROWS
    for folder, name in (
        (raw, "e0001-stray-letter.txt"),
        (features, "e0001-g77-p00-000000000001"),
        (features, torn.stem),
    ):
        reasons = list((folder / "dead").glob(f"{name}*.reason.json"))
        assert len(reasons) == 1, name
        assert msgspec.json.decode(reasons[0].read_bytes())["reason"]
