"""The features once more, slowly and obviously: what ``spearhead.history`` must agree with, row for row.

It keeps every row it has seen in plain lists and looks through all of them at each row; nothing is shared with the
kernel. docs/FEATURES.md is what both are written from.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
BUCKET = 6 * HOUR
WINDOWS_MS = {"1h": 3_600_000, "24h": 86_400_000, "7d": 7 * 86_400_000}


class Past(NamedTuple):
    """A row as its card remembers it."""

    ms: int
    cents: int
    new_merchant: bool


class Card:
    def __init__(self, time: int) -> None:
        self.first = self.newest = time
        self.rows: list[Past] = []
        self.seen = 0
        self.merchants: list[str] = []  # most recently visited first
        self.categories: set[int] = set()
        self.place: tuple[float, float] | None = None
        self.log_mean = self.log_variance = self.usual = self.night_share = self.high_share = 0.0
        self.last_high: int | None = None  # minutes
        self.last_home: int | None = None  # minutes


class Merchant:
    def __init__(self, time: int) -> None:
        self.newest = time
        self.rows: list[tuple[int, int, int]] = []  # bucket, cents, label
        self.labels: dict[int, list[int]] = {}  # by bucket
        self.changes: list[tuple[int, int, int]] = []  # bucket, labelled, frauds: of labels that came on their own
        self.latest: list[tuple[int, int, int]] = []  # those of them that came when their bucket had matured
        self.seen = 0
        self.mean = 0.0


class Reference:
    """``card_limit`` and the others as ``History`` takes them; ``row`` gives a dict of all features."""

    def __init__(
        self, card_limit: int, merchant_limit: int, label_delay: int, partitions: int = 1, card_idle: int = 400 * DAY
    ) -> None:
        self.label_delay, self.partitions = label_delay, partitions
        self.cards = Memory(Card, card_limit, card_idle)
        self.merchants = Memory(Merchant, merchant_limit, None)
        self.late = self.truncated = 0

    def row(self, row: dict[str, Any], merchant_key: int) -> dict[str, float]:
        """Features of one row; ``merchant_key`` settles which of two equally idle merchants is forgotten."""
        return self.row_alone(row) | self.card_row(row) | self.merchant_row(row, merchant_key)

    def row_alone(self, row: dict[str, Any]) -> dict[str, float]:
        when = datetime.fromtimestamp(row["event_time"] // SECOND, UTC)
        hour = row["event_time"] % DAY / HOUR
        amount = row["amt_cents"] / 100
        born = datetime.combine(row["dob"], datetime.min.time(), UTC).timestamp()
        return {
            "amt": amount,
            "hour": hour,
            "weekday": when.weekday(),
            "home_km": kilometres((row["home_lat"], row["home_long"]), (row["merch_lat"], row["merch_long"])),
            "category": row["category"],
            "log_city_pop": math.log(1 + row["city_pop"]),
            "age_years": (row["event_time"] / SECOND - born) / 86_400 / 365.2425,
        }

    def card_row(self, row: dict[str, Any]) -> dict[str, float]:
        card = self.cards.recall(row["card"], row["event_time"], signed(row["card"]))
        gap = row["event_time"] - card.newest
        if gap < 0:
            self.late += 1
            gap = 0
        card.newest += gap
        amount, cents = row["amt_cents"] / 100, row["amt_cents"]
        log_amount, night = math.log(1 + amount), float(row["event_time"] % DAY < 7 * HOUR)
        new_merchant = row["merchant"] not in card.merchants
        card.merchants = [row["merchant"], *(name for name in card.merchants if name != row["merchant"])][:32]
        now = card.newest // 1000
        week = [past for past in card.rows if now - past.ms < WINDOWS_MS["7d"]]
        self.truncated += len(week) == 4096
        card.rows = [*week[-4095:], Past(now, cents, new_merchant)]
        inside = {name: [past for past in card.rows if now - past.ms < ms] for name, ms in WINDOWS_MS.items()}
        sums = {name: sum(past.cents for past in rows) / 100 for name, rows in inside.items()}
        spent = sums["24h"] / max(card.usual, 0.01) if card.seen else 1.0
        place = (row["merch_lat"], row["merch_long"])
        moved = kilometres(card.place, place) if card.place else 0.0
        days = (card.newest // MINUTE - card.first // MINUTE) / 1440
        home_km = kilometres((row["home_lat"], row["home_long"]), place)
        since_home = None if card.last_home is None else card.newest // MINUTE - card.last_home
        away = home_km >= 100
        features = {
            "card_log_gap": math.log(1 + gap / SECOND) if card.seen else -1.0,
            **{f"card_count_{name}": len(rows) for name, rows in inside.items()},
            **{f"card_sum_{name}": dollars for name, dollars in sums.items()},
            "card_mean_1h": sums["1h"] / len(inside["1h"]),
            "card_mean_ratio_24h": spent / len(inside["24h"]),
            "card_mean_7d": sums["7d"] / len(inside["7d"]),
            "card_amt_z": (log_amount - card.log_mean) / max(math.sqrt(card.log_variance), 0.1) if card.seen > 1 else 0,
            "card_amt_ratio": amount / max(card.usual, 0.01) if card.seen else 1.0,
            "card_rate_ratio": len(inside["24h"]) / ((card.seen + 1) / max(days, 1.0)),
            "card_last_km": moved,
            "card_speed_kmh": min(moved / (max(gap / SECOND, 60) / 3600), 10_000),
            "card_new_merchant": float(new_merchant),
            "card_new_merchants_24h": sum(past.new_merchant for past in inside["24h"]),
            "card_new_category": float(row["category"] not in card.categories),
            "card_small_1h": sum(past.cents < 500 for past in inside["1h"]),
            "card_days": days,
            "card_night_share": card.night_share,
            "card_high_days": -1 if card.last_high is None else (card.newest // MINUTE - card.last_high) / 1440,
            "card_high_share": card.high_share,
            "card_home_kmh": 0 if since_home is None or not away else min(home_km * 60 / max(since_home, 1), 10_000),
            "card_sum_ratio_24h": spent / max((card.seen + 1) / max(days, 1.0), 1.0),
        }
        if not away:
            card.last_home = card.newest // MINUTE
        known = card.seen >= 5
        high = known and amount > 3 * card.usual
        if high:
            card.last_high = card.newest // MINUTE
        card.seen += 1
        weight = 1 / min(card.seen, 64)
        off = log_amount - card.log_mean
        card.log_mean += off * weight
        card.log_variance = (1 - weight) * (card.log_variance + off * off * weight)
        card.usual += ((min(amount, 3 * card.usual) if known else amount) - card.usual) * weight
        card.high_share += (high - card.high_share) / min(card.seen, 16)
        card.night_share += (night - card.night_share) * weight
        card.categories.add(row["category"])
        card.place = place
        return features

    def merchant_row(self, row: dict[str, Any], key: int) -> dict[str, float]:
        time, amount = row["event_time"], row["amt_cents"] / 100
        merchant = self.merchants.recall(row["merchant"], time, key)
        merchant.newest = max(merchant.newest, time)
        newest_mature = (merchant.newest - self.label_delay) // BUCKET
        horizon = (merchant.newest - self.label_delay) // BUCKET - 30 * 4
        merchant.rows = [past for past in merchant.rows if past[0] >= horizon]
        merchant.changes = [change for change in merchant.changes if change[0] >= horizon]
        bucket, mature = time // BUCKET, (time - self.label_delay) // BUCKET
        recent = {days: [p[1] for p in merchant.rows if bucket - days * 4 < p[0] <= bucket] for days in (1, 7)}
        labels = {
            days: [p[2] for p in merchant.rows if mature - days * 4 <= p[0] < mature and p[2] >= 0]
            for days in (1, 7, 30)
        }
        counts = {
            days: (
                len(known) + sum(c[1] for c in merchant.changes if mature - days * 4 <= c[0] < mature),
                sum(known) + sum(c[2] for c in merchant.changes if mature - days * 4 <= c[0] < mature),
            )
            for days, known in labels.items()
        }
        week = [*recent[7], row["amt_cents"]]
        features = {
            "merch_count_24h": (len(recent[1]) + 1) * self.partitions,
            "merch_count_7d": len(week) * self.partitions,
            "merch_mean_7d": sum(week) / 100 / len(week),
            "merch_amt_ratio": amount / max(merchant.mean, 0.01) if merchant.seen else 1.0,
            **{f"merch_risk_{days}d": (bad + 0.005) / (known + 1) for days, (known, bad) in counts.items()},
            "merch_frauds_7d": counts[7][1] * self.partitions,
            "merch_labelled_30d": counts[30][0] * self.partitions,
            **latest_labels(merchant, time // BUCKET, mature, late=mature != newest_mature),
        }
        # A late row joins the newest bucket, so that its label counts later rather than too early.
        merchant.rows.append((merchant.newest // BUCKET, row["amt_cents"], row["label"]))
        if row["label"] >= 0:
            merchant.labels.setdefault(merchant.newest // BUCKET, []).append(row["label"])
        merchant.seen += 1
        merchant.mean += (amount - merchant.mean) / min(merchant.seen, 256)
        return features

    def label(self, name: str, event_time: int, is_fraud: int, before: int) -> bool:
        """A label that came on its own, of a row seen before; whether the merchant's memory had a place for it."""
        merchant = self.merchants.known.get(name)
        if merchant is None:
            return False
        bucket = event_time // BUCKET
        mature = (merchant.newest - self.label_delay) // BUCKET
        # The row's own bucket; if it came late, the next that there is.
        place = min((row[0] for row in merchant.rows if row[0] >= bucket >= mature - 30 * 4), default=None)
        if place is not None:
            entry = [row[2] for row in merchant.rows if row[0] == place]
            known = sum(label >= 0 for label in entry) + sum(c[1] for c in merchant.changes if c[0] == place)
            bad = sum(label > 0 for label in entry) + sum(c[2] for c in merchant.changes if c[0] == place)
            change = (place, int(before < 0), is_fraud - max(before, 0))
            if not 0 <= bad + change[2] <= known + change[1]:
                return False
            merchant.changes.append(change)
            if place >= mature:  # it matures with its bucket
                labels = merchant.labels.setdefault(place, [])
                if before >= 0:
                    labels.remove(before)
                labels.append(is_fraud)
                return True
        elif bucket >= mature:
            return False
        merchant.latest.append((mature, bucket, is_fraud))
        return True


def latest_labels(merchant: Merchant, bucket: int, mature: int, *, late: bool) -> dict[str, float]:
    """What a merchant's matured labels say, the newest most; a late row is told nothing."""
    by_bucket = [(known, 0, known, labels) for known, labels in merchant.labels.items() if known < mature]
    alone = [(came - 1, 1, known, [label]) for came, known, label in merchant.latest]
    run, last, risk = None, None, 0.0
    for _, _, known, labels in [] if late else sorted(by_bucket + alone, key=lambda one: one[:2]):
        weight = 1 - 0.75 ** len(labels)
        risk += (sum(labels) / len(labels) - risk) * weight
        if sum(labels):
            run, last = known if run is None else run, max(known, last or 0)
        else:
            run = None
    return {
        "merch_recent_risk": risk,
        "merch_fraud_run_days": -1 if run is None else (bucket - run) / 4,
        "merch_last_fraud_days": -1 if last is None else (bucket - last) / 4,
    }


class Memory:
    """Cards or merchants by name.

    Before a new one enters, a full memory forgets a sixteenth, longest idle first. With a limit of idle time it looks
    whenever it has grown by a quarter since it looked last, and forgets those idle for longer, counted from the time
    that a sixteenth have passed.
    """

    def __init__(self, kind: type, limit: int, idle: int | None) -> None:
        self.kind, self.limit, self.idle = kind, limit, idle
        self.known: dict[Any, Any] = {}
        self.look_at = limit if idle is None else 1
        self.forgotten = 0

    def recall(self, name: Any, time: int, key: int) -> Any:
        if name not in self.known:
            if len(self.known) == self.look_at:
                self.forget()
            self.known[name] = self.kind(time)
            self.known[name].key = key
        return self.known[name]

    def forget(self) -> None:
        idlest = sorted(self.known, key=lambda name: (self.known[name].newest, self.known[name].key))
        full = len(idlest) == self.limit
        gone = set(idlest[: max(1, self.limit // 16)] if full else [])
        if self.idle is not None:
            now = self.known[idlest[-1 - len(idlest) // 16]].newest
            gone |= {name for name in idlest if now - self.known[name].newest > self.idle}
        self.known = {name: one for name, one in self.known.items() if name not in gone}
        self.forgotten += len(gone)
        if self.idle is not None:
            self.look_at = min(self.limit, len(self.known) + max(1, len(self.known) // 4))


def signed(token: int) -> int:
    return token - (1 << 64) if token >= 1 << 63 else token


def kilometres(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Haversine distance of two (latitude, longitude) in degrees on a sphere of 6371.0088 km."""
    (lat1, long1), (lat2, long2) = (tuple(math.radians(angle) for angle in place) for place in (one, other))
    a = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((long2 - long1) / 2) ** 2
    return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(a)))


def as_dicts(batch: Any) -> list[dict[str, Any]]:
    """Rows of a batch with times as us since 1970 and the day of birth as a date."""
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names if name != "event_time"}
    columns["event_time"] = batch.column("event_time").cast("int64").to_pylist()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert all(isinstance(row["dob"], date) for row in rows)
    return rows
