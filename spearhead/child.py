"""One stage process under the supervisor: start, watch, restart with back-off, end."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Final

BACKOFF_SECONDS: Final = (0.1, 2.0)  # wait before the first restart in a row, and the longest
STEADY_SECONDS: Final = 2.0  # a process that lived this long starts a new row
TAIL_BYTES: Final = 4096


class Child:
    """A slot for one process of ``stage``. Every start gets a worker name of its own: identities are never reused."""

    def __init__(self, stage: str, environment: Mapping[str, str]) -> None:
        self.stage = stage
        self.worker = ""
        self.restarts = 0
        self.failures = 0  # ends in a row, none of them after a steady life
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """Start the process in a group of its own, so that Ctrl-C at the terminal reaches the supervisor alone."""
        self.worker = secrets.token_hex(8)
        self._started_at = time.monotonic()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, read when the process has ended
        self._process = subprocess.Popen(
            self.command(),
            env={**self._environment, "WORKER_ID": self.worker, "SUPERVISOR_PID": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the same lines are in logs/
            stderr=self._stderr,
            process_group=0,
        )

    def command(self) -> list[str]:
        """What is run. The settings are the environment's alone."""
        return [sys.executable, "-m", f"services.{self.stage}"]

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ended(self) -> Ended | None:
        """How the process ended, told once; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        ended = Ended(self._process.returncode, self._tail())
        self.failures = 1 if time.monotonic() - self._started_at >= STEADY_SECONDS else self.failures + 1
        self._process = None
        return ended

    def restart_delay(self) -> float:
        first, longest = BACKOFF_SECONDS
        return float(min(first * 2 ** min(self.failures - 1, 10), longest))

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it runs; SIGKILL goes to its whole group."""
        if self._process is None or self._process.poll() is not None:
            return
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def wait(self) -> None:
        """Until the process has ended."""
        if self._process is not None:
            self._process.wait()

    def _tail(self) -> str:
        """The last that the process wrote to stderr."""
        if self._stderr is None:
            return ""
        with self._stderr as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        self._stderr = None
        return text.strip()


class Ended:
    """How a process ended."""

    def __init__(self, code: int, stderr: str) -> None:
        self.code = code  # negative: minus the signal's number
        self.stderr = stderr

    @property
    def reason(self) -> str:
        """In words, with the last line of stderr if there is one."""
        if self.code < 0:
            try:
                how = f"killed by {signal.Signals(-self.code).name}"
            except ValueError:
                how = f"killed by signal {-self.code}"
        else:
            how = f"exit status {self.code}"
        last = self.stderr.splitlines()[-1:] if self.code else []
        return ": ".join([how, *last])
