"""services/train: honest evaluation, labels only once they have matured, a model in service only if it is better."""

import errno
import os
import time
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from services.train import calibration, evaluation, fit, promotion
from services.train.fit import CancelledError, CannotTrainError, Options, Rows
from services.train.job import Job
from services.train.promotion import Rules, confidence, judge
from services.train.sample import Sample
from services.train.stage import Train
from spearhead import codes
from spearhead.backlog import Head, RawHeads
from spearhead.control import Control
from spearhead.features import FEATURES, STATELESS, WIDTH
from spearhead.files import Files
from spearhead.model import Model, ModelStore
from spearhead.schema import CATEGORIES, training_schema
from spearhead.segment import SegmentInfo, SegmentName, write_segment
from spearhead.settings import Settings
from spearhead.spool import Spool
from spearhead.volume import Volume

DAY_US = 86_400_000_000
NAMES = tuple(f"f{i}" for i in range(6))
OPTIONS = Options(names=NAMES, stateless=NAMES[:2], threshold=0.52)


def labelled_rows(rows: int = 6_000, base: float = 0.05, seed: int = 0, width: int = 6, start: int = 0) -> Rows:
    """Rows whose fraud shows in features 2 and 3 (history) and a little in feature 0 (stateless), over ten days."""
    rng = np.random.default_rng(seed)
    fraud = rng.random(rows) < base
    features = rng.standard_normal((rows, width)).astype(np.float32)
    features[:, 0] += 0.7 * fraud
    features[:, 2] += 2.0 * fraud
    features[:, 3] += 1.5 * fraud
    return Rows(
        event_time=start + np.sort(rng.integers(0, 10 * DAY_US, rows)),
        cents=rng.integers(1, 100_000, rows).astype(np.int32),
        category=rng.integers(0, 14, rows).astype(np.uint8),
        label=fraud.astype(np.int8),
        scenario=np.where(fraud, rng.integers(1, 7, rows), 0).astype(np.int8),
        weight=np.ones(rows, np.float32),
        features=features,
    )


# Evaluation


@st.composite
def scored(draw):
    n = draw(st.integers(1, 25))
    numbers = lambda values: draw(st.lists(values, min_size=n, max_size=n))  # noqa: E731
    label = np.array(numbers(st.integers(0, 1)), np.int8)
    score = np.array(numbers(st.sampled_from([0.0, 0.1, 0.3, 0.52, 0.8, 1.0])), np.float32)
    weight = np.array(numbers(st.integers(1, 4)), np.float32)
    return label, score, weight


def repeat(label, score, weight):
    """A row of weight three is three rows."""
    times = weight.astype(int)
    return np.repeat(label, times), np.repeat(score, times)


@settings(max_examples=200, deadline=None)
@given(scored())
def test_figures_equal_their_definitions(table):
    label, score = repeat(*table)
    ranking = evaluation.rank(*table)
    positives, negatives = score[label == 1], score[label == 0]
    recall_before, expected = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        flagged = score >= np.float32(threshold)
        recall = (flagged & (label == 1)).sum() / max(1, len(positives))
        expected += (recall - recall_before) * label[flagged].mean()
        recall_before = recall
    found = evaluation.average_precision(ranking)
    assert found is None if not len(positives) else found == pytest.approx(expected)
    found = evaluation.auc(ranking)
    if not len(positives) or not len(negatives):
        assert found is None
    else:
        wins = (positives[:, None] > negatives).mean() + 0.5 * (positives[:, None] == negatives).mean()
        assert found == pytest.approx(wins)


@settings(deadline=None)
@given(scored(), st.sampled_from([0.05, 0.3, 0.52, 0.99]))
def test_threshold_figures_equal_their_definitions(table, threshold):
    label, score = repeat(*table)
    cents = np.full(len(table[0]), 250)
    got = evaluation.at_threshold(threshold, *table, cents)
    flagged = score.astype(np.float64) >= threshold
    assert got["tp"] == (flagged & (label == 1)).sum()
    assert got["fn"] == (~flagged & (label == 1)).sum()
    assert got["precision"] == (pytest.approx(label[flagged].mean()) if flagged.any() else None)
    assert got["recall"] == (pytest.approx(flagged[label == 1].mean()) if label.any() else None)
    assert got["false_positive_rate"] == (pytest.approx(flagged[label == 0].mean()) if not label.all() else None)
    assert got["alerts_per_million"] == pytest.approx(1e6 * flagged.mean())
    assert got["fraud_dollars_caught"] == pytest.approx(2.5 * got["tp"])


def test_scenarios_are_judged_one_by_one_and_unnamed_fraud_is_none_of_them():
    label = np.array([1, 1, 0, 0, 1], np.int8)
    scenario = np.array([1, 2, 0, 0, 0], np.int8)
    score = np.array([0.9, 0.1, 0.5, 0.2, 0.95], np.float32)
    found = evaluation.by_scenario(("none", "a", "b", "c"), scenario, label, score, np.ones(5))
    assert found == {"a": 1.0, "b": pytest.approx(1 / 3), "c": None}


@settings(max_examples=50, deadline=None)
@given(scored())
def test_calibration_figures_equal_their_definitions(table):
    label, score = repeat(*table)
    got = evaluation.calibration(*table)
    assert got["brier"] == pytest.approx(((score - label) ** 2).mean())
    assert sum(b["rows"] for b in got["bins"]) == len(table[0])
    assert sum(b["frauds"] for b in got["bins"]) == (table[0] == 1).sum()
    error = 0.0
    for b in got["bins"]:
        last = b["high"] == 1.0
        inside = (score >= b["low"]) & ((score < b["high"]) | last)
        if inside.any():
            assert b["mean_score"] == pytest.approx(score[inside].mean())
            assert b["fraud_rate"] == pytest.approx(label[inside].mean())
            error += abs((score[inside] - label[inside]).sum())
        else:
            assert (b["rows"], b["mean_score"], b["fraud_rate"]) == (0, None, None)
    assert got["ece"] == pytest.approx(error / len(score), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(scored(), st.floats(0, 20), st.floats(0, 5), st.integers(0, 9))
def test_the_cheapest_threshold_is_the_one_that_trying_them_all_finds(table, per_alert, per_missed, seed):
    cents = np.random.default_rng(seed).integers(1, 50_000, len(table[0]))
    costs = evaluation.Costs(per_alert, per_missed)
    rows = evaluation.threshold_table(0.52, *table, cents, costs)

    def cost(threshold):
        each = [
            weight * (per_alert if float(score) >= threshold else per_missed * amount / 100 if label else 0.0)
            for label, score, weight, amount in zip(*table, cents, strict=True)
        ]
        return 1e6 * sum(each) / table[2].sum()

    found = evaluation.cheapest(rows)
    assert cost(found) == pytest.approx(min(cost(row["threshold"]) for row in rows), rel=1e-6)
    assert [row["cost"] for row in rows] == pytest.approx([cost(row["threshold"]) for row in rows], rel=1e-6)
    assert evaluation.cheapest(evaluation.threshold_table(0.52, *table, cents)) is None, "costs nobody named"


# Calibration


def drawn_margins(rows: int = 40_000, seed: int = 0):
    """Log-odds whose sigmoid is the probability of fraud, labels drawn by it, and weights."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(-3, 1.5, rows).astype(np.float32)
    fraud = rng.random(rows) < 1 / (1 + np.exp(-margin))
    return fraud.astype(np.int8), margin, rng.integers(1, 4, rows).astype(np.float32)


def test_the_line_is_the_one_that_the_margins_were_bent_by():
    label, margin, weight = drawn_margins()
    line = calibration.fit_line(label, (margin - 1.2) / 0.7, weight)
    assert line.slope == pytest.approx(0.7, abs=0.05)
    assert line.intercept == pytest.approx(1.2, abs=0.1)
    assert calibration.confirmed(line, label, (margin - 1.2) / 0.7, weight) == line


@pytest.mark.parametrize(("slope", "intercept"), [(0.7, 1.2), (3.0, -9.0), (0.02, 0.0), (40.0, 100.0)])
def test_the_line_is_the_one_of_least_loss(slope, intercept):
    label, margin, weight = drawn_margins(4_000)
    bent = ((margin - intercept) / slope).astype(np.float32)
    odds, share = bent.astype(np.float64), weight.astype(np.float64) / weight.sum()

    def loss(line):
        return share @ (np.logaddexp(0, line[0] * odds + line[1]) - label * (line[0] * odds + line[1]))

    line = calibration.fit_line(label, bent, weight)
    for near in ((1.001, 0.0), (0.999, 0.0), (1.0, 0.001), (1.0, -0.001)):
        assert loss((line.slope * near[0], line.intercept + near[1])) > loss(line)


def test_where_margins_part_the_classes_the_line_is_still_a_number():
    _, margin, weight = drawn_margins(4_000)
    line = calibration.fit_line(margin > -3, margin, weight)
    assert line.slope > 1
    assert np.isfinite(line).all()
    same = np.full(4_000, -2.0, np.float32)
    assert calibration.fit_line(margin > -3, same, weight).slope == 1


def test_no_line_without_frauds_enough_or_where_later_rows_do_not_confirm_it():
    label, margin, weight = drawn_margins()
    few = np.flatnonzero(label)[:49]
    scarce = np.concatenate([few, np.flatnonzero(label == 0)])
    bent = margin * 2 + 3
    assert calibration.fit_line(label[scarce], bent[scarce], weight[scarce]) == calibration.IDENTITY
    assert calibration.fit_line(label, -margin, weight) == calibration.IDENTITY, "it would turn the ranking over"
    assert calibration.confirmed(calibration.Line(0.5, 2.0), label, margin, weight) == calibration.IDENTITY
    line = calibration.fit_line(label, bent, weight)
    assert calibration.confirmed(line, label[scarce], bent[scarce], weight[scarce]) == calibration.IDENTITY


def test_a_booster_that_cries_wolf_is_mended(volume, monkeypatch):
    rows = labelled_rows(20_000, width=WIDTH)
    honest = fit.parameters
    monkeypatch.setattr(fit, "parameters", lambda options: honest(options) | {"scale_pos_weight": 30.0})
    made = fit.fit(rows, Options(names=FEATURES, stateless=STATELESS, threshold=0.52))
    test = rows.take(fit.split(rows).test)
    raw = fit.predict(made.booster, test.features)
    before = evaluation.calibration(test.label, raw, test.weight)
    after = made.metrics["calibration"]
    assert made.intercept < -1
    assert after["ece"] < before["ece"] / 4
    assert after["brier"] < before["brier"]
    assert (after["slope"], after["intercept"]) == (made.slope, made.intercept)
    store = ModelStore(volume)
    scores = store.load(store.publish(made, promote=True)).score_values(test.features)
    assert scores.mean() == pytest.approx(test.label.mean(), rel=0.25), "what is served is what was mended"
    assert scores.tolist() == fit.predict(made.booster, test.features, made.slope, made.intercept).tolist()


# Fitting


def test_the_model_finds_fraud_and_history_is_worth_something():
    made = fit.fit(labelled_rows(), OPTIONS)
    metrics = made.metrics
    assert metrics["by_category"].keys() == set(CATEGORIES)
    assert sum(found["frauds"] for found in metrics["by_category"].values()) == metrics["test_frauds"]
    assert metrics["average_precision"] > 0.6
    assert metrics["auc"] > 0.9
    assert metrics["average_precision"] > 2 * metrics["stateless"]["average_precision"]
    assert metrics["stateless"]["features"] == 2
    assert metrics["at_threshold"]["precision"] > 0.6
    assert metrics["trees"] == made.booster.num_boosted_rounds() <= 100
    assert next(iter(metrics["importances"])) == "f2"
    assert sum(metrics["importances"].values()) == pytest.approx(1)
    assert set(metrics["curves"]) == {"trees", "train", "valid"}
    assert 0.52 in [row["threshold"] for row in made.thresholds]
    alone = metrics["by_scenario_stateless"]
    assert alone.keys() == metrics["by_scenario"].keys()
    assert all(value > 2 * alone[name] > 0 for name, value in metrics["by_scenario"].items())
    msgspec.json.encode((metrics, made.thresholds, made.params, made.window))


def test_the_trees_are_as_many_as_are_best_on_the_validation_part_where_it_is_looked_at():
    rows = labelled_rows(4_000, base=0.02)
    made = fit.fit(rows, OPTIONS)
    valid = rows.take(fit.split(rows).valid)
    curves, grown = made.metrics["curves"], made.booster.num_boosted_rounds()
    looked = curves["trees"]
    assert looked == list(range(5, looked[-1] + 1, 5))
    assert grown in looked
    assert looked[-1] in {grown + fit.PATIENCE, fit.MAX_ROUNDS}
    by_trees = [fit.predict(made.booster[:trees], valid.features) for trees in looked if trees <= grown]
    losses = [evaluation.logloss(valid.label, scores, valid.weight) for scores in by_trees]
    assert curves["valid"]["logloss"][: len(losses)] == pytest.approx(losses, rel=1e-4)
    assert len(curves["train"]["logloss"]) == len(curves["valid"]["logloss"]) == len(looked)
    precisions = [evaluation.average_precision(evaluation.rank(valid.label, each, valid.weight)) for each in by_trees]
    assert max(precisions[9:]) == precisions[-1], "of those from 50 trees on"


def test_rows_that_are_watched_are_summed_alike_wherever_trees_are_grown():
    rows = labelled_rows(2_000)
    booster = fit.grow(rows, OPTIONS, 10, {})
    here, elsewhere = (fit._Watched(rows, device) for device in ("cpu", "cuda"))
    for watched in (here, elsewhere):
        watched.add(booster, 5)
        watched.add(booster, 10)
    assert here.margins == pytest.approx(elsewhere.margins, abs=1e-6)
    assert here.margins == pytest.approx(booster.inplace_predict(rows.features, predict_type="margin"), abs=1e-5)


def test_with_shuffled_labels_average_precision_is_the_base_rate():
    rows = labelled_rows()
    shuffled = rows._replace(label=np.random.default_rng(5).permutation(rows.label))
    metrics = fit.fit(shuffled, OPTIONS).metrics
    assert metrics["average_precision"] < 2 * metrics["test_base_rate"]
    assert metrics["stateless"]["average_precision"] < 2 * metrics["test_base_rate"]


def test_probabilities_are_calibrated_enough_for_a_threshold_to_mean_something():
    rows = labelled_rows(20_000)
    made = fit.fit(rows, OPTIONS)
    test = rows.take(fit.split(rows).test)
    scores = fit.predict(made.booster, test.features)
    assert scores.mean() == pytest.approx(test.label.mean(), rel=0.25)


def test_same_rows_in_any_order_give_the_same_model():
    rows = labelled_rows(2_000)
    order = np.random.default_rng(1).permutation(2_000)
    mixed = Rows(*(column[order] for column in rows))
    models = [bytes(fit.fit(fit.in_order(each), OPTIONS).booster.save_raw("ubj")) for each in (rows, mixed)]
    assert models[0] == models[1]


@given(st.lists(st.integers(0, 30), min_size=3, max_size=60), st.randoms(use_true_random=False))
def test_parts_follow_one_another_in_event_time(times, random):
    rows = labelled_rows(len(times))
    label = np.array([random.random() < 0.3 for _ in times], np.int8)
    rows = rows._replace(event_time=np.sort(np.array(times)), label=label)
    if label.all() or not label.any():
        with pytest.raises(CannotTrainError):
            fit.split(rows)
        return
    parts = [rows.take(part) for part in fit.split(rows)]
    assert sum(len(part.label) for part in parts) == len(times)
    assert 0 < parts[0].frauds < len(parts[0].label)
    ends = [part.event_time for part in parts if len(part.label)]
    assert all(before[-1] < after[0] for before, after in pairwise(ends))


def test_the_window_covers_all_that_was_seen():
    rows = labelled_rows(3_000)
    window = fit.fit(rows, OPTIONS).window
    assert window.train.end < window.valid.start <= window.fit_end == window.valid.end < window.test.start
    assert window.train_end == window.test.end == rows.event_time[-1]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_makes_no_model(label):
    rows = labelled_rows(500)
    with pytest.raises(CannotTrainError, match="none of the 500 matured rows is"):
        fit.fit(rows._replace(label=np.full(500, label, np.int8)), OPTIONS)
    with pytest.raises(CannotTrainError, match="none of the 0 matured rows"):
        fit.fit(rows.take(slice(0, 0)), OPTIONS)


@pytest.mark.parametrize("fraud_rows", [[5], [5, 250], [450], [5, 499], [299, 300]])
def test_a_handful_of_frauds_makes_a_model_and_figures_that_are_not_known_are_none(fraud_rows):
    rows = labelled_rows(500, base=0.0)
    label = np.zeros(500, np.int8)
    label[fraud_rows] = 1
    made = fit.fit(rows._replace(label=label), OPTIONS)
    if not any(row >= 400 for row in fraud_rows):
        assert made.metrics["average_precision"] is None
    scores = fit.predict(made.booster, rows.features)
    assert ((scores >= 0) & (scores <= 1)).all()
    msgspec.json.encode((made.metrics, made.thresholds))


def test_a_training_stops_when_told_to():
    asked = iter([False] * 3 + [True] * 100)
    options = Options(names=NAMES, stateless=NAMES[:2], threshold=0.52, cancelled=lambda: next(asked))
    with pytest.raises(CancelledError):
        fit.fit(labelled_rows(2_000), options)


def test_a_job_raises_what_its_work_raised():
    job = Job(lambda _cancelled: 1 // 0, 0)
    job.join()
    with pytest.raises(ZeroDivisionError):
        job.result()


# Promotion


def as_model(made) -> Model:
    return Model("v000001", made.booster, len(NAMES), made.window, slope=made.slope, intercept=made.intercept)


RULES = Rules(margin=0.005, ece_tolerance=0.1)


def test_a_better_challenger_is_promoted_and_a_worse_one_is_not():
    # Enough frauds that the calibration error is not chance: the bad one, which says the base rate, has next to none.
    early, late = labelled_rows(12_000, seed=1), labelled_rows(12_000, seed=2, start=20 * DAY_US)
    noise = early._replace(label=np.random.default_rng(0).permutation(early.label))
    good, bad = fit.fit(late, OPTIONS), fit.fit(noise, OPTIONS)
    assert judge(good, None, late, RULES).promote
    verdict = judge(good, as_model(bad), late, RULES)
    assert verdict.promote
    assert verdict.figures["promoted"] is True
    assert verdict.figures["confidence"] == 1.0
    assert verdict.figures["challenger_average_precision"] == pytest.approx(good.metrics["average_precision"])
    shuffled = late._replace(label=np.random.default_rng(0).permutation(late.label))
    worse = fit.fit(shuffled, OPTIONS)
    assert not judge(worse, as_model(fit.fit(early, OPTIONS)), late, RULES).promote
    assert not judge(good, as_model(good), late, Rules(0.0, 0.1)).promote, "as good is not better"


def champion_and_better():
    """A champion on half of what can be known, a challenger on all of it, and later rows to judge them by."""
    early, late = labelled_rows(6_000, base=0.1, seed=1), labelled_rows(6_000, base=0.1, seed=2, start=20 * DAY_US)
    blind = early.features.copy()
    blind[:, 3] = 0.0
    return fit.fit(early._replace(features=blind), OPTIONS), fit.fit(late, OPTIONS), late


def test_a_challenger_that_is_better_only_within_the_margin_stays_a_shadow():
    champion, better, late = champion_and_better()
    figures = judge(better, as_model(champion), late, RULES).figures
    ahead = figures["challenger_average_precision"] - figures["champion_average_precision"]
    assert ahead > 0.02
    assert judge(better, as_model(champion), late, Rules(ahead - 0.001, 0.1)).promote
    refused = judge(better, as_model(champion), late, Rules(ahead + 0.001, 0.1))
    assert not refused.promote
    assert refused.figures["promoted"] is False
    assert "above the champion's" in refused.figures["reason"]


def test_a_challenger_that_ranks_better_but_is_worse_calibrated_stays_a_shadow():
    champion, better, late = champion_and_better()
    bent = better._replace(intercept=better.intercept + 1.5)
    refused = judge(bent, as_model(champion), late, RULES)
    assert refused.figures["challenger_average_precision"] > refused.figures["champion_average_precision"] + 0.02
    assert refused.figures["challenger_ece"] > 2 * refused.figures["champion_ece"]
    assert not refused.promote
    assert refused.figures["reason"].startswith("calibration error")
    assert judge(bent, as_model(champion), late, Rules(0.005, 100.0)).promote


def test_a_lead_that_hangs_on_few_rows_is_not_believed():
    rng = np.random.default_rng(3)
    label = (rng.random(4_000) < 0.01).astype(np.int8)
    theirs = (rng.random(4_000) + 0.5 * label).astype(np.float32)
    ours = theirs.copy()
    one = np.flatnonzero(label)[np.argsort(theirs[label > 0])[5]]
    ours[one] = 2.0
    weight = np.ones(4_000, np.float32)
    lead, tie = confidence(label, ours, theirs, weight), confidence(label, theirs, theirs, weight)
    assert 0 < lead < 0.9, "one fraud of forty: where it is not drawn there is no lead"
    assert tie == 0
    assert confidence(label, label.astype(np.float32), theirs, weight) == 1


@settings(max_examples=200, deadline=None)
@given(scored(), st.data())
def test_average_precision_of_a_resample_is_that_of_the_rows_drawn(table, data):
    label, score, weight = table
    drawn = weight * np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(label), max_size=len(label))))
    some = drawn > 0
    expected = evaluation.average_precision(evaluation.rank(label[some], score[some], drawn[some]))
    assert promotion._resampled(drawn, promotion._order(label, score)) == pytest.approx(expected or 0.0)


def test_rows_are_drawn_as_often_as_with_replacement():
    times = promotion._poisson()
    assert len(times) == 65_536
    assert [times.mean(), times.var()] == pytest.approx([1, 1], abs=1e-3)
    assert (times == 0).mean() == pytest.approx(np.exp(-1), abs=1e-4)


def test_scores_that_are_known_give_the_same_verdict():
    champion, _, late = champion_and_better()
    artifact, test, scores = fit.fitted(late, OPTIONS)
    assert test.event_time.tolist() == late.take(fit.split(late).test).event_time.tolist()
    middle = int(test.event_time[len(scores) // 2])  # so that some rows don't count
    model = as_model(champion._replace(window=msgspec.structs.replace(champion.window, fit_end=middle)))
    assert judge(artifact, model, late, RULES, scores) == judge(artifact, model, late, RULES)


def test_too_few_frauds_to_judge_by_and_the_champion_stays():
    champion, better, late = champion_and_better()
    test = fit.split(late).test
    label = late.label.copy()
    frauds = np.flatnonzero(label[test]) + test.start
    label[frauds[19:]] = 0
    refused = judge(better, as_model(champion), late._replace(label=label), RULES)
    assert not refused.promote
    assert refused.figures["reason"] == "19 frauds to judge by, 20 are needed"


def test_rows_that_shaped_the_champion_do_not_judge():
    rows = labelled_rows(4_000)
    made = fit.fit(rows, OPTIONS)
    test = rows.take(fit.split(rows).test)
    middle = int(test.event_time[len(test.label) // 2])
    later = Model("v000001", made.booster, len(NAMES), msgspec.structs.replace(made.window, fit_end=middle))
    figures = judge(made, later, rows, RULES).figures
    assert figures["rows"] == (test.event_time > middle).sum()
    assert figures["seen_by_champion"] is False
    elsewhere = Model("v000001", made.booster, len(NAMES), None)
    figures = judge(made, elsewhere, rows, RULES).figures
    assert (figures["rows"], figures["seen_by_champion"]) == (len(test.label), True)


# The sample


@pytest.fixture
def volume(tmp_path):
    volume = Volume(tmp_path, Files(fsync=False))
    volume.prepare()
    return volume


def spool(volume, rows: Rows, seq: int, producer: str = "g00") -> str:
    """Put rows into training-queue, as prep does."""
    name = SegmentName(volume.epoch(), producer, 0, seq)
    width = rows.features.shape[1]
    schema = training_schema(width)
    columns = {
        "trans": np.arange(len(rows.label), dtype=np.uint64) + np.uint64(seq * 1_000_000),
        "event_time": rows.event_time, "amt_cents": rows.cents, "category": rows.category, "label": rows.label,
        "scenario": rows.scenario, "weight": rows.weight,
        "features": codes.column(rows.features),
    }  # fmt: skip
    arrays = [columns[f.name] if isinstance(columns[f.name], pa.Array) else pa.array(columns[f.name], f.type)
              for f in schema]  # fmt: skip
    watermark = int(rows.event_time[-1]) if len(rows.event_time) else 0
    info = SegmentInfo(name=str(name), rows=len(rows.label), rows_before=0, watermark=watermark)
    staged = volume.training / "staged" / name.file
    write_segment(volume.files, staged, pa.RecordBatch.from_arrays(arrays, schema=schema), info)
    os.rename(staged, volume.training / "ready" / name.file)
    return str(name)


def head(watermark: int = 0, *, ended: bool = False) -> Head:
    return Head(rows=0, rejected=0, watermark=watermark, ended=ended, finite=ended)


def publish_raw(volume, seq: int, watermark: int, *, ended: bool = False, producer: str = "g00") -> None:
    """The producer's newest raw segment; it has no rows, so prep has nothing to do with it."""
    name = SegmentName(volume.epoch(), producer, 0, seq)
    info = SegmentInfo(name=str(name), rows=0, rows_before=0, watermark=watermark, ended=ended, finite=ended)
    batch = pa.RecordBatch.from_pydict({"x": pa.array([], pa.int8())})
    write_segment(volume.files, volume.raw_ready(0) / name.file, batch, info)


def test_labels_mature_when_their_own_producer_has_passed_them(volume):
    rows = labelled_rows(1_000, width=WIDTH)
    rows = rows._replace(label=np.where(np.arange(1_000) % 10 == 0, -1, rows.label).astype(np.int8))
    spool(volume, rows, 1, "g00")
    spool(volume, rows, 1, "h00")
    sample = Sample(volume, 1, WIDTH)
    heads = {"g00": head(9 * DAY_US), "h00": head(5 * DAY_US)}
    sample.refresh(heads, 2 * DAY_US)
    usable = [((rows.event_time <= day * DAY_US) & (rows.label >= 0)).sum() for day in (7, 3)]
    assert sample.matured(heads, 2 * DAY_US) == sum(usable)
    taken = sample.take(heads, 2 * DAY_US)
    assert len(taken.label) == sum(usable)
    assert (np.diff(taken.event_time) >= 0).all()
    assert (taken.label >= 0).all()
    assert sample.matured({}, 0) == 0, "of a producer nobody knows nothing matures"
    assert sample.matured({"g00": head(ended=True)}, 2 * DAY_US) == (rows.label >= 0).sum()


def test_the_sample_follows_its_files_whatever_prep_does_with_them(volume):
    names = [spool(volume, labelled_rows(50, seed=seq, width=WIDTH), seq, f"g{seq % 2:02d}") for seq in range(1, 9)]
    heads = {"g00": head(ended=True), "g01": head(5 * DAY_US)}
    sample, whole = Sample(volume, 1, WIDTH), Sample(volume, 1, WIDTH)
    sample.refresh(heads, 0)
    matured, taken = sample.matured(heads, 0), sample.take(heads, 0)
    assert sample.rows == 400
    Spool(volume, "w", max_rows=10_000, max_files=4).tidy()
    assert len(volume.files.list(volume.training / "ready")) < 4
    for each in (sample, whole):  # one that saw the small files, one that starts now
        each.refresh(heads, 0)
        assert each.rows == 400
        assert each.matured(heads, 0) == matured
        assert [column.tolist() for column in each.take(heads, 0)] == [column.tolist() for column in taken]
    Spool(volume, "w", max_rows=10).tidy()
    (volume.training / "ready" / f"{names[0]}.arrow").write_bytes(b"torn")
    sample.refresh(heads, 0)
    assert sample.take(heads, 0).features.shape[1] == WIDTH


def test_rows_that_left_the_sample_stay_counted(volume):
    heads = {"g00": head(ended=True)}
    sample = Sample(volume, 1, WIDTH)
    first = spool(volume, labelled_rows(60, width=WIDTH), 1)
    sample.refresh(heads, 0)
    (volume.training / "ready" / f"{first}.arrow").unlink()
    spool(volume, labelled_rows(40, width=WIDTH), 2)
    sample.refresh(heads, 0)
    assert (sample.rows, sample.matured(heads, 0)) == (40, 100)


def test_files_of_another_width_or_epoch_are_left_out(volume):
    spool(volume, labelled_rows(50, width=WIDTH - 1), 1)
    spool(volume, labelled_rows(50, width=WIDTH), 2)
    sample = Sample(volume, 1, WIDTH)
    sample.refresh({}, 0)
    assert (sample.rows, sample.refused) == (50, 1)
    volume.raise_epoch()
    assert Sample(volume, 2, WIDTH).take({}, 0).features.shape == (0, WIDTH)


# The stage


def trainer(volume, **changed) -> Train:
    defaults = {"train_first_rows": 1_000, "train_interval_seconds": 1e-6, "train_cpu_share": 1e9, "fsync": False}
    stage = Train(Settings(_env_file=None, flashblade_path=volume.root, **(defaults | changed)), volume, "trainer001")
    stage.start()
    return stage


def look(stage: Train) -> int:
    """One step that does not wait for its timers."""
    stage._look_due._next = 0.0
    stage._not_before = 0.0
    return stage.step()


def train_once(stage: Train) -> int:
    """Let the stage begin a training if it will, and finish it; the rows it was made of."""
    look(stage)
    if stage._job is None:
        return 0
    stage._job.join()
    return look(stage)


def test_the_first_model_comes_when_enough_rows_have_matured(volume):
    rows = labelled_rows(2_000, width=WIDTH)
    stage, store = trainer(volume), ModelStore(volume)
    spool(volume, rows, 1)
    publish_raw(volume, 1, watermark=7 * DAY_US)
    assert train_once(stage) == 0
    assert (stage.figures["matured_rows"], stage.figures["needed_rows"]) == (0, 1_000)
    publish_raw(volume, 2, watermark=8 * DAY_US)
    assert train_once(stage) == 0
    assert 100 < stage.figures["matured_rows"] < 1_000
    publish_raw(volume, 3, watermark=15 * DAY_US)
    assert train_once(stage) == (rows.event_time <= 8 * DAY_US).sum()
    assert store.current() == "v000001"
    assert store.load("v000001").window.train_end <= 8 * DAY_US
    assert store.read("v000001", "metrics.json")["promoted"] is True


def test_a_finite_source_with_fewer_rows_trains_at_its_end(volume):
    stage = trainer(volume)
    spool(volume, labelled_rows(600, width=WIDTH), 1)
    publish_raw(volume, 1, watermark=10 * DAY_US)
    assert train_once(stage) == 0
    publish_raw(volume, 2, watermark=10 * DAY_US, ended=True)
    staged = volume.training / "staged" / "w.1"
    staged.mkdir()
    (staged / "e0001-g00-p00-000000000002.arrow").write_bytes(b"")
    assert train_once(stage) == 0, "prep has yet to publish what it staged"
    (staged / "e0001-g00-p00-000000000002.arrow").unlink()
    assert train_once(stage) == 600
    assert ModelStore(volume).current() == "v000001"
    assert train_once(stage) == 0, "nothing new"


def test_rows_without_fraud_make_no_model_and_the_figures_say_so(volume):
    stage = trainer(volume)
    rows = labelled_rows(300, base=0.0, width=WIDTH)
    spool(volume, rows, 1)
    publish_raw(volume, 1, watermark=10 * DAY_US, ended=True)
    assert train_once(stage) == 0
    look(stage)
    assert stage.figures["cannot_train"] == "none of the 300 matured rows is fraudulent"
    assert stage.figures["source_ended"] == 1
    assert stage.detail.startswith("cannot train: ")
    assert stage._job is None, "the same rows are not tried again"
    spool(volume, labelled_rows(300, width=WIDTH), 2)
    assert train_once(stage) == 600
    assert stage.figures["cannot_train"] is None


def test_a_challenger_that_is_not_better_is_kept_but_does_not_serve(volume):
    stage, store = trainer(volume), ModelStore(volume)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(4_000, width=WIDTH), 1)
    assert train_once(stage) == 4_000
    late = labelled_rows(4_000, seed=3, start=20 * DAY_US, width=WIDTH)
    label = late.label.copy()
    label[:3_200] = np.random.default_rng(0).permutation(label[:3_200])  # learns noise, is judged on the truth
    spool(volume, late._replace(label=label), 2)
    for path in (volume.training / "ready").glob("*000000000001.arrow"):
        path.unlink()
    assert train_once(stage) == 4_000
    assert store.versions() == ["v000001", "v000002"]
    assert store.current() == "v000001"
    metrics = store.read("v000002", "metrics.json")
    assert metrics["promoted"] is False
    verdict = metrics["verdict"]
    assert verdict["promoted"] is False
    assert verdict["champion_average_precision"] > 2 * verdict["challenger_average_precision"]
    assert verdict["version"] == "v000001"


def test_a_challenger_trained_against_another_champion_does_not_go_over_an_operators_choice(volume):
    stage, store = trainer(volume), ModelStore(volume)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    rows = labelled_rows(4_000, width=WIDTH)
    spool(volume, rows._replace(label=np.random.default_rng(0).permutation(rows.label)), 1)
    assert train_once(stage) == 4_000
    chosen = store.publish(fit.fit(rows, Options(names=FEATURES, stateless=STATELESS, threshold=0.5)), promote=False)
    spool(volume, labelled_rows(8_000, seed=3, start=20 * DAY_US, width=WIDTH), 2)
    for path in (volume.training / "ready").glob("*000000000001.arrow"):
        path.unlink()
    look(stage)
    stage._job.join()
    store.promote(chosen)
    assert look(stage) == 8_000
    assert store.current() == chosen
    verdict = store.read("v000003", "metrics.json")["verdict"]
    assert (verdict["promoted"], verdict["version"]) == (False, "v000001")
    assert verdict["reason"] == "another model was put in service during the training"


def test_every_version_has_a_card_with_pictures(volume):
    stage, store = trainer(volume), ModelStore(volume)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(4_000, width=WIDTH), 1)
    assert train_once(stage) == 4_000
    folder = store.folder / "v000001"
    for name in ("calibration.png", "pr_curve.png"):
        image = imread(folder / name, format="png")
        assert image.shape[:2] == (480, 640)
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20, "something is drawn"
        assert f"]({name})" in (folder / "card.md").read_text()
    content, metrics = store.read("v000001", "card.json"), store.read("v000001", "metrics.json")
    window = store.load("v000001").window
    assert content["data"]["parts"]["test"] == {
        "start": iso(window.test.start), "end": iso(window.test.end), "rows": window.test.rows,
        "frauds": window.test.frauds,
    }  # fmt: skip
    assert content["metrics"]["by_category"] == metrics["by_category"]
    assert content["calibration"] == metrics["calibration"]
    assert content["cost_optimal_threshold"]["threshold"] == metrics["cost_optimal_threshold"]
    assert {feature["feature"]: feature["importance"] for feature in content["features"]} == metrics["importances"]
    assert content["verdict"] == metrics["verdict"]
    assert content["parameters"] == store.read("v000001", "params.json")
    text = (folder / "card.md").read_text()
    for figure in (metrics["average_precision"], metrics["calibration"]["ece"], metrics["at_threshold"]["recall"]):
        assert f"{figure:.4g}" in text
    assert "It went into service: no model that works was in service." in text
    assert stage.figures["card_error"] is None


def iso(us: int) -> str:
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_card_of_what_is_not_known_has_dashes_and_no_pictures(volume):
    stage, store = trainer(volume), ModelStore(volume)
    rows = labelled_rows(600, base=0.0, width=WIDTH)
    label = rows.label.copy()
    label[500] = 1  # in the last part, so all rows are training
    spool(volume, rows._replace(label=label), 1)
    publish_raw(volume, 1, watermark=90 * DAY_US, ended=True)
    assert train_once(stage) == 600
    text = (store.folder / "v000001" / "card.md").read_text()
    assert "| test | – | – | – | – |" in text
    assert "Expected calibration error –" in text
    assert "![" not in text
    assert not (store.folder / "v000001" / "pr_curve.png").exists()
    assert store.read("v000001", "card.json")["metrics"]["average_precision"] is None


@pytest.mark.parametrize("part", ["pictures", "texts"])
def test_a_card_that_fails_costs_no_model_and_is_reported(volume, monkeypatch, part, caplog):
    stage, store = trainer(volume), ModelStore(volume)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    monkeypatch.setattr(f"services.train.card.{part}", lambda _: 1 // 0)
    assert train_once(stage) == 1_500
    assert store.current() == "v000001"
    assert stage.figures["card_error"].startswith("ZeroDivisionError: ")
    assert "this model has no whole card" in caplog.text
    assert (store.folder / "v000001" / "card.md").exists() == (part == "pictures")
    monkeypatch.undo()
    spool(volume, labelled_rows(1_500, seed=2, width=WIDTH), 2)
    assert train_once(stage) == 3_000
    assert stage.figures["card_error"] is None
    assert (store.folder / "v000002" / "card.md").exists()


def test_retraining_waits_for_new_rows_and_gives_way_to_inference(volume):
    stage = trainer(volume)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    assert train_once(stage) == 1_500
    assert train_once(stage) == 0
    spool(volume, labelled_rows(500, seed=4, width=WIDTH), 2)
    name = SegmentName(1, "g00", 0, 1)
    info = SegmentInfo(name=str(name), rows=400_000, rows_before=0)
    batch = pa.RecordBatch.from_pydict({"x": pa.array([], pa.int8())})
    write_segment(volume.files, volume.features / "ready" / name.file, batch, info)
    stage.control = Control(priority="inference")
    assert train_once(stage) == 0
    (volume.features / "ready" / name.file).unlink()
    assert train_once(stage) == 2_000


def test_retraining_takes_its_share_of_a_core_but_twice_the_rows_do_not_wait(volume):
    stage = trainer(volume, train_cpu_share=1e-4)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    assert train_once(stage) == 1_500
    spool(volume, labelled_rows(1_400, seed=4, width=WIDTH), 2)
    assert train_once(stage) == 0
    spool(volume, labelled_rows(100, seed=5, width=WIDTH), 3)
    assert train_once(stage) == 3_000
    spool(volume, labelled_rows(500, seed=6, width=WIDTH), 4)
    assert train_once(stage) == 0
    stage.control = Control(priority="training")
    assert train_once(stage) == 3_500
    stage.control = Control()
    spool(volume, labelled_rows(500, seed=7, width=WIDTH), 5)
    assert train_once(stage) == 0
    stage._affordable = time.monotonic()
    assert train_once(stage) == 4_000


def test_freed_memory_is_handed_back_after_each_training_and_not_between(volume, monkeypatch):
    jobs = []
    stage = trainer(volume)
    monkeypatch.setattr("services.train.stage.give_memory_back", lambda: jobs.append(stage._job))
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    assert look(stage) == 0
    assert jobs == []
    stage._job.join()
    assert look(stage) == 1_500
    assert jobs == [None]  # the job is let go first, or its rows would stay
    assert look(stage) == 0
    assert len(jobs) == 1


def test_what_a_training_took_is_paid_for_by_its_share(volume):
    stage = trainer(volume, train_cpu_share=0.01)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    before = time.process_time()
    assert train_once(stage) == 1_500
    used = time.process_time() - before
    assert 0.5 * used / 0.01 < stage._affordable - stage._trained_at <= used / 0.01


def test_reset_starts_the_sample_anew_and_keeps_models(volume):
    stage, store = trainer(volume), ModelStore(volume)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    assert train_once(stage) == 1_500
    spool(volume, labelled_rows(1_500, seed=2, width=WIDTH), 2)
    look(stage)
    assert stage._job is not None
    stage.reset(volume.raise_epoch())
    stage._job.join()
    look(stage)
    assert store.versions() == ["v000001"], "a training of the old epoch counts no more"
    look(stage)
    assert stage.figures["matured_rows"] == stage.figures["sample_rows"] == 0
    stage.close()


class FullDisk(Files):
    def __init__(self) -> None:
        super().__init__(fsync=False)
        self.full = False

    def step(self, call, path):
        if self.full and call == "write" and "models" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_model_trained_while_the_disk_is_full_is_published_later(volume):
    files = FullDisk()
    stage = trainer(Volume(volume.root, files))
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    files.full = True
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            train_once(stage)
    assert ModelStore(volume).current() is None
    files.full = False
    assert look(stage) == 1_500
    assert ModelStore(volume).current() == "v000001"
    assert [name for name in os.listdir(volume.models) if name.startswith(".")] == []


def test_a_training_that_fails_is_reported_and_tried_again_later(volume, monkeypatch):
    stage = trainer(volume)
    publish_raw(volume, 1, watermark=90 * DAY_US)
    spool(volume, labelled_rows(1_500, width=WIDTH), 1)
    monkeypatch.setattr("services.train.stage.fitted", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        train_once(stage)
    stage._look_due._next = 0.0
    stage.step()
    assert stage._job is None, "not at once"
    monkeypatch.undo()
    assert train_once(stage) == 1_500


def test_weights_already_in_models_serve_at_first_start(volume):
    made = fit.fit(labelled_rows(1_000, width=WIDTH), Options(names=FEATURES, stateless=STATELESS, threshold=0.52))
    store = ModelStore(volume)
    store.publish(made, promote=True)
    (volume.models / "current").unlink()
    trainer(volume)
    assert store.current() == "v000001"


def test_heads_are_those_of_the_newest_raw_segments(volume):
    publish_raw(volume, 1, watermark=1)
    publish_raw(volume, 2, watermark=5, ended=True)
    assert RawHeads(volume).producers(1)["g00"].ended
