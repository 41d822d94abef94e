"""Reasons at look-up: of rows beyond the budget they are those of XGBoost's own contributions, by the same version."""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from processes import wait_until
from test_api import Api
from test_api_server import Server
from test_inference import publish_features, replica, result_files, results, wide

from services.api import schemas
from services.api.tally import Tally
from spearhead import codes, evidence
from spearhead.features import FEATURES
from spearhead.files import Files
from spearhead.model import ModelStore
from spearhead.reasons import shown, strongest
from spearhead.segment import read_segment, read_segment_notes, write_segment
from spearhead.volume import Volume

SHOWN = list[dict[str, Any]]


class Scored(NamedTuple):
    volume: Volume
    expected: dict[str, SHOWN]  # of every row, by XGBoost


@pytest.fixture
def scored(tmp_path) -> Scored:
    """Three segments scored in one step; a budget of 8 a second explains 4 of their flagged rows."""
    volume = Volume(tmp_path, Files(fsync=False))
    volume.prepare()
    ModelStore(volume).publish(wide()._replace(slope=0.9), promote=True)
    expected: dict[str, SHOWN] = {}
    for seq in (1, 2, 3):
        expected |= by_xgboost(volume, publish_features(volume, seq, rows=60))
    stage = replica(volume, reasons_max_per_s=8)
    assert stage.step() == 180
    stage.close()
    return Scored(volume, expected)


@pytest.fixture
def api(scored: Scored) -> Iterator[Api]:
    made = Api(scored.volume)
    with made.client:
        yield made


def by_xgboost(volume: Volume, segment: str) -> dict[str, SHOWN]:
    """Reasons of a segment's rows by their numbers, as the API shows them."""
    model = ModelStore(volume).load("v000001")
    batch = read_segment(volume.features / "ready" / f"{segment}.arrow")[0]
    values = codes.values(batch.column("features"))
    added = model.booster.predict(xgb.DMatrix(values), pred_contribs=True)[:, :-1] * model.slope
    rows = zip(
        batch.column("trans_num").to_pylist(), batch.column("amt_cents").to_pylist(),
        strongest(values, added.astype(np.float32), FEATURES), strict=True,
    )  # fmt: skip
    return {number: [shown(reason, cents / 100) for reason in reasons] for number, cents, reasons in rows}


def same(found: SHOWN, expected: SHOWN) -> None:
    assert [one | {"contribution": 0} for one in found] == [one | {"contribution": 0} for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["contribution"] == pytest.approx(other["contribution"], abs=1e-4)


def entries(volume: Volume) -> list[evidence.Entry]:
    return [entry for path in result_files(volume) for entry in evidence.decode(read_segment_notes(path)[2])]


def flagged(volume: Volume) -> pl.DataFrame:
    """Flagged rows in the order of their evidence."""
    return results(volume).filter(pl.col("decision").cast(pl.String) == "flagged")


def test_the_budget_goes_to_the_dearest_of_the_whole_step(scored: Scored) -> None:
    rows = flagged(scored.volume)
    kept = entries(scored.volume)
    explained = [isinstance(entry, list) for entry in kept]
    loss = (rows["risk_score"].cast(pl.Float64) * rows["amt"]).to_list()
    assert sum(explained) == 4 < len(kept) == rows.height
    assert sorted(loss)[-4:] == sorted(one for one, done in zip(loss, explained, strict=True) if done)


def test_every_flagged_row_has_xgboosts_reasons_from_a_real_server(scored: Scored) -> None:
    rows = flagged(scored.volume)
    deferred = sum(isinstance(entry, bytes) for entry in entries(scored.volume))
    server = Server(scored.volume.root, api_workers=2, heartbeat_seconds=0.2)
    try:
        wait_until(server.alive, "the server answers")
        for number in rows["trans_num"]:
            answer = server.get(f"/api/transactions/{number}")
            schemas.Decision.model_validate(answer, strict=True)
            assert answer["reasons_note"] is None
            assert answer["reasons"]
            same(answer["reasons"], scored.expected[number])
        page = server.get("/api/signals?limit=500")["signals"]
        assert {one["trans_num"] for one in page} == set(rows["trans_num"])
        for one in page:
            same(one["reasons"], scored.expected[one["trans_num"]])
        wait_until(lambda: counted(server) == 2.0 * deferred, f"both look-ups of {deferred} rows are counted")
        wait_until(lambda: summed(server) == 2 * deferred, "/api/model tells the same")
    finally:
        server.end()


def summed(server: Server) -> int | None:
    return schemas.ModelDetails.model_validate(server.get("/api/model"), strict=True).reasons_summary.at_look_up


def counted(server: Server) -> float | None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        found = re.search(r"^spearhead_reasons_at_look_up_total (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else None


def test_an_approved_row_has_none_and_needs_none(api: Api, scored: Scored) -> None:
    number = results(scored.volume).filter(pl.col("decision").cast(pl.String) == "approved")["trans_num"][0]
    answer = api.get(f"/api/transactions/{number}")
    assert (answer["reasons"], answer["reasons_note"]) == ([], None)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (shutil.rmtree, "no longer kept"),
        (lambda folder: (folder / "model.ubj").write_bytes(b"{"), "damaged"),
        (lambda folder: (folder / "features.json").write_bytes(b"{}"), "can't be explained"),
    ],
)
def test_without_the_model_only_what_was_kept_is_known(api: Api, scored: Scored, harm: Any, why: str) -> None:
    harm(scored.volume.models / "v000001")
    page = api.get("/api/signals?limit=500")["signals"]
    with_reasons = [one for one in page if one["reasons"]]
    assert len(with_reasons) == 4
    for one in page:
        if one["reasons"]:
            same(one["reasons"], scored.expected[one["trans_num"]])
            assert one["reasons_note"] is None
        else:
            assert one["reasons_note"].startswith("model v000001: ")
            assert why in one["reasons_note"]


@pytest.mark.parametrize("notes", [b"", b"not JSON", b"[]"])
def test_a_result_file_without_evidence_is_shown_without_reasons(api: Api, scored: Scored, notes: bytes) -> None:
    for path in result_files(scored.volume):
        batch, info = read_segment(path)
        write_segment(scored.volume.files, path.with_suffix(".new"), batch, info, notes)
        os.replace(path.with_suffix(".new"), path)
    page = api.get("/api/signals?limit=500")["signals"]
    assert page
    assert all(one["reasons"] == [] and "nothing is kept" in one["reasons_note"] for one in page)


def test_evidence_costs_a_flagged_row_under_200_bytes_and_others_can_read_the_file(scored: Scored) -> None:
    path = result_files(scored.volume)[0]
    notes = read_segment_notes(path)[2]
    assert len(notes) < 200 * len(evidence.decode(notes))
    assert pl.read_ipc(path).height == 60


def test_codes_of_other_features_are_refused(scored: Scored) -> None:
    with pytest.raises(ValueError, match="codes where"):
        evidence.explain(b"\0\0", None, FEATURES, 1.0)  # type: ignore[arg-type]


def test_processes_that_count_at_once_lose_nothing() -> None:
    tally, children = Tally(), []
    for number in range(1, 5):
        if (child := os.fork()) == 0:
            tally.use(number)
            for _ in range(50_000):
                tally.add()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert tally.total() == 200_000


def test_the_api_does_without_xgboost() -> None:
    look = "import sys, services.api.app; sys.exit('xgboost' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
