"""The in-memory floor: what the product's own computing costs without queue, files and processes that wait.

``python -m bench.floor --models DIR`` runs one process per core, each pinned to its core and busy: it generates rows,
computes their features and codes, scores them with the model in service of ``DIR`` (a ``models`` folder), decides and
aggregates, by the functions that the stages call, in segments of the default size. One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from services.generator.population import population
from services.generator.traffic import Traffic
from spearhead import codes, scoring, trees
from spearhead.features import History
from spearhead.files import Files
from spearhead.model import ModelStore
from spearhead.settings import Settings
from spearhead.volume import Volume

WARM_SECONDS: Final = 10.0  # a week of event time of the default cards passes in two
PARTS: Final = ("generation", "features", "scoring", "aggregates")


def run(models: Path, seconds: float, settings: Settings, cores: list[int] | None = None) -> dict[str, Any]:
    """Rows a second of all cores together, and CPU ns a row of each part (medians over segments, mean over cores)."""
    cores = cores or sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(cores)), context.Queue()
    workers = [
        context.Process(target=_work, args=(models, seconds, settings, slot, core, barrier, results))
        for slot, core in enumerate(cores)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=seconds + 300) for _ in workers]
    for worker in workers:
        worker.join()
    return {
        "floor_tx_per_s": round(sum(each["tx_per_s"] for each in found)),
        "floor_ns_per_row": {part: round(statistics.mean(each["ns"][part] for each in found), 1) for part in PARTS},
        "floor_cores": len(cores),
    }


def _work(
    models: Path, seconds: float, settings: Settings, slot: int, core: int, barrier: Barrier, results: Queue[Any]
) -> None:
    os.sched_setaffinity(0, {core})
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        rounds = _rounds(_model(models, Path(folder), settings), settings, slot)
        until = time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < until:
            next(rounds)
        barrier.wait(300)
        began, rows, taken = time.perf_counter(), 0, []
        while time.perf_counter() < began + seconds:
            count, cost = next(rounds)
            rows += count
            taken.append([ns / count for ns in cost])
        elapsed = time.perf_counter() - began
    medians = dict(zip(PARTS, map(statistics.median, zip(*taken, strict=True)), strict=True))
    results.put({"tx_per_s": rows / elapsed, "ns": medians})


def _model(models: Path, folder: Path, settings: Settings) -> Any:
    """The model in service in a ``models`` folder, loaded as an inference replica loads it."""
    volume = Volume(folder, Files(fsync=False))
    volume.prepare()
    store = ModelStore(volume, settings.inference_threads, settings.device)
    return store.load(store.import_folder(models))


def _rounds(model: Any, settings: Settings, slot: int) -> Iterator[tuple[int, list[int]]]:
    """One segment after the other: its rows and the CPU ns of each part."""
    codes.warm()
    trees.warm()
    scoring.warm()
    people = population(settings.cards, settings.merchants, settings.seed)
    source = Traffic(people, settings.seed, slot, settings.fraud_rate)
    history = History(
        settings.card_state_max,
        settings.merchant_state_max,
        settings.label_delay_us,
        settings.partitions,
        settings.card_idle_us,
    )
    while True:
        marks = [time.process_time_ns()]
        batch = source.take(settings.segment_rows).batch
        marks.append(time.process_time_ns())
        packed = history.encode(batch)
        marks.append(time.process_time_ns())
        scores = model.score(packed)
        marks.append(time.process_time_ns())
        scoring.decide(
            batch, scores, producer="g00", threshold=settings.fraud_threshold, train_end=model.train_end,
            scored_at=time.time_ns() // 1000, model=model.version,
        )  # fmt: skip
        marks.append(time.process_time_ns())
        yield batch.num_rows, [after - before for before, after in itertools.pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="a models folder, or a model's own")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    sys.stdout.write(msgspec.json.encode(run(options.models, options.seconds, Settings())).decode() + "\n")


if __name__ == "__main__":
    main()
