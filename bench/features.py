"""What the features of a row and their codes cost: one JSON object on standard output.

``python -m bench.features [--rows N] [--cards N ...]``. Cards appear at random, on average three times a day of event
time, so that their windows are as full as in steady traffic; beside it stands a reference loop (SHA-256 of 1 MB) run
between the batches, since on a busy machine only the ratio of the two means anything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import time

import numpy as np
import pyarrow as pa

from spearhead.features import WIDTH, History, warm
from spearhead.schema import RAW, came_together

SEGMENT = 65_536
ROWS_A_DAY = 3.0
DAY_US = 86_400_000_000
START_US = 1_700_000_000_000_000


def segments(cards: int, merchants: int, rows: int, seed: int = 1):
    """Batches of schema.RAW, made as they are taken."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 2**64, cards, dtype=np.uint64)
    homes = np.stack([rng.uniform(25, 48, cards), rng.uniform(-122, -70, cards)]).astype(np.float32)
    names = pa.array([f"merchant {i}" for i in range(merchants)])
    favourites = rng.integers(0, merchants, (cards, 12), dtype=np.int32)
    step = DAY_US / (ROWS_A_DAY * cards)
    text = pa.array(["x"])
    for first in range(0, rows, SEGMENT):
        n = min(SEGMENT, rows - first)
        card = rng.integers(0, cards, n)
        favourite = rng.random(n) < 0.7
        merchant = np.where(favourite, favourites[card, rng.integers(0, 12, n)], rng.integers(0, merchants, n))
        place = homes[:, card] + rng.normal(0, 0.3, (2, n)).astype(np.float32)
        times = START_US + ((first + np.arange(n)) * step).astype(np.int64)
        zeros = np.zeros(n, np.int8)
        columns = {
            "trans_num": pa.array(np.full(n, "t")),
            "event_time": pa.array(times),
            "ingested_at": came_together(len(times), 0),
            "card": pa.array(tokens[card]),
            "last4": pa.array(zeros.astype(np.uint16)),
            "amt_cents": pa.array(np.exp(rng.normal(8, 1, n)).astype(np.int32)),
            "category": pa.array((merchant % 14).astype(np.uint8)),
            "state": pa.array(zeros.astype(np.uint8)),
            "merchant": pa.DictionaryArray.from_arrays(pa.array(merchant.astype(np.uint16)), names),
            "first": pa.DictionaryArray.from_arrays(pa.array(zeros.astype(np.int16)), text),
            "last_initial": pa.array(zeros.astype(np.uint8)),
            "label": pa.array((rng.random(n) < 0.005).astype(np.int8)),
            "scenario": pa.array(zeros),
            "home_lat": pa.array(homes[0, card]),
            "home_long": pa.array(homes[1, card]),
            "merch_lat": pa.array(place[0]),
            "merch_long": pa.array(place[1]),
            "city_pop": pa.array((card % 100_000).astype(np.int32)),
            "dob": pa.array((card % 20_000).astype(np.int32)),
        }
        arrays = [columns[field.name].cast(field.type) for field in RAW]
        yield pa.RecordBatch.from_arrays(arrays, schema=RAW)


def reference_seconds() -> float:
    begin = time.perf_counter()
    hashlib.sha256(bytes(1_000_000)).digest()
    return time.perf_counter() - begin


def measure(cards: int, merchants: int, rows: int) -> dict[str, float | int]:
    """Figures of the last tenth of the rows, when every card's windows are full."""
    history = History()
    seconds: list[float] = []
    references: list[float] = []
    for batch in segments(cards, merchants, rows):
        references.append(reference_seconds())
        begin = time.process_time()
        history.encode(batch)
        seconds.append((time.process_time() - begin) / batch.num_rows)
    begin = time.perf_counter()
    arrays = history.arrays()
    copied = time.perf_counter() - begin
    last = slice(-max(1, len(seconds) // 10), None)
    row_ns = float(np.median(seconds[last])) * 1e9
    reference_us = float(np.median(references[last])) * 1e6
    return {
        "cards": history.cards,
        "merchants": history.merchants,
        "rows": history.rows,
        "ns_per_row": round(row_ns, 1),
        "reference_us": round(reference_us, 1),
        "ns_per_row_over_reference_us": round(row_ns / reference_us, 3),
        "state_bytes": history.nbytes,
        "state_bytes_per_card": round(history.nbytes / max(1, history.cards)),
        "checkpoint_bytes": sum(array.nbytes for array in arrays.values()),
        "checkpoint_copy_seconds": round(copied, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, nargs="+", default=[50_000, 1_000_000])
    parser.add_argument("--merchants", type=int, default=2_000)
    parser.add_argument("--rows", type=int, help="rows per measurement (default: 25 a card)")
    options = parser.parse_args()
    begin = time.perf_counter()
    warm()
    start_up = time.perf_counter() - begin
    runs = [measure(cards, options.merchants, options.rows or 25 * cards) for cards in options.cards]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"width": WIDTH, "warm_seconds": round(start_up, 2), "peak_rss_bytes": peak, "runs": runs}))


if __name__ == "__main__":
    main()
