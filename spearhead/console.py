"""What ``up`` shows: one live line on a terminal, a plain line now and then elsewhere, and what happened above it."""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from spearhead.status import Status

PLAIN_SECONDS: Final = 5.0


class Console:
    """Writes to stdout, errors to stderr."""

    def __init__(self) -> None:
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live("", console=self._out, auto_refresh=False, transient=True) if self._out.is_terminal else None
        self._plain_at = 0.0
        if self._live is not None:
            self._live.start()

    def note(self, message: str) -> None:
        """Something that happened."""
        self._out.print(Text(f"{time.strftime('%H:%M:%S')}  {message}"))

    def error(self, message: str) -> None:
        self._err.print(Text(message))

    def line(self, text: str) -> None:
        """The live line."""
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def status(self, status: Status) -> None:
        """The live line on a terminal; elsewhere one every five seconds."""
        if self._live is not None:
            self.line(live_line(status))
        elif time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + PLAIN_SECONDS
            self.note(live_line(status))

    def summary(self, status: Status, seconds: float) -> None:
        """What a run came to."""
        self.note(
            f"{status.transactions_analyzed:,} transactions, ${status.amount_total:,.2f}; "
            f"{status.flagged_count:,} flagged, ${status.flagged_amount:,.2f}; "
            f"{status.dead_rows:,} rows dead; {seconds:.1f} s"
        )

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def live_line(status: Status) -> str:
    """The whole pipeline in a line."""
    waiting = status.backlogs
    parts = [
        "- tx/s" if status.rows_per_s is None else f"{status.rows_per_s:,.0f} tx/s",
        f"{status.transactions_analyzed:,} scored",
        f"waiting raw {waiting.raw_transactions:,} features {waiting.features_ready:,} "
        f"ledger {waiting.inference_results:,}",
        f"flagged {status.flagged_count:,}",
    ]
    if status.latency_p50_ms is not None and status.latency_p99_ms is not None:
        parts.append(f"p50 {status.latency_p50_ms:,.0f} ms p99 {status.latency_p99_ms:,.0f} ms")
    parts.append(status.model or _why_no_model(status))
    parts += [f"{beat.stage}: {beat.state.replace('_', ' ')}" for beat in status.workers if beat.state in _TROUBLE]
    return " · ".join(parts)


_TROUBLE: Final = frozenset({"paused", "back_pressure", "disk_low"})


def _why_no_model(status: Status) -> str:
    details = [beat.detail for beat in status.workers if beat.state == "no_model" and beat.detail]
    return details[0] if details else "no model"
