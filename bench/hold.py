"""``make bench-hold``: does the pipeline hold its peak? ``python -m bench.hold --minutes 10`` prints one JSON object.

Flat out on a fresh volume, everything on. Every few seconds backlog, memory and files of the volume are counted; at the
end their growth a minute is fitted (Theil and Sen: the median of all slopes, which no single jump moves), and every row
is audited. Results and models are under retention, so files should stop growing once it sets in:
``--retention-seconds`` (120) is that of the results.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from scipy.stats import theilslopes

from bench import machine
from bench.pipeline import MIB, Pipeline
from spearhead.backlog import Backlog

FIGURES: Final = ("rows_per_s", "backlog_rows", "memory_mib", "files", "volume_mib")


def hold(root: Path, minutes: float, every: float, warm_up: float, retention: int) -> dict[str, Any]:
    """Samples of a pipeline at its peak, their slopes a minute, and the audit. Times in seconds but for ``minutes``."""
    settings = {"RESULTS_RETENTION_SECONDS": str(retention)}
    pipeline = Pipeline(root, "--rate", "max", environment=settings)
    samples: list[dict[str, Any]] = []
    try:
        pipeline.wait_for_rows()
        time.sleep(warm_up)
        backlog, began = Backlog(pipeline.volume), time.monotonic()
        for turn in range(1, round(60 * minutes / every) + 1):
            window = pipeline.window(max(0.0, began + turn * every - time.monotonic()))
            samples.append(_sample(pipeline, backlog, time.monotonic() - began, window.rows / window.seconds))
    finally:
        clean = pipeline.stop()
    return {**summary(samples), "clean_exit": clean, "verify": pipeline.verify(), "samples": samples}


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and growth a minute of each figure, from samples that carry ``seconds``; of memory by stage too."""
    minutes = np.array([sample["seconds"] for sample in samples]) / 60
    columns = {name: np.array([sample[name] for sample in samples]) for name in FIGURES}
    stages = sorted({stage for sample in samples for stage in sample["stages_mib"]})
    by_stage = {stage: np.array([sample["stages_mib"].get(stage, 0.0) for sample in samples]) for stage in stages}
    return {
        "median": {name: round(float(np.median(values)), 1) for name, values in columns.items()},
        "growth_per_minute": {name: _slope(minutes, values) for name, values in columns.items()},
        "growth_per_minute_second_half": {
            name: _slope(minutes[len(minutes) // 2 :], values[len(values) // 2 :]) for name, values in columns.items()
        },
        "memory_mib_by_stage": {
            stage: {"median": round(float(np.median(values)), 1), "growth_per_minute": _slope(minutes, values)}
            for stage, values in by_stage.items()
        },
    }


def _slope(minutes: Any, values: Any) -> float | None:
    return round(float(theilslopes(values, minutes).slope), 2) if len(values) > 2 else None


def _sample(pipeline: Pipeline, backlog: Backlog, seconds: float, rate: float) -> dict[str, Any]:
    waiting = backlog.rows()
    stages = {stage: round(used.pss_bytes / MIB, 1) for stage, used in pipeline.used().items()}
    files, size = _held(pipeline.root)
    return {
        "seconds": round(seconds, 1),
        "rows_per_s": round(rate),
        "backlog_rows": waiting.raw_transactions + waiting.features_ready + waiting.inference_results,
        "memory_mib": round(sum(stages.values()), 1),
        "stages_mib": stages,
        "files": files,
        "volume_mib": round(size / MIB, 1),
    }


def _held(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Files below a folder and their bytes; what goes away meanwhile is not counted."""
    files = size = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    below = _held(entry.path) if entry.is_dir(follow_symlinks=False) else (1, entry.stat().st_size)
                except FileNotFoundError:
                    continue
                files, size = files + below[0], size + below[1]
    except FileNotFoundError:  # an attempt's folder, removed since it was listed
        pass
    return files, size


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.hold", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the volume is made (a local disk)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument(
        "--warm-up", type=float, default=15.0, help="seconds from the first scored row to the first sample"
    )
    parser.add_argument("--retention-seconds", type=int, default=120, help="how long results are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="spearhead-bench-") as folder:
        about = {"minutes": options.minutes, "machine": machine.describe(Path(folder))}
        found = hold(
            Path(folder) / "volume", options.minutes, options.every, options.warm_up, options.retention_seconds
        )
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found | about), indent=1).decode() + "\n")
    if not found["verify"]["ok"]:
        sys.exit("the audit failed: rows were lost or counted twice")


if __name__ == "__main__":
    main()
