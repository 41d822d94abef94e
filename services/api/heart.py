"""The heartbeat of the api, written by the arbiter for all its processes, and its watch over the supervisor."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from services.api.tally import Tally
from spearhead.heartbeat import Heartbeat, Roster
from spearhead.runner import describe, iso_now
from spearhead.settings import Settings
from spearhead.volume import Volume, VolumeError

WATCH_SECONDS = 0.25


class Heart:
    """Beats from a thread while the server runs. The volume may be away: it then tries again."""

    def __init__(self, settings: Settings, volume: Volume, worker: str, reasons: Tally) -> None:
        self._settings = settings
        self._volume = volume
        self._worker = worker
        self._reasons = reasons
        self._roster = Roster(volume, settings.lease_seconds)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._started_at = iso_now()
        self._before = (time.monotonic(), 0.0)
        self._last_error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self._roster.leave("api", self._worker)
            self._roster.close()
        except OSError as error:  # the volume is away: nothing to take back
            self._last_error = describe(error)

    def _run(self) -> None:
        due = 0.0
        while not self._stop.wait(WATCH_SECONDS):
            if self._orphaned():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if time.monotonic() >= due:
                due = time.monotonic() + self._settings.heartbeat_seconds
                self._beat()

    def _orphaned(self) -> bool:
        parent = self._settings.supervisor_pid
        return parent is not None and os.getppid() != parent

    def _beat(self) -> None:
        try:
            self._roster.beat(self._heartbeat())
            if self._settings.health_file is not None:
                self._settings.health_file.touch()
        except (OSError, VolumeError) as error:
            self._last_error = describe(error)

    def _heartbeat(self) -> Heartbeat:
        now, (cpu, resident, processes) = time.monotonic(), _usage()
        then, cpu_then = self._before
        self._before = (now, cpu)
        return Heartbeat(
            stage="api",
            worker=self._worker,
            epoch=self._volume.epoch(),
            state="running",
            cpu_cores=max(0.0, cpu - cpu_then) / max(now - then, 1e-3),
            rss_bytes=resident,
            started_at=self._started_at,
            updated_at=iso_now(),
            last_error=self._last_error,
            figures={"processes": processes, "reasons_at_look_up": self._reasons.total()},
        )


def _usage() -> tuple[float, int, int]:
    """CPU seconds, resident bytes and number of the worker processes and this one."""
    me = psutil.Process()
    cpu, resident, alive = 0.0, 0, 0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
            cpu += times.user + times.system
            resident += process.memory_info().rss
            alive += 1
        except psutil.NoSuchProcess:  # it ended between the two looks
            continue
    return cpu, resident, alive
