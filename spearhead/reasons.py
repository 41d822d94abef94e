"""Reasons of a flagged transaction: which of its features raised the score most, in plain words.

Features that say much the same (an amount and its logarithm, a merchant's frauds over several windows) share a *code*,
whose contribution is the sum of theirs; its strongest feature speaks for it. A stored reason holds that feature and its
value (to 0.1 %, as features travel); ``text`` renders it when shown, so that wording can change without touching what
is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from spearhead.features import FEATURES
from spearhead.schema import CATEGORIES

MAX_REASONS: Final = 3
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SECOND: Final = ((86_400.0 * 2, 86_400.0, "day"), (5_400.0, 3_600.0, "hour"), (90.0, 60.0, "minute"))


class Reason(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One reason. ``contribution`` is what its code adds to the score, in log odds; always above 0."""

    feature: str
    value: float
    contribution: float


class Template(NamedTuple):
    """What a feature's value means, as words."""

    code: str
    words: Callable[[float], str]


def strongest(
    features: NDArray[np.float32], contributions: NDArray[np.float32], names: Sequence[str] = FEATURES
) -> list[list[Reason]]:
    """For each row at most MAX_REASONS reasons, strongest first; only what raises the score is one.

    Both are (n, width), ``contributions`` in log odds. A value that is not finite is no reason.
    """
    known = np.isfinite(features)
    raising = np.where(known, contributions, 0.0)
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(TEMPLATES[name].code, []).append(column)
    columns = [np.array(group) for group in groups.values()]
    sums = np.stack([raising[:, group].sum(axis=1, dtype=np.float64) for group in columns], axis=1)
    order = np.argsort(-sums, axis=1, kind="stable")[:, :MAX_REASONS]
    return [
        [
            _speaker(features[row], raising[row], columns[code], names, float(sums[row, code]))
            for code in order[row].tolist()
            if sums[row, code] > 0
        ]
        for row in range(len(features))
    ]


def text(reason: Reason) -> str:
    """A reason in words."""
    return TEMPLATES[reason.feature].words(reason.value)


def shown(reason: Reason, amount: float) -> dict[str, Any]:
    """A reason as the API shows it. ``amount`` is the transaction's in dollars; a stored value has it to 0.1 % only."""
    if reason.feature == "amt":
        reason = msgspec.structs.replace(reason, value=amount)
    return {
        "code": TEMPLATES[reason.feature].code,
        "text": text(reason),
        "feature": reason.feature,
        "value": reason.value,
        "contribution": reason.contribution,
    }


def _speaker(
    features: NDArray[np.float32],
    raising: NDArray[np.float32],
    group: NDArray[np.int64],
    names: Sequence[str],
    contribution: float,
) -> Reason:
    column = int(group[np.argmax(raising[group])])
    return Reason(names[column], float(features[column]), contribution)


def _dollars(value: float) -> str:
    return f"${value:,.2f}"


def _figures(value: float) -> str:
    """Three significant figures; whole numbers from 100 on in full."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _times(value: float) -> str:
    return f"{_figures(value) if value < 10 else f'{value:,.0f}'}×"


def _number(value: float, one: str, many: str = "") -> str:
    return f"{value:,.0f} {one if round(value) == 1 else many or one + 's'}"


def _ordinal(value: float) -> str:
    number = round(value)
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def _duration(seconds: float) -> str:
    for least, unit, name in _SECOND:
        if seconds >= least:
            return _number(seconds / unit, name)
    return _number(seconds, "second")


def _percent(share: float) -> str:
    return f"{_figures(100 * share)} %"


def _clock(hours: float) -> str:
    minutes = int(hours * 60 + 1e-3) % 1440  # as float32, a whole minute may be a little less
    return f"at {minutes // 60:02d}:{minutes % 60:02d} UTC"


def _weekday(value: float) -> str:
    return f"on a {_WEEKDAYS[int(value) % 7]}"


def _category(value: float) -> str:
    code = int(value)
    return f"category {CATEGORIES[code]}" if 0 <= code < len(CATEGORIES) else "category not known"


def _gap(value: float) -> str:
    if value < 0:
        return "the card's first transaction"
    return f"{_duration(math.expm1(value))} after the card's transaction before"


def _deviations(value: float) -> str:
    side = "above" if value > 0 else "below"
    return f"amount {_figures(abs(value))} standard deviations {side} the card's usual"


def _speed(value: float, origin: str = "the card's transaction before") -> str:
    more = " or more" if value >= 10_000 else ""
    return f"{_figures(value)} km/h{more} needed to get here from {origin}"


def _switch(yes: str, no: str) -> Callable[[float], str]:
    return lambda value: yes if value >= 0.5 else no


def _nth(window: str) -> Callable[[float], str]:
    return lambda value: f"{_ordinal(value)} transaction of the card in {window}"


def _spent(window: str) -> Callable[[float], str]:
    return lambda value: f"about ${_figures(value)} spent with the card in {window}"


def _mean(whose: str, window: str) -> Callable[[float], str]:
    return lambda value: f"mean amount of the {whose} in {window} about ${_figures(value)}"


def _busy(window: str) -> Callable[[float], str]:
    return lambda value: f"{_number(value, 'transaction')} at the merchant in {window}"


def _risk(window: str) -> Callable[[float], str]:
    return lambda value: f"merchant's fraud rate about {_percent(value)} ({window} with known outcomes)"


def _since(what: str, none: str) -> Callable[[float], str]:
    return lambda value: f"{what} {_duration(value * 86_400)} ago" if value >= 0 else none


TEMPLATES: Final[dict[str, Template]] = {
    "amt": Template("amount", lambda v: f"amount {_dollars(v)}"),
    "hour": Template("time_of_day", _clock),
    "weekday": Template("day_of_week", _weekday),
    "home_km": Template("far_from_home", lambda v: f"{_figures(v)} km from the card holder's home"),
    "category": Template("category", _category),
    "log_city_pop": Template("home_city", lambda v: f"home city of about {_figures(math.expm1(v))} people"),
    "age_years": Template("holder_age", lambda v: f"card holder aged {math.floor(v + 1e-4)}"),
    "card_log_gap": Template("card_gap", _gap),
    "card_count_1h": Template("card_velocity", _nth("1 hour")),
    "card_count_24h": Template("card_velocity", _nth("24 hours")),
    "card_count_7d": Template("card_velocity", _nth("7 days")),
    "card_sum_1h": Template("card_spend", _spent("1 hour")),
    "card_sum_24h": Template("card_spend", _spent("24 hours")),
    "card_sum_7d": Template("card_spend", _spent("7 days")),
    "card_mean_1h": Template("card_mean", _mean("card", "1 hour")),
    "card_mean_ratio_24h": Template(
        "amount_for_card", lambda v: f"mean amount of the card in 24 hours {_times(v)} its usual"
    ),
    "card_mean_7d": Template("card_mean", _mean("card", "7 days")),
    "card_amt_z": Template("amount_for_card", _deviations),
    "card_amt_ratio": Template("amount_for_card", lambda v: f"amount {_times(v)} the card's usual"),
    "card_rate_ratio": Template("card_velocity", lambda v: f"card used {_times(v)} its usual number of times a day"),
    "card_last_km": Template("card_travel", lambda v: f"{_figures(v)} km from the card's transaction before"),
    "card_speed_kmh": Template("card_travel", _speed),
    "card_new_merchant": Template("new_merchant", _switch("merchant new to the card", "merchant the card knows")),
    "card_new_merchants_24h": Template(
        "new_merchant", lambda v: f"{_number(v, 'transaction')} at merchants new to the card in 24 hours"
    ),
    "card_new_category": Template(
        "new_category", _switch("category new to the card", "category the card has used before")
    ),
    "card_small_1h": Template(
        "small_amounts", lambda v: f"{_number(v, 'transaction')} under $5 with the card in 1 hour"
    ),
    "card_days": Template("card_age", lambda v: f"card first seen {_duration(v * 86_400)} ago"),
    "card_night_share": Template("card_habits", lambda v: f"{_percent(v)} of the card's transactions are at night"),
    "card_high_days": Template(
        "card_high_amounts", _since("amount over 3× the card's usual", "no amount over 3× the card's usual before")
    ),
    "card_high_share": Template(
        "card_high_amounts", lambda v: f"{_percent(v)} of the card's latest amounts over 3× its usual"
    ),
    "card_home_kmh": Template(
        "card_travel",
        lambda v: _speed(v, "the card's last transaction at home") if v > 0 else "near home, or never seen there",
    ),
    "card_sum_ratio_24h": Template("card_spend", lambda v: f"{_times(v)} the card's usual day spent in 24 hours"),
    "merch_count_24h": Template("merchant_volume", _busy("24 hours")),
    "merch_count_7d": Template("merchant_volume", _busy("7 days")),
    "merch_mean_7d": Template("merchant_mean", _mean("merchant", "7 days")),
    "merch_amt_ratio": Template("amount_for_merchant", lambda v: f"amount {_times(v)} the merchant's usual"),
    "merch_risk_1d": Template("merchant_fraud", _risk("1 day")),
    "merch_risk_7d": Template("merchant_fraud", _risk("7 days")),
    "merch_risk_30d": Template("merchant_fraud", _risk("30 days")),
    "merch_frauds_7d": Template("merchant_fraud", lambda v: f"merchant with {_number(v, 'recent fraud')}"),
    "merch_labelled_30d": Template(
        "merchant_outcomes", lambda v: f"merchant with {_number(v, 'recent transaction')} of known outcome"
    ),
    "merch_recent_risk": Template(
        "merchant_fraud", lambda v: f"about {_percent(v)} of the merchant's latest outcomes fraud"
    ),
    "merch_fraud_run_days": Template(
        "merchant_fraud",
        _since("merchant's run of known frauds began", "merchant's latest known outcomes without fraud"),
    ),
    "merch_last_fraud_days": Template(
        "merchant_fraud", _since("merchant's last known fraud", "merchant without a known fraud")
    ),
}
