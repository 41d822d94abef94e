"""spearhead/scoring.py against slow, obvious recomputations."""

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segments import ingested

from spearhead import codes, scoring
from spearhead.aggregate import HOUR_US, Aggregate, Group, amount_bucket, latency_bucket
from spearhead.files import Files
from spearhead.schema import CATEGORIES, RESULTS, STATES, features_schema
from spearhead.segment import SegmentInfo, read_segment, write_segment

WIDTH = 3
SCORED_AT = 1_700_000_000_000_000


def feature_batch(rows: int, seed: int = 0, **columns: np.ndarray) -> pa.RecordBatch:
    """A plausible features-ready batch; ``columns`` override by name."""
    rng = np.random.default_rng(seed)
    start = 1_600_000_000_000_000
    made = {
        "trans_num": [f"t{seed}-{i}" for i in range(rows)],
        "event_time": start + np.cumsum(rng.integers(0, 10 * 60_000_000, rows)),
        "ingested_at": SCORED_AT - rng.integers(1, 5_000_000, rows),
        "card": rng.integers(0, 2**63, rows, dtype=np.uint64),
        "last4": rng.integers(0, 10_000, rows).astype(np.uint16),
        "amt_cents": rng.integers(0, 500_000, rows).astype(np.int32),
        "category": rng.integers(0, len(CATEGORIES), rows).astype(np.uint8),
        "state": rng.integers(0, len(STATES), rows).astype(np.uint8),
        "merchant": pa.DictionaryArray.from_arrays(
            pa.array(rng.integers(0, 2, rows).astype(np.uint16)), ["Kirlin and Sons", "Torp, Muller and Borer"]
        ),
        "first": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int16)), ["Jennifer"]),
        "last_initial": np.full(rows, ord("B"), np.uint8),
        "label": rng.integers(-1, 2, rows).astype(np.int8),
        "scenario": rng.integers(0, 7, rows).astype(np.int8),
        "features": codes.column(rng.random((rows, WIDTH), dtype=np.float32)),
    } | columns  # fmt: skip
    made["ingested_at"] = ingested(made["ingested_at"])
    schema = features_schema(WIDTH)
    arrays = [
        pa.array(made[f.name], f.type) if not isinstance(made[f.name], pa.Array) else made[f.name] for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def decide(batch, scores, threshold=0.52, train_end=0, scored_at=SCORED_AT):
    return scoring.decide(
        batch, scores, producer="g00", threshold=threshold, train_end=train_end, scored_at=scored_at, model="v000001"
    )


rows = st.integers(0, 60)


@st.composite
def segments(draw):
    n = draw(rows)
    column = lambda values, dtype: np.array(draw(st.lists(values, min_size=n, max_size=n)), dtype)  # noqa: E731
    batch = feature_batch(
        n,
        seed=draw(st.integers(0, 5)),
        event_time=column(st.integers(0, 2**51), np.int64),
        ingested_at=SCORED_AT - column(st.integers(-1000, 10**10), np.int64),
        amt_cents=column(st.integers(0, 10**9), np.int32),
        label=column(st.sampled_from([-1, 0, 1]), np.int8),
    )
    edges = st.sampled_from([0.0, 0.05, 0.5, 0.15, 0.35, 0.52, 0.6, 0.9, 0.95, 1.0])
    scores = column(st.one_of(edges, st.floats(0, 1, width=32)), np.float32)
    return batch, scores, draw(st.integers(0, 2**51)), draw(st.sampled_from([0.5, 0.52]))


def frame(batch: pa.RecordBatch, scores: np.ndarray, train_end: int, threshold: float) -> pl.DataFrame:
    """The segment as a table with what each row counts as, one obvious expression each."""
    score = scores.astype(np.float64)
    times = batch.column("event_time").cast(pa.int64()).to_numpy()
    flagged = score >= threshold
    fraud = batch.column("label").to_numpy() == 1
    return pl.DataFrame(
        {
            "category": [CATEGORIES[c] for c in batch.column("category").to_pylist()],
            "state": [STATES[c] for c in batch.column("state").to_pylist()],
            "cents": batch.column("amt_cents").to_numpy().astype(np.int64),
            "label": batch.column("label").to_numpy(),
            "flagged": flagged,
            "micro": np.floor(score * 1e6 + 0.5).astype(np.int64),
            "bin": np.minimum(np.floor(score * 20), 19).astype(np.int64),
            "band": np.where(score < 0.6, 0, np.where(score < 0.9, 1, 2)),
            "latency": np.maximum(SCORED_AT - batch.column("ingested_at").cast(pa.int64()).to_numpy(), 0),
            "hour": times // HOUR_US,
            "in_sample": times <= train_end,
            "outcome": np.where(flagged, np.where(fraud, "tp", "fp"), np.where(fraud, "fn", "tn")),
        },
        strict=False,
    )


def groups(table: pl.DataFrame, by: str) -> dict[str, Group]:
    flagged = pl.col("flagged")
    summed = table.group_by(by).agg(
        pl.len().alias("count"),
        pl.col("cents").sum().alias("all_cents"),
        flagged.sum().alias("n"),
        pl.col("cents").filter(flagged).sum().alias("flagged_cents"),
        pl.col("micro").filter(flagged).sum().alias("score"),
    )
    return {row[0]: Group(*row[1:]) for row in summed.iter_rows()}


@settings(max_examples=150, deadline=None)
@given(segments())
def test_aggregates_equal_a_slow_recomputation(segment):
    batch, scores, train_end, threshold = segment
    scored, got = decide(batch, scores, threshold=threshold, train_end=train_end)
    table = frame(batch, scores, train_end, threshold)
    flagged = table.filter(pl.col("flagged"))
    assert scored.decisions.tolist() == table["flagged"].cast(pl.Int8).to_list()
    assert (got.count, got.cents) == (len(table), table["cents"].sum())
    assert (got.flagged, got.flagged_cents) == (len(flagged), flagged["cents"].sum())
    assert got.unlabelled == (table["label"] < 0).sum()
    assert got.score_bins == [(table["bin"] == b).sum() for b in range(20)]
    assert got.bands == [(table["band"] == b).sum() for b in range(3)]
    assert got.categories == groups(table, "category")
    assert got.states == groups(table, "state")
    total = groups(table.with_columns(minute=pl.lit(str(SCORED_AT // 60_000_000))), "minute")
    assert got.minutes == total
    assert got.latency_us == table["latency"].sum()
    assert got.latency == count(latency_bucket(us) for us in table["latency"])
    assert {b: (a.count, a.cents) for b, a in got.flagged_amounts.items()} == {
        b: (n, sum(c for c in flagged["cents"] if str(amount_bucket(c)) == b))
        for b, n in count(amount_bucket(c) for c in flagged["cents"]).items()
    }
    assert (got.first_scored_at, got.last_scored_at) == ((SCORED_AT, SCORED_AT) if len(table) else (0, 0))
    assert got.models == ({"v000001": len(table)} if len(table) else {})
    assert pending(got) == {
        (f"g00/{row['hour']}", row["in_sample"], row["outcome"]): row["len"]
        for row in table.filter(pl.col("label") >= 0).group_by("hour", "in_sample", "outcome").len().to_dicts()
    }
    assert msgspec.json.decode(msgspec.json.encode(got), type=Aggregate) == got


def count(numbers) -> dict[str, int]:
    counted: dict[str, int] = {}
    for number in numbers:
        counted[str(number)] = counted.get(str(number), 0) + 1
    return counted


def pending(aggregate: Aggregate) -> dict[tuple[str, bool, str], int]:
    return {
        (key, sample, outcome): n
        for key, hour in aggregate.pending_labels.items()
        for sample, outcomes in ((False, hour.out_of_sample), (True, hour.in_sample))
        for outcome, n in msgspec.structs.asdict(outcomes).items()
        if n
    }


@given(st.integers(0, 10**9))
def test_amount_edges_are_those_of_the_bucket_function(cents):
    assert np.searchsorted(scoring._AMOUNT_EDGES, cents, side="right") - 1 == amount_bucket(cents)


@given(st.integers(0, scoring.LONGEST_LATENCY_US))
def test_latency_edges_are_those_of_the_bucket_function(us):
    assert np.searchsorted(scoring._LATENCY_EDGES, us, side="right") - 1 == latency_bucket(us)


def test_results_have_the_schema_and_survive_the_file(tmp_path):
    batch = feature_batch(200)
    scores = np.random.default_rng(1).random(200, dtype=np.float32)
    scored, _ = decide(batch, scores)
    made = scoring.results(scored)
    made.validate(full=True)
    write_segment(Files(), tmp_path / "x.arrow", made, SegmentInfo(name="x", rows=200, rows_before=0))
    read = read_segment(tmp_path / "x.arrow")[0]
    assert read.schema.remove_metadata() == RESULTS
    table = pl.from_arrow(pa.Table.from_batches([read]))
    assert table["amt"].to_list() == [c / 100 for c in batch.column("amt_cents").to_pylist()]
    assert table["category"].cast(str).to_list() == [CATEGORIES[c] for c in batch.column("category").to_pylist()]
    assert table["state"].cast(str).to_list() == [STATES[c] for c in batch.column("state").to_pylist()]
    assert table["decision"].cast(str).to_list() == ["flagged" if s >= 0.52 else "approved" for s in scores.tolist()]
    assert table["is_fraud"].to_list() == [{-1: None, 0: False, 1: True}[v] for v in batch.column("label").to_pylist()]
    assert table["model_version"].cast(str).unique().to_list() == ["v000001"]
    assert table["risk_score"].to_list() == scores.tolist()
    assert table["scored_at"].dtype == pl.Datetime("us", "UTC")
    assert table["scored_at"].dt.timestamp("us").to_list() == [SCORED_AT] * 200
    for name, source in {"card_token": "card"}.items():
        assert read.column(name).equals(batch.column(source))
    for name in ("trans_num", "event_time", "last4", "merchant", "ingested_at", "scenario"):
        assert read.column(name).equals(batch.column(name))


def test_results_of_no_rows():
    scored, aggregate = decide(feature_batch(0), np.empty(0, np.float32))
    assert scoring.results(scored).num_rows == 0
    assert aggregate == Aggregate()


def test_results_do_not_copy_what_does_not_change():
    batch = feature_batch(100)
    scored, _ = decide(batch, np.zeros(100, np.float32))
    made = scoring.results(scored)
    for name, source in (("trans_num", "trans_num"), ("category", "category"), ("card_token", "card")):
        column = made.column(name)
        column = column.indices if pa.types.is_dictionary(column.type) else column
        assert column.buffers()[-1].address == batch.column(source).buffers()[-1].address


def test_signals_are_the_newest_fifty_flagged_rows():
    batch = feature_batch(500)
    scores = np.linspace(0, 1, 500, dtype=np.float32)[::-1].copy()
    _, aggregate = decide(batch, scores)
    newest = [i for i in range(500) if scores[i] >= 0.52][-50:][::-1]
    assert [s.trans_num for s in aggregate.signals] == [f"t0-{i}" for i in newest]
    first = aggregate.signals[0]
    row = {name: batch.column(name)[newest[0]].as_py() for name in ("amt_cents", "merchant", "last4")}
    assert (first.cents, first.merchant, first.last4) == tuple(row.values())
    assert (first.cardholder, first.model, first.scored_at) == ("Jennifer B.", "v000001", SCORED_AT)
    assert first.event_time == batch.column("event_time").cast(pa.int64())[newest[0]].as_py()


@pytest.mark.parametrize("score", [np.nan, -0.1, 1.5, np.inf])
def test_a_score_that_is_no_probability_is_refused(score):
    scores = np.array([0.5, score], np.float32)
    with pytest.raises(ValueError, match="1 scores are not between 0 and 1"):
        decide(feature_batch(2), scores)


def test_a_time_that_is_not_there_is_refused():
    batch = feature_batch(3)
    stamps = pa.DictionaryArray.from_arrays(
        pa.array([0, 255, 0], pa.uint8()), batch.column("ingested_at").dictionary, safe=False
    )
    place = batch.schema.get_field_index("ingested_at")
    batch = batch.set_column(place, batch.schema.field(place), stamps)
    with pytest.raises(ValueError, match="time 255 of"):
        decide(batch, np.zeros(3, np.float32))


@pytest.mark.parametrize(("column", "code"), [("category", len(CATEGORIES)), ("state", 255)])
def test_an_unknown_code_is_refused(column, code):
    batch = feature_batch(3, **{column: np.array([0, code, 1], np.uint8)})
    with pytest.raises(ValueError, match=f"unknown {column} code {code}"):
        decide(batch, np.zeros(3, np.float32))
