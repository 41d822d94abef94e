"""spearhead.reasons and the budget: which features a flagged row's reasons name, and whether their words are true."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.budget import BURST_SECONDS, Budget
from spearhead.features import FEATURES
from spearhead.reasons import MAX_REASONS, TEMPLATES, Reason, shown, strongest, text


def row(**values: float) -> np.ndarray:
    made = np.zeros((1, len(FEATURES)), np.float32)
    for name, value in values.items():
        made[0, FEATURES.index(name)] = value
    return made


def test_every_feature_has_a_template_and_no_other_has():
    assert set(TEMPLATES) == set(FEATURES)


@pytest.mark.parametrize("name", FEATURES)
@given(value=st.floats(0, 20, width=32))
def test_every_feature_has_words(name, value):
    assert text(Reason(name, value, 1.0)).strip()


@pytest.mark.parametrize(("name", "words"), [("card_count_1h", "1 hour"), ("card_count_7d", "7 days")])
@given(count=st.integers(1, 1024))
def test_the_ordinal_is_the_count(name, words, count):
    said = text(Reason(name, float(count), 1.0))
    assert int(re.match(r"[\d,]+", said)[0].replace(",", "")) == count
    assert said.endswith(words)


@given(frauds=st.integers(0, 1000))
def test_the_merchants_frauds_are_its_frauds(frauds):
    said = text(Reason("merch_frauds_7d", float(frauds), 1.0))
    assert said == f"merchant with {frauds:,} recent fraud{'' if frauds == 1 else 's'}"


def test_an_amount_is_in_dollars_and_a_ratio_in_times():
    assert text(Reason("amt", 1234.5, 1.0)) == "amount $1,234.50"
    assert text(Reason("card_amt_ratio", 14.2, 1.0)) == "amount 14× the card's usual"


@given(cents=st.integers(1, 1_000_000_000))
def test_a_shown_amount_is_to_the_cent_whatever_the_code_kept(cents):
    kept = cents / 100 * 1.0009
    one = shown(Reason("amt", kept, 1.0), cents / 100)
    assert (one["code"], one["feature"], one["value"]) == ("amount", "amt", cents / 100)
    assert one["text"] == f"amount ${cents // 100:,}.{cents % 100:02d}"
    other = shown(Reason("card_amt_ratio", kept, 1.0), cents / 100)
    assert other["value"] == kept


@given(st.lists(st.floats(-5, 5, width=32, allow_subnormal=False), min_size=len(FEATURES), max_size=len(FEATURES)))
def test_reasons_are_the_codes_that_raise_the_score_most(contributions):
    sums: dict[str, float] = {}
    for name, value in zip(FEATURES, contributions, strict=True):
        sums[TEMPLATES[name].code] = sums.get(TEMPLATES[name].code, 0.0) + value
    expected = sorted((total for total in sums.values() if total > 0), reverse=True)[:MAX_REASONS]
    found = strongest(row(amt=9), np.array([contributions], np.float32))[0]
    assert [reason.contribution for reason in found] == pytest.approx(expected)


def test_a_missing_value_is_no_reason():
    contributions = row(amt=3.0, card_count_1h=1.0)
    assert [one.feature for one in strongest(row(amt=np.nan, card_count_1h=4), contributions)[0]] == ["card_count_1h"]


@given(
    rate=st.floats(0.5, 1000),
    asked=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 5000)), max_size=30),
)
def test_a_budget_never_gives_more_than_its_rate_and_one_burst(rate, asked):
    now = 0.0
    budget = Budget(rate, lambda: now)
    given_out = 0
    for wait, wanted in asked:
        now += wait
        taken = budget.take(wanted)
        assert 0 <= taken <= wanted
        given_out += taken
    assert given_out <= rate * now + max(1.0, rate * BURST_SECONDS) + 1e-6


@pytest.mark.parametrize(("row_seconds", "most"), [(25e-6, 250), (0.6e-3, 33), (0.0011, 18), (5.0, 1)])
def test_a_step_gets_no_more_rows_than_its_model_explains_in_its_time(row_seconds, most):
    """One always goes through, or nothing could be measured again."""
    budget = Budget(500)
    budget.expect("v000001", row_seconds)
    assert budget.take(10_000) == most


def test_what_explaining_takes_is_measured():
    """A host becomes slower, then faster; a new model begins anew."""
    now, given = 0.0, []
    budget = Budget(500, lambda: now)
    for took in [25e-6] * 3 + [0.002] * 12 + [25e-6] * 20:
        now += 1.0
        budget.expect("v000001", 25e-6)
        given.append(budget.take(10_000))
        with budget.explaining(given[-1]):
            now += given[-1] * took
    assert given[:4] == [250] * 4
    assert given[14] == 10
    assert given[15:17] == [10, 19], "a step that was held up counts half"
    assert given[-1] == 250
    budget.expect("v000002", 0.6e-3)
    now += 1.0
    assert budget.take(10_000) == 33


def test_no_rate_gives_nothing():
    assert Budget(0).take(5) == 0
