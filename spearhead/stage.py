"""The loop that every stage runs: signals, orders, heartbeat, health file, adaptive sleep, logs."""

from __future__ import annotations

from typing import ClassVar

from spearhead.control import Control
from spearhead.files import Files
from spearhead.heartbeat import State
from spearhead.settings import Settings
from spearhead.volume import Volume


class Stage:
    """One stage's work. ``run_stage`` calls ``start`` once, then ``step`` for ever, then ``close``.

    ``step`` does one batch and returns its rows; 0 means there was nothing to do, and the loop sleeps from 1 ms
    backing off to 50 ms. It must return within the lease. Before each step the loop has set ``control`` and checked
    the epoch: when that rose it calls ``reset``. ``state`` and ``detail`` are what the heartbeat says; ``figures`` are
    the stage's own.
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
