"""Where the bins of features begin: every value of a column with few, bins of one size for the others."""

import numpy as np
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from services.train.cuts import cuts

MISSING = np.float32(np.nan)
few_values = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 7.0, float("nan")])
many_values = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(0, 60), st.integers(1, 3)), elements=few_values | many_values))
def test_cuts_are_values_of_the_column_ascending(features):
    found = cuts(features, 8)
    assert found.shape == (8, features.shape[1])
    for column, own in zip(found.T, features.T, strict=True):
        known = np.unique(own[~np.isnan(own)])
        assert (np.diff(column) >= 0).all()
        assert set(column) <= set(known if len(known) else [0.0])
        if len(known) <= 8:
            assert np.unique(column).tolist() == known.tolist() or not len(known)


def test_a_heavy_value_takes_one_cut_and_leaves_the_others_to_the_rest():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(20_000) < 0.9, 3.0, rng.normal(0, 10, 20_000)).astype(np.float32)
    found = np.unique(cuts(values[:, None], 64))
    assert len(found) == 64
    assert 3.0 in found
    rows = np.histogram(values[values != 3.0], np.append(found, np.inf))[0]
    assert rows[1:-1].max() < 2.5 * 2_000 / 64, "bins of about one size"


def test_bins_are_finer_at_the_ends():
    values = np.random.default_rng(0).permutation(20_000).astype(np.float32)
    found = cuts(values[:, None], 512)[:, 0]
    assert len(np.unique(found)) == 512
    assert found[:3].tolist() == [0, 1, 2]
    assert found[-3:].tolist() == [19_997, 19_998, 19_999]
    rows = np.diff(found)
    assert rows[:24].max() <= rows[100:400].min() / 4, "bins of an end are a quarter of those in the middle at most"
    assert rows.max() < 1.5 * 20_000 / 512


@settings(deadline=None)
@given(heavy=st.integers(0, 40), rest=st.integers(0, 300), most=st.integers(2, 40))
def test_heavy_values_and_ends_together_are_no_more_than_asked_for(heavy, rest, most):
    values = np.concatenate([np.repeat(np.arange(heavy), 50), 1_000 + np.arange(rest)]).astype(np.float32)
    found = cuts(values[:, None], most)
    assert len(np.unique(found)) == (min(most, heavy + rest) or 1)


def test_the_matrix_has_these_cuts():
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=5_000), rng.integers(0, 5, 5_000)], axis=1).astype(np.float32)
    found = cuts(features, 32)
    few = xgb.QuantileDMatrix(found, max_bin=32)
    starts, values = xgb.QuantileDMatrix(features, ref=few, max_bin=32).get_quantile_cut()
    for column in range(2):
        own = values[starts[column] : starts[column + 1]]
        wanted = np.unique(found[:, column])
        assert own[1:-1].tolist() == wanted[1:].tolist(), "the first is below all values, the last above"
