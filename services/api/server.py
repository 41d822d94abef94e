"""gunicorn with uvicorn workers, set up from our settings alone; the arbiter speaks for all of them on the volume."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from typing import Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from uvicorn.config import Config
from uvicorn.server import Server

from services.api.heart import Heart
from services.api.tally import Tally
from spearhead.errors import ConfigurationError
from spearhead.log import LibraryLogs, worker_logger
from spearhead.settings import Settings
from spearhead.volume import Volume

GRACE_SECONDS: Final = 10
PORT_PATIENCE_SECONDS: Final = 10.0  # under a supervisor: for the processes of a killed server to be gone
_PR_SET_PDEATHSIG: Final = 1


class UvicornWorker(Worker):
    """Runs the application in uvicorn, under gunicorn's arbiter."""

    def init_signals(self) -> None:
        """uvicorn sets its own for TERM and INT; ABRT is the arbiter's, for a worker that hangs."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the arbiter passes it on
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def run(self) -> None:
        config = Config(
            self.wsgi,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=GRACE_SECONDS // 2,
            timeout_notify=max(1, self.timeout // 4),
            callback_notify=self._notify,
            ws_per_message_deflate=False,
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            server_header=False,
        )
        server = Server(config)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=self.sockets))
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _notify(self) -> None:
        self.notify()


class Application(BaseApplication):
    """Our settings as gunicorn's."""

    def __init__(self, settings: Settings, volume: Volume, worker: str) -> None:
        self._settings = settings
        self._volume = volume
        self._log = worker_logger(volume, "api", worker, settings.log_level)
        self._reasons = Tally()
        self._heart = Heart(settings, volume, worker, self._reasons)
        super().__init__()

    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": address(self._settings),
            "workers": self._settings.api_workers,
            "worker_class": UvicornWorker,
            "timeout": 30,
            "graceful_timeout": GRACE_SECONDS,
            "control_socket_disable": True,
            "logger_class": ArbiterLog,
            "when_ready": self._ready,
            "post_fork": self._forked,
            "on_exit": self._exit,
            "proc_name": "spearhead-api",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """In the worker, after the fork: the thread pools that polars and pyarrow start don't survive one."""
        from services.api.app import create_app  # noqa: PLC0415

        return create_app(self._settings, self._volume, self._log.bind(pid=os.getpid()), self._reasons)

    def run_here(self) -> None:
        """Until stopped; ends the process with gunicorn's status, 0 after a SIGTERM."""
        LibraryLogs(self._log).install(self._settings.log_level)
        self._log.info("starting", pid=os.getpid(), listening=address(self._settings))
        Arbiter(self).run()

    def _ready(self, arbiter: Arbiter) -> None:
        self._heart.start()

    def _forked(self, arbiter: Arbiter, worker: Worker) -> None:
        self._reasons.use(worker.age)
        die_with_parent(arbiter.pid)

    def _exit(self, arbiter: Arbiter) -> None:
        self._heart.stop()
        self._log.info("stopped")


class ArbiterLog:
    """gunicorn's logger: everything goes to the stage's log."""

    def __init__(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn.error")
        self.access_log = logging.getLogger("gunicorn.access")
        for name in ("debug", "info", "warning", "error", "critical", "exception", "log"):
            setattr(self, name, getattr(self.error_log, name))

    def access(self, *args: Any) -> None:
        """Requests are not logged."""

    def reopen_files(self) -> None:
        """Each line opens its file."""

    def close_on_exec(self) -> None:
        """No file is open."""


def serve(settings: Settings, volume: Volume, worker: str) -> None:
    """Run the server until stopped. Raises ConfigurationError if nothing can listen at the address."""
    await_port(settings, PORT_PATIENCE_SECONDS if settings.supervisor_pid is not None else 0.0)
    Application(settings, volume, worker).run_here()


def address(settings: Settings) -> str:
    host = f"[{settings.bind}]" if ":" in settings.bind else settings.bind
    return f"{host}:{settings.port}"


def await_port(settings: Settings, patience: float) -> None:
    """Until the address can be listened at, ``patience`` seconds at most. Raises ConfigurationError."""
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    until = time.monotonic() + patience
    while True:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((settings.bind, settings.port))
                probe.listen(1)
        except OSError as error:
            if time.monotonic() >= until:
                raise ConfigurationError(
                    f"can't listen on {address(settings)} ({error.strerror}): set BIND and PORT to a free address"
                ) from error
            time.sleep(0.1)
        else:
            return


def die_with_parent(parent: int) -> None:
    """On Linux: have this process killed when the arbiter is, so that the port is free for the next one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(0)
