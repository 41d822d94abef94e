"""What ``bench.learnability`` trains on and judges by, on a small population."""

from __future__ import annotations

import pytest

from bench import learnability
from services.generator.places import DAY_US
from services.generator.traffic import START_US
from spearhead.schema import SCENARIOS
from spearhead.settings import Settings

DAY = 17
SETTINGS = Settings(cards=3_000, merchants=300, fraud_rate=0.01, train_max_rows=60_000)


@pytest.fixture(scope="module")
def day() -> learnability.Day:
    return learnability.days(SETTINGS, [DAY])[DAY]


def test_a_model_sees_matured_rows_and_is_judged_on_later_ones(day: learnability.Day) -> None:
    train, test = ((rows.event_time - START_US) / DAY_US for rows in (day.train, day.test))
    assert 1 < train.min() < DAY - SETTINGS.label_delay_days - 3, "the oldest rows are gone, as from the spool"
    assert len(train) < SETTINGS.train_max_rows
    assert DAY - SETTINGS.label_delay_days - 1 < train.max() < DAY - SETTINGS.label_delay_days
    assert test.min() >= DAY
    assert DAY + learnability.TEST_DAYS - 1 < test.max() < DAY + learnability.TEST_DAYS
    assert (day.test.weight == 1).all()
    assert day.train.weight.max() > 1  # it is a sample


def test_history_is_worth_something_and_every_scenario_is_judged(day: learnability.Day) -> None:
    found = learnability.report(day, SETTINGS)
    assert found["ap"] > 2 * found["ap_stateless"]
    assert sum(scenario["frauds"] for scenario in found["by_scenario"].values()) == day.test.frauds
    assert len(found["by_scenario"]) == 6


def test_what_can_be_known_of_compromised_merchants_is_as_old_as_the_newest_labels(day: learnability.Day) -> None:
    fraud = day.test.scenario == SCENARIOS.index(learnability.LEAK)
    genuine = day.test.label == 0
    known = day.leaked > 0
    assert 0.2 < known[fraud].mean() < 1, "some began to leak since"
    assert known[genuine].mean() < 0.05
    assert genuine[known].mean() < 0.7, "most of what is bought there is fraud"


def test_seeds_stand_side_by_side() -> None:
    def figures(ap: float | None) -> dict[str, object]:
        return {
            "ap": ap, "ap_stateless": 0.1, "by_scenario": {"odd": {"ap": ap, "ap_stateless": ap and 0.25}},
            learnability.KNOWN: ap,
        }  # fmt: skip

    found = learnability.side_by_side({"1": {"day_9": figures(0.4)}, "2": {"day_9": figures(0.7)}})
    assert found["day_9"]["odd"] == {"ap": 0.55, "least_ap": 0.4, "most_ap": 0.7, "ap_stateless": 0.25}
    assert "| `odd` | 0.55 (0.40 to 0.70) | 0.25 |" in learnability.table(found)
    assert "known when labels were made | 0.55 (0.40 to 0.70) | – |" in learnability.table(found)
    assert "| `odd` | – | – |" in learnability.table(learnability.side_by_side({"1": {"day_9": figures(None)}}))
