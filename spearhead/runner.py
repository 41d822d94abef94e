"""The loop that every stage runs in: signals, orders, epoch, heartbeat, health file, adaptive sleep, errors."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import threading
import time
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Final

import msgspec

from spearhead.control import read_control
from spearhead.errors import ConfigurationError, RestartError
from spearhead.heartbeat import Heartbeat, Roster, State
from spearhead.log import LibraryLogs, prune_worker_logs, worker_logger
from spearhead.mask import mask
from spearhead.usage import usage
from spearhead.volume import VolumeError

if TYPE_CHECKING:
    from spearhead.stage import Stage

ORDERS_SECONDS: Final = 0.5  # orders, epoch and supervisor are looked at this often
HEALTH_SECONDS: Final = 1.0
ERROR_BACKOFF_SECONDS: Final = (0.05, 5.0)  # first and longest wait after a step that raised
AWAKE_SECONDS: Final = 1.0  # after the last row a worker looks for more this often:
AWAKE_POLL_SECONDS: Final = 0.01  # a segment comes every FLUSH_SECONDS, and each hop would find it up to 50 ms late
STUCK_LEASES: Final = 20  # a step longer than this many leases counts as hung: the heartbeat stops
PRUNE_SECONDS: Final = 60.0
EXIT_RESTART: Final = 75  # EX_TEMPFAIL: start me again
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Runner:
    """Runs one stage in this process."""

    def __init__(self, stage: Stage, stdout: bool = True) -> None:
        self.stage = stage
        self.log = worker_logger(stage.volume, stage.name, stage.worker, stage.settings.log_level, stdout)
        self.rows = 0
        self.errors = 0
        self.last_error: str | None = None
        self._stopping = False
        self._orders_at = 0.0
        self._orders_seen: tuple[int, int, int] | None = None
        self._health_at = 0.0
        self._prune_at = 0.0
        self._override: State | None = None  # a state that the loop knows and the stage doesn't
        self._pulse = Pulse(self)

    def stop(self) -> None:
        """Finish the current step, then end."""
        self._stopping = True

    def run(self) -> int:
        """Run until stopped; the exit status. Raises ConfigurationError or VolumeError from the stage's start."""
        self._install_signals()
        LibraryLogs(self.log).install(self.stage.settings.log_level)
        self._pulse.start()  # the first heartbeat comes before the first claim
        try:
            return self._run()
        finally:
            self._pulse.stop()

    def _install_signals(self) -> None:
        """Explicitly: a background job of a shell inherits an ignored SIGINT."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)

    def _run(self) -> int:
        stage = self.stage
        self.log.info("starting", epoch=stage.epoch, pid=os.getpid())
        try:
            stage.start()
            self._loop()
            self._finish()
        except (ConfigurationError, VolumeError) as error:
            self.log.error("refused", reason=str(error))
            raise
        except (RestartError, MemoryError) as error:
            self.last_error = describe(error)
            self.log.error("ends to start afresh", reason=describe(error), exc_info=True)
            return EXIT_RESTART
        except Exception as error:
            self.last_error = describe(error)
            self.log.error("failed", reason=describe(error), exc_info=True)
            return 1
        self.log.info("stopped", rows=self.rows, errors=self.errors)
        return 0

    def _finish(self) -> None:
        self.stage.state, self.stage.detail = "stopped", ""
        self.stage.close()

    def _loop(self) -> None:
        rest = Rest(self.stage.settings.poll_min_seconds, self.stage.settings.poll_max_seconds)
        failures = 0
        while not self._stopping:
            try:
                rows = self._turn()
            except (ConfigurationError, RestartError, MemoryError):
                raise
            except Exception as error:  # the stage goes on: one bad batch must not stop it
                failures += 1
                self._failed(error, failures)
                self._wait(backoff(failures))
                continue
            failures = 0
            self._override = "paused" if not self.stage.control.running else None
            if rows:
                rest.worked(time.monotonic())
            else:
                self._wait(rest.next(time.monotonic()))

    def _turn(self) -> int:
        """Look at the orders when it is time, then one step unless paused. Rows done."""
        now = time.monotonic()
        if now >= self._orders_at:
            self._orders_at = now + ORDERS_SECONDS
            self._look_around()
        stage = self.stage
        self._pulse.step_began = now
        rows = stage.step() if stage.control.running else 0
        self.rows += rows
        if rows and stage.state in ("starting", "idle"):
            stage.state = "running"
        elif not rows and stage.state in ("starting", "running"):
            stage.state = "idle"
        self._touch_health(now)
        return rows

    def _look_around(self) -> None:
        """Orders, epoch, and whether the supervisor that started this process is still there."""
        stage = self.stage
        parent = stage.settings.supervisor_pid
        if parent is not None and os.getppid() != parent:
            self.log.warning("supervisor is gone, stopping")
            self.stop()
        self._read_orders()
        epoch = stage.volume.epoch()
        if epoch > stage.epoch:
            self.log.info("reset", epoch=epoch)
            stage.reset(epoch)
        now = time.monotonic()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_SECONDS * random.uniform(0.75, 1.25)  # noqa: S311, jitter
            self._pulse.roster.prune()
            prune_worker_logs(stage.volume)

    def _read_orders(self) -> None:
        """Read the orders if the file changed. A damaged one is reported once, the orders before it stay."""
        stage = self.stage
        try:
            status = os.stat(stage.volume.control / "orders.json")
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            seen = (0, 0, 0)
        if seen == self._orders_seen:
            return
        self._orders_seen = seen
        try:
            control = read_control(stage.volume)
        except (msgspec.DecodeError, OSError) as error:
            self.last_error = describe(error)
            self.log.error("orders are unreadable, keeping those before", reason=describe(error))
            return
        if control != stage.control:
            self.log.info("orders", running=control.running, rate=control.rate, priority=control.priority)
        stage.control = control

    def _failed(self, error: Exception, failures: int) -> None:
        self.errors += 1
        self.last_error = describe(error)
        full = isinstance(error, OSError) and error.errno in _DISK_FULL
        self._override = "disk_low" if full else None
        if failures & (failures - 1) == 0:  # the 1st, 2nd, 4th, 8th in a row: a lasting failure must not fill the log
            self.log.error("step failed", reason=describe(error), failures=failures, exc_info=not full)

    def _touch_health(self, now: float) -> None:
        path = self.stage.settings.health_file
        if path is not None and now >= self._health_at:
            self._health_at = now + HEALTH_SECONDS
            path.touch()

    def _wait(self, seconds: float) -> None:
        """Sleep, but never longer than 50 ms past a stop: a signal does not cut a sleep short."""
        longest = self.stage.settings.poll_max_seconds
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, longest))

    def reported_state(self, rows_since: int) -> State:
        """What the heartbeat says: an idle moment of a worker that did rows since the last one is not idleness."""
        if self._override is not None:
            return self._override
        return "running" if rows_since and self.stage.state == "idle" else self.stage.state


class Rest:
    """How long a worker that finds nothing to do sleeps: ``shortest`` at first, doubling.

    To ``longest``, but no longer than AWAKE_POLL_SECONDS while its last row is less than AWAKE_SECONDS old. Times are
    seconds of a monotonic clock.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = self._sleep = shortest
        self._longest = longest
        self._awake_until = -math.inf

    def worked(self, now: float) -> None:
        """Rows were done."""
        self._sleep, self._awake_until = self._shortest, now + AWAKE_SECONDS

    def next(self, now: float) -> float:
        """Seconds to sleep, as nothing was found."""
        longest = min(self._longest, AWAKE_POLL_SECONDS) if now < self._awake_until else self._longest
        sleep = min(self._sleep, longest)
        self._sleep = min(2 * sleep, self._longest)
        return sleep


class Pulse:
    """Writes the worker's heartbeat from a thread, so that a long step is not mistaken for death.

    A step that hangs is: after ``STUCK_LEASES`` leases without an end the heartbeat stops, and others take over.
    """

    def __init__(self, runner: Runner) -> None:
        stage = runner.stage
        self.roster = Roster(stage.volume, stage.settings.lease_seconds)
        self.step_began = time.monotonic()
        self._runner = runner
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_for_ever, name="pulse", daemon=True)
        self._started_at = iso_now()
        self._before = (time.monotonic(), 0, usage(), 0)

    def start(self) -> None:
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        """Take the heartbeat away: the claims of this worker, if any are left, are free at once."""
        self._stop.set()
        self._thread.join()
        self.roster.leave(self._runner.stage.name, self._runner.stage.worker)
        self.roster.close()

    def _beat_for_ever(self) -> None:
        settings = self._runner.stage.settings
        while not self._stop.wait(settings.heartbeat_seconds):
            if time.monotonic() - self.step_began < STUCK_LEASES * settings.lease_seconds:
                try:
                    self.beat()
                except OSError as error:  # the volume is away: it comes back or the lease runs out
                    self._runner.last_error = describe(error)

    def beat(self) -> None:
        """Write the heartbeat; where the disk is too full for that, its time is renewed. Raises OSError."""
        heartbeat = self._heartbeat()
        try:
            self.roster.beat(heartbeat)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            os.utime(self._runner.stage.volume.workers / f"{heartbeat.stage}-{heartbeat.worker}.json")

    def _heartbeat(self) -> Heartbeat:
        runner, stage = self._runner, self._runner.stage
        now, used, rows, fsyncs = time.monotonic(), usage(), runner.rows, stage.files.fsyncs
        then, rows_then, used_then, fsyncs_then = self._before
        self._before = (now, rows, used, fsyncs)
        seconds = max(now - then, 1e-3)

        def rate(after: int | None, before: int | None) -> float | None:
            return None if after is None or before is None else (after - before) / seconds

        return Heartbeat(
            stage=stage.name,
            worker=stage.worker,
            epoch=stage.epoch,
            state=runner.reported_state(rows - rows_then),
            detail=stage.detail,
            rows=rows,
            rows_per_s=(rows - rows_then) / seconds,
            cpu_cores=(used.cpu_seconds - used_then.cpu_seconds) / seconds,
            rss_bytes=used.rss_bytes,
            read_bytes_per_s=rate(used.read_bytes, used_then.read_bytes),
            write_bytes_per_s=rate(used.write_bytes, used_then.write_bytes),
            fsyncs_per_s=(fsyncs - fsyncs_then) / seconds,
            dead=stage.dead,
            started_at=self._started_at,
            updated_at=iso_now(),
            last_error=runner.last_error,
            figures=dict(stage.figures),
        )


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, with jitter so that replicas spread out."""
    first, longest = ERROR_BACKOFF_SECONDS
    return min(first * 2.0 ** min(failures - 1, 20), longest) * random.uniform(0.5, 1.0)  # noqa: S311, jitter


def describe(error: BaseException) -> str:
    """An exception in one line, fit for the volume."""
    return mask(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def iso_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
