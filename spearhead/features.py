"""The features of a transaction: their order, and ``History``, which computes them.

Names and order are the model's contract; ``FEATURES_VERSION`` rises with any change of a name, its place or its
meaning. What each one means is in docs/FEATURES.md. Neither the label (except a merchant's, once it has matured), nor
the scenario, the time of ingest, nor anything about the holder beyond age is read: no gender, no name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from spearhead.history import History

__all__ = [
    "CARD",
    "FEATURES",
    "FEATURES_VERSION",
    "MERCHANT",
    "MERCHANT_LABELS",
    "STATELESS",
    "WIDTH",
    "History",
    "warm",
]

FEATURES_VERSION: Final = 3

STATELESS: Final = (
    "amt", "hour", "weekday", "home_km", "category", "log_city_pop", "age_years",
)  # fmt: skip
CARD: Final = (
    "card_log_gap",
    "card_count_1h", "card_count_24h", "card_count_7d",
    "card_sum_1h", "card_sum_24h", "card_sum_7d",
    "card_mean_1h", "card_mean_ratio_24h", "card_mean_7d",
    "card_amt_z", "card_amt_ratio", "card_rate_ratio",
    "card_last_km", "card_speed_kmh",
    "card_new_merchant", "card_new_merchants_24h", "card_new_category",
    "card_small_1h", "card_days", "card_night_share",
    "card_high_days", "card_high_share", "card_home_kmh", "card_sum_ratio_24h",
)  # fmt: skip
MERCHANT_LABELS: Final = (  # what its matured labels say: by its 6-hour buckets, not row by row
    "merch_risk_1d", "merch_risk_7d", "merch_risk_30d",
    "merch_frauds_7d", "merch_labelled_30d",
    "merch_recent_risk", "merch_fraud_run_days", "merch_last_fraud_days",
)  # fmt: skip
MERCHANT: Final = ("merch_count_24h", "merch_count_7d", "merch_mean_7d", "merch_amt_ratio", *MERCHANT_LABELS)
FEATURES: Final = STATELESS + CARD + MERCHANT
WIDTH: Final = len(FEATURES)


def warm() -> None:
    """Compile the kernel, or load it from its cache, before the first row waits for it."""
    from spearhead.history import warm as warm_history  # noqa: PLC0415

    warm_history()


def __getattr__(name: str) -> Any:
    # Only prep computes features; the stages that need no more than the names shall not pay for numba.
    if name == "History":
        from spearhead.history import History  # noqa: PLC0415

        return History
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    warm()
