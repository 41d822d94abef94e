"""The Fraud Detection Handbook's simulated set: its published size, its rules, and the pipeline's way through it."""

import numpy as np
import pytest
from reference_features import Reference
from test_features import assert_parity

from services.generator import handbook
from services.generator.handbook import DAYS, Handbook, customers, simulate, transactions
from services.prep.validate import validate
from spearhead.features import History


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return simulate()


def test_the_whole_set_has_the_published_size(whole: np.ndarray) -> None:
    assert len(whole) == 1_754_155
    assert whole["label"].sum() == 14_681


def test_amounts_times_and_places_follow_the_description(whole: np.ndarray) -> None:
    people = customers()
    assert (np.diff(whole["second"].astype(np.int64)) >= 0).all()
    assert whole["second"].max() < DAYS * 86_400
    assert (whole["label"][whole["cents"] > 22_000] == 1).mean() > 0.99  # but for those that became so by the factor
    one = whole[whole["customer"] == 7]
    assert abs(len(one) / DAYS / people.rate[7] - 0.97) < 0.2  # some fall outside the day
    shops = handbook.terminals()[np.unique(one["terminal"])]
    assert (np.hypot(shops[:, 0] - people.x[7], shops[:, 1] - people.y[7]) < 5).all()


def test_a_source_goes_on_from_any_cursor_however_rows_are_cut() -> None:
    rows = simulate(count=40, days=20)
    at_once = Handbook(rows).take(len(rows)).batch
    first = Handbook(rows).take(333)
    rest = Handbook(rows, first.cursor).take(len(rows))
    assert rest.ended
    assert not first.ended
    assert first.batch.to_pylist() + rest.batch.to_pylist() == at_once.to_pylist()
    assert rest.watermark == int(at_once.column("event_time").cast("int64").to_numpy().max())
    with pytest.raises(ValueError, match="settings ask for 'handbook'"):
        Handbook(rows, "synthetic at 5")


def test_every_row_is_a_transaction_to_prep() -> None:
    batch = Handbook(simulate(count=200, days=30)).take(100_000).batch
    assert validate(batch)[1] == []
    assert len(set(batch.column("trans_num").to_pylist())) == batch.num_rows


def test_features_of_it_equal_the_slow_reference() -> None:
    batch = Handbook(simulate(count=60, days=40)).take(2_500).batch
    assert_parity(batch, History(), Reference(6_000_000, 1_000_000, 7 * 86_400_000_000))


def test_it_is_made_once_a_volume(volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handbook, "simulate", lambda: simulate(count=10, days=5))
    made = transactions(volume)
    monkeypatch.setattr(handbook, "simulate", lambda: pytest.fail("made again"))
    assert (transactions(volume) == made).all()
