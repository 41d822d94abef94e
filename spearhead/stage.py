"""What a stage is, and ``run_stage``, the one entry point of every stage's process."""

from __future__ import annotations

import sys
from typing import ClassVar

from pydantic import ValidationError

from spearhead.control import Control
from spearhead.errors import ConfigurationError, RestartError
from spearhead.files import Files
from spearhead.heartbeat import State, worker_name
from spearhead.runner import Runner
from spearhead.settings import Settings, explain
from spearhead.volume import Volume, VolumeError

__all__ = ["ConfigurationError", "RestartError", "Stage", "run_stage"]

EXIT_CONFIGURATION = 2  # starting again can't help


class Stage:
    """One stage's work. ``run_stage`` calls ``start`` once, then ``step`` for ever, then ``close``.

    ``step`` does one batch and returns its rows; 0 means there was nothing to do, and the loop sleeps from 1 ms backing
    off to 50 ms (10 ms while its last row is less than a second old). Before each step the loop has set ``control`` and
    checked the epoch: when that rose it calls ``reset``. ``state`` and ``detail`` are what the heartbeat says: the loop
    changes between idle and running itself, any other state (back_pressure, disk_low, no_model, stopped) is the
    stage's to set and to take back.
    ``figures`` are the stage's own. An exception from ``step`` is logged and counted, and the loop goes on;
    RestartError and MemoryError end the process. ``start`` may raise ConfigurationError.
    """

    name: ClassVar[str]

    def __init__(self, settings: Settings, volume: Volume, worker: str) -> None:
        self.settings = settings
        self.volume = volume
        self.files: Files = volume.files
        self.worker = worker
        self.epoch = volume.epoch()
        self.control = Control()
        self.state: State = "starting"
        self.detail = ""
        self.dead = 0
        self.figures: dict[str, float | int | str | None] = {}

    def start(self) -> None:
        """Load what is needed and take up where an earlier worker stopped."""

    def step(self) -> int:
        """Do one batch; the number of rows done."""
        raise NotImplementedError

    def reset(self, epoch: int) -> None:
        """A new epoch began: forget everything of the earlier ones."""
        self.epoch = epoch

    def close(self) -> None:
        """Finish what is claimed; nothing may be left half done."""


def run_stage(stage_class: type[Stage]) -> None:
    """Run a stage until SIGTERM or SIGINT, then exit 0; exit 2 with one line on stderr if it can't be set up."""
    try:
        settings = Settings()
        volume = Volume(settings.flashblade_path, Files(settings.fsync))
        volume.prepare(settings.partitions)
        stage = stage_class(settings, volume, settings.worker_id or worker_name())
        code = Runner(stage).run()
    except ValidationError as error:
        code = refuse(stage_class.name, explain(error))
    except (VolumeError, ConfigurationError) as error:
        code = refuse(stage_class.name, str(error))
    sys.exit(code)


def refuse(name: str, message: str) -> int:
    """Say in one line on stderr why ``name`` can't start; the exit status."""
    sys.stderr.write(f"spearhead {name}: {' '.join(message.split())}\n")
    return EXIT_CONFIGURATION
