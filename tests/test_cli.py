"""``up`` and the other commands as a user runs them: what they refuse, how they end, what they restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from processes import Up, children, command, wait_until

from spearhead.child import BACKOFF_SECONDS, Child, Ended
from spearhead.files import Files
from spearhead.heartbeat import Roster
from spearhead.volume import Volume

Start = Callable[..., Up]
SMALL = {"CARDS": 500, "MERCHANTS": 50, "FSYNC": "false", "HEARTBEAT_SECONDS": 0.2}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def beats(root: Path, stage: str) -> list[str]:
    return [path.name for path in (root / "metrics" / "workers").glob(f"{stage}-*.json")]


def running(pipeline: Up, *stages: str) -> None:
    """Wait until every one of these stages beats."""
    for stage in stages:
        wait_until(lambda stage=stage: beats(pipeline.root, stage), f"a heartbeat of {stage}\n{pipeline.output}")


# What is refused, before anything starts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--once",), "--once needs an end"),
        (("--loop",), "--loop needs --source"),
        (("--rate", "fast"), "GENERATION_RATE: "),
        (("--rows", "-1"), "ROWS: "),
        (("--rows", "10", "--once", "--no-train"), "--no-train"),
        (("--model", "/nowhere"), "--model /nowhere: "),
        (("--no-api", "--source", "/nowhere.csv"), "/nowhere.csv"),
        (("--rate", "-5"), "GENERATION_RATE: rate must be a number"),
    ],
)
def test_up_refuses_in_one_line(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = command("up", "--volume", str(tmp_path / "volume"), *options)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("up", "--volume", str(tmp_path / "volume"), "--port", str(port))
    assert done.returncode == 2
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr
    assert not list((tmp_path / "volume" / "metrics" / "workers").iterdir())


def test_settings_under_which_nothing_can_be_learnt_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    done = command("up", "--volume", str(tmp_path / "volume"), "--no-api", CARDS=1_000_000)
    assert done.returncode == 2
    assert "1,000,000 cards x " in done.stderr


@pytest.mark.parametrize("arguments", [("verify",), ("status",), ("reset",)])
def test_other_commands_need_a_volume_that_is_one(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = command(*arguments, "--volume", str(tmp_path))
    assert done.returncode == 2
    assert "is not a Spearhead volume yet" in done.stderr


@pytest.mark.parametrize("arguments", [("verify",), ("status",), ("reset",), ("models", "list")])
def test_a_volume_that_is_a_file_is_refused_in_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "file"
    path.write_text("no volume")
    done = command(*arguments, "--volume", str(path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"volume {path} can't be read: Not a directory" in done.stderr


@pytest.mark.parametrize("option", ["--prep", "--inference", "--duration"])
def test_less_than_nothing_is_refused(tmp_path: Path, option: str) -> None:
    done = command("up", "--volume", str(tmp_path / "volume"), option, "-1")
    assert done.returncode == 2
    assert option in done.stderr
    assert not (tmp_path / "volume").exists()


def test_help_shows_every_default_and_variable() -> None:
    """Brackets are no markup."""
    shown = command("up", "--help").stdout
    for text in ("[env FLASHBLADE_PATH]", "[synthetic]", "[50000]", "[8000]", "[default: 1"):
        assert text in shown, text


# How it runs and ends


def test_interrupt_ends_it_cleanly_although_the_shell_ignores_it(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    script = 'trap "" INT; exec "$@"'  # as a shell does for a background job
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", sys.executable, "-m", "spearhead", "up", "--volume", str(root), "--no-api"],
            env=os.environ | {name: str(value) for name, value in SMALL.items()}, stdout=log, stderr=log,
        )  # fmt: skip
    stages = ("generator", "prep", "train", "inference")
    wait_until(lambda: all(beats(root, stage) for stage in stages), "heartbeats")
    pids = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert len(pids) == 4
    assert all(gone(pid) for pid in pids)
    assert list((root / "metrics" / "workers").glob("*.json")) == []
    assert list((root / "queue" / "features-ready" / "claimed").glob("*/*")) == []


def test_what_is_killed_is_restarted_and_told(up: Start) -> None:
    pipeline = up("--no-api", "--rate", "200", **SMALL)
    running(pipeline, "generator", "prep", "train", "inference")
    for stage in ("generator", "prep", "train", "inference"):
        before = pipeline.stages(stage)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda b=before, s=stage: set(pipeline.stages(s)) - set(b), f"another {stage}")
        wait_until(lambda s=stage: f"{s} ended (killed by SIGKILL)" in pipeline.output, f"word of {stage}'s end")
    assert pipeline.stop(signal.SIGTERM) == 0


def test_one_up_a_volume_and_stages_don_t_outlive_it(up: Start) -> None:
    first = up("--no-api", "--rate", "200", **SMALL)
    running(first, "supervisor", "generator", "prep")
    second = command("up", "--volume", str(first.root), "--no-api", **SMALL)
    assert second.returncode == 2
    assert "another 'up' already runs" in second.stderr
    assert f"pid {first.process.pid}" in second.stderr
    orphans = children(first.process.pid)
    first.process.kill()
    first.process.wait()
    wait_until(lambda: all(gone(pid) for pid in orphans), "the end of the stages without their supervisor")
    third = up("--no-api", "--rate", "200", root=first.root, **SMALL)  # at once, though the heartbeat is fresh
    running(third, "generator")
    assert third.stop() == 0


def test_a_second_interrupt_kills(up: Start) -> None:
    pipeline = up("--no-api", "--rate", "200", **SMALL)
    running(pipeline, "generator", "prep")
    frozen = pipeline.stages("prep")[0]
    os.kill(frozen, signal.SIGSTOP)
    pipeline.process.send_signal(signal.SIGINT)
    wait_until(lambda: not pipeline.stages("generator"), "the generator's end")
    assert pipeline.stop() == 130
    assert gone(frozen)


def test_duration_ends_it(up: Start) -> None:
    pipeline = up("--no-api", "--rate", "200", "--duration", "1", **SMALL)
    assert pipeline.wait() == 0


def test_status_of_a_volume_at_rest_names_the_model_in_service(volume: Volume) -> None:
    assert "model none" in command("status", "--volume", str(volume.root)).stdout
    volume.files.replace(volume.models / "current", b"v000007\n")
    assert "model v000007" in command("status", "--volume", str(volume.root)).stdout


def test_status_and_reset(up: Start) -> None:
    pipeline = up("--no-api", "--rate", "200", **SMALL)
    running(pipeline, "generator", "prep", "train", "inference")
    shown = command("status", "--volume", str(pipeline.root), "--json")
    status = msgspec.json.decode(shown.stdout)
    assert {worker["stage"] for worker in status["workers"]} >= {"generator", "prep", "train", "inference"}
    assert "generator" in command("status", "--volume", str(pipeline.root)).stdout
    done = command("reset", "--volume", str(pipeline.root))
    assert "epoch 2" in done.stdout
    volume = Volume(pipeline.root, Files(fsync=False))
    roster = Roster(volume, 15.0)
    wait_until(lambda: all(b.epoch == 2 for b in roster.alive().values() if b.stage != "supervisor"), "the new epoch")
    roster.close()
    assert pipeline.stop() == 0


# The parts


def test_how_a_process_ended_in_words() -> None:
    assert Ended(-9, "").reason == "killed by SIGKILL"
    assert Ended(1, "Traceback\nValueError: no").reason == "exit status 1: ValueError: no"
    assert Ended(0, "warning").reason == "exit status 0"


def test_restarts_wait_longer_up_to_a_bound() -> None:
    child = Child("prep", {})
    waits = []
    for failures in range(1, 12):
        child.failures = failures
        waits.append(child.restart_delay())
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == BACKOFF_SECONDS
    assert waits[-1] <= 2.0
