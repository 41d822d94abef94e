"""Labels that come on their own: joined, corrected and counted exactly once, whoever is killed when."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from faulting import Crash, FaultingFiles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelling import Bench, Said, expected

from services.api import joiner as module
from services.api.joiner import waiting_labels
from spearhead.aggregate import Outcomes, outcomes_count
from spearhead.files import Files
from spearhead.ledger import LedgerFile
from spearhead.volume import Volume


def assert_adds_up(bench: Bench, ledger: LedgerFile, sent: list[Said]) -> None:
    """The ledger against the log, and the log against what was sent."""
    rows = bench.published()
    feedback, outcomes = expected(rows)
    counts = ("received", "applied", "corrected", "duplicate", "unmatched")
    assert {n: getattr(ledger.feedback, n) for n in counts} == {n: getattr(feedback, n) for n in counts}
    labelled = ledger.labelled
    counted = Outcomes(labelled.tp, labelled.fp, labelled.tn, labelled.fn)
    for name in ("tp", "fp", "tn", "fn"):
        setattr(counted, name, getattr(counted, name) + getattr(labelled.in_sample, name))
    assert counted == outcomes
    assert ledger.unlabelled + outcomes_count(outcomes) == bench.scorer.rows == ledger.transactions_analyzed
    assert sorted((str(row["trans_num"]), row["is_fraud"]) for row in rows) == sorted(
        (f"{label.number:032x}", label.is_fraud) for label in sent
    )
    newest = {label.number: label for label in sorted(sent, key=lambda label: label.at)}
    fraud = sum(label.is_fraud for number, label in newest.items() if number < bench.scorer.rows)
    assert outcomes.tp + outcomes.fn == fraud


def bench_at(root: Path, partitions: int = 1) -> Bench:
    root.mkdir(exist_ok=True)
    return Bench(Volume(root, Files(fsync=False)), partitions)


STEPS = st.one_of(
    st.tuples(st.just("score"), st.integers(1, 4)),
    st.tuples(
        st.just("drop"),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=4),
        st.sampled_from(["bank", "api"]),
    ),
    st.tuples(st.just("look"), st.integers(0, 40)),
    st.tuples(st.just("prep"), st.integers(0, 40), st.booleans()),
    st.tuples(st.just("fold")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=12), st.randoms(use_true_random=False))
def test_any_order_of_decisions_labels_and_deaths_gives_the_same_counts(steps, random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = bench_at(Path(folder) / "volume")
        times = list(range(1, 60))
        random.shuffle(times)
        sent: list[Said] = []
        for step in steps:
            if step[0] == "score":
                bench.scorer.score(step[1])
            elif step[0] == "drop":
                labels = [Said(number, said, times.pop()) for number, said in step[1]]
                sent += labels
                bench.drop(labels, step[2])
            elif step[0] == "fold":
                bench.fold()
            else:
                files = FaultingFiles(crash_at=step[1])
                try:
                    bench.look(files) if step[0] == "look" else bench.prep(files, step[2])
                except Crash:
                    assert step[1]
        assert_adds_up(bench, bench.settle(), sent)


FIRST = [Said(0, 1, 10), Said(1, 0, 11), Said(30, 1, 12), Said(99, 1, 13), Said(0, 0, 20)]
SECOND = [Said(1, 1, 30), Said(2, 1, 31), Said(2, 1, 32), Said(0, 1, 5)]


@pytest.mark.parametrize("partitions", [1, 2])
def test_the_joiner_killed_before_any_change(tmp_path: Path, partitions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of several flushes, labels that wait and are found later: killed at each change of the volume."""
    monkeypatch.setattr("services.api.inbox.BATCH", 2)
    crash_at, died = 0, True
    while died:
        crash_at += 1
        bench = bench_at(tmp_path / f"{crash_at}", partitions)
        bench.volume.prepare(partitions)
        bench.scorer.score(20)
        bench.drop(FIRST)
        bench.drop(SECOND[:2], "api")
        bench.drop(SECOND[2:], "api")
        files = FaultingFiles(crash_at=crash_at)
        died = False
        try:
            bench.look(files)
        except Crash:
            died = True
        bench.look()
        bench.scorer.score(20)
        files = FaultingFiles(crash_at=crash_at)
        try:
            bench.look(files)
        except Crash:
            died = True
        assert_adds_up(bench, bench.settle(), FIRST + SECOND)
    assert crash_at > 20


def test_prep_killed_before_any_change(tmp_path: Path) -> None:
    crash_at, died = 0, True
    while died:
        crash_at += 1
        bench = bench_at(tmp_path / f"{crash_at}")
        bench.scorer.score(40)
        bench.drop(FIRST)
        bench.look()
        died = False
        try:
            bench.prep(FaultingFiles(crash_at=crash_at), checkpoint=True)
        except Crash:
            died = True
        bench.drop(SECOND)
        assert_adds_up(bench, bench.settle(), FIRST + SECOND)
    assert crash_at > 20


def test_a_label_waits_for_its_decision_and_a_correction_takes_the_old_outcome_back(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "volume")
    bench.drop([Said(0, 1, 1)])
    bench.look()
    assert waiting_labels(bench.volume, 1) == 1
    bench.scorer.score(2)
    bench.look()
    bench.prep()
    before = bench.fold()
    assert (waiting_labels(bench.volume, 1), before.feedback.applied, before.unlabelled) == (0, 1, 1)
    bench.drop([Said(0, 1, 2), Said(0, 0, 3), Said(0, 1, 2)])
    after = bench.settle()
    assert (after.feedback.applied, after.feedback.corrected, after.feedback.duplicate) == (1, 1, 2)
    assert after.labelled.tp + after.labelled.fn == 0
    assert after.labelled.fp + after.labelled.tn == 1


def test_a_label_without_a_decision_is_given_up_and_may_be_no_card_number(tmp_path: Path) -> None:
    card = "4599735407877245"
    bench = bench_at(tmp_path / "volume")
    path = bench.volume.raw_data / "labels" / "x.csv"
    path.write_text(f"trans_num,is_fraud,labelled_at\n{card},1,2024-01-01\nt-1,1,2024-01-01\nt-2,maybe,2024-01-01\n")
    bench.look()
    assert waiting_labels(bench.volume, 1) == 1
    ledger = bench.settle()
    assert (ledger.feedback.received, ledger.feedback.unmatched) == (2, 2)
    told = [
        json.loads(line)
        for file in sorted((bench.volume.raw / "dead").glob("*.rows.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert [line["reason"].split(";")[0] for line in told] == [
        "is_fraud is not true, false, 1 or 0",
        "no decision on this transaction",
        "no decision on this transaction within 100 seconds",
    ]
    for file in bench.volume.root.rglob("*"):
        assert file.is_dir() or card.encode() not in file.read_bytes(), file


def test_requests_labels_go_together(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "volume")
    bench.scorer.score(20)
    for number in range(20):
        bench.drop([Said(number, 0, number)], module.labels.API_PREFIX.rstrip("-"))
    bench.look()
    assert len(list(bench.volume.raw_ready(0).glob("*-l00-*.arrow"))) == 1
    assert bench.settle().feedback.applied == 20


def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "volume")
    (bench.volume.raw_data / "labels" / "x.csv").write_text("number,fraud\n4599735407877245,1\n")
    bench.look()
    assert not (bench.volume.raw_data / "labels" / "x.csv").exists()
    reason = next((bench.volume.raw / "dead").glob("*x.csv.reason.json"))
    assert "columns are missing: trans_num, is_fraud, labelled_at" in reason.read_text()
    kept = next(file for file in (bench.volume.raw / "dead").iterdir() if file.name.endswith("x.csv"))
    assert "4599735407877245" not in kept.read_text()


def test_folders_are_entered_and_what_is_in_them_does_not_stay(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "volume")
    folder = bench.volume.raw_data / "labels" / "bank" / "november"
    folder.mkdir(parents=True)
    (folder / "cards.txt").write_text("4111111111111111 was fraud\n")
    bench.scorer.score(2)
    (folder / "good.csv").write_text(f"trans_num,is_fraud,labelled_at\n{1:032x},1,2020-01-01T00:00:00Z\n")
    bench.look()
    assert not list(folder.iterdir())
    kept = [path.read_text(errors="replace") for path in bench.volume.root.rglob("*") if path.is_file()]
    assert kept
    assert not [text for text in kept if "4111111111111111" in text]
    assert [row["is_fraud"] for row in bench.published()] == [1]


def test_a_row_that_carried_a_label_is_corrected_where_it_matures(tmp_path: Path) -> None:
    bench = Bench(Volume(tmp_path, Files(fsync=False)), labelled=True)
    bench.scorer.score(10)
    bench.drop([Said(0, 0, 1), Said(1, 0, 2)])  # number 0 carried 1, number 1 carried 0
    ledger = bench.settle()
    assert (ledger.feedback.corrected, ledger.feedback.duplicate, ledger.feedback.applied) == (1, 1, 0)
    assert ledger.labelled.pending == 10
    bench.scorer.score(200, ended=True)
    ledger = bench.settle()
    labelled = ledger.labelled
    assert ledger.labelled.pending == 0
    assert labelled.tp + labelled.fn + labelled.in_sample.tp + labelled.in_sample.fn == 4  # 50, 100, 150, 200


def test_a_reset_forgets_labels_that_wait(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "volume")
    bench.drop([Said(0, 1, 1)])
    bench.look()
    bench.volume.raise_epoch()
    bench.look()
    assert waiting_labels(bench.volume, 1) == waiting_labels(bench.volume, bench.volume.epoch()) == 0
    assert not list((bench.volume.raw_data / "labels" / "waiting").iterdir())
