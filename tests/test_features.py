"""Features by the kernel against the slow reference, and what must not change them."""

from __future__ import annotations

import csv
import itertools
import math
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spearhead import kernel
from spearhead.features import CARD, FEATURES, MERCHANT, STATELESS, WIDTH
from spearhead.history import DAY_US, History, StateError, columns
from spearhead.schema import CATEGORIES, RAW
from tests.reference_features import Reference, as_dicts, kilometres
from tests.segments import ingested

ROOT = Path(__file__).parents[1]
SLICE = ROOT.parent / "shared" / "data" / "sparkov_slice.csv"
HOUR_US = 3_600_000_000
START = 1_700_000_000_000_000
F = {name: place for place, name in enumerate(FEATURES)}


def make_batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    """A batch of schema.RAW; what a row does not say has a default."""
    default: dict[str, object] = {
        "trans_num": "t", "event_time": START, "ingested_at": 0, "card": 1, "last4": 0, "amt_cents": 1000,
        "category": 0, "state": 0, "merchant": "m", "first": "x", "last_initial": 65, "label": 0, "scenario": 0,
        "home_lat": 40.0, "home_long": -90.0, "merch_lat": 40.5, "merch_long": -90.5, "city_pop": 1000,
        "dob": date(1980, 1, 1),
    }  # fmt: skip
    full = [default | row for row in rows]
    arrays = {f.name: pa.array([r[f.name] for r in full], f.type) for f in RAW if f.name != "ingested_at"}
    arrays["ingested_at"] = ingested([r["ingested_at"] for r in full])
    return pa.RecordBatch.from_arrays([arrays[f.name] for f in RAW], schema=RAW)


def merchant_keys(batch: pa.RecordBatch) -> list[int]:
    rows = columns(batch)
    return [int(np.uint64(kernel.name_key(rows, code)).view(np.int64)) for code in rows.merchant]


def reference_features(batch: pa.RecordBatch, reference: Reference) -> np.ndarray:
    keys = merchant_keys(batch)
    dicts = [reference.row(row, key) for row, key in zip(as_dicts(batch), keys, strict=True)]
    assert all(tuple(features) == FEATURES for features in dicts)
    return np.array([list(features.values()) for features in dicts], np.float64).reshape(len(dicts), WIDTH)


def assert_parity(batch: pa.RecordBatch, history: History, reference: Reference) -> None:
    got, expected = history.transform(batch), reference_features(batch, reference)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    for name, place in F.items():
        np.testing.assert_allclose(got[:, place], expected[:, place], rtol=2e-6, atol=2e-5, err_msg=name)
    counts = [place for name, place in F.items() if re.search("count|new|small|frauds|labelled|night$|week", name)]
    np.testing.assert_array_equal(got[:, counts], expected[:, counts])
    assert (history.late, history.truncated) == (reference.late, reference.truncated)


# Steps of time that bring out the windows' edges, ties, bursts, long silence, and rows out of order.
STEPS = st.one_of(
    st.sampled_from([0, 0, 1, 999, 1000, HOUR_US - 1000, HOUR_US, DAY_US, 6 * HOUR_US, 7 * DAY_US, 200 * DAY_US]),
    st.integers(0, 30 * 60_000_000),
    st.integers(0, 2 * DAY_US),
    st.integers(-3 * DAY_US, 0),
)


@st.composite
def streams(draw: st.DrawFn, most: int = 120) -> list[dict[str, object]]:
    cards, merchants = draw(st.integers(1, 12)), draw(st.sampled_from([1, 3, 40]))
    steps = draw(st.lists(STEPS, min_size=1, max_size=most))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    times = START + np.cumsum(steps)
    homes = [(float(random.uniform(-89, 89)), float(random.uniform(-179, 179))) for _ in times]
    return [
        {
            "event_time": int(time),
            "card": int(random.integers(0, cards)) * 0x9E3779B97F4A7C15 % 2**64,
            "amt_cents": int(random.choice([0, 1, 499, 500, 12345, 10**9, int(random.integers(0, 10**5))])),
            "category": int(random.integers(0, 14)),
            "merchant": f"m{random.integers(0, merchants)}",
            "label": int(random.integers(-1, 2)),
            "home_lat": lat,
            "home_long": long,
            # Half of them in the home's neighbourhood, which ends 100 km away.
            "merch_lat": float(lat + random.uniform(-1, 1) if random.random() < 0.5 else random.uniform(-90, 90)),
            "merch_long": float(long + random.uniform(-1, 1) if random.random() < 0.5 else random.uniform(-180, 180)),
            "city_pop": int(random.integers(0, 10**7)),
        }
        for time, (lat, long) in zip(times, homes, strict=True)
    ]


IDLE = st.sampled_from([DAY_US // 2, 3 * DAY_US, 150 * DAY_US, 400 * DAY_US])
PATIENT = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])


@PATIENT
@given(streams(), st.sampled_from([0, 1, DAY_US // 2, 7 * DAY_US]), st.integers(1, 3))
def test_agrees_with_the_reference(rows: list[dict[str, object]], label_delay: int, partitions: int) -> None:
    history = History(100, 100, label_delay, partitions)
    assert_parity(make_batch(rows), history, Reference(100, 100, label_delay, partitions))


@PATIENT
@given(streams(), st.integers(1, 6), st.integers(1, 20))
def test_agrees_with_the_reference_when_memory_is_short(
    rows: list[dict[str, object]], card_max: int, merchant_max: int
) -> None:
    history = History(card_max, merchant_max, DAY_US)
    assert_parity(make_batch(rows), history, Reference(card_max, merchant_max, DAY_US))
    assert history.cards <= card_max
    assert history.merchants <= merchant_max


@PATIENT
@given(streams(), st.sampled_from([0, DAY_US // 2, 3 * DAY_US, 150 * DAY_US]), st.integers(1, 20))
def test_agrees_with_the_reference_when_idle_cards_are_forgotten(
    rows: list[dict[str, object]], card_idle: int, card_max: int
) -> None:
    history = History(card_max, 100, DAY_US, 1, card_idle)
    reference = Reference(card_max, 100, DAY_US, 1, card_idle)
    assert_parity(make_batch(rows), history, reference)
    assert (history.cards, history.evicted_cards) == (len(reference.cards.known), reference.cards.forgotten)


def test_idle_cards_are_forgotten_before_memory_is_full() -> None:
    """A new card every hour, each used for a day: what is kept follows the idle time, not the traffic."""
    history = History(card_idle_us=10 * DAY_US)
    rows = [{"card": 24 + i - i % 3 * 8, "event_time": START + i * HOUR_US} for i in range(24 * 365)]
    most = 0
    for piece in cut(make_batch(rows), list(range(0, len(rows), 100))):
        history.transform(piece)
        most = max(most, history.cards)
    assert 24 * 10 < most < 24 * 10 * 1.4
    assert history.evicted_cards > 5000


def test_one_row_with_a_wrong_date_makes_no_other_card_look_idle() -> None:
    rows = [{"card": i % 40, "event_time": START + i * HOUR_US} for i in range(400)]
    wrong = {"card": 1000, "event_time": START + 50 * 365 * DAY_US}
    new = [{"card": 2000 + i, "event_time": START + (400 + i) * HOUR_US} for i in range(40)]
    history = History(card_idle_us=400 * DAY_US)
    history.transform(make_batch([*rows, wrong, *new]))
    assert history.evicted_cards == 0
    again = history.transform(make_batch([{"card": i, "event_time": START + 500 * HOUR_US} for i in range(40)]))
    assert again[:, F["card_days"]].min() > 10


def test_agrees_with_the_reference_on_a_merchant_with_long_traffic() -> None:
    random = np.random.default_rng(5)
    steps = random.choice(
        [60_000_000, HOUR_US, 5 * HOUR_US, -8 * HOUR_US, -2 * DAY_US], 1500, p=[0.3, 0.3, 0.3, 0.08, 0.02]
    )
    rows = [
        {"event_time": int(time), "card": int(random.integers(0, 50)), "label": int(random.integers(-1, 2)),
         "merchant": f"m{random.integers(0, 2)}", "amt_cents": int(random.integers(1, 10**6))}
        for time in START + np.cumsum(steps)
    ]  # fmt: skip
    assert_parity(make_batch(rows), History(100, 100), Reference(100, 100, 7 * DAY_US))


def test_a_card_holds_4096_rows() -> None:
    rows = [{"event_time": START + i * 1000, "amt_cents": i % 997} for i in range(4300)]
    history, reference = History(10, 10), Reference(10, 10, 7 * DAY_US)
    assert_parity(make_batch(rows), history, reference)
    assert history.truncated == 4300 - 4096
    # An hour later the short windows let go, and the ring wraps round.
    assert_parity(make_batch([{"event_time": START + 4299_000 + HOUR_US}]), history, reference)


def test_of_equally_idle_ones_the_key_decides_who_is_forgotten() -> None:
    names = [f"m{i}" for i in range(40)]
    tokens = [(i * 0x9E3779B97F4A7C15 + 1) % 2**64 for i in range(40)]
    rows = [{"card": card, "merchant": name} for card, name in zip(tokens, names, strict=True)]
    history = History(32, 32)
    assert_parity(make_batch([*rows, *rows]), history, Reference(32, 32, 7 * DAY_US))
    assert history.evicted_cards > 2
    assert history.evicted_merchants > 2


def test_every_row_is_done_once_when_memory_grows_under_it() -> None:
    """More rows a card than its first ring takes, more cards than the first records and the first arena take."""
    rows = [{"card": i % 1500, "merchant": f"m{i % 1300}", "event_time": START + i * 1_000_000} for i in range(15_000)]
    whole, pieces = History(), History()
    expected = whole.transform(make_batch(rows))
    assert expected[:, F["card_count_7d"]].tolist() == [i // 1500 + 1 for i in range(15_000)]
    got = np.concatenate([pieces.transform(piece) for piece in cut(make_batch(rows), list(range(0, 15_000, 501)))])
    assert got.tobytes() == expected.tobytes()


def test_agrees_with_the_reference_on_real_rows() -> None:
    batch = sparkov_slice()
    assert batch.num_rows == 13_614
    history = History(10_000, 10_000, DAY_US)
    assert_parity(batch, history, Reference(10_000, 10_000, DAY_US))
    assert history.merchants == 693
    assert history.rows == 13_614


def sparkov_slice() -> pa.RecordBatch:
    """The real rows as a batch; the card's number serves as its token here."""
    rows = []
    with SLICE.open(newline="") as file:
        for line in csv.DictReader(file):
            when = datetime.fromisoformat(line["trans_date_trans_time"]).replace(tzinfo=UTC)
            rows.append(
                {"event_time": int(when.timestamp()) * 1_000_000, "card": int(line["cc_num"]) % 2**64,
                 "amt_cents": round(float(line["amt"]) * 100), "category": CATEGORIES.index(line["category"]),
                 "merchant": line["merchant"], "label": int(line["is_fraud"]), "home_lat": float(line["lat"]),
                 "home_long": float(line["long"]), "merch_lat": float(line["merch_lat"]),
                 "merch_long": float(line["merch_long"]), "city_pop": int(line["city_pop"]),
                 "dob": date.fromisoformat(line["dob"])}
            )  # fmt: skip
    return make_batch(rows)


def cut(batch: pa.RecordBatch, places: list[int]) -> list[pa.RecordBatch]:
    edges = [0, *sorted(place % (batch.num_rows + 1) for place in places), batch.num_rows]
    return [batch.slice(a, b - a) for a, b in itertools.pairwise(edges)]


@PATIENT
@given(streams(), st.lists(st.integers(0, 10**6), max_size=6), st.integers(1, 8), IDLE)
def test_features_do_not_depend_on_how_rows_are_cut(
    rows: list[dict[str, object]], places: list[int], card_max: int, idle: int
) -> None:
    batch = make_batch(rows)
    whole, pieces = (History(card_max, 10, card_idle_us=idle) for _ in range(2))
    expected = whole.transform(batch)
    got = np.concatenate([pieces.transform(piece) for piece in cut(batch, places)])
    assert got.tobytes() == expected.tobytes()
    assert_same_state(pieces, whole)


def test_features_do_not_depend_on_the_dictionary() -> None:
    """A merchant is its name: neither its code nor names that no row has matter."""
    batch = make_batch([{"merchant": name, "event_time": START + i} for i, name in enumerate("abcab")])
    other = pa.DictionaryArray.from_arrays(
        pa.array([7, 2, 5, 7, 2], pa.int32()), pa.array(["", "y", "b", "é", "z", "c", "w", "a", "v"])
    )
    columns = [other if field.name == "merchant" else batch.column(field.name) for field in RAW]
    renamed = pa.RecordBatch.from_arrays(columns, schema=RAW)
    one, two = History(), History()
    assert one.transform(batch).tobytes() == two.transform(renamed).tobytes()
    assert_same_state(one, two)


def assert_same_state(one: History, other: History) -> None:
    a, b = one.arrays(), other.arrays()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


@PATIENT
@given(streams(), st.integers(0, 10**6), st.integers(1, 20), IDLE)
def test_a_restored_history_goes_on_as_if_nothing_had_been(
    rows: list[dict[str, object]], place: int, card_max: int, idle: int
) -> None:
    first, second = cut(make_batch(rows), [place])
    history = History(card_max, 5, DAY_US, 2, idle)
    history.transform(first)
    restored = History.restore(history.arrays())
    assert_same_state(restored, history)
    assert restored.transform(second).tobytes() == history.transform(second).tobytes()
    assert_same_state(restored, history)
    assert (restored.late, restored.truncated, restored.rows) == (history.late, history.truncated, history.rows)
    assert (restored.evicted_cards, restored.evicted_merchants) == (history.evicted_cards, history.evicted_merchants)


def test_a_history_restored_at_any_row_of_real_traffic_gives_the_same_bytes() -> None:
    batch = sparkov_slice().slice(0, 6000)
    whole = History(300, 200)
    expected = whole.transform(batch)
    assert whole.evicted_cards > 0
    assert whole.evicted_merchants > 0
    history = History(300, 200)
    got = []
    for place in range(0, 6000, 97):
        history = History.restore(history.arrays())
        got.append(history.transform(batch.slice(place, 97)))
    assert np.concatenate(got).tobytes() == expected.tobytes()
    assert_same_state(history, whole)


@pytest.mark.parametrize("name", ["numbers", "card_records", "card_recent", "card_entries", "merchant_records"])
def test_incomplete_state_is_refused(name: str) -> None:
    arrays = History().arrays()
    del arrays[name]
    with pytest.raises(StateError, match=name):
        History.restore(arrays)


def test_state_of_other_features_is_refused() -> None:
    arrays = History().arrays()
    arrays["numbers"][1] += 1
    with pytest.raises(StateError, match="features"):
        History.restore(arrays)


def test_memory_grows_with_what_is_remembered() -> None:
    small = History().nbytes
    assert small < 4_000_000
    history = History()
    rows = [{"card": i, "event_time": START + i, "merchant": f"m{i % 3000}"} for i in range(20_000)]
    history.transform(make_batch(rows))
    assert history.cards == 20_000
    assert history.nbytes < 20_000 * 2 * (128 + 128 + 64 + 16) + 10_000_000


# --- leaks ----------------------------------------------------------------------------------------------------------


@PATIENT
@given(streams(), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_later_rows_change_nothing_earlier(rows: list[dict[str, object]], place: int, random: object) -> None:
    place %= len(rows) + 1
    later = rows[place:]
    random.shuffle(later)  # type: ignore[attr-defined]
    one = History(20, 20, DAY_US, 1, DAY_US).transform(make_batch(rows))
    other = History(20, 20, DAY_US, 1, DAY_US).transform(make_batch([*rows[:place], *later]))
    assert one[:place].tobytes() == other[:place].tobytes()


@PATIENT
@given(streams(), st.sampled_from([0, HOUR_US, DAY_US, 7 * DAY_US]), st.integers(0, 10**6))
def test_labels_that_have_not_matured_change_nothing(
    rows: list[dict[str, object]], label_delay: int, place: int
) -> None:
    """Turning every label that is younger than a row's own event time less the delay leaves that row as it is."""
    place %= len(rows)
    limit = int(rows[place]["event_time"]) - label_delay  # type: ignore[call-overload]
    turned = [row | ({"label": 1 - abs(int(row["label"]))} if row["event_time"] > limit else {}) for row in rows]  # type: ignore[call-overload, operator]
    one = History(20, 20, label_delay).transform(make_batch(rows))
    other = History(20, 20, label_delay).transform(make_batch(turned))
    assert one[place].tobytes() == other[place].tobytes()


def test_no_label_comes_early_at_a_busy_merchant() -> None:
    """As above where it is hardest: rows a few minutes apart on both sides of the delay, buckets half old enough."""
    random = np.random.default_rng(11)
    times = START + np.cumsum(random.integers(0, 20 * 60_000_000, 600))
    rows = [{"event_time": int(time), "card": i, "label": int(random.integers(0, 2))} for i, time in enumerate(times)]
    one = History(1000, 10, DAY_US).transform(make_batch(rows))
    assert len(np.unique(one[:, F["merch_frauds_7d"]])) > 10
    for place in range(0, 600, 7):
        young = [row | {"label": 1 - row["label"]} for row in rows if row["event_time"] > times[place] - DAY_US]
        turned = [*rows[: len(rows) - len(young)], *young]
        assert History(1000, 10, DAY_US).transform(make_batch(turned))[place].tobytes() == one[place].tobytes()


def test_matured_labels_do_count() -> None:
    rows = [{"event_time": START + i * HOUR_US, "card": i, "label": 1} for i in range(48)]
    history = History(100, 100, DAY_US)
    history.transform(make_batch(rows))
    [features] = history.transform(make_batch([{"event_time": START + 10 * DAY_US, "card": 999}]))
    assert features[F["merch_frauds_7d"]] > 0
    assert features[F["merch_labelled_30d"]] == 48
    assert features[F["merch_risk_30d"]] == np.float32((48 + 0.005) / 49)


def test_labels_scenario_and_time_of_ingest_are_not_read_but_for_merchant_risk() -> None:
    batch = sparkov_slice().slice(0, 3000)
    rows = [{"label": -1, "scenario": 3, "ingested_at": i} for i in range(3000)]
    others = make_batch(rows)
    swapped = [
        others.column(f.name) if f.name in ("label", "scenario", "ingested_at") else batch.column(f.name) for f in RAW
    ]
    one = History(label_delay_us=0).transform(batch)
    other = History(label_delay_us=0).transform(pa.RecordBatch.from_arrays(swapped, schema=RAW))
    differ = {FEATURES[place] for place in np.flatnonzero((one != other).any(axis=0))}
    assert differ
    assert differ <= {name for name in MERCHANT if re.search("risk|fraud|labelled", name)}


# --- particular rows ------------------------------------------------------------------------------------------------


def test_windows_hold_the_row_itself_and_let_go_after_exactly_their_length() -> None:
    rows = [{"event_time": START}, {"event_time": START + HOUR_US - 1000}, {"event_time": START + HOUR_US}]
    counts = History().transform(make_batch(rows))[:, F["card_count_1h"]]
    assert counts.tolist() == [1, 2, 2]


def test_a_late_row_counts_as_of_its_cards_newest_time() -> None:
    rows = [{"event_time": START}, {"event_time": START - 30 * DAY_US}, {"event_time": START + 1000}]
    history = History()
    features = history.transform(make_batch(rows))
    assert history.late == 1
    assert features[:, F["card_count_1h"]].tolist() == [1, 2, 3]
    assert features[1, F["card_log_gap"]] == 0


def test_first_row_of_a_card() -> None:
    [features] = History().transform(make_batch([{}]))
    named = dict(zip(FEATURES, features.tolist(), strict=True))
    assert {name: named[name] for name in ("card_log_gap", "card_amt_z", "card_amt_ratio", "card_last_km")} == {
        "card_log_gap": -1, "card_amt_z": 0, "card_amt_ratio": 1, "card_last_km": 0,
    }  # fmt: skip
    assert named["card_new_merchant"] == named["card_new_category"] == 1


def test_speed_from_home_is_told_until_the_card_is_home_again() -> None:
    """Purchases in a far city, each near the one before it, stay too fast for the last one at home."""
    home, city = {"merch_lat": 40.0, "merch_long": -90.0}, {"merch_lat": 40.0, "merch_long": -110.0}
    moves = [(0, city), (0, home), (60, city), (30, city), (6 * 60, home), (0, city), (24 * 60, city)]
    minutes = itertools.accumulate(gap for gap, _ in moves)
    rows = [{"event_time": START + at * 60_000_000} | place for at, (_, place) in zip(minutes, moves, strict=True)]
    found = History().transform(make_batch(rows))
    km = kilometres((40.0, -90.0), (40.0, -110.0))
    expected = [0, 0, km, km / 1.5, 0, 10_000, km / 24]
    np.testing.assert_allclose(found[:, F["card_home_kmh"]], expected, rtol=1e-4)


def test_spending_is_compared_with_the_cards_own() -> None:
    days = [{"event_time": START + day * DAY_US, "amt_cents": 2_000} for day in range(10)]
    spree = [{"event_time": START + 20 * DAY_US + i * 60_000_000, "amt_cents": 6_000} for i in range(3)]
    found = History().transform(make_batch([*days, *spree]))
    assert found[:, F["card_mean_ratio_24h"]].tolist()[:10] == [1.0] * 10
    # Each enters the usual amount: 20, then 20 + 40 / 11, and so on.
    usual = [20.0, 20 + 40 / 11, 20 + 40 * 2 / 12]
    np.testing.assert_allclose(found[10:, F["card_mean_ratio_24h"]], [60 / each for each in usual], rtol=1e-6)
    spent = [60 * (i + 1) / each for i, each in enumerate(usual)]  # less than a row a day counts as one
    np.testing.assert_allclose(found[10:, F["card_sum_ratio_24h"]], spent, rtol=1e-6)
    often = [{"event_time": START + i * DAY_US // 4} for i in range(41)]
    assert History().transform(make_batch(often))[-1, F["card_sum_ratio_24h"]] == np.float32(4 / (41 / 10))


def test_an_empty_batch() -> None:
    history = History()
    assert history.transform(make_batch([])).shape == (0, WIDTH)
    assert history.rows == 0


def test_arguments_out_of_range() -> None:
    for arguments in ((0, 1), (1, 0), (1, 1, -1), (1, 1, 0, 0), (1, 1, 0, 1, -1)):
        with pytest.raises(ValueError, match=r"must be|one record"):
            History(*arguments)


# --- arithmetic, names and documents --------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(1e-9, 1e15))
def test_logarithm(x: float) -> None:
    assert kernel.ln(x) == pytest.approx(math.log(x), rel=1e-13, abs=1e-14)


PLACES = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@settings(deadline=None)
@given(PLACES, PLACES)
def test_distance(one: tuple[float, float], other: tuple[float, float]) -> None:
    assert kernel.distance_km(*one, *other) == pytest.approx(kilometres(one, other), rel=1e-7, abs=1e-3)


def test_distance_across_the_date_line_and_between_the_poles() -> None:
    assert kernel.distance_km(0.0, 179.0, 0.0, -179.0) == pytest.approx(222.39, abs=0.01)
    assert kernel.distance_km(90.0, 0.0, -90.0, 0.0) == pytest.approx(math.pi * kernel.EARTH_KM, rel=1e-7)


def test_names() -> None:
    assert len(set(FEATURES)) == WIDTH == len(STATELESS) + len(CARD) + len(MERCHANT)
    assert not any(word in name for name in FEATURES for word in ("gender", "label_", "scenario", "ingest"))


def test_every_feature_is_documented() -> None:
    text = (ROOT / "docs" / "FEATURES.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    assert tuple(cells[0].strip(" `") for cells in rows) == FEATURES
    assert all(len(cells) == 5 and all(cell.strip() for cell in cells) for cells in rows)


def test_names_alone_do_not_load_numba() -> None:
    code = "import sys, spearhead.features; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_kernel_is_compiled_once() -> None:
    """Compiling takes seconds: no way of making a batch may call for another version."""
    History().transform(sparkov_slice().slice(5, 10))
    History().transform(make_batch([]))
    assert len(kernel.advance.signatures) == 1
