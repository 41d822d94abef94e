"""``python -m spearhead up``: the stages as processes on this host, restarted when they die, ended together.

The supervisor is on no data path and holds no state that matters: it may be killed like any other process, its stages
then end by themselves, and the next ``up`` goes on where they stopped.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from spearhead.child import Child, Ended
from spearhead.console import Console
from spearhead.errors import ConfigurationError
from spearhead.heartbeat import Heartbeat, Roster, host_label, worker_name
from spearhead.lease import Lease
from spearhead.log import worker_logger
from spearhead.runner import iso_now
from spearhead.settings import Settings
from spearhead.stage import EXIT_CONFIGURATION
from spearhead.status import Status, Watch
from spearhead.volume import Volume

EXIT_CANNOT_TRAIN: Final = 3
EXIT_KILLED: Final = 130
CHECKS: Final = 5  # of the generator's settings, if the process that checks is killed
TICK_SECONDS: Final = 0.1
LOOK_SECONDS: Final = 1.0
ONCE_LOOK_SECONDS: Final = 0.25  # a finite run ends this soon after its last row
GRACE_SECONDS: Final = 60.0  # for the stages to end by themselves
_CLEAN: Final = (0, -signal.SIGTERM)  # the latter: it was asked before it had begun
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Plan(NamedTuple):
    """What to run."""

    stages: Mapping[str, int]  # processes by stage
    environment: Mapping[str, str]  # what the stages' settings are made from
    once: bool = False
    duration: float | None = None  # seconds


class Supervisor:
    """Runs a plan on a prepared volume."""

    def __init__(self, plan: Plan, settings: Settings, volume: Volume, console: Console) -> None:
        self.plan = plan
        self.settings = settings
        self.volume = volume
        self.console = console
        self.worker = worker_name()
        self.log = worker_logger(volume, "supervisor", self.worker, settings.log_level, stdout=False)
        self.roster = Roster(volume, settings.lease_seconds)
        self.watch = Watch(volume, self.roster)
        self.children = [
            Child(stage, plan.environment) for stage, count in plan.stages.items() for _ in range(count)
        ]  # fmt: skip
        self._lease = Lease(volume.files, volume.control / "up", self.worker)
        self._restart_at: dict[Child, float] = {}
        self._stops = 0
        self._exit: int | None = None
        self._before: dict[str, str] = {}  # heartbeats that are older than this run
        self._began = time.monotonic()
        self._started_at = iso_now()
        self._beat_at = self._look_at = 0.0

    def run(self) -> int:
        """Run until stopped, done, or a stage can't be configured; the exit status.

        Raises ConfigurationError, before anything was started, if the plan can't run here.
        """
        self._install_signals()
        self._own_volume()
        try:
            self._check()
            for child in self.children:
                self._start(child)
            self._watch_over()
            return self._shut_down()
        finally:
            self._kill()
            self._lease.release()
            self.roster.leave("supervisor", self.worker)
            self.roster.close()
            self.console.close()

    # Before anything starts

    def _install_signals(self) -> None:
        """Explicitly: a background job of a shell inherits an ignored SIGINT."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self._stops += 1

        for number in STOP_SIGNALS:
            signal.signal(number, handle)

    def _own_volume(self) -> None:
        """Refuse politely where another ``up`` runs. Stages elsewhere may share the volume; they do no harm."""
        self._beat()
        beats = self.roster.alive()
        self._before = {name: beat.updated_at for name, beat in beats.items()}
        alive = {name: beat for name, beat in beats.items() if not _gone(beat)}
        if not self._lease.take(alive):
            owner = self._lease.owner()
            other = alive.get(owner or "")
            where = other.detail if other else "elsewhere"
            self.roster.leave("supervisor", self.worker)
            self.roster.close()
            raise ConfigurationError(
                f"another 'up' already runs on volume {self.volume.root} ({where}): stop it, or take another volume"
            )

    def _check(self) -> None:
        if "api" in self.plan.stages:
            check_port(self.settings.bind, self.settings.port)
        if "generator" in self.plan.stages:
            check_generator(self.plan.environment)

    # While they run

    def _watch_over(self) -> None:
        self.console.note(f"up on {self.volume.root}: " + ", ".join(f"{n} {s}" for s, n in self.plan.stages.items()))
        while self._exit is None and not self._stops:
            now = time.monotonic()
            for child in self.children:
                self._tend(child, now)
            if now >= self._beat_at:
                self._beat_at = now + self.settings.heartbeat_seconds
                self._beat()
            if now >= self._look_at:
                self._look_at = now + (ONCE_LOOK_SECONDS if self.plan.once else LOOK_SECONDS)
                self._look()
            if self.plan.duration is not None and now - self._began >= self.plan.duration:
                self._exit = 0
            time.sleep(TICK_SECONDS)

    def _start(self, child: Child) -> None:
        child.start()
        self.log.info("started", child=child.stage, child_worker=child.worker, pid=child.pid, restarts=child.restarts)

    def _tend(self, child: Child, now: float) -> None:
        """Restart a child that has ended, when its wait is over."""
        ended = child.ended()
        if ended is not None:
            self.roster.leave(child.stage, child.worker)  # its claims are taken back at once
            if ended.code == EXIT_CONFIGURATION:
                self._give_up(child, ended)
                return
            delay = child.restart_delay()
            self._restart_at[child] = now + delay
            self.log.warning("stage ended", child=child.stage, child_worker=child.worker, reason=ended.reason,
                             stderr=ended.stderr, restart_in=delay)  # fmt: skip
            self.console.note(f"{child.stage} ended ({ended.reason}), restarting in {delay:.1f} s")
        if child in self._restart_at and now >= self._restart_at[child]:
            del self._restart_at[child]
            child.restarts += 1
            self._start(child)

    def _give_up(self, child: Child, ended: Ended) -> None:
        """A stage that refuses its settings would refuse them for ever."""
        self.log.error("stage refused to start", child=child.stage, reason=ended.reason)
        self.console.error(ended.stderr or f"{child.stage}: {ended.reason}")
        self._exit = EXIT_CONFIGURATION

    def _beat(self) -> None:
        """The supervisor's own heartbeat: who owns this volume's ``up``."""
        with suppress(OSError):  # the volume is full or away: the stages cope, and so must this
            self.roster.beat(
                Heartbeat(
                    stage="supervisor",
                    worker=self.worker,
                    epoch=self.volume.epoch(),
                    state="running",
                    detail=f"host {socket.gethostname()}, pid {os.getpid()}",
                    started_at=self._started_at,
                    updated_at=iso_now(),
                    figures={
                        "place": place(),
                        "pid": os.getpid(),
                        "restarts": sum(child.restarts for child in self.children),
                    },
                )
            )

    def _look(self) -> None:
        """Read what the volume says: for the live line, and to see the end of a finite run."""
        try:
            seen = self.watch.look(balance=self.plan.once)
        except OSError as error:  # the volume is away: the stages wait for it, and so does this
            self.console.line(f"volume can't be read: {error}")
            return
        self.console.status(seen)
        if not self.plan.once or not self._complete(seen):
            return
        if seen.finished:
            self._exit = 0
        elif seen.cannot_train is not None:
            self.console.error(f"no model, and none can be trained: {seen.cannot_train}")
            self._exit = EXIT_CANNOT_TRAIN

    def _complete(self, seen: Status) -> bool:
        """Whether a generator has said, since this began, that its source has no more rows.

        That an earlier run on this volume ended is no news: more rows may be wanted now, or others.
        """
        return any(
            beat.figures.get("complete") and beat.epoch == seen.epoch
            for beat in seen.workers
            if beat.stage == "generator" and self._before.get(beat.worker) != beat.updated_at
        )

    # The end

    def _shut_down(self) -> int:
        """Ask every stage to end, wait for it, and say what was done. A second signal kills."""
        asked = self._stops
        self.console.line("stopping")
        for child in self.children:
            child.signal(signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        while any(child.running for child in self.children):
            if self._stops > asked or time.monotonic() > until:
                slow = ", ".join(child.stage for child in self.children if child.running)
                self.console.error(f"killed what had not ended: {slow}")
                return EXIT_KILLED
            if time.monotonic() >= self._beat_at:
                self._beat_at = time.monotonic() + self.settings.heartbeat_seconds
                self._beat()
            time.sleep(TICK_SECONDS)
        for child in self.children:
            ended = child.ended()
            if ended is not None and ended.code not in _CLEAN:
                self.console.note(f"{child.stage} did not end cleanly ({ended.reason})")
        self.console.summary(self.watch.look(), time.monotonic() - self._began)
        return self._exit or 0

    def _kill(self) -> None:
        for child in self.children:
            child.signal(signal.SIGKILL)
            child.wait()
            if child.worker:
                self.roster.leave(child.stage, child.worker)


def check_port(bind: str, port: int) -> None:
    """Raises ConfigurationError if nothing can listen there."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError as error:
            raise ConfigurationError(
                f"can't listen on {bind}:{port} ({error.strerror}): choose another with --port, or pass --no-api"
            ) from error


def check_generator(environment: Mapping[str, str]) -> None:
    """Have the generator look at its source and settings: only it knows them. Raises ConfigurationError."""
    command = [sys.executable, "-m", "services.generator", "--check"]
    for _ in range(CHECKS):
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode >= 0:  # not killed
            break
    if done.returncode:
        ended = Ended(done.returncode, done.stderr.decode(errors="replace").strip())
        raise ConfigurationError(ended.stderr.removeprefix("spearhead generator: ") or f"generator: {ended.reason}")


def place() -> str:
    """The host, boot and process namespace in which this process's pid means something."""
    return f"{host_label()}.{os.readlink('/proc/self/ns/pid')}" if Path("/proc/self/ns/pid").exists() else host_label()


def _gone(beat: Heartbeat) -> bool:
    """Whether this is a supervisor of this very place whose process has ended, though its heartbeat is fresh."""
    pid = beat.figures.get("pid")
    if beat.stage != "supervisor" or beat.figures.get("place") != place() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
