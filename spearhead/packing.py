"""features-ready, packed: codes that many rows share are written once.

What a merchant's matured labels say (``features.MERCHANT_LABELS``) changes with its 6-hour buckets, not row by row:
some thousand tuples stand for a segment's 65,536 rows. Each is written once, and a row has its number, 16 bits (column
``merchant_labels``). ``features`` holds the other codes. A segment with more tuples than 16 bits can number has all
codes of a row in ``features`` and lacks the other column; readers take both forms.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from spearhead import codes
from spearhead.codes import OWN, Packed
from spearhead.features import MERCHANT_LABELS, WIDTH
from spearhead.schema import IDENTITY, features_schema
from spearhead.segment import SegmentError

PLAIN: Final = features_schema(WIDTH)
_TUPLE: Final = pa.dictionary(pa.uint16(), pa.list_(pa.uint16(), len(MERCHANT_LABELS)))
SCHEMA: Final = features_schema(OWN).append(pa.field("merchant_labels", _TUPLE, nullable=False))


def of(batch: pa.RecordBatch) -> Packed:
    """The codes of a features-ready batch, packed or not, over its memory. Raises SegmentError if they are damaged."""
    own = codes.of(batch.column("features"))
    if "merchant_labels" not in batch.schema.names:
        return codes.plain(own)
    column = batch.column("merchant_labels")
    if column.type != _TUPLE or column.null_count:
        raise SegmentError(f"merchant_labels is {column.type} with {column.null_count} nulls")
    numbers, tuples = column.indices.to_numpy(zero_copy_only=True), codes.of(column.dictionary)
    if len(numbers) and numbers.max() >= len(tuples):
        raise SegmentError(f"a row has tuple {numbers.max()} of {len(tuples)}")
    return Packed(own, numbers, tuples)


def attach(batch: pa.RecordBatch, packed: Packed) -> pa.RecordBatch:
    """The identity columns of ``batch`` (schema.RAW), by reference, with its codes: of SCHEMA, or of PLAIN if plain."""
    identity = [batch.column(field.name) for field in IDENTITY]
    own = codes.lists(packed.own)
    if not packed.tuples.shape[1]:
        return pa.RecordBatch.from_arrays([*identity, own], schema=PLAIN)
    labels = pa.DictionaryArray.from_arrays(pa.array(packed.numbers), codes.lists(packed.tuples), safe=False)
    return pa.RecordBatch.from_arrays([*identity, own, labels], schema=SCHEMA)
