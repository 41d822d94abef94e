"""What the generator stage takes rows from: synthetic traffic or a replayed file.

A source is constructed with the cursor to go on from (``""`` is the start). It is deterministic: two sources at the
same cursor give the same rows, however many are taken at a time.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import pyarrow as pa


class Reject(NamedTuple):
    """A row of the source that is no transaction."""

    line: int  # where it is in the source, counted from 1 as an editor does
    reason: str
    row: str  # the row as text; whoever writes it to the volume masks card numbers first


class Chunk(NamedTuple):
    """What one ``take`` gave."""

    batch: pa.RecordBatch  # of schema.RAW; the stage sets ingested_at
    rejected: list[Reject]
    cursor: str  # where to go on after this chunk; opaque to all but the source
    watermark: int  # newest event time given so far, us since 1970
    ended: bool  # nothing comes after this chunk


class Source(Protocol):
    """Rows in their final order."""

    finite: bool

    def take(self, rows: int) -> Chunk:
        """At most ``rows`` rows, accepted and rejected together; fewer only where the source ends or a block does.

        A chunk without any row means the source has ended.
        """
        ...
