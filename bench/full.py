"""``make bench-full``: growth curves of the whole pipeline on this machine, one pipeline after the other.

``python -m bench.full [--seconds 10] [--only TEXT]`` measures every setup of ``bench.setups`` on a local disk and
writes ``docs/performance/curves.json``, then the pages that are made of it. ``--render`` only makes the pages. A
pipeline that does not run is null with its reason, and the rest goes on.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import machine, report, scaling
from bench.pipeline import Pipeline
from bench.point import measure
from bench.setups import CURVES, setups

FOLDER: Final = Path(__file__).parent.parent / "docs" / "performance"
MODEL_SECONDS: Final = 20.0  # flat out after the first model: long enough for a better one


def run(folder: Path, results: Path, seconds: float, only: str) -> None:
    """All figures, written as they come. One line of progress a pipeline on standard error."""
    figures: dict[str, Any] = {
        "taken_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "window_seconds": seconds,
        "machine": machine.describe(folder),
        "curves": {name: [[x, setup.name] for x, setup in curve] for name, curve in CURVES.items()},
        "setups": {},
    }
    models = folder / "model"
    _train(folder / "first", models)
    for setup in setups():
        if only not in setup.name:
            continue
        began = time.monotonic()
        found = _point(setup, folder / "volume", models, seconds)
        figures["setups"][setup.name] = found | {"asked": msgspec.to_builtins(setup)}
        write(results, figures)
        rate = found["figures"] and found["figures"]["tx_per_s"]
        sys.stderr.write(f"{setup.name}: {rate or found['reason']} ({time.monotonic() - began:.0f} s)\n")


def _train(root: Path, models: Path) -> None:
    """A model of the default population, by the pipeline itself: what every other pipeline scores with."""
    pipeline = Pipeline(root, "--rate", "max", "--no-api")
    try:
        pipeline.wait_for_rows()
        time.sleep(MODEL_SECONDS)
    finally:
        pipeline.stop()
    shutil.copytree(root / "models", models)
    shutil.rmtree(root)


def _point(setup: Any, root: Path, models: Path, seconds: float) -> dict[str, Any]:
    try:
        return {"figures": measure(setup, root, models, seconds), "reason": None}
    except Exception as error:
        return {"figures": None, "reason": f"{type(error).__name__}: {error}"[-2000:]}
    finally:
        shutil.rmtree(root, ignore_errors=True)


def write(folder: Path, figures: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curves.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")


def render(folder: Path) -> None:
    """The pages and plots from the JSON in ``folder``."""
    figures = msgspec.json.decode((folder / "curves.json").read_bytes())
    fitted = scaling.fit(figures)
    report.write(folder, figures)
    scaling.write(folder, figures, fitted)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.full", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the volumes are made (a local disk)")
    parser.add_argument("--results", type=Path, default=FOLDER, help="where the figures are written")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a window")
    parser.add_argument("--only", default="", help="measure only setups whose name holds this; write nothing but JSON")
    parser.add_argument("--render", action="store_true", help="make the pages of the figures that are there")
    options = parser.parse_args()
    if not options.render:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="spearhead-bench-") as folder:
            run(Path(folder), options.results, options.seconds, options.only)
    if not options.only:
        render(options.results)


if __name__ == "__main__":
    main()
