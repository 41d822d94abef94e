"""The product as processes: ``up`` and the other commands, run as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import polars as pl
import pytest

ROOT = Path(__file__).parent.parent
PATIENCE = 240.0  # seconds until a condition that must come about counts as never
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Wait for something that must come about; its value. Fails with ``what`` if it never does."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"never came about: {what}"
        time.sleep(0.05)
    return found


class Up:
    """``python -m spearhead up`` on a volume, as a process of its own."""

    def __init__(self, root: Path, *options: str, **settings: object) -> None:
        self.root = root
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "spearhead", "up", "--volume", str(root), *options]
        self._log = root.parent / f"{root.name}.up.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"up did not end in {seconds} s:\n{self.output}")

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to end, as Ctrl-C does; the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def stages(self, stage: str) -> list[int]:
        """Process ids of a stage's processes that run now."""
        return [pid for pid in children(self.process.pid) if _stage(pid) == stage]

    def any(self) -> list[int]:
        """Process ids of all stage processes that run now."""
        return [pid for pid in children(self.process.pid) if _stage(pid)]

    def kill(self) -> None:
        """End everything at once, if it has not ended."""
        if self.process.poll() is None:
            pids = children(self.process.pid)
            self.process.kill()
            self.process.wait()
            for pid in pids:
                _end(pid)


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _stage(pid: int) -> str:
    """The stage that a process is of; a mere check of settings is of none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except FileNotFoundError:
        return ""
    modules = [word.removeprefix("services.") for word in words if word.startswith("services.")]
    return modules[0] if modules and "--check" not in words else ""


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def command(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m spearhead`` with arguments."""
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "spearhead", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def verified(root: Path) -> dict[str, int | bool | list[str]]:
    """What ``verify --json`` says."""
    done = command("verify", "--volume", str(root), "--json")
    assert done.returncode in (0, 1), done.stderr
    report: dict[str, int | bool | list[str]] = msgspec.json.decode(done.stdout)
    return report


def stage(name: str, root: Path, **settings: object) -> subprocess.Popen[bytes]:
    """One more process of a stage, started by nobody who would restart it."""
    environment = os.environ | {"FLASHBLADE_PATH": str(root)} | {key: str(value) for key, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", f"services.{name}"],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def scores(root: Path) -> pl.DataFrame:
    """Every result of a volume: what was decided about each transaction, by ``trans_num``."""
    files = sorted((root / "queue" / "inference-results" / "ready").glob("*/*.arrow"))
    columns = ["trans_num", "amt", "risk_score", "is_fraud", "event_time"]
    coded = pl.col("decision", "model_version").cast(pl.String)
    return pl.concat([pl.read_ipc(file).select(*columns, coded) for file in files]).sort("trans_num")
