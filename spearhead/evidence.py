"""What a result segment keeps of its flagged rows, so that each can say why: its reasons, or its codes to find them.

It is JSON in the metadata of the segment's record batch, one entry a flagged row in order: some 130 bytes each, so
under 1 byte a scored row as long as fewer than 0.7 % are flagged. Text, since other readers of Arrow files than
Arrow's own take metadata for UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from spearhead import codes, shap
from spearhead.codes import Codes
from spearhead.reasons import Reason, strongest

Entry = list[Reason] | bytes  # reasons, or the row's codes, uint16 in this machine's order


def encode(rows: Sequence[int], matrix: Codes, reasons: Mapping[int, list[Reason]]) -> bytes:
    """Evidence of the flagged ``rows`` of a segment, ascending, with their codes (rows, width); ``reasons`` by row."""
    pairs = zip(rows, matrix, strict=True)
    return msgspec.json.encode([reasons[row] if row in reasons else found.tobytes() for row, found in pairs])


def decode(notes: bytes) -> list[Entry]:
    """An entry for each flagged row. Raises ValueError if it is no evidence."""
    return msgspec.json.decode(notes, type=list[Entry])


def explain(kept: bytes, paths: shap.Paths, names: Sequence[str], slope: float) -> list[Reason]:
    """Reasons of a row of which its codes were kept, by the model that scored it: its paths, feature names and slope.

    Raises ValueError if they are codes of other features.
    """
    if len(kept) != 2 * len(names):
        raise ValueError(f"{len(kept) // 2} codes where the model has {len(names)} features")
    row = np.frombuffer(kept, np.uint16)[None]
    return strongest(codes.decode(row), (paths.contributions(row) * slope).astype(np.float32), names)[0]
