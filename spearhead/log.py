"""Structured logs: one JSON object a line, to stdout, to the worker's own file and to the whole run's file.

``logs/<stage>-<worker>.log`` has one writer, ``logs/pipeline.log`` many: each line is one write to a file opened for
appending, so lines stay whole. A file that outgrows its bound becomes ``.1``, replacing the one before: logs are
bounded however long the pipeline runs. What may be a card number is masked (mask.py).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

from spearhead.mask import mask
from spearhead.volume import Volume

MIB: Final = 1024**2
PIPELINE_BYTES: Final = 16 * MIB
WORKER_BYTES: Final = 2 * MIB
WORKER_FILES: Final = 32  # own logs kept of workers that have ended

_OWN_FIELDS: Final = frozenset({"stage", "worker", "time", "level"})
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class LogFile:
    """A log file that any number of processes append to, bounded to twice ``limit`` bytes with its predecessor."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit

    def write(self, line: bytes) -> None:
        """Append one line. Raises OSError."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, line)
            full = os.fstat(descriptor).st_size >= self._limit
        finally:
            os.close(descriptor)
        if full:
            self._rotate()

    def _rotate(self) -> None:
        """Put the full file aside. The lock only keeps two writers from doing so at once; no data depends on it."""
        lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.path.stat().st_size >= self._limit:
                os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))
        except (BlockingIOError, FileNotFoundError):  # another writer is at it, or was
            return
        finally:
            os.close(lock)


class _Sinks:
    """Where a finished line goes. A sink that fails must not stop the stage: the line is still in the others."""

    def __init__(self, files: Iterable[LogFile], stdout: bool) -> None:
        self._files = list(files)
        self._stdout = stdout

    def msg(self, line: str) -> None:
        data = (line + "\n").encode()
        for file in self._files:
            try:
                file.write(data)
            except OSError:  # disk full or volume away: stdout has the line
                continue
        if self._stdout:
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except (OSError, ValueError):  # whoever read our stdout is gone
                self._stdout = False

    debug = info = warning = error = msg


def worker_logger(volume: Volume, stage: str, worker: str, level: str, stdout: bool = True) -> structlog.BoundLogger:
    """The logger of one worker; ``.bind(...)`` adds fields to every line."""
    own = LogFile(volume.logs / f"{stage}-{worker}.log", WORKER_BYTES)
    whole = LogFile(volume.logs / "pipeline.log", PIPELINE_BYTES)
    logger = structlog.wrap_logger(
        _Sinks([own, whole], stdout),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            mask_values,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
    )
    bound: structlog.BoundLogger = logger.bind(stage=stage, worker=worker)
    return bound


class LibraryLogs(logging.Handler):
    """Brings what modules say through ``logging`` into the worker's structured log."""

    def __init__(self, logger: structlog.BoundLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        say = getattr(self._logger, level if level in _LEVELS else "error")
        say(record.getMessage(), logger=record.name, **({"exc_info": record.exc_info} if record.exc_info else {}))

    def install(self, level: str) -> None:
        """Make this the one place where library logs go."""
        logging.basicConfig(handlers=[self], level=_LEVELS[level], force=True)


def mask_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: nothing that looks like a card number leaves, whatever field or traceback it is in."""
    return {key: value if key in _OWN_FIELDS else _mask(value) for key, value in event.items()}


def _mask(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 10**10:  # shorter than a card number
        return value
    if isinstance(value, float) and abs(value) >= 10**19:  # longer
        return value
    return mask(str(value))


def prune_worker_logs(volume: Volume, keep: int = WORKER_FILES) -> None:
    """Remove the oldest logs of workers that have ended, all but ``keep``."""
    alive = {name.removesuffix(".json") for name in volume.files.list(volume.workers)}
    ended = []
    for name in volume.files.list(volume.logs):
        worker = name.removesuffix(".1").removesuffix(".log")
        if worker in (name, "pipeline") or "-" not in worker or worker in alive:
            continue
        try:
            ended.append(((volume.logs / name).stat().st_mtime, name))
        except FileNotFoundError:  # another worker prunes too
            continue
    for _, name in sorted(ended)[: max(0, len(ended) - keep)]:
        volume.files.remove(volume.logs / name)
