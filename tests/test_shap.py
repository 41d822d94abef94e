"""spearhead.shap gives what XGBoost's pred_contribs gives, from tables and from paths, for random models and rows."""

import logging

import msgspec
import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from spearhead import shap
from spearhead.codes import encode
from spearhead.model import _tables
from spearhead.trees import MAX_DEPTH, UnsupportedError
from tests.test_trees import WIDTH, features_of, grown


def paths_of(booster: xgb.Booster) -> shap.Paths:
    return shap.compile_paths(msgspec.json.decode(bytes(booster.save_raw("json"))))


def theirs(booster: xgb.Booster, features: np.ndarray) -> np.ndarray:
    return booster.predict(xgb.DMatrix(features), pred_contribs=True)[:, :-1]


def agree(booster: xgb.Booster, features: np.ndarray) -> None:
    paths, expected = paths_of(booster), theirs(booster, features)
    matrix = encode(features)
    np.testing.assert_allclose(paths.contributions(matrix), expected, atol=1e-4, rtol=1e-4)
    found = shap.contributions(shap.tabulate(paths), matrix)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, 6),
    rounds=st.integers(1, 12),
    rows=st.sampled_from([1, 2, shap.BLOCK, shap.BLOCK + 1, 3 * shap.BLOCK + 5]),
    missing=st.sampled_from([0.0, 0.2]),
    width=st.sampled_from([1, 2, WIDTH]),
    policy=st.sampled_from(["depthwise", "lossguide"]),
)
def test_contributions_are_xgboosts(
    seed: int, depth: int, rounds: int, rows: int, missing: float, width: int, policy: str
) -> None:
    """With one or two features, paths of depth 6 ask some of them again."""
    booster = grown(seed, rounds=rounds, missing=missing, width=width, max_depth=depth, grow_policy=policy)
    agree(booster, features_of(np.random.default_rng(seed + 1), rows, missing, width))


@pytest.mark.parametrize("parameters", [{"max_depth": 1}, {"gamma": 1e9}, {"max_depth": MAX_DEPTH}])
def test_stumps_lone_leaves_and_the_deepest(parameters: dict[str, object]) -> None:
    booster = grown(3, rounds=2, **parameters)
    agree(booster, features_of(np.random.default_rng(4), 70, 0.2))


def test_contributions_are_a_rows_own() -> None:
    booster = grown(5, max_depth=6)
    matrix = encode(features_of(np.random.default_rng(6), 150, 0.1))
    tables = shap.tabulate(paths_of(booster))
    alone = np.concatenate([shap.contributions(tables, matrix[[row]]) for row in range(150)])
    np.testing.assert_array_equal(shap.contributions(tables, matrix), alone)


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = paths_of(grown(7, max_depth=6))
    size = shap.tabulate(paths).added.nbytes
    monkeypatch.setattr(shap, "MAX_TABLE_BYTES", size - 1)
    with pytest.raises(UnsupportedError, match="tables"):
        shap.tabulate(paths)
    monkeypatch.setattr(shap, "MAX_TABLE_BYTES", size)
    shap.tabulate(paths)


def test_a_model_that_is_not_explained_says_so() -> None:
    with pytest.raises(UnsupportedError, match="deeper"):
        paths_of(grown(1, max_depth=MAX_DEPTH + 2, reg_lambda=0, min_child_weight=0, gamma=0, width=40, missing=0))
    with pytest.raises(UnsupportedError, match="dart"):
        paths_of(grown(1, booster="dart"))


def test_a_kernel_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    booster = grown(9, max_depth=4)
    assert _tables(booster, "v000001") is not None
    real = shap.contributions
    monkeypatch.setattr(shap, "contributions", lambda tables, rows: real(tables, rows) + 0.01)
    with caplog.at_level(logging.WARNING):
        assert _tables(booster, "v000001") is None
    assert "left to XGBoost" in caplog.text
