"""What ``bench.full`` measures: pipelines that differ from one another in one setting, and the curves they make."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

RAW_CRITICAL: Final = 3_000_000  # the product's own


@dataclass(frozen=True)
class Setup:
    """A pipeline to measure. The defaults are the product's but for training, which is a switch of its own."""

    rate: str = "max"  # rows a second
    cards: int = 50_000
    segment_rows: int = 65_536
    inference: int = 1
    backlog: int = RAW_CRITICAL  # rows standing in raw-transactions, at most, when flat out
    training: bool = False
    history: bool = True
    fsync: bool = True
    reasons: bool = True

    @property
    def name(self) -> str:
        """What it differs in, the same for the same setup."""
        changed = [f"{f.name}={value}" for f in fields(self) if (value := getattr(self, f.name)) != f.default]
        return " ".join(changed).lower() or "default"

    @property
    def flat_out(self) -> bool:
        return self.rate == "max"

    def options(self) -> list[str]:
        """Of ``spearhead up``."""
        return ["--inference", str(self.inference), *([] if self.training else ["--no-train"])]

    def environment(self) -> dict[str, str]:
        """Settings of the stages."""
        settings = {
            "CARDS": str(self.cards),
            "SEGMENT_ROWS": str(self.segment_rows),
            "RAW_TRANSACTIONS_CRITICAL": str(self.backlog),
            "FSYNC": str(self.fsync).lower(),
        }
        return settings if self.reasons else settings | {"REASONS_MAX_PER_S": "0"}


# Each curve: the value on its axis, and the pipeline that has it. A pipeline on several curves is measured once.
CURVES: Final[dict[str, list[tuple[Any, Setup]]]] = {
    "cards": [(n, Setup(cards=n)) for n in (10_000, 50_000, 200_000, 1_000_000, 5_000_000)],
    "segment_rows": [(n, Setup(segment_rows=n)) for n in (4_096, 16_384, 65_536, 262_144, 1_048_576)],
    "inference": [(n, Setup(inference=n)) for n in (1, 2, 3, 4)],
    "backlog": [(n, Setup(backlog=n, segment_rows=16_384)) for n in (250_000, 1_000_000, RAW_CRITICAL, 10_000_000)],
    "rate": [(n, Setup(rate=str(n))) for n in (10_000, 50_000, 100_000, 200_000, 400_000)],
    "switches": [
        ("everything on", Setup(training=True)),
        ("training off", Setup()),
        ("reasons off", Setup(training=True, reasons=False)),
        ("fsync off", Setup(training=True, fsync=False)),
        ("history off", Setup(training=True, history=False)),
    ],
}


def setups() -> list[Setup]:
    """Every pipeline once, in the order of the curves."""
    return list(dict.fromkeys(setup for curve in CURVES.values() for _, setup in curve))
