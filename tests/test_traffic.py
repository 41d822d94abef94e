"""Synthetic traffic: a function of its settings and the position, plausible, and fraud with causes."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.generator.habits import SPENDING
from services.generator.places import DAY_US
from services.generator.population import population
from services.generator.traffic import PER_CARD_AND_DAY, START_US, Traffic
from spearhead.schema import CATEGORIES, RAW, SCENARIOS, STATES

CARDS, MERCHANTS, DAYS = 6_000, 700, 42
MINUTE_US = 60_000_000
NET = [code for code, name in enumerate(CATEGORIES) if name.endswith("_net")]


def traffic(cursor: str = "", slot: int = 0, seed: int = 3, fraud_rate: float = 0.005) -> Traffic:
    return Traffic(population(1_500, 200, seed), seed, slot, fraud_rate, cursor)


def table_of(batches: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).combine_chunks().drop_columns(["ingested_at"])


class Rows:
    """Six weeks of traffic as NumPy columns."""

    def __init__(self, fraud_rate: float = 0.02) -> None:
        source = Traffic(population(CARDS, MERCHANTS, 5), 5, 0, fraud_rate)
        batches = [source.take(50_000) for _ in range(int(CARDS * PER_CARD_AND_DAY * DAYS / 50_000) + 1)]
        self.table = pa.Table.from_batches([chunk.batch for chunk in batches]).unify_dictionaries()
        self.time = self["event_time"].astype(np.int64) - START_US
        self.day = self.time // DAY_US

    def __getitem__(self, name: str) -> np.ndarray:
        column = self.table[name]
        if name in ("event_time", "dob"):
            column = column.cast(pa.int64() if name == "event_time" else pa.int32())
        return column.combine_chunks().to_numpy(zero_copy_only=False)

    def of(self, scenario: str) -> np.ndarray:
        return np.flatnonzero(self["scenario"] == SCENARIOS.index(scenario))

    def episodes(self, scenario: str, gap_us: int) -> list[np.ndarray]:
        """Row numbers of a scenario's episodes: rows of one card without a longer gap between them."""
        rows = self.of(scenario)
        rows = rows[np.lexsort((self.time[rows], self["card"][rows]))]
        new = (np.diff(self["card"][rows]) != 0) | (np.diff(self.time[rows]) > gap_us)
        return np.split(rows, np.flatnonzero(new) + 1)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4000), st.booleans()), min_size=1, max_size=12))
def test_rows_do_not_depend_on_how_many_are_taken_or_where_it_was_resumed(steps: list[tuple[int, bool]]) -> None:
    total = sum(count for count, _ in steps)
    whole = traffic().take(total)
    source, parts = traffic(), []
    for count, killed in steps:
        chunk = source.take(count)
        assert chunk.batch.num_rows == count
        parts.append(chunk.batch)
        if killed:
            source = traffic(chunk.cursor)
    assert table_of(parts).equals(table_of([whole.batch]))
    assert chunk.cursor == whole.cursor
    assert chunk.watermark == whole.watermark


def test_a_resumed_source_goes_on_the_same_after_days() -> None:
    source = traffic()
    for _ in range(8):
        cursor = source.take(9_999).cursor
    assert table_of([traffic(cursor).take(20_000).batch]).equals(table_of([source.take(20_000).batch]))


def test_batches_are_of_the_topic_and_valid() -> None:
    batch = traffic().take(3_000).batch
    assert batch.schema.equals(RAW)
    batch.validate(full=True)
    assert traffic().take(0).batch.num_rows == 0


@pytest.mark.parametrize("other", [{"seed": 4}, {"fraud_rate": 0.01}])
def test_a_cursor_of_other_settings_is_refused(other: dict[str, float]) -> None:
    cursor = traffic().take(10).cursor
    with pytest.raises(ValueError, match="traffic on the volume"):
        traffic(cursor, **other)  # type: ignore[arg-type]


def test_seeds_and_slots_differ_and_never_share_an_id_or_card() -> None:
    first, second = (traffic(slot=slot).take(20_000).batch for slot in (0, 1))
    ids = pa.chunked_array([first["trans_num"], second["trans_num"]])
    assert len(ids.unique()) == 40_000
    assert not set(first["card"].to_pylist()) & set(second["card"].to_pylist())
    assert first["amt_cents"] != traffic(seed=4).take(20_000).batch["amt_cents"]


def test_no_text_looks_like_a_card_number(rows: Rows) -> None:
    ids = "\n".join(rows["trans_num"][:100_000])
    assert not re.search(r"\d{11}", ids)
    assert {len(name) for name in rows["trans_num"][:1000]} == {11}
    assert not re.search(r"\d{11}", "\n".join(rows.table["merchant"].unique().to_pylist()))


def test_time_never_goes_back_and_every_id_is_new(rows: Rows) -> None:
    assert (np.diff(rows.time) >= 0).all()
    assert rows.time[0] < DAY_US // 24
    assert len(rows.table["trans_num"].unique()) == len(rows.table)


def test_a_card_is_used_two_to_four_times_a_day(rows: Rows) -> None:
    full = rows.day < DAYS - 1
    per_day = np.bincount(rows.day[full])
    assert 2.8 < per_day.mean() / CARDS < 3.2
    cards, count = np.unique(rows["card"][full & (rows.day < 20)], return_counts=True)
    assert len(cards) > CARDS
    assert np.quantile(count, 0.95) > 3 * np.quantile(count, 0.25)  # people differ


def test_days_and_weeks_have_a_rhythm(rows: Rows) -> None:
    hour = np.bincount(rows.time // (DAY_US // 24) % 24, minlength=24)
    assert hour[3] < 0.15 * hour[17]
    week = np.bincount(rows.day[rows.day < 35] % 7, minlength=7)
    assert week[5] > 1.2 * week[1]  # Saturday, Tuesday


def test_amounts_are_those_of_their_category(rows: Rows) -> None:
    genuine = rows["label"] == 0
    for code, name in enumerate(CATEGORIES):
        dollars = rows["amt_cents"][genuine & (rows["category"] == code)] / 100
        assert 0.6 < np.median(dollars) / SPENDING[name].median < 1.5, name
        assert dollars.min() >= 0.5
    grocery = rows["amt_cents"][genuine & (rows["category"] == CATEGORIES.index("grocery_pos"))]
    assert np.quantile(grocery, 0.9999) < 300_000


def test_every_state_and_category_occurs_and_one_person_has_one_home(rows: Rows) -> None:
    assert len(np.unique(rows["category"])) == len(CATEGORIES)
    assert len(np.unique(rows["state"])) >= 48
    assert rows["state"].max() < len(STATES)
    homes = set(zip(rows["card"][:50_000].tolist(), rows["home_lat"][:50_000].tolist(), strict=True))
    assert len(homes) == len({card for card, _ in homes})


@pytest.mark.parametrize("fraud_rate", [0.0, 0.005, 0.05])
def test_fraud_is_as_frequent_as_asked_for(fraud_rate: float) -> None:
    source = Traffic(population(CARDS, MERCHANTS, 9), 9, 0, fraud_rate)
    label = np.concatenate([source.take(60_000).batch["label"].to_numpy() for _ in range(12)])
    assert label.mean() == pytest.approx(fraud_rate, rel=0.12, abs=1e-9)


def test_every_scenario_occurs_and_is_fraud(rows: Rows) -> None:
    assert np.array_equal(rows["label"] == 1, rows["scenario"] > 0)
    count = np.bincount(rows["scenario"], minlength=len(SCENARIOS))
    assert (count[1:] > 0.05 * count[1:].sum()).all()


def test_card_not_present_is_a_spree_at_new_online_shops(rows: Rows) -> None:
    assert np.isin(rows["category"][rows.of("card_not_present")], NET).all()
    sprees = rows.episodes("card_not_present", 2 * DAY_US // 24)
    assert 6 < np.mean([len(spree) for spree in sprees]) < 9
    known = [np.isin(rows.table["merchant"].take(spree[:1]).to_pylist(), before(rows, spree[0])) for spree in sprees]
    assert np.mean(known) < 0.1


def before(rows: Rows, row: int) -> list[str]:
    """Merchants that the card of ``row`` used earlier."""
    earlier = np.flatnonzero(rows["card"][:row] == rows["card"][row])
    return rows.table["merchant"].take(earlier).to_pylist()


def test_velocity_attack_is_many_tiny_payments_and_then_a_large_one(rows: Rows) -> None:
    attacks = rows.episodes("velocity_attack", 3 * DAY_US // 24)
    for attack in attacks[:200]:
        cents = rows["amt_cents"][attack]
        small = cents <= 600
        assert 8 <= small.sum() <= 42
        if small.sum() <= 21:  # otherwise two attacks on one card
            assert small[: small.sum()].all()
            assert rows.time[attack][small].max() - rows.time[attack][0] < 55 * MINUTE_US
    assert np.mean([rows["amt_cents"][a].max() > 3 * rows["amt_cents"][a[0]] for a in attacks]) > 0.95


def speeds(rows: Rows, picked: np.ndarray) -> np.ndarray:
    """km/h from the card's row before, by a flat-earth reckoning."""
    order = np.lexsort((rows.time, rows["card"]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    at = place[picked]
    before_it = order[at - 1]
    same = (at > 0) & (rows["card"][before_it] == rows["card"][picked])
    north = (rows["merch_lat"][picked] - rows["merch_lat"][before_it]) * 111.2
    east = (rows["merch_long"][picked] - rows["merch_long"][before_it]) * 88.0
    hours = np.maximum(rows.time[picked] - rows.time[before_it], MINUTE_US) / (DAY_US / 24)
    return np.where(same, np.hypot(north, east) / hours, 0.0)


def test_geo_anomaly_is_faster_than_anyone_travels_and_genuine_travel_is_not(rows: Rows) -> None:
    first = np.array([episode[0] for episode in rows.episodes("geo_anomaly", DAY_US // 2)])
    assert np.quantile(speeds(rows, first), 0.05) > 400
    assert not np.isin(rows["category"][first], NET).any()
    stolen = np.isin(rows["card"], rows["card"][rows["label"] == 1])
    genuine = np.flatnonzero(~stolen)
    far = np.hypot(rows["home_lat"] - rows["merch_lat"], rows["home_long"] - rows["merch_long"])[genuine] > 3
    assert far.mean() > 0.002  # there are genuine travellers
    assert np.quantile(speeds(rows, genuine[far]), 0.99) < 900


def test_account_takeover_is_nightly_and_dear(rows: Rows) -> None:
    taken = rows.of("account_takeover")
    assert (rows.time[taken] // (DAY_US // 24) % 24 < 6).mean() > 0.5
    genuine = rows["amt_cents"][rows["label"] == 0]
    assert 2 < np.median(rows["amt_cents"][taken]) / np.median(genuine) < 12
    assert np.quantile(genuine, 0.99) > np.median(rows["amt_cents"][taken])  # not visible in a single row


def test_compromised_merchants_leak_for_weeks(rows: Rows) -> None:
    leaked = rows.of("merchant_compromise")
    merchant = codes(rows)
    worst = np.bincount(merchant[leaked]).argmax()
    days = rows.day[leaked[merchant[leaked] == worst]]
    assert days.max() - days.min() >= 20
    assert len(np.unique(merchant[leaked])) < 0.2 * MERCHANTS
    while_leaking = (merchant == worst) & (rows.day >= days.min()) & (rows.day <= days.max())
    assert (rows["scenario"][while_leaking] == SCENARIOS.index("merchant_compromise")).mean() > 0.4


def codes(rows: Rows) -> np.ndarray:
    return np.concatenate([chunk.indices.to_numpy() for chunk in rows.table["merchant"].chunks])


def test_synthetic_identities_are_young_and_spend_more_than_they_did(rows: Rows) -> None:
    ages, ratios = [], []
    for bust in rows.episodes("synthetic_identity", DAY_US)[:60]:
        own = np.flatnonzero(
            (rows["card"] == rows["card"][bust[0]]) & (rows["label"] == 0) & (rows.time < rows.time[bust[0]])
        )
        if len(own) > 3 and rows.day[bust[0]] > 38:
            ages.append(rows.day[bust[0]] - rows.day[own[0]])
        if len(own) > 3:
            ratios.append(np.median(rows["amt_cents"][bust]) / np.median(rows["amt_cents"][own]))
    assert max(ages) <= 40
    assert np.median(ratios) > 4


def test_small_populations_make_their_few_rows() -> None:
    source = Traffic(population(10, 20, 1), 1, 0, 0.2)
    batch = source.take(3_000).batch
    batch.validate(full=True)
    days = (batch["event_time"].cast("int64").to_numpy()[-1] - START_US) / DAY_US
    assert 80 < days < 125
