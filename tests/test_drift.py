"""Drift: what is counted, what it is compared with, and what raises an alarm. Traffic is the generator's."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import drifting
import msgspec
import numpy as np
import pytest
from drifting import Change, Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from services.api.models import ModelReader
from services.train.fit import Rows
from services.train.reference import reference
from spearhead import binning, drift
from spearhead.aggregate import (
    DAY_US,
    KEPT_DRIFT_DAYS,
    KEPT_LABEL_DAYS,
    Aggregate,
    DriftDay,
    HourOutcomes,
    LabelDay,
    Outcomes,
    add_hour,
    merge,
    prune_days,
)
from spearhead.drift import Edges, Reference, assess, check_reference, dispersion, key_of, psi, whole_days
from spearhead.features import FEATURES
from spearhead.ledger import Ledger, read_ledger
from spearhead.model import Artifact, ModelStore
from spearhead.segment import SegmentName
from spearhead.volume import Volume

# PSI

COUNTS = st.lists(st.integers(0, 5_000), min_size=2, max_size=10).filter(any)


@given(COUNTS, st.integers(1, 1_000))
def test_psi_of_the_same_shape_is_next_to_nothing(counts: list[int], times: int) -> None:
    rows = sum(counts)
    shares = [count / rows for count in counts]
    assert psi(shares, rows, counts) == pytest.approx(0, abs=1e-12)
    more = psi(shares, rows * times, [count * times for count in counts])
    assert more == pytest.approx(0, abs=1e-12)


@given(st.data(), COUNTS)
def test_psi_is_finite_symmetric_and_not_negative(data: st.DataObject, before: list[int]) -> None:
    now = data.draw(st.lists(st.integers(0, 5_000), min_size=len(before), max_size=len(before)).filter(any))
    one = psi([count / sum(before) for count in before], sum(before), now)
    other = psi([count / sum(now) for count in now], sum(now), before)
    assert math.isfinite(one)
    assert one >= 0
    assert one == pytest.approx(other)


def test_psi_is_the_textbooks_figure() -> None:
    expected = 0.3 * math.log(0.8 / 0.5) + (0.2 - 0.5) * math.log(0.2 / 0.5)
    assert psi([0.5, 0.5], 10**9, [8 * 10**8, 2 * 10**8]) == pytest.approx(expected)


# What settles when


def test_every_feature_has_its_history() -> None:
    assert set(drift.HISTORY_DAYS) == set(FEATURES)
    assert set(FEATURES) >= drift.CALENDAR


# Counting


@given(st.integers(0, 700))
def test_every_place_of_a_segment_is_counted_in_one_of_so_many(rows: int) -> None:
    counted = np.concatenate([binning.counted_rows(rows, number) for number in range(17, 17 + binning.ONE_IN)])
    assert sorted(counted.tolist()) == list(range(rows))


RANKS = st.lists(st.integers(-0x7FFE, 0x7FFE), max_size=9, unique=True).map(lambda ranks: tuple(sorted(ranks)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(RANKS, min_size=1, max_size=5), st.integers(1, 30), st.integers(0, 4_000))
def test_counts_equal_a_slow_recount(seed: int, ranks: list[tuple[int, ...]], span: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 65_535, (rows, len(ranks)), np.uint16, endpoint=True)
    for feature, edges in enumerate(ranks):  # values on the edges too
        if edges and rows:
            edge = np.array(edges)
            found[::3, feature] = np.where(edge < 0, 0x8000 - edge, edge)[rng.integers(0, len(edges), len(found[::3]))]
    scores = rng.choice(np.array([0, 0.1, 0.25, 0.5, 1], np.float32), rows)
    event_time = rng.integers(-3 * DAY_US, span * DAY_US, rows)
    names = tuple(f"f{i}" for i in range(len(ranks)))
    edges = Edges(features=names, ranks=tuple(ranks), settled=(True,) * len(ranks))
    bins = binning.bins_of(a_reference(edges, score_edges=(0.1, 0.5)))
    got = binning.count(bins, found, scores, event_time, number=seed, model="v000007", scored_at=5)

    chosen = binning.counted_rows(rows, seed)
    days = sorted(set((event_time[chosen] // DAY_US).tolist()))[-KEPT_DRIFT_DAYS:]
    assert sorted(got) == sorted(key_of(edges.id, day) for day in days)
    magnitude = (found & 0x7FFF).astype(np.int64)
    rank = np.where(found >= 0x8000, -magnitude, magnitude)
    for day in days:
        own = chosen[event_time[chosen] // DAY_US == day]
        expected = [
            int((np.searchsorted(edges.ranks[feature], rank[own, feature], "right") == b).sum())
            for feature in range(len(ranks))
            for b in range(len(ranks[feature]) + 1)
        ]
        counted = got[key_of(edges.id, day)]
        assert (counted.rows, counted.seen, counted.features) == (len(own), 5, expected)
        place = [0 if score < 0.1 else 1 if score < 0.5 else 2 for score in scores[own].tolist()]
        assert counted.scores == {"v000007": [place.count(b) for b in range(10)]}


def a_reference(edges: Edges, **changes: Any) -> Reference:
    given = {
        "shares": (None,) * len(edges.features), "feature_rows": (0,) * len(edges.features), "score_edges": (),
        "score_shares": None, "score_rows": 0, "start": 0, "end": 0, "rows": 1, "frauds": 0, "base_rate": 0.005,
    }  # fmt: skip
    return Reference(edges=edges, **(given | changes))


# Adding up

DRIFT_DAYS = st.dictionaries(
    st.sampled_from(["a/1", "a/2", "b/1"]),
    st.builds(
        DriftDay,
        st.integers(0, 9),
        st.integers(0, 9),
        st.lists(st.integers(0, 9), min_size=4, max_size=4),
        st.dictionaries(st.sampled_from(["v000001", "v000002"]), st.lists(st.integers(0, 9), min_size=3, max_size=3)),
    ),
)
LABEL_DAYS = st.dictionaries(st.sampled_from("12"), st.builds(LabelDay, *[st.integers(0, 9)] * 5))
PARTS = st.lists(
    st.builds(
        Aggregate, drift=DRIFT_DAYS, label_days=LABEL_DAYS, first_scored_at=st.integers(0, 3),
        first_event_day=st.integers(0, 3),
    ),
    max_size=6,
)  # fmt: skip


@given(PARTS, st.randoms(), st.integers(0, 6))
def test_sums_do_not_depend_on_order_or_grouping(parts: list[Aggregate], order: Any, cut: int) -> None:
    one, first, second = Aggregate(), Aggregate(), Aggregate()
    merge(one, parts)
    shuffled = list(parts)
    order.shuffle(shuffled)
    merge(first, shuffled[:cut])
    merge(second, shuffled[cut:])
    merge(first, [second])
    assert first == one
    for key in one.drift:
        assert one.drift[key].rows == sum(part.drift[key].rows for part in parts if key in part.drift)


def test_the_ledger_counts_each_segment_once(volume: Volume) -> None:
    """Over many versions and two folders; a fold that comes again finds nothing more to add."""
    folders = [Ledger(volume, 0), Ledger(volume, 0)]
    for number in range(1, 41):
        day = number // 5
        part = Aggregate(
            count=2, first_scored_at=number, first_event_day=day,
            drift={f"a/{day}": DriftDay(1, number, [1, 0, 2], {"v000001": [1, 1]})},
        )  # fmt: skip
        name = SegmentName(1, "g00", 0, number)
        (volume.pending / f"{name}.json").write_bytes(msgspec.json.encode(part))
        folders[number % 2].fold()
        if number % 7 == 0:  # killed after the version was linked, before the file was removed
            (volume.pending / f"{name}.json").write_bytes(msgspec.json.encode(part))
            folders = [Ledger(volume, 0), Ledger(volume, 0)]
    ledger = read_ledger(volume)
    assert ledger is not None
    assert (ledger.first_scored_at, ledger.first_event_day) == (1, 0)
    assert {key: day.rows for key, day in ledger.drift.items()} == {"a/0": 4} | {f"a/{d}": 5 for d in range(1, 8)} | {
        "a/8": 1
    }
    assert ledger.drift["a/3"].features == [5, 0, 10]
    assert ledger.drift["a/3"].scores == {"v000001": [5, 5]}


def test_only_what_is_recent_is_kept() -> None:
    days = {f"a/{day}": DriftDay(1, day, [1], {f"v{day + n:06d}": [1] for n in range(9)}) for day in range(20)}
    days["a/99999"] = DriftDay(1, 3, [1])  # a date far ahead, seen long ago
    labels = {str(day): LabelDay(1) for day in range(90, 130)}
    prune_days(labels, days)
    assert sorted(days, key=lambda key: int(key[2:])) == [f"a/{day}" for day in range(20 - KEPT_DRIFT_DAYS, 20)]
    assert list(days["a/19"].scores) == ["v000025", "v000026", "v000027"]
    assert sorted(labels, key=int) == [str(day) for day in range(130 - KEPT_LABEL_DAYS, 130)]


def test_matured_hours_become_days() -> None:
    labels: dict[str, LabelDay] = {}
    for hour in (47, 48, 71):
        add_hour(labels, hour, HourOutcomes(Outcomes(1, 2, 3, 4), Outcomes(10, 20, 30, 40), 7))
    assert labels == {"1": LabelDay(110, 55, 10, 5, 7), "2": LabelDay(220, 110, 20, 10, 14)}


# The reference


def rows_of(values: dict[str, np.ndarray], days: float, start: float = 0.0, seed: int = 0) -> Rows:
    n = len(next(iter(values.values())))
    rng = np.random.default_rng(seed)
    features = np.zeros((n, len(FEATURES)), np.float32)
    for name, column in values.items():
        features[:, FEATURES.index(name)] = column
    event_time = (np.linspace(start, start + days, n, endpoint=False) * DAY_US).astype(np.int64)
    label = (rng.random(n) < 0.01).astype(np.int8)
    return Rows(event_time, np.ones(n, np.int32), np.zeros(n, np.uint8), label, label, np.ones(n, np.float32), features)


def made(rows: Rows, champion: Reference | None = None, began: int | None = 0) -> Reference:
    test = rows.take(slice(-3_000, None))
    scores = np.random.default_rng(1).random(3_000).astype(np.float32)
    return reference(rows, FEATURES, scores, test, champion, began)


def test_bins_are_even_and_rare_values_have_their_own() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    rows = rows_of(
        {"amt": rng.lognormal(3, 1, n), "weekday": rng.random(n) < 0.03, "category": rng.integers(0, 14, n)}, 7
    )
    found = made(rows)
    check_reference(found, FEATURES)
    shares = dict(zip(FEATURES, found.shares, strict=True))
    assert len(shares["amt"]) == drift.BINS
    assert max(shares["amt"]) < 0.12
    assert shares["weekday"] == pytest.approx((0.97, 0.03), abs=0.005)
    assert 7 <= len(shares["category"]) <= drift.BINS
    assert len(shares["age_years"]) == 1  # one value: nothing to compare
    assert found.score_shares is not None
    assert max(found.score_shares) < 0.12
    assert all(share is None or sum(share) == pytest.approx(1) for share in found.shares)


def test_bins_are_inherited_so_that_counts_go_on() -> None:
    rng = np.random.default_rng(0)
    first = made(rows_of({"amt": rng.lognormal(3, 1, 20_000)}, 7, start=50))
    second = made(rows_of({"amt": rng.lognormal(3.2, 1, 20_000)}, 7, start=57), first)
    assert second.edges == first.edges
    assert second.edges.id == first.edges.id
    amt = FEATURES.index("amt")
    assert second.shares[amt] != first.shares[amt]
    assert second.shares[amt][-1] > first.shares[amt][-1] * 1.3  # measured anew, by the same bins


def test_bins_are_drawn_anew_once_more_has_settled_or_they_hold_too_much_in_one() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.lognormal(3, 1, 20_000)
    cold = made(rows_of({"amt": amounts}, 7, start=0))
    settled = dict(zip(FEATURES, cold.edges.settled, strict=True))
    assert settled["amt"]
    assert not settled["card_count_7d"]
    assert not settled["card_days"]
    assert made(rows_of({"amt": amounts}, 7, start=2), cold).edges == cold.edges
    warm = made(rows_of({"amt": amounts}, 7, start=8), cold)
    assert warm.edges.settled[FEATURES.index("card_count_7d")]
    assert warm.edges is not cold.edges
    old = made(rows_of({"amt": amounts}, 7, start=50))
    assert made(rows_of({"amt": amounts * 30}, 7, start=57), old).edges.id != old.edges.id


def test_the_calendar_is_compared_over_whole_weeks() -> None:
    n = 30_000
    days = np.linspace(0, 10, n, endpoint=False)
    found = made(rows_of({"weekday": days.astype(int) % 7}, 10, start=70))
    assert found.shares[FEATURES.index("weekday")] == pytest.approx((1 / 7,) * 7, abs=1e-3)
    short = made(rows_of({"weekday": days.astype(int) % 7}, 4, start=70))
    assert short.shares[FEATURES.index("weekday")] is None


def test_of_few_merchants_what_moves_slowly_or_within_the_window_is_not_compared() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    steady, turning = rng.random(n), rng.random(n) + np.arange(n) / n

    def compared(merchants: float, risk: np.ndarray) -> dict[str, bool]:
        values = {"merch_count_7d": np.full(n, n / merchants), "amt": turning}
        values |= dict.fromkeys(("merch_risk_7d", "merch_risk_30d", "merch_amt_ratio"), risk)
        found = made(rows_of(values, 7, start=50))
        return {name: shares is not None for name, shares in zip(FEATURES, found.shares, strict=True)}

    found = compared(500, steady)
    assert all(found[name] for name in ("amt", "merch_risk_7d", "merch_risk_30d", "merch_amt_ratio"))
    found = compared(60, steady)
    assert not found["merch_risk_7d"]
    assert not found["merch_risk_30d"]
    assert found["merch_amt_ratio"], "it would have shown within the window"
    found = compared(500, turning)
    assert not any(found[name] for name in ("merch_risk_7d", "merch_risk_30d", "merch_amt_ratio"))
    assert found["amt"], "rows of one merchant move together, those of a card hardly"


def test_a_reference_whose_parts_do_not_fit_is_refused() -> None:
    good = made(rows_of({"amt": np.arange(20_000.0)}, 7))
    assert msgspec.json.decode(msgspec.json.encode(good), type=Reference) == good
    for bad in (
        msgspec.structs.replace(good, shares=good.shares[:-1]),
        msgspec.structs.replace(good, score_shares=(1.0,)),
        msgspec.structs.replace(good, edges=msgspec.structs.replace(good.edges, features=("a",))),
        msgspec.structs.replace(good, score_edges=tuple(range(20)), score_shares=None),
    ):
        with pytest.raises(ValueError, match="drift reference"):
            check_reference(bad, FEATURES)


# Comparing


def test_a_day_counts_once_it_is_whole() -> None:
    days = {key_of("a", day): DriftDay() for day in (1, 2, 3, 7, 8)} | {key_of("b", 4): DriftDay()}
    assert whole_days("a", days) == [2]
    assert whole_days("a", {key_of("a", day): DriftDay() for day in range(12)}) == list(range(4, 11))
    assert whole_days("c", days) == []


MANY = 10**9  # frauds of a reference: as good as known


def episodes(rng: np.random.Generator, mean: float, size: int) -> int:
    """Frauds of a day: a Poisson number of episodes of ``size`` frauds each."""
    return int(rng.poisson(mean / size)) * size


@pytest.mark.parametrize("size", [1, 8, 20])
def test_frauds_in_episodes_are_no_drift_and_twice_as_many_are(size: int) -> None:
    rng = np.random.default_rng(size)
    steady, raised, spread = 0, 0, []
    for _ in range(200):
        usual = [(episodes(rng, 100, size), 100.0) for _ in range(21)]
        spread.append(dispersion(usual))
        more = [(episodes(rng, 230, size), 100.0) for _ in range(7)]
        steady += drift._ratio(usual, 1, MANY).status == "ok"
        raised += drift._ratio([*usual[:14], *more], 1, MANY).status != "ok"
    assert np.mean(spread) == pytest.approx(max(1, size), rel=0.25)
    assert steady == 200
    assert raised >= 180


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.4, 2.5), st.integers(30, 2_000), st.integers(30, 2_000))
def test_the_interval_holds_the_ratio_and_narrows_with_frauds(seed: int, ratio: float, mean: int, before: int) -> None:
    """Of counts that come by chance on both sides: by three standard deviations 997 of 1,000 times."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(300):
        reference = max(1, int(rng.poisson(before)))
        expected = mean * reference / before  # what the reference makes one expect
        found.append(drift.interval(int(rng.poisson(mean * ratio)), expected, reference, 1.0))
    low, high = np.array(found).T
    assert np.mean((low <= ratio) & (ratio <= high)) >= 0.98
    widths = [
        math.log(high / low)
        for low, high in (
            drift.interval(n * mean, n * mean, n * before, spread) for n, spread in ((1, 1), (4, 1), (4, 4))
        )
    ]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)
    assert widths[2] == pytest.approx(widths[0], rel=0.05)


@pytest.mark.parametrize("observed", [0, 1, 10, 100, 1_000])
def test_the_interval_of_a_count_is_nearly_the_exact_one(observed: int) -> None:
    low = chi2.ppf(norm.cdf(-drift.DEVIATIONS), 2 * observed) / 2 if observed else 0.0
    high = chi2.ppf(norm.cdf(drift.DEVIATIONS), 2 * observed + 2) / 2
    assert drift.interval(observed, 1.0, MANY, 1.0) == pytest.approx((low, high), rel=0.02, abs=0.05)


@pytest.mark.parametrize(
    ("a_day", "reference", "times", "status"),
    [
        (5, MANY, 2, "warn"), (500, MANY, 2, "alarm"), (5, MANY, 1.5, "ok"), (50, MANY, 1.5, "warn"),
        (5, MANY, 0.4, "ok"), (50, MANY, 0.4, "alarm"), (500, MANY, 0.5, "alarm"), (500, 30, 2, "ok"),
        (500, 300, 2, "alarm"), (500, MANY, 1.2, "ok"), (5, MANY, 0, "alarm"),
    ],
)  # fmt: skip
def test_the_fewer_the_frauds_the_further_a_ratio_must_be(
    a_day: int, reference: int, times: float, status: str
) -> None:
    found = drift._ratio([(round(a_day * times), float(a_day))] * 7, 700, reference)
    assert found.status == status
    assert found.low is not None
    assert found.high is not None
    assert found.low < max(found.ratio or 0, 0.5 / (7 * a_day)) < found.high


def test_too_few_frauds_say_nothing() -> None:
    for expected, before in ((2.0, MANY), (90.0, drift.LEAST_FRAUDS - 1), (90.0, 0)):
        found = drift._ratio([(300, expected)] * 7, 700, before)
        assert (found.ratio, found.low, found.high, found.status) == (None, None, None, None)
        assert (found.observed, found.expected) == (2_100, 7 * expected)
    assert drift._ratio([], 0, MANY).expected is None


@pytest.mark.parametrize(
    ("days", "a_day", "began", "compared"),
    [
        (7, 400, 50, {"amt", "weekday", "card_count_7d"}),
        (3, 400, 50, {"amt", "card_count_7d"}),  # less than a week
        (7, 400, 95, {"amt", "weekday"}),  # history began anew, as after a reset
        (7, 400, 94, {"amt", "weekday", "card_count_7d"}),
        (7, 140, 50, set()),  # too few rows
    ],
)
def test_what_cannot_be_compared_yet_is_left_out(days: int, a_day: int, began: int, compared: set[str]) -> None:
    names = ("amt", "weekday", "card_count_7d")
    edges = Edges(features=names, ranks=((1,),) * 3, settled=(True,) * 3)
    known = a_reference(edges, shares=((0.5, 0.5),) * 3, feature_rows=(5_000,) * 3)
    counted = {
        key_of(edges.id, day): DriftDay(a_day, 1, [a_day // 2] * 6, {}) for day in range(100, 100 + days + 2)
    }  # whole from day 101 on
    found = assess(known, "v000001", counted, {}, began)
    assert set(psi_of(found)) == compared
    assert found.status == ("ok" if compared else None)


def test_nothing_counted_is_no_drift() -> None:
    good = made(rows_of({"amt": np.arange(20_000.0)}, 7))
    found = assess(good, "v000001", {}, {}, 0)
    assert (found.status, found.score_psi, found.start, found.end, found.rows) == (None, None, None, None, 0)
    assert all(feature.psi is None and feature.status is None for feature in found.features)
    assert len(found.features) == len(FEATURES)


# Traffic


@pytest.fixture(scope="module")
def settled() -> Pipeline:
    return drifting.settled()


def after(start: Pipeline, days: float, change: Change = lambda batch: batch) -> drift.Drift:
    pipeline = start.branch()
    pipeline.run(days, change)
    return pipeline.drift()


def psi_of(found: drift.Drift) -> dict[str, float]:
    return {feature.feature: feature.psi for feature in found.features if feature.psi is not None}


def test_steady_traffic_is_steady_over_champions(settled: Pipeline) -> None:
    pipeline = settled.branch()
    ids = []
    for _ in range(2):
        pipeline.run(9)
        found = pipeline.drift()
        assert found.status == "ok", found
        assert found.rows >= 1_500
        assert found.score_psi is not None
        assert found.score_psi < 0.05
        figures = psi_of(found)
        assert len(figures) >= 20
        assert sorted(figures.values())[-3] < 0.05
        assert np.median(list(figures.values())) < 0.02
        assert found.start is not None
        assert found.end is not None
        assert (found.end - found.start) == 7 * DAY_US
        assert found.label_rate.status == found.calibration.status == "ok"
        ids.append(pipeline.train().reference.edges.id)
    assert "card_days" not in figures
    assert len(pipeline.totals.drift) == KEPT_DRIFT_DAYS
    assert len(msgspec.json.encode(pipeline.totals.drift)) < 25_000


def test_larger_amounts_raise_it(settled: Pipeline) -> None:
    found = after(settled, 9, drifting.larger_amounts)
    assert found.status in {"warn", "alarm"}
    assert psi_of(found)["amt"] >= drift.WARN


def test_a_wave_of_new_merchants_raises_it(settled: Pipeline) -> None:
    found = after(settled, 9, drifting.new_merchants(4))
    assert found.status in {"warn", "alarm"}
    assert psi_of(found)["merch_count_7d"] >= drift.WARN


def test_a_new_kind_of_fraud_raises_it_though_features_do_not_move(settled: Pipeline) -> None:
    found = after(settled, 16, drifting.new_fraud(5))
    assert found.status == "alarm"
    assert found.label_rate.status == "alarm"
    assert found.calibration.status == "alarm"
    assert max(psi_of(found)[name] for name in ("amt", "home_km", "card_count_24h", "card_amt_z")) < 0.05


def test_what_is_said_is_summed_over_seeds() -> None:
    def days(*statuses: str | None) -> dict[str, list[dict[str, Any]]]:
        causes = {"warn": {"amt": 0.12}, "alarm": {"amt": 0.3, "score": 0.26}}
        return {"steady": [
            {"day": day, "status": status, "causes": causes.get(status or "", {}), "score_psi": None}
            for day, status in enumerate(statuses, 1)
        ]}  # fmt: skip

    assert drifting.summary([days(None, "ok", "warn", "alarm"), days("ok", "ok", "ok", "ok")])["steady"] == {
        "days": 8, "warn": 1, "alarm": 1, "first_warn": [3, None], "first_alarm": [4, None],
        "causes": {"amt": 2, "score": 1},
    }  # fmt: skip


# The product around it


def test_a_version_keeps_its_reference_and_scores_without_it(settled: Pipeline, volume: Volume) -> None:
    champion = settled.model
    assert champion is not None
    assert champion.window is not None
    artifact = Artifact(champion.booster, champion.window, {}, [], {}, reference=champion.reference)
    store = ModelStore(volume)
    version = store.publish(artifact, promote=True)
    assert store.load(version).reference == champion.reference
    shown = ModelReader(volume).read()
    assert (shown.reference, shown.problem) == (champion.reference, None)
    path = volume.models / version / "drift.json"
    broken = msgspec.structs.replace(champion.reference, shares=())
    for content in (b"?", b"{}", msgspec.json.encode(broken)):
        path.write_bytes(content)
        assert store.load(version).reference is None
        shown = ModelReader(volume).read()
        assert shown.current == version
        assert shown.reference is None
        assert shown.problem
    path.unlink()
    assert store.load(version).reference is None
    assert ModelReader(volume).read().problem is None


def test_no_compiler_is_needed_to_tell_of_drift() -> None:
    code = "import sys, spearhead.drift; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
