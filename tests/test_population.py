"""People and merchants: plausible, the same for the same seed, and cached on the volume without harm."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generator.cities import STATE_POPULATION, cities
from services.generator.names import first_names, merchant_names
from services.generator.population import FORMAT, IS_NET, Population, population
from spearhead.schema import CATEGORIES, STATES
from spearhead.volume import Volume

CARDS, MERCHANTS = 20_000, 700


@pytest.fixture(scope="module")
def people() -> Population:
    return population(CARDS, MERCHANTS, 7)


def cache_file(volume: Volume, seed: int = 7) -> Path:
    return volume.raw_data / "population" / f"v{FORMAT}-s{seed}-c{CARDS}-m{MERCHANTS}.bin"


def same(one: Population, other: Population) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def test_the_same_seed_gives_the_same_people(people: Population) -> None:
    assert same(people, population(CARDS, MERCHANTS, 7))
    assert not same(people, population(CARDS, MERCHANTS, 8))


def test_people_live_where_people_live(people: Population) -> None:
    total = sum(STATE_POPULATION.values())
    share = np.bincount(people.cards["state"], minlength=len(STATES)) / CARDS
    for state, count in STATE_POPULATION.items():
        assert abs(share[STATES.index(state)] - count / total) < 0.01, state
    assert set(STATE_POPULATION) == set(STATES[:51])


def test_homes_are_near_their_city(people: Population) -> None:
    towns = cities()
    north = (people.cards["home_lat"] - towns.lat[people.cards["city"]]) * 111.2
    assert np.abs(north).max() < 91
    assert np.array_equal(people.cards["state"], towns.state[people.cards["city"]])


def test_people_are_adults_of_all_ages_and_means(people: Population) -> None:
    age = (np.datetime64("2024-01-01").astype(int) - people.cards["dob"]) / 365.25
    assert age.min() >= 18
    assert age.max() < 95
    assert 40 < age.mean() < 65
    assert 0.3 < people.cards["level"].std() < 0.4
    assert people.cards["city_pop"].min() > 0
    assert set(np.unique(people.cards["initial"])) <= set(range(ord("A"), ord("Z") + 1))
    assert people.cards["first"].min() >= 0
    assert people.cards["first"].max() < len(first_names())


def test_a_few_merchants_have_much_of_the_trade(people: Population) -> None:
    share = np.sort(people.merchants["share"])[::-1]
    assert share.sum() == pytest.approx(1.0, abs=1e-3)
    assert share[: MERCHANTS // 10].sum() > 0.4


def test_people_choose_among_merchants_of_the_category_asked_for(people: Population) -> None:
    assert people.local.min() >= 0
    category = people.local % len(CATEGORIES)
    assert np.array_equal(category, np.broadcast_to(np.arange(len(CATEGORIES))[:, None], people.local.shape))


@given(st.integers(20, 60_000))
def test_merchants_have_different_names_without_long_numbers(merchants: int) -> None:
    names = merchant_names(merchants)
    assert len(names.unique()) == len(names) == merchants
    assert not any(re.search(r"\d{11}", name) for name in names[-50:].to_pylist())


@pytest.mark.parametrize(("cards", "merchants"), [(10, 20), (11, 1000), (3000, 20)])
def test_the_smallest_populations_work(cards: int, merchants: int) -> None:
    made = population(cards, merchants, 1)
    assert len(made.cards) == cards
    assert made.starts[-1] == cards
    assert IS_NET.sum() == 3


def test_the_cache_gives_the_same_people(people: Population, volume: Volume) -> None:
    assert same(people, population(CARDS, MERCHANTS, 7, volume))
    written = cache_file(volume).stat()
    assert same(people, population(CARDS, MERCHANTS, 7, volume))
    assert cache_file(volume).stat().st_mtime_ns == written.st_mtime_ns  # read, not written again
    population(CARDS, MERCHANTS, 8, volume)
    assert cache_file(volume, 8).exists()


def truncated(data: bytes) -> bytes:
    return data[:-5]


def flipped(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


def longer(data: bytes) -> bytes:
    return data + b"x"


def empty(_data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncated, flipped, longer, empty])
def test_a_damaged_cache_is_made_anew(people: Population, volume: Volume, damage) -> None:  # type: ignore[no-untyped-def]
    population(CARDS, MERCHANTS, 7, volume)
    whole = cache_file(volume).read_bytes()
    cache_file(volume).write_bytes(damage(whole))
    assert same(people, population(CARDS, MERCHANTS, 7, volume))
    assert cache_file(volume).read_bytes() == whole
