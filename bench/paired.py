"""Two checkouts in turns, flat out, everything on: ``python -m bench.paired --before DIR`` prints one JSON object.

A shared machine drifts from minute to minute, so a rate taken on one day says nothing beside one of another. Here each
round runs the pipeline of ``--before`` and then this one, each on a fresh volume; the ratio is that of a round's two
medians, and the figure is the median of the rounds. Rows come from ``.metrics.json``, whose keys every version keeps;
both checkouts run in this interpreter, so both must work with what it has installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bench import machine

PATIENCE_SECONDS: Final = 240.0
HERE: Final = Path(__file__).resolve().parent.parent


class Checkout:
    """``up`` of a checkout on a fresh volume, with the default settings of that checkout."""

    def __init__(self, code: Path, folder: Path) -> None:
        self.volume = folder / "volume"
        self.log = folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = ("--volume", str(self.volume), "--port", str(port), "--rate", "max")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spearhead", "up", *options],
                cwd=code,
                env=os.environ | {"PYTHONPATH": str(code)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def counted(self) -> tuple[int, float]:
        """Rows in the ledger and its time (seconds since 1970). Raises RuntimeError if the pipeline has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the pipeline ended:\n{self.log.read_text()}")
        try:
            ledger = json.loads((self.volume / "metrics" / ".metrics.json").read_bytes())
        except FileNotFoundError:
            return 0, 0.0
        return int(ledger["transactions_analyzed"]), datetime.fromisoformat(ledger["updated_at"]).timestamp()

    def wait_for_rows(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.counted()[0]:
            if time.monotonic() > until:
                raise RuntimeError(f"nothing was scored in {PATIENCE_SECONDS:.0f} s:\n{self.log.read_text()}")
            time.sleep(0.2)

    def rate(self, seconds: float) -> float:
        """Rows a second over a window."""
        before, began = self.counted()
        time.sleep(seconds)
        after, ended = self.counted()
        return (after - before) / (ended - began)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(120)


def windows(code: Path, options: argparse.Namespace) -> list[int]:
    """Rows a second of one run of a checkout, window by window."""
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="spearhead-paired-") as folder:
        checkout = Checkout(code, Path(folder))
        try:
            checkout.wait_for_rows()
            time.sleep(options.warm_up)
            return [round(checkout.rate(options.seconds)) for _ in range(options.windows)]
        finally:
            checkout.stop()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both, and how much faster this checkout is than the one before."""
    rounds = [
        {"before": windows(options.before.resolve(), options), "after": windows(HERE, options)}
        for _ in range(options.rounds)
    ]
    ratios = [statistics.median(turn["after"]) / statistics.median(turn["before"]) for turn in rounds]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "rounds": rounds,
        "before": revision(options.before),
        "after": revision(HERE),
        "machine": machine.describe(options.folder or Path(tempfile.gettempdir())),
    }


def revision(code: Path) -> str:
    """The commit a checkout stands at, with a mark if files of it have changed since."""
    command = ["git", "-C", str(code), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.paired", description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the version to compare with")
    parser.add_argument("--folder", type=Path, help="where the volumes are made (a local disk)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a window")
    parser.add_argument("--warm-up", type=float, default=25.0, help="seconds from the first scored row")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    sys.stdout.write(json.dumps(measure(arguments(words)), indent=2) + "\n")


if __name__ == "__main__":
    main()
