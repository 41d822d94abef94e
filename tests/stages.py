"""Small stages that test_stage.py runs as processes: ``python stages.py <kind>``."""

from __future__ import annotations

import errno
import sys
import threading
from typing import ClassVar

from spearhead.stage import ConfigurationError, RestartError, Stage, run_stage


class Counts(Stage):
    """Ten rows a step."""

    name: ClassVar[str] = "demo"
    steps = 0

    def start(self) -> None:
        self.figures["flavour"] = "plain"

    def step(self) -> int:
        self.steps += 1
        self.work()
        return 10

    def work(self) -> None:
        """What makes the kinds differ."""

    def reset(self, epoch: int) -> None:
        super().reset(epoch)
        (self.volume.root / "reset").write_text(str(epoch))

    def close(self) -> None:
        (self.volume.root / "closed").touch()


class LooksForItsHeartbeat(Counts):
    def start(self) -> None:
        alive = (self.volume.workers / f"demo-{self.worker}.json").exists()
        (self.volume.root / "alive-at-start").write_text(str(alive))


class RaisesAtFirst(Counts):
    def work(self) -> None:
        if self.steps <= 3:
            raise ValueError("bad row of card 4599735407877245080")


class LosesItsMind(Counts):
    def work(self) -> None:
        raise RestartError("half a batch is in memory")


class RunsOutOfMemory(Counts):
    def work(self) -> None:
        raise MemoryError


class CannotStart(Counts):
    def start(self) -> None:
        raise OSError(errno.EIO, "broken")


class Refuses(Counts):
    def start(self) -> None:
        raise ConfigurationError("the source has no header")


class MeetsAFullDisk(Counts):
    def work(self) -> None:
        if self.steps <= 5:
            raise OSError(errno.ENOSPC, "full")


class Hangs(Counts):
    def work(self) -> None:
        (self.volume.root / "hung").touch()
        threading.Event().wait()


KINDS = (
    Counts, LooksForItsHeartbeat, RaisesAtFirst, LosesItsMind, RunsOutOfMemory, CannotStart, Refuses, MeetsAFullDisk,
    Hangs,
)  # fmt: skip

if __name__ == "__main__":
    wanted = sys.argv[1].replace("_", "")
    run_stage(next(kind for kind in KINDS if kind.__name__.lower() == wanted))
