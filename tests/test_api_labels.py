"""``POST /api/labels``: durable or refused with reasons, repeatable, joined with the decision, seen in the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labelling import Bench
from test_api import Api

from services.api import labels, schemas
from spearhead.volume import Volume

HEADERS = {"Authorization": "Bearer secret"}
GOOD = {"trans_num": f"{7:032x}", "is_fraud": True, "labelled_at": "2024-03-01T09:30:00Z"}


@pytest.fixture
def api(volume: Volume) -> Iterator[Api]:
    made = Api(volume, api_token="secret")
    with made.client:
        yield made


def files(volume: Volume) -> list[Path]:
    return sorted(path for path in (volume.raw_data / "labels").iterdir() if path.is_file())


def test_a_label_is_taken_and_shown(api: Api, volume: Volume) -> None:
    bench = Bench(volume)
    bench.scorer.score(20)
    answer = api.client.post("/api/labels", json=[GOOD], headers=HEADERS)
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
    schemas.LabelsTaken.model_validate(answer.json(), strict=True)
    assert bench.settle().feedback.applied == 1
    decision = api.get(f"/api/transactions/{7:032x}")
    schemas.Decision.model_validate(decision, strict=True)
    assert decision["label"] == {"is_fraud": True, "labelled_at": "2024-03-01T09:30:00.000Z"}
    assert api.get(f"/api/transactions/{8:032x}")["label"] is None
    flagged = api.get("/api/signals?limit=500")["signals"]
    assert all((one["label"] is not None) == (one["trans_num"] == f"{7:032x}") for one in flagged)
    api.look()
    found = api.get("/api/model")["labels"]
    assert (found["pending"], found["unlabelled"], found["in_sample"], found["out_of_sample"]) == (0, 19, 0, 1)
    zero = dict.fromkeys(("corrected", "duplicate", "unmatched", "waiting"), 0)
    assert found["feedback"] == {"received": 1, "applied": 1} | zero


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_fraud": "perhaps"}, "is_fraud is not"),
        ({"is_fraud": None}, "is_fraud is not"),
        ({"labelled_at": "yesterday"}, "labelled_at is not"),
        ({"labelled_at": "9999-01-01"}, "labelled_at is not"),
        ({"trans_num": "a b"}, "trans_num is not"),
        ({"trans_num": "4111111111111111"}, "trans_num is a card number"),
    ],
)
def test_what_is_no_label_is_refused(api: Api, volume: Volume, change: dict[str, Any], reason: str) -> None:
    answer = api.client.post("/api/labels", json=[GOOD, GOOD | change], headers=HEADERS).json()
    assert (answer["accepted"], answer["rejected"], answer["rejections"][0]["row"]) == (1, 1, 1)
    assert answer["rejections"][0]["reason"].startswith(reason)
    assert "4111111111111111" not in json.dumps(answer) + "".join(path.read_text() for path in files(volume))
    alone = api.client.post("/api/labels", json=[GOOD | change], headers=HEADERS)
    assert (alone.status_code, alone.json()["success"]) == (422, False)
    assert len(files(volume)) == 1


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"trans_num": "x"}', "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"\xff\n", "application/x-ndjson", 400),
        (b"a,b", "text/csv", 415),
        (json.dumps(GOOD).encode() + b"\n\n", "application/x-ndjson", 202),
    ],
)
def test_bodies(api: Api, content: bytes, kind: str, status: int) -> None:
    answer = api.client.post("/api/labels", content=content, headers=HEADERS | {"Content-Type": kind})
    assert answer.status_code == status, answer.text


def test_the_token_is_needed(api: Api) -> None:
    assert api.client.post("/api/labels", json=[GOOD]).status_code == 401


def test_a_key_repeats_the_answer_not_the_labels(api: Api, volume: Volume) -> None:
    headers = HEADERS | {"Idempotency-Key": "batch-1"}
    first = api.client.post("/api/labels", json=[GOOD], headers=headers)
    for path in files(volume):
        path.unlink()  # as the joiner does
    again = api.client.post("/api/labels", json=[GOOD], headers=headers)
    assert (again.status_code, again.json(), files(volume)) == (202, first.json(), [])
    assert api.client.post("/api/labels", json=[GOOD, GOOD], headers=headers).status_code == 409


def test_when_many_wait_no_more_are_taken(api: Api, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_FILES", 1)
    answers = [api.client.post("/api/labels", json=[GOOD], headers=HEADERS).status_code for _ in range(4)]
    assert answers == [202, 202, 503, 503]
