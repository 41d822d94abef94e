"""Arrow schemas of the topics, and the vocabularies that their codes stand for.

Money is integer cents, times are microseconds since 1970 UTC, a card is the 64-bit token of its number.
``label`` is 1 fraud, 0 genuine, -1 not known; it is never a feature.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

CATEGORIES: Final = (
    "entertainment", "food_dining", "gas_transport", "grocery_net", "grocery_pos", "health_fitness", "home",
    "kids_pets", "misc_net", "misc_pos", "personal_care", "shopping_net", "shopping_pos", "travel",
)  # fmt: skip
STATES: Final = (
    "AK", "AL", "AR", "AZ", "CA", "CO", "CT", "DC", "DE", "FL", "GA", "HI", "IA", "ID", "IL", "IN", "KS", "KY", "LA",
    "MA", "MD", "ME", "MI", "MN", "MO", "MS", "MT", "NC", "ND", "NE", "NH", "NJ", "NM", "NV", "NY", "OH", "OK", "OR",
    "PA", "RI", "SC", "SD", "TN", "TX", "UT", "VA", "VT", "WA", "WI", "WV", "WY", "PR", "VI", "GU", "AS", "MP",
)  # fmt: skip
SCENARIOS: Final = (
    "none", "card_not_present", "account_takeover", "velocity_attack", "geo_anomaly", "merchant_compromise",
    "synthetic_identity",
)  # fmt: skip
DECISIONS: Final = ("approved", "flagged")

MAX_AMOUNT_CENTS: Final = 1_000_000_000  # $10 M: above it a card transaction is an input error
LAST_TIME_US: Final = 158_731_488_000_000_000  # the year 7000; the clock of the feature kernel ends in 7711
UNKNOWN_LABEL: Final = -1

TIME = pa.timestamp("us", tz="UTC")
INGESTED = pa.dictionary(pa.uint8(), TIME)  # rows that came together share a time
INGESTED_MAX: Final = 256  # different ones in a segment
MERCHANT = pa.dictionary(pa.uint16(), pa.string())
MERCHANTS_MAX: Final = 65_536  # different ones in a segment
FIRST_NAME = pa.dictionary(pa.int16(), pa.string())

# Columns that every topic carries unchanged from the edge to the results.
IDENTITY: Final = (
    pa.field("trans_num", pa.string(), nullable=False),
    pa.field("event_time", TIME, nullable=False),
    pa.field("ingested_at", INGESTED, nullable=False),
    pa.field("card", pa.uint64(), nullable=False),  # keyed token, never the number
    pa.field("last4", pa.uint16(), nullable=False),
    pa.field("amt_cents", pa.int32(), nullable=False),
    pa.field("category", pa.uint8(), nullable=False),  # index into CATEGORIES
    pa.field("state", pa.uint8(), nullable=False),  # index into STATES
    pa.field("merchant", MERCHANT, nullable=False),
    pa.field("first", FIRST_NAME, nullable=False),
    pa.field("last_initial", pa.uint8(), nullable=False),  # ASCII capital; 63 '?' when the name has none
    pa.field("label", pa.int8(), nullable=False),
    pa.field("scenario", pa.int8(), nullable=False),  # index into SCENARIOS, for evaluation only
)
RAW: Final = pa.schema(
    [
        *IDENTITY,
        pa.field("home_lat", pa.float32(), nullable=False),
        pa.field("home_long", pa.float32(), nullable=False),
        pa.field("merch_lat", pa.float32(), nullable=False),
        pa.field("merch_long", pa.float32(), nullable=False),
        pa.field("city_pop", pa.int32(), nullable=False),
        pa.field("dob", pa.date32(), nullable=False),
    ]
)
NO_RAW_ROWS: Final = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in RAW], schema=RAW)


def came_together(rows: int, at: int) -> pa.DictionaryArray:
    """``ingested_at`` of rows that all came at ``at``, us since 1970."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.uint8)), pa.array([at], TIME))


def features_schema(width: int) -> pa.Schema:
    """features-ready: the identity columns and ``features``, ``width`` 16-bit codes (spearhead/codes.py) a row.

    Where rows share codes there is one column more (spearhead/packing.py).
    """
    return pa.schema([*IDENTITY, pa.field("features", pa.list_(pa.uint16(), width), nullable=False)])


def training_schema(width: int) -> pa.Schema:
    """training-queue: a sample of features-ready; ``weight`` is one over the share of rows that was sampled."""
    return pa.schema(
        [
            pa.field("trans", pa.uint64(), nullable=False),  # hash of trans_num: a label that comes late finds its row
            pa.field("event_time", TIME, nullable=False),
            pa.field("amt_cents", pa.int32(), nullable=False),
            pa.field("category", pa.uint8(), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("scenario", pa.int8(), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
            pa.field("features", pa.list_(pa.uint16(), width), nullable=False),
        ]
    )


LABELS: Final = pa.schema(
    [
        pa.field("trans_num", pa.string(), nullable=False),
        pa.field("labelled_at", TIME, nullable=False),
        pa.field("is_fraud", pa.int8(), nullable=False),  # 1 or 0
        pa.field("matched", pa.bool_(), nullable=False),  # false: no decision was found, the fields below say nothing
        pa.field("event_time", TIME, nullable=False),
        pa.field("card", pa.uint64(), nullable=False),
        pa.field("merchant", MERCHANT, nullable=False),
        pa.field("producer", pa.string(), nullable=False),  # of the decision's segment
        pa.field("own_label", pa.int8(), nullable=False),  # what the row itself carried: 1, 0, or -1
        pa.field("flagged", pa.bool_(), nullable=False),
        pa.field("in_sample", pa.bool_(), nullable=False),
    ]
)
"""Labels that came on their own (docs/decisions/0011-late-labels.md), joined with the decisions they are about."""

KNOWN_LABELS: Final = pa.schema(
    [
        pa.field("trans_num", pa.string(), nullable=False),
        pa.field("trans", pa.uint64(), nullable=False),  # hash of trans_num
        pa.field("is_fraud", pa.int8(), nullable=False),
        pa.field("labelled_at", TIME, nullable=False),
    ]
)
"""training-queue/labels: labels that changed what is known of a transaction; a later file overrules an earlier one."""

CODED = pa.dictionary(pa.int8(), pa.string())
CODED_TIME = pa.dictionary(pa.int8(), TIME)
RESULTS: Final = pa.schema(
    [
        pa.field("trans_num", pa.string(), nullable=False),
        pa.field("event_time", TIME, nullable=False),
        pa.field("card_token", pa.uint64(), nullable=False),
        pa.field("last4", pa.uint16(), nullable=False),
        pa.field("amt", pa.float64(), nullable=False),  # dollars
        pa.field("category", CODED, nullable=False),
        pa.field("state", CODED, nullable=False),
        pa.field("merchant", MERCHANT, nullable=False),
        pa.field("risk_score", pa.float32(), nullable=False),  # 0 to 1
        pa.field("decision", CODED, nullable=False),  # one of DECISIONS
        pa.field("is_fraud", pa.bool_(), nullable=True),
        pa.field("model_version", CODED, nullable=False),  # "v000001"
        pa.field("ingested_at", INGESTED, nullable=False),
        pa.field("scored_at", CODED_TIME, nullable=False),  # one time a segment
        pa.field("scenario", pa.int8(), nullable=False),
    ]
)
