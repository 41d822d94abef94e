"""Rows in the Sparkov layout for tests, and the real slice."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

SLICE = Path(__file__).resolve().parents[2] / "shared" / "data" / "sparkov_slice.csv"
ROW = {
    "": "0", "trans_date_trans_time": "2019-01-07 13:04:44", "cc_num": "4599735407877245",
    "merchant": "fraud_Medhurst Inc", "category": "home", "amt": "83.03", "first": "Mary", "last": "Myers",
    "gender": "F", "street": "39787 Pamela Fall",
    "city": "Tiptonville", "state": "TN", "zip": "38079", "lat": "36.3846", "long": "-89.4649", "city_pop": "5577",
    "job": "Geochemist", "dob": "1964-12-30", "trans_num": "2a2420bc51233f57", "unix_time": "1325941486",
    "merch_lat": "37.322676", "merch_long": "-89.220738", "is_fraud": "0",
}  # fmt: skip
HEADER = list(ROW)


def row(**changes: str) -> dict[str, str]:
    """A good row with some values changed."""
    return ROW | changes


def rows(count: int) -> list[dict[str, str]]:
    """Good rows, a second apart, each with an id of its own."""
    return [
        row(
            trans_num=f"t{i:06d}",
            trans_date_trans_time=f"2019-01-07 {i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}",
            amt=f"{1 + i % 500}.{i % 100:02d}",
            cc_num=str(4599735407877000 + i % 7),
            is_fraud=str(int(i % 50 == 0)),
        )
        for i in range(count)
    ]


def write_csv(path: Path, records: Sequence[dict[str, str]], header: Sequence[str] = tuple(HEADER)) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return path
