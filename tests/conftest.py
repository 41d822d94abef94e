"""What tests share: an environment without settings, a prepared volume, and ``up`` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from spearhead.files import Files
from spearhead.settings import Settings
from spearhead.volume import Volume

ROOT = Path(__file__).parent.parent
SLICE = ROOT.parent / "shared" / "data" / "sparkov_slice.csv"
T = TypeVar("T")
PATIENCE = 240.0  # seconds until a condition that must come about counts as never


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A developer's own settings must not decide whether tests pass; the token key is not the developer's either."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TOKEN_KEY_FILE", str(tmp_path_factory.getbasetemp() / "token.key"))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A prepared volume that does not flush to disk."""
    root = tmp_path / "volume"
    root.mkdir()
    made = Volume(root, Files(fsync=False))
    made.prepare()
    return made


@pytest.fixture
def sparkov_slice() -> Path:
    """The real input; without it, on a machine that lacks it, its tests are skipped."""
    if not SLICE.exists():
        pytest.skip(f"{SLICE} is not there")
    return SLICE


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
        command = f"services.{stage}".encode()
        return [pid for pid in children(self.process.pid) if command in _command(pid)]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts pipelines, and ends what a failed test leaves."""
    started: list[Up] = []

    def start(*options: str, root: Path | None = None, **settings: object) -> Up:
        started.append(Up(root or tmp_path / "volume", *options, **settings))
        return started[-1]

    yield start
    for pipeline in started:
        if pipeline.process.poll() is None:
            pids = children(pipeline.process.pid)
            pipeline.process.kill()
            pipeline.process.wait()
            for pid in pids:
                _end(pid)


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return []


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
