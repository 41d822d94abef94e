"""The tree kernels give what XGBoost gives, to the bit: the reference is XGBoost's own predictor."""

import os
import subprocess
import sys

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from spearhead import trees
from spearhead.codes import NO_RANK, decode, encode
from spearhead.trees import BLOCK, MAX_DEPTH, UnsupportedError, compile_trees, margins, probabilities

WIDTH = 7


def grown(seed: int, *, rounds: int = 5, missing: float = 0.1, width: int = WIDTH, **parameters: object) -> xgb.Booster:
    """Trees on random rows whose features take few values, so that rows meet thresholds exactly."""
    rng = np.random.default_rng(seed)
    features = features_of(rng, 400, missing, width)
    label = rng.random(400) < 0.3
    chosen = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "nthread": 1,
        "min_child_weight": 0.1,
        **parameters,
    }
    return xgb.train(chosen, xgb.DMatrix(features, label), num_boost_round=rounds)


def features_of(rng: np.random.Generator, rows: int, missing: float, width: int = WIDTH) -> np.ndarray:
    features = rng.integers(-6, 7, (rows, width)).astype(np.float32) / 2
    features[rng.random(features.shape) < missing] = np.nan
    features[rng.random(features.shape) < 0.01] = 1e30  # more than a code holds: the largest stands for it
    return decode(encode(features))


def compiled(booster: xgb.Booster) -> trees.Trees:
    return compile_trees(bytes(booster.save_raw("json")))


def summed(booster: xgb.Booster, features: np.ndarray) -> np.ndarray:
    return margins(compiled(booster), encode(features))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, MAX_DEPTH),
    rounds=st.integers(1, 12),
    rows=st.sampled_from([1, 2, 63, 64, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]),
    missing=st.sampled_from([0.0, 0.2]),
    base=st.sampled_from([0.5, 0.01, 0.3]),
    policy=st.sampled_from(["depthwise", "lossguide"]),
)
def test_margins_equal_xgboost_to_the_bit(
    seed: int, depth: int, rounds: int, rows: int, missing: float, base: float, policy: str
) -> None:
    booster = grown(seed, rounds=rounds, missing=missing, max_depth=depth, base_score=base, grow_policy=policy)
    features = features_of(np.random.default_rng(seed + 1), rows, missing)
    expected = booster.inplace_predict(features, predict_type="margin")
    np.testing.assert_array_equal(summed(booster, features), expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), slope=st.floats(0.25, 3), intercept=st.floats(-3, 3))
def test_probabilities_are_the_sigmoid_of_the_calibrated_margin(seed: int, slope: float, intercept: float) -> None:
    booster = grown(seed, eta=1.0)
    features = features_of(np.random.default_rng(seed), 100, 0.1)
    margin = summed(booster, features)
    exact = 1 / (1 + np.exp(-(slope * margin.astype(np.float64) + intercept)))
    np.testing.assert_allclose(probabilities(margin.copy(), slope, intercept), exact, rtol=2e-6)
    np.testing.assert_array_equal(probabilities(margin.copy(), 1.0, 0.0), booster.inplace_predict(features))


def test_extreme_margins_stay_probabilities() -> None:
    scores = probabilities(np.array([-np.inf, -1e30, -89, 0, 89, 1e30, np.inf], np.float32), 1.0, 0.0)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[3] == 0.5
    assert (np.diff(scores) >= 0).all()


def test_rows_of_one_call_do_not_touch_one_another() -> None:
    booster = grown(3)
    features = features_of(np.random.default_rng(4), 2 * BLOCK + 17, 0.1)
    whole = summed(booster, features)
    cut = [summed(booster, features[first : first + 100]) for first in range(0, len(features), 100)]
    np.testing.assert_array_equal(np.concatenate(cut), whole)


def test_a_stump_and_a_lone_leaf() -> None:
    features = features_of(np.random.default_rng(0), 70, 0.2)
    for booster in (grown(1, max_depth=1), grown(1, gamma=1e9)):
        np.testing.assert_array_equal(
            summed(booster, features), booster.inplace_predict(features, predict_type="margin")
        )


def test_a_model_cut_after_its_best_round() -> None:
    booster = grown(5, rounds=9)[:4]
    features = features_of(np.random.default_rng(6), 70, 0.2)
    np.testing.assert_array_equal(summed(booster, features), booster.inplace_predict(features, predict_type="margin"))


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"max_depth": MAX_DEPTH + 2, "reg_lambda": 0, "min_child_weight": 0, "gamma": 0}, "deeper"),
        ({"booster": "dart"}, "dart"),
        ({"booster": "gblinear", "tree_method": None, "min_child_weight": None}, "gblinear"),
        ({"objective": "reg:squarederror"}, "squarederror"),
    ],
)
def test_what_is_not_supported_says_so(parameters: dict[str, object], why: str) -> None:
    chosen = {"objective": "binary:logistic", "nthread": 1, "min_child_weight": 0.1} | parameters
    rng = np.random.default_rng(0)
    data = xgb.DMatrix(rng.random((3000, WIDTH), np.float32), rng.random(3000) < 0.5)
    booster = xgb.train({key: value for key, value in chosen.items() if value is not None}, data, num_boost_round=2)
    with pytest.raises(UnsupportedError, match=why):
        compiled(booster)


def test_categories_are_not_supported() -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 5, (500, 1)).astype(np.float32)
    data = xgb.DMatrix(features, features[:, 0] % 2 == 0, feature_types=["c"], enable_categorical=True)
    booster = xgb.train({"objective": "binary:logistic", "max_cat_to_onehot": 1}, data, num_boost_round=1)
    with pytest.raises(UnsupportedError, match="categories"):
        compiled(booster)


def test_a_read_only_matrix_needs_no_second_compilation() -> None:
    model, features = compiled(grown(1)), encode(features_of(np.random.default_rng(0), 70, 0.0))
    margins(model, features)
    before = len(trees._sum_trees.signatures)
    features.flags.writeable = False
    margins(model, features)
    assert len(trees._sum_trees.signatures) == before


def test_warming_compiles_what_scoring_needs() -> None:
    program = (
        "from spearhead import trees; trees.warm(); n = [len(f.signatures) for f in (trees._sum_trees, "
        "trees._probabilities)]; import tests.test_trees as t, numpy as np; "
        "trees.probabilities(trees.margins(t.compiled(t.grown(1)), np.zeros((3, 7), np.uint16)), 1.0, 0.0); "
        "assert n == [1, 1] == [len(f.signatures) for f in (trees._sum_trees, trees._probabilities)], n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_processor_without_long_vectors_sums_the_same() -> None:
    program = (
        "import numpy as np, tests.test_trees as t\n"
        "for depth in range(1, t.MAX_DEPTH + 1):\n"
        "    booster = t.grown(depth, rounds=9, max_depth=depth)\n"
        "    features = t.features_of(np.random.default_rng(depth), t.BLOCK + 70, 0.2)\n"
        "    expected = booster.inplace_predict(features, predict_type='margin')\n"
        "    np.testing.assert_array_equal(t.summed(booster, features), expected)\n"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_a_feature_whose_missing_values_pass_some_tests_only() -> None:
    booster = grown(8, rounds=20, missing=0.3)
    model = compiled(booster)
    assert len(model.columns) > len(set(model.columns.tolist()))
    features = features_of(np.random.default_rng(9), 300, 0.5)
    np.testing.assert_array_equal(summed(booster, features), booster.inplace_predict(features, predict_type="margin"))


def test_a_threshold_that_only_a_missing_value_passes() -> None:
    features = np.array([[1e12], [np.nan]] * 50, np.float32)
    booster = xgb.train(
        {"objective": "binary:logistic", "tree_method": "hist", "min_child_weight": 0, "nthread": 1},
        xgb.DMatrix(features, np.array([0, 1] * 50)),
        num_boost_round=2,
    )
    expected = booster.inplace_predict(features, predict_type="margin")
    assert len(set(expected.tolist())) == 2
    np.testing.assert_array_equal(summed(booster, features), expected)


def test_the_probe_meets_every_threshold_on_both_sides() -> None:
    booster = grown(2, rounds=8)
    model = compiled(booster)
    found = trees.probe(model, WIDTH)
    passed = decode(found)
    for test in range(len(model.rank) - 1):
        column = passed[:, model.columns[model.feature[test]]]
        code = int(model.rank[test])
        limit = decode(np.array([[code if code >= 0 else 0x8000 - code]], np.uint16))[0, 0]
        assert (column == limit).any() or code == NO_RANK
        assert (column < limit).any()
