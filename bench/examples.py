"""``make examples``: the answers in ``services/api/examples.json`` and docs/API_PAYLOADS.md, all of one real run.

A pipeline on a fresh volume runs until a model is in service whose training window had settled history and drift is
measured on every side. Then live rows are sent over HTTP, their labels come late (first ones, corrections, what was
known, one for no decision), and flagged transactions beyond the budget of reasons are looked up. Five minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.pipeline import Pipeline
from services.api import document, examples

# Some 30,000 rows an event day, two of them a second; a budget that is not enough for all; labels that nobody awaits.
SETTINGS: Final = {
    "CARDS": "10000", "REASONS_MAX_PER_S": "20", "TRAIN_INTERVAL_SECONDS": "30", "LABEL_WAIT_SECONDS": "15",
    "TOKEN_KEY": "a key for examples only", "API_TOKEN": "examples",
}  # fmt: skip
RATE: Final = 15_000  # rows a second
PATIENCE_SECONDS: Final = 900.0
SETTLED_VERSION: Final = 5  # half a minute, or some 15 event days, after each other
MEASURED: Final = 36  # features whose drift is known, of 41 that settle: those of merchants may be unsteady
ROWS: Final = 200  # sent over HTTP
FRAUDS: Final = 5  # of them
CORRECTED: Final = 3
KNOWN: Final = 12
ROW: Final = {
    "merchant": "Corner Grocery", "category": "grocery_pos", "first": "Ann", "last": "Lee", "state": "TN",
    "lat": "36.3846", "long": "-89.4649", "city_pop": "5577", "dob": "1964-12-30", "merch_lat": "36.41",
    "merch_long": "-89.30",
}  # fmt: skip


class Client:
    """Requests to an API on this host."""

    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str) -> Any:
        """Raises HTTPError for what is refused, as ``post`` does."""
        return self._answer(path, None)

    def post(self, path: str, body: Any) -> Any:
        return self._answer(path, msgspec.json.encode(body))

    def _answer(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {SETTINGS['API_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(self.base + path, body, headers), timeout=30) as answer:
            return msgspec.json.decode(answer.read())

    def ready(self) -> bool:
        try:
            return bool(self.get("/readyz")["ready"])
        except (urllib.error.URLError, ConnectionError):
            return False

    def decided(self, trans_num: str) -> bool:
        try:
            self.get(f"/api/transactions/{trans_num}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True


def run(root: Path) -> dict[str, Any]:
    """The answers, lists cut. Raises RuntimeError if the pipeline ends or something doesn't come about in time."""
    pipeline = Pipeline(root, "--rate", str(RATE), environment=SETTINGS)
    client = Client(f"http://127.0.0.1:{pipeline.port}")
    try:
        until(pipeline, client.ready, "the API is ready")
        until(pipeline, lambda: len(versions(pipeline)) >= SETTLED_VERSION, "a model of settled history is made")
        promote(pipeline)
        until(pipeline, lambda: settled(client.get("/api/model")), "drift is measured on every side")
        send_rows(pipeline, client)
        send_labels(pipeline, client)
        look_up(pipeline, client)
        return examples.take(client.base)
    finally:
        pipeline.stop()


def until(pipeline: Pipeline, condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition of a pipeline that runs."""
    end = time.monotonic() + PATIENCE_SECONDS
    sys.stderr.write(f"until {what}\n")
    while not (pipeline.prepared() and condition()):
        if time.monotonic() > end:
            raise RuntimeError(f"not within {PATIENCE_SECONDS:.0f} s: {what}\n{pipeline.log.read_text()[-2000:]}")
        time.sleep(0.5)


def versions(pipeline: Pipeline) -> list[str]:
    """Of the models on the volume, oldest first."""
    return sorted(path.parent.name for path in pipeline.volume.models.glob("v*/features.json"))


def promote(pipeline: Pipeline) -> None:
    """Put the newest model into service: one of unsettled history may be too good to be beaten."""
    command = [sys.executable, "-m", "spearhead", "models", "promote", versions(pipeline)[-1]]
    subprocess.run([*command, "--volume", str(pipeline.root)], check=True, capture_output=True)


def settled(model: dict[str, Any]) -> bool:
    """Whether all that can be said of drift is said, and a challenger lost against the model in service."""
    drift = model["drift"]
    measured = sum(feature["psi"] is not None for feature in drift["features"])
    known = (drift["score_psi"], drift["label_rate"]["ratio"], drift["calibration"]["ratio"], model["challenger"])
    return measured >= MEASURED and None not in known


def send_rows(pipeline: Pipeline, client: Client) -> None:
    """ROWS live rows without labels, a minute apart, at the newest event time; until all are decided."""
    now = client.get("/api/signals?limit=1")["signals"][0]["timestamp"]
    rows = [
        ROW | {"trans_num": number(i), "cc_num": str(4_000_000_000_000_000 + i % 50), "amt": f"{10 + i}.50",
               "trans_date_trans_time": now}
        for i in range(ROWS)
    ]  # fmt: skip
    client.post("/api/transactions", rows)
    until(pipeline, lambda: client.decided(number(ROWS - 1)), "the live rows are decided")


def send_labels(pipeline: Pipeline, client: Client) -> None:
    """Each row's label, then corrections, then labels that say what is known and one for no decision."""
    first = [label(i, i < FRAUDS, 1) for i in range(ROWS)]
    later = [label(i, True, 2) for i in range(ROWS - CORRECTED, ROWS)]
    known = [label(i, i < FRAUDS, 1) for i in range(KNOWN)]
    client.post("/api/labels", first)
    until(pipeline, lambda: feedback(client)["applied"] == ROWS, "the labels are applied")
    client.post("/api/labels", [*later, *known, label(ROWS, True, 1)])
    wanted = {"corrected": CORRECTED, "duplicate": KNOWN, "unmatched": 1, "waiting": 0}
    until(pipeline, lambda: wanted.items() <= feedback(client).items(), "corrections and duplicates are counted")


def look_up(pipeline: Pipeline, client: Client) -> None:
    """The newest flagged transactions, some of which were beyond the budget; until that is counted."""
    client.get("/api/signals?limit=100")
    until(pipeline, lambda: bool(client.get("/api/model")["reasons_summary"]["at_look_up"]), "a look-up is counted")


def feedback(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/model")["labels"]["feedback"]
    return found


def number(i: int) -> str:
    return f"example-{i:04d}"


def label(i: int, is_fraud: bool, day: int) -> dict[str, Any]:
    return {"trans_num": number(i), "is_fraud": is_fraud, "labelled_at": f"2026-01-{day:02d}T00:00:00Z"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.examples", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the volume is made (a local disk)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="spearhead-examples-") as folder:
        found = run(Path(folder) / "volume")
    examples.save(found)
    document.PAGE.write_text(document.page())


if __name__ == "__main__":
    main()
