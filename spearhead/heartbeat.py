"""A worker's sign of life, ``metrics/workers/<stage>-<worker>.json``, and who is taken for dead.

Age is judged by the file server's clock alone: a probe file is touched and the two modification times are compared.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Literal

import msgspec

from spearhead.files import Files
from spearhead.volume import Volume

State = Literal["starting", "running", "idle", "paused", "back_pressure", "disk_low", "no_model", "stopped"]


class Heartbeat(msgspec.Struct, kw_only=True):
    """What a worker last said of itself. Rates are means since the heartbeat before."""

    stage: str
    worker: str
    epoch: int
    state: State
    detail: str = ""
    rows: int = 0  # since this process started
    rows_per_s: float = 0.0
    cpu_cores: float = 0.0
    rss_bytes: int = 0
    read_bytes_per_s: float | None = None
    write_bytes_per_s: float | None = None
    fsyncs_per_s: float = 0.0
    dead: int = 0  # segments this process set aside
    started_at: str = ""
    updated_at: str = ""
    last_error: str | None = None
    figures: dict[str, float | int | str | None] = msgspec.field(default_factory=dict)  # what only this stage has


def worker_name() -> str:
    """A name no other worker ever has: pids and host names are used again, 64 random bits are not."""
    return secrets.token_hex(8)


def host_label() -> str:
    """Host and boot, for people who read attempt names."""
    host = "".join(c for c in socket.gethostname().lower() if c.isalnum())[:16] or "host"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        boot = "0" * 8
    return f"{host}.{boot}"


class Roster:
    """Who is alive, by heartbeat age on the server's clock."""

    def __init__(self, volume: Volume, lease_seconds: float) -> None:
        self._volume = volume
        self._lease = lease_seconds
        self._probe = volume.workers / f".probe.{secrets.token_hex(6)}"

    def beat(self, heartbeat: Heartbeat) -> None:
        path = self._volume.workers / f"{heartbeat.stage}-{heartbeat.worker}.json"
        Files(fsync=False).replace(path, msgspec.json.encode(heartbeat))

    def leave(self, stage: str, worker: str) -> None:
        """Say that a worker has ended, so that its claims are taken back at once."""
        self._volume.files.remove(self._volume.workers / f"{stage}-{worker}.json")

    def alive(self) -> dict[str, Heartbeat]:
        """Heartbeats within the lease, by worker name."""
        now = self.server_time()
        alive = {}
        for name in self._volume.files.list(self._volume.workers):
            path = self._volume.workers / name
            try:
                if now - path.stat().st_mtime <= self._lease:
                    heartbeat = msgspec.json.decode(path.read_bytes(), type=Heartbeat)
                    alive[heartbeat.worker] = heartbeat
            except FileNotFoundError:  # it left between listing and reading
                continue
        return alive

    def prune(self) -> None:
        """Remove what workers that were killed left behind: heartbeats and probes ten leases old."""
        oldest = self.server_time() - max(10 * self._lease, 60.0)
        with os.scandir(self._volume.workers) as entries:
            for entry in entries:
                try:
                    if entry.stat().st_mtime < oldest:
                        self._volume.files.remove(Path(entry.path))
                except FileNotFoundError:  # another worker prunes too
                    continue

    def server_time(self) -> float:
        """Now by the clock of the volume's server, seconds since 1970."""
        self._probe.touch()
        os.utime(self._probe)
        return self._probe.stat().st_mtime

    def close(self) -> None:
        self._probe.unlink(missing_ok=True)
