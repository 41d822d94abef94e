"""The loop that every stage runs in, as processes of their own: signals, orders, errors, heartbeats, logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import wait_until

from spearhead.control import Control, write_control
from spearhead.heartbeat import Heartbeat
from spearhead.log import LogFile, mask_values, prune_worker_logs
from spearhead.runner import AWAKE_POLL_SECONDS, AWAKE_SECONDS, Rest, backoff
from spearhead.volume import Volume

STAGES = Path(__file__).parent / "stages.py"
CARD = "4599735407877245080"


class Worker:
    """One process of a stage in stages.py."""

    def __init__(self, volume: Volume, kind: str, **settings: object) -> None:
        self.volume = volume
        environment = os.environ | {"FLASHBLADE_PATH": str(volume.root), "HEARTBEAT_SECONDS": "0.1", "FSYNC": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(STAGES), kind],
            env=environment | {name: str(value) for name, value in settings.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def heartbeat(self) -> Heartbeat | None:
        for path in self.volume.workers.glob("demo-*.json"):
            try:
                return msgspec.json.decode(path.read_bytes(), type=Heartbeat)
            except FileNotFoundError:
                continue
        return None

    def wait_for(self, condition: Callable[[Heartbeat], object], what: str) -> Heartbeat:
        """A heartbeat of which something is true."""
        return wait_until(lambda: (beat := self.heartbeat()) and condition(beat) and beat, what, 30)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def lines(self) -> list[dict[str, object]]:
        """The log, as stdout had it."""
        return [json.loads(line) for line in self.process.communicate()[0].splitlines()]


@pytest.fixture
def worker(volume: Volume) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(kind: str, **settings: object) -> Worker:
        started.append(Worker(volume, kind, **settings))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(worker: Callable[..., Worker], volume: Volume, number: int) -> None:
    running = worker("counts")
    running.wait_for(lambda beat: beat.rows > 0, "rows")
    assert running.end(number) == 0
    assert running.lines()[-1]["event"] == "stopped"
    assert (volume.root / "closed").exists()
    assert volume.files.list(volume.workers) == []


def test_it_beats_before_it_starts(worker: Callable[..., Worker], volume: Volume) -> None:
    running = worker("looks_for_its_heartbeat")
    wait_until((volume.root / "alive-at-start").exists, "start", 30)
    assert (volume.root / "alive-at-start").read_text() == "True"
    assert running.end() == 0


def test_a_step_that_raises_is_told_and_the_stage_goes_on(worker: Callable[..., Worker], volume: Volume) -> None:
    running = worker("raises_at_first")
    beat = running.wait_for(lambda beat: beat.rows > 0, "rows after errors")
    assert beat.last_error == f"ValueError: bad row of card {'*' * len(CARD)}"
    assert running.end() == 0
    failed = [line for line in running.lines() if line["event"] == "step failed"]
    assert [line["failures"] for line in failed] == [1, 2]
    assert "Traceback" in str(failed[0]["exception"])
    logs = b"".join(path.read_bytes() for path in volume.logs.iterdir())
    assert b"step failed" in logs
    assert CARD.encode() not in logs


@pytest.mark.parametrize(("kind", "code"), [("loses_its_mind", 75), ("runs_out_of_memory", 75), ("cannot_start", 1)])
def test_what_ends_a_stage(worker: Callable[..., Worker], volume: Volume, kind: str, code: int) -> None:
    assert worker(kind).process.wait(30) == code
    assert volume.files.list(volume.workers) == []


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("counts", {"PORT": "none"}, "spearhead demo: PORT: "),
        ("counts", {"FLASHBLADE_PATH": "/nowhere"}, "spearhead demo: volume /nowhere is not there"),
        ("refuses", {}, "spearhead demo: the source has no header"),
    ],
)
def test_it_refuses_with_one_line(
    worker: Callable[..., Worker], kind: str, settings: dict[str, str], message: str
) -> None:
    refusing = worker(kind, **settings)
    assert refusing.process.wait(30) == 2
    stderr = refusing.process.communicate()[1]
    assert stderr.startswith(message)
    assert stderr.count("\n") == 1


def test_orders_pause_and_resume_it(worker: Callable[..., Worker], volume: Volume) -> None:
    running = worker("counts")
    running.wait_for(lambda beat: beat.rows > 0, "rows")
    write_control(volume, Control(running=False))
    running.wait_for(lambda beat: beat.state == "paused", "the pause")
    paused = running.wait_for(lambda beat: beat.state == "paused" and beat.rows_per_s == 0, "a still pause")
    (volume.control / "orders.json").write_text("{damaged")
    damaged = running.wait_for(lambda beat: beat.last_error is not None, "the damaged orders")
    assert (damaged.state, damaged.rows) == ("paused", paused.rows)
    write_control(volume, Control(running=True))
    running.wait_for(lambda beat: beat.state == "running" and beat.rows > paused.rows, "more rows")
    assert running.end() == 0


def test_it_follows_the_epoch(worker: Callable[..., Worker], volume: Volume) -> None:
    running = worker("counts")
    running.wait_for(lambda beat: beat.rows > 0, "rows")
    volume.raise_epoch()
    running.wait_for(lambda beat: beat.epoch == 2, "the new epoch")
    assert (volume.root / "reset").read_text() == "2"
    assert running.end() == 0


def test_a_full_disk_is_waited_out(worker: Callable[..., Worker]) -> None:
    running = worker("meets_a_full_disk")
    running.wait_for(lambda beat: beat.state == "disk_low", "the full disk")
    running.wait_for(lambda beat: beat.state == "running", "the end of it")
    assert running.end() == 0


def test_it_reports_what_it_uses(worker: Callable[..., Worker]) -> None:
    running = worker("counts")
    beat = running.wait_for(lambda beat: beat.rows_per_s > 0 and beat.cpu_cores > 0, "a rate")
    assert beat.state == "running"
    assert beat.rss_bytes > 10 * 2**20
    assert beat.write_bytes_per_s is None or beat.write_bytes_per_s >= 0
    assert beat.figures == {"flavour": "plain"}
    assert running.end() == 0


def test_a_hung_step_is_not_reported_alive_for_ever(worker: Callable[..., Worker], volume: Volume) -> None:
    running = worker("hangs", LEASE_SECONDS=0.05)
    wait_until((volume.root / "hung").exists, "the hung step", 30)

    def silent() -> bool:
        path = next(volume.workers.glob("demo-*.json"))
        before = path.stat().st_mtime_ns
        return not _changes(path, before)

    wait_until(silent, "silence", 30)
    running.process.kill()


def _changes(path: Path, before: int) -> bool:
    """Whether a file is written again within ten heartbeats."""
    try:
        wait_until(lambda: path.stat().st_mtime_ns != before, "", 1)
    except AssertionError:
        return False
    return True


def test_it_ends_when_its_supervisor_is_gone(worker: Callable[..., Worker]) -> None:
    orphan = worker("counts", SUPERVISOR_PID=1 if os.getpid() != 1 else 2)
    assert orphan.process.wait(30) == 0


def test_it_touches_the_health_file_as_it_goes(worker: Callable[..., Worker], tmp_path: Path) -> None:
    health = tmp_path / "health"
    running = worker("counts", HEALTH_FILE=health)
    for _ in range(2):
        wait_until(health.exists, "progress", 30)
        health.unlink()
    assert running.end() == 0


def test_an_idle_worker_sleeps_longer_and_longer() -> None:
    rest = Rest(0.001, 0.05)
    assert [rest.next(now) for now in range(8)] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05]


@given(st.floats(0, 1e6), st.lists(st.floats(0, 2), min_size=1, max_size=300))
def test_the_next_segment_is_found_soon_while_they_come(began: float, steps: list[float]) -> None:
    """A hop adds what its worker oversleeps: 10 ms, not 50, until a second has passed without a row."""
    rest, now = Rest(0.001, 0.05), began
    rest.worked(now)
    for step in steps:
        sleep = rest.next(now)
        awake = now < began + AWAKE_SECONDS
        assert 0.001 <= sleep <= (AWAKE_POLL_SECONDS if awake else 0.05)
        now += step
    asleep = [rest.next(now + AWAKE_SECONDS + i) for i in range(7)]
    assert asleep[-1] == 0.05
    rest.worked(now)
    assert rest.next(now) == 0.001


def test_a_longest_sleep_below_that_stays_the_longest() -> None:
    rest = Rest(0.001, 0.004)
    rest.worked(0.0)
    assert [rest.next(0.0) for _ in range(4)] == [0.001, 0.002, 0.004, 0.004]


def test_backoff_doubles_to_a_bound() -> None:
    assert 0.025 <= backoff(1) <= 0.05
    assert 2.5 <= backoff(1000) <= 5.0


def test_numbers_like_a_card_s_are_masked_and_names_are_not() -> None:
    event = {
        "event": f"row {CARD} of e0001-g00-p00-000000000123",
        "worker": "1234567890123456",
        "card": int(CARD),
        "rows": 1234567890,
        "rate": 1e300,
        "deep": {"card": CARD},
    }
    masked = mask_values(None, "info", dict(event))
    assert masked["event"] == f"row {'*' * 19} of e0001-g00-p00-000000000123"
    assert masked["worker"] == event["worker"]
    assert masked["rows"] == 1234567890
    assert masked["rate"] == 1e300
    assert CARD not in str(masked)


def test_a_log_file_is_bounded_with_many_writers(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    writers = [LogFile(path, 1000) for _ in range(3)]
    for number in range(305):
        writers[number % 3].write(f"line {number:04d}\n".encode())
    kept = [*(tmp_path / "pipeline.log.1").read_text().splitlines(), *path.read_text().splitlines()]
    assert kept == [f"line {number:04d}" for number in range(305 - len(kept), 305)]
    assert 100 <= len(kept) <= 200
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2020


def test_logs_of_ended_workers_are_pruned(volume: Volume) -> None:
    for number in range(6):
        path = volume.logs / f"prep-{number:016x}.log"
        path.write_text("x")
        os.utime(path, (number, number))
    (volume.logs / "pipeline.log").write_text("x")
    (volume.workers / f"prep-{0:016x}.json").write_text("{}")
    prune_worker_logs(volume, keep=2)
    assert volume.files.list(volume.logs) == ["pipeline.log", *(f"prep-{n:016x}.log" for n in (0, 4, 5))]
