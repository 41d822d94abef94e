"""Look-ups of decisions whose result file is gone: told from the archive, at little cost, and said to be from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from labelling import Bench, Said
from test_api import Api
from test_archive import endless, prune, score

from services.api import lookups, schemas
from services.api.explainer import Explainer
from spearhead.volume import Volume

ROWS = 300
SAME = ("trans_num", "decision", "risk_score", "amount", "merchant", "event_time", "is_fraud", "label")
NOT_ARCHIVED = {"model_version", "category", "state", "cc_num_masked", "ingested_at", "timestamp", "segment"}


@pytest.fixture
def bench(volume: Volume) -> Bench:
    """Unlabelled rows, decided."""
    made = endless(Bench(volume))
    score(made, rows=ROWS)
    return made


@pytest.fixture
def api(volume: Volume) -> Iterator[Api]:
    made = Api(volume)
    with made.client:
        yield made


def path(number: int) -> str:
    return f"/api/transactions/{number:032x}"


def test_a_decision_whose_result_file_is_gone_is_told_from_the_archive(api: Api, bench: Bench) -> None:
    bench.drop([Said(7, 1, 10)])
    bench.settle()
    before = [api.client.get(path(number)).json() for number in range(ROWS)]
    assert {answer["source"] for answer in before} == {"results"}
    assert prune(bench) == 1
    after = [api.client.get(path(number)).json() for number in range(ROWS)]
    for was, now in zip(before, after, strict=True):
        schemas.Decision.model_validate(was, strict=True)
        schemas.ArchivedDecision.model_validate(now, strict=True)
        assert list(now) == list(was)
        assert {name: now[name] for name in SAME} == {name: was[name] for name in SAME}
        assert {name for name in now if now[name] is None} - {"is_fraud", "label", "reasons_note"} == NOT_ARCHIVED
        assert (now["source"], now["reasons"]) == ("archive", [])
        assert (now["reasons_note"] is not None) == (now["decision"] == "flagged")
    assert {answer["decision"] for answer in after} == {"approved", "flagged"}
    assert after[7]["label"] == {"is_fraud": True, "labelled_at": "2024-01-01T00:00:10.000Z"}
    assert api.client.get(path(ROWS)).status_code == 404


def test_a_decision_is_found_though_its_file_is_archived_while_others_are_read(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = lookups.places
    monkeypatch.setattr(lookups, "places", lambda *given: (prune(bench), listed(*given))[1])
    assert api.client.get(path(7)).json()["source"] == "archive"


def test_what_is_archived_costs_no_pass_over_the_results(bench: Bench) -> None:
    """Before each result file it asks whether to go on."""
    prune(bench)
    score(bench, rows=ROWS)

    def find(number: int) -> dict[str, Any] | None:
        return lookups.find(bench.volume, 1, f"{number:032x}", Explainer(bench.volume, lambda: None), lambda: True)

    assert (find(7) or {})["source"] == "archive"
    with pytest.raises(lookups.StoppedError):
        find(ROWS + 7)
