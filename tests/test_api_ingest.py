"""Rows over HTTP: refused with reasons or durable, once for a key whoever dies, and found again once decided."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from ledgers import Scorer
from sparkov import row, rows
from test_api import Api

from services.api import schemas
from services.api.ingest import BusyError, Checked, ConflictError, Ingest, check, finish, unfinished
from services.api.rows import parse
from spearhead.files import Files
from spearhead.narrow import read_raw
from spearhead.producer import Producer
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer
from spearhead.volume import Volume

TOKENS = Tokenizer(b"a key for tests only")
HEADERS = {"Authorization": "Bearer secret"}


@pytest.fixture
def api(volume: Volume) -> Iterator[Api]:
    made = Api(volume, api_token="secret")
    with made.client:
        yield made


def published(volume: Volume) -> pl.DataFrame:
    """Every row that HTTP ingest has published, in order."""
    paths = sorted(path for path in volume.raw_ready(0).iterdir() if "-h" in path.name)
    batches = [read_raw(path)[0] for path in paths]
    columns = ("trans_num", "label", "amt_cents", "last4", "ingested_at", "card")
    frames = [pl.DataFrame({name: batch.column(name).to_pylist() for name in columns}) for batch in batches]
    return pl.concat(frames) if frames else pl.DataFrame({"trans_num": []})


def arrow_stream(records: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist([{**record, "amt": float(record["amt"])} for record in records])
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


BODIES = {
    "application/json": lambda records: json.dumps(records).encode(),
    "application/x-ndjson": lambda records: b"\n".join(json.dumps(record).encode() for record in records) + b"\n",
    "application/vnd.apache.arrow.stream": arrow_stream,
}


@pytest.mark.parametrize("kind", BODIES)
def test_every_format_is_taken_and_durable_when_answered(api: Api, kind: str) -> None:
    answer = api.client.post(
        "/api/transactions", content=BODIES[kind](rows(50)), headers=HEADERS | {"Content-Type": kind}
    )
    assert answer.status_code == 202, answer.text
    assert answer.json() == {
        "success": True, "accepted": 50, "rejected": 0, "rejections": [], "segment": "e0001-h00-000000000001",
    }  # fmt: skip
    found = published(api.volume)
    assert found["trans_num"].to_list() == [record["trans_num"] for record in rows(50)]
    assert found["amt_cents"].to_list() == [round(float(record["amt"]) * 100) for record in rows(50)]
    assert set(found["label"]) == {-1}  # live rows carry no label, whatever the sender says


def test_numbers_may_be_numbers(api: Api) -> None:
    record = row() | {"cc_num": 4599735407877245, "amt": 83.03, "lat": 36.3846, "city_pop": 5577}
    answer = api.client.post("/api/transactions", json=[record], headers=HEADERS)
    assert answer.json()["accepted"] == 1
    assert published(api.volume)["last4"].to_list() == [7245]


def test_bad_rows_are_told_with_their_reasons_and_the_good_ones_taken(api: Api) -> None:
    records: list[Any] = [
        row(trans_num="a"), row(trans_num="b", amt="-1"), row(trans_num="c", category="boats"),
        row(trans_num="4599735407877245"), {}, row(trans_num="d"), row(trans_num="e") | {"amt": [1]},
        row(trans_num="4111:1111:1111:1111"),
    ]  # fmt: skip
    answer = api.client.post("/api/transactions", json=records, headers=HEADERS)
    assert answer.status_code == 202
    schemas.Ingested.model_validate(answer.json(), strict=True)
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (2, 6)
    assert {one["row"]: one["reason"] for one in answer.json()["rejections"]} == {
        1: "amt is negative",
        2: "category is missing or unknown",
        3: "trans_num contains the card number",
        4: "trans_num is missing",
        6: "amt is missing or not a number",
        7: "trans_num looks like a card number: 11 to 19 digits and no letter",
    }
    kept = [path.read_bytes() for path in api.volume.root.rglob("*") if path.is_file()]
    assert kept
    for content in (answer.content, *kept):
        assert b"4599735407877245" not in content
        assert b"4111:1111" not in content
    assert published(api.volume)["trans_num"].to_list() == ["a", "d"]


def test_nothing_acceptable_is_422_and_publishes_nothing(api: Api) -> None:
    answer = api.client.post("/api/transactions", json=[row(amt="x")], headers=HEADERS)
    assert answer.status_code == 422
    schemas.Ingested.model_validate(answer.json(), strict=True)
    assert published(api.volume).height == 0


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400), (b"[1]", "application/json", 400), (b'"x"', "application/json", 400),
        (b"\xff\xfe", "application/json", 400), (b'{"a": 1}\n[2]\n', "application/x-ndjson", 400),
        (b"not arrow", "application/vnd.apache.arrow.stream", 400), (b"", "application/vnd.apache.arrow.stream", 400),
        (b"a,b\n1,2\n", "text/csv", 415), (b"[]", "", 415),
        (b"[" + b"{}," * 32_000 + b"{}]", "application/json", 413),
        (b"[" + b" " * 33_600_000 + b"]", "application/json", 413),
    ],
)  # fmt: skip
def test_what_is_no_list_of_rows_is_refused(api: Api, content: bytes, kind: str, status: int) -> None:
    answer = api.client.post("/api/transactions", content=content, headers=HEADERS | {"Content-Type": kind})
    assert answer.status_code == status
    assert schemas.Refusal.model_validate(answer.json(), strict=True).success is False
    assert published(api.volume).height == 0


def test_the_token_is_needed(api: Api, volume: Volume) -> None:
    assert api.client.post("/api/transactions", json=[row()]).status_code == 401
    closed = Api(volume)
    with closed.client:
        assert closed.client.post("/api/transactions", json=[row()], headers=HEADERS).status_code == 403
    assert published(volume).height == 0


def test_under_back_pressure_the_sender_keeps_its_rows(volume: Volume) -> None:
    Scorer(volume).score(100)  # published, and prep is not there to take it
    api = Api(volume, api_token="secret", raw_transactions_critical=100)
    with api.client:
        api.look()
        answer = api.client.post("/api/transactions", json=[row()], headers=HEADERS)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert published(volume).height == 0


# Once for a key


def test_a_key_repeats_the_answer_instead_of_the_rows(api: Api) -> None:
    headers = HEADERS | {"Idempotency-Key": "order-1"}
    first, again = (api.client.post("/api/transactions", json=rows(5), headers=headers) for _ in range(2))
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert published(api.volume).height == 5
    other = api.client.post("/api/transactions", json=rows(6), headers=headers)
    assert other.status_code == 409
    bad = api.client.post("/api/transactions", json=rows(6), headers=HEADERS | {"Idempotency-Key": "a b"})
    assert bad.status_code == 400


def test_a_key_is_forgotten_by_a_reset(api: Api) -> None:
    headers = HEADERS | {"Idempotency-Key": "order-1"}
    api.client.post("/api/transactions", json=rows(5), headers=headers)
    api.post("reset")
    assert api.client.post("/api/transactions", json=rows(5), headers=headers).json()["segment"].startswith("e0002-h00")


class KilledError(BaseException):
    """Stands for the process's end."""


class Killed(Files):
    """Dies before the nth change of the volume, and stays dead."""

    def __init__(self, after: int) -> None:
        super().__init__(fsync=False)
        self.left = after

    def step(self, call: str, path: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise KilledError


def body(count: int) -> tuple[Checked, bytes]:
    content = json.dumps(rows(count)).encode()
    return check(parse(content, "application/json"), TOKENS), content


def ingest(volume: Volume, files: Files | None = None, partitions: int = 1) -> Ingest:
    settings = Settings(
        flashblade_path=volume.root, fsync=False, lease_seconds=0.05, heartbeat_seconds=600, partitions=partitions
    )
    return Ingest(Volume(volume.root, files or Files(fsync=False)), settings, TOKENS)


def test_killed_before_any_change_a_key_still_counts_once(volume: Volume) -> None:
    """The process dies before its nth change of the volume; another is sent the same rows under the same key."""
    checked, content = body(3)
    died = 0
    for after in range(200):
        key = f"key-{after}"
        before = published(volume).height
        first = ingest(volume, Killed(after))
        try:
            first.take(checked, content, key)
            finished = True
        except KilledError:
            died += 1
            finished = False
        first._stop.set()
        _forget(volume)
        second = ingest(volume)
        told = second.take(checked, content, key)
        assert told.accepted == 3
        assert published(volume).height == before + 3, after
        assert second.take(checked, content, key) == told
        second.close()
        if finished:
            break
    assert died > 20


def test_a_woken_owner_finds_itself_superseded(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """It freezes with the claim in place and nothing published; another publishes for it; it wakes."""
    checked, content = body(3)
    frozen = ingest(volume)
    real = Producer.publish
    second = ingest(volume)

    def freeze(producer: Producer, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(Producer, "publish", real)
        _forget(volume)
        second.take(checked, content, "key")
        return real(producer, *args, **options)

    monkeypatch.setattr(Producer, "publish", freeze)
    with contextlib.suppress(ConflictError):
        frozen.take(checked, content, "key")
    assert published(volume).height == 3
    for one in (frozen, second):
        assert one.take(checked, content, "key").accepted == 3
        one.close()
    assert published(volume).height == 3


def of_partitions(volume: Volume, partitions: int) -> list[list[str]]:
    """What HTTP ingest has published, by partition."""
    return [
        [
            number
            for path in sorted(volume.raw_ready(partition).glob("*-h*.arrow"))
            for number in read_raw(path)[0].column("trans_num").to_pylist()
        ]
        for partition in range(partitions)
    ]


@pytest.fixture
def divided(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "divided", Files(fsync=False))
    volume.root.mkdir()
    volume.prepare(partitions=2)
    return volume


def cards(tag: str) -> tuple[Checked, bytes]:
    """Six rows of six cards: some are in either partition."""
    content = json.dumps([row(trans_num=f"{tag}-{i}", cc_num=f"45997354078772{i:02d}") for i in range(6)]).encode()
    return check(parse(content, "application/json"), TOKENS), content


@pytest.mark.parametrize("by", ["finish", "another request"])
@pytest.mark.parametrize("key", [None, "key"])
def test_killed_before_any_change_a_request_is_in_all_partitions_or_in_none(
    divided: Volume, key: str | None, by: str
) -> None:
    """Whoever looks next completes it: an idle process, or one that takes another request."""
    cut_short = kept = 0
    for after in range(200):
        checked, content = cards(f"r{after}")
        told = f"{key}-{after}" if key else None
        first = ingest(divided, Killed(after), partitions=2)
        try:
            first.take(checked, content, told)
            finished = True
        except KilledError:
            finished = False
        first._stop.set()
        parts = of_partitions(divided, 2)
        cut_short += any(f"r{after}-" in number for number in parts[0]) and not any(
            f"r{after}-" in number for number in parts[1]
        )
        _forget(divided)
        second = ingest(divided, partitions=2)
        if by == "finish":
            finish(divided, unfinished(divided), 2, second._worker, second._roster.alive())
        else:
            second.take(*cards(f"o{after}"), None)
        mine = [number for part in of_partitions(divided, 2) for number in part if number.startswith(f"r{after}-")]
        assert len(mine) in ((6,) if finished else (0, 6)), after
        assert len(set(mine)) == len(mine)
        kept += bool(mine)
        if told:  # the sender repeats it until it is answered
            assert second.take(checked, content, told).accepted == 6
            again = [number for part in of_partitions(divided, 2) for number in part]
            again = [number for number in again if number.startswith(f"r{after}-")]
            assert sorted(again) == checked.batch.column("trans_num").to_pylist()
        second.close()
        if finished:
            break
    assert after > 10
    assert cut_short > 0
    assert kept > 1


class Frozen(Files):
    """Does something else before the nth change of the volume."""

    def __init__(self, at: int, meanwhile: Callable[[], None]) -> None:
        super().__init__(fsync=True)  # so that there is a call between a link and the look after it
        self.left = at
        self._meanwhile = meanwhile

    def step(self, call: str, path: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self._meanwhile()


@pytest.mark.parametrize("key", [None, "key"])
@pytest.mark.parametrize("partitions", [1, 2])
def test_frozen_before_any_change_while_another_takes_its_slot_a_request_counts_once(
    volume: Volume, divided: Volume, partitions: int, key: str | None
) -> None:
    """It is taken for dead, another owner of its slot publishes rows of its own, it wakes and goes on."""
    target = volume if partitions == 1 else divided
    for at in range(1, 200):
        second = ingest(target, partitions=partitions)

        def meanwhile(at: int = at, second: Ingest = second) -> None:
            _forget(target)
            second.take(*cards(f"o{at}"), None)

        files = Frozen(at, meanwhile)
        first = ingest(target, files, partitions)
        checked, content = cards(f"r{at}")
        try:
            answered = first.take(checked, content, f"{key}-{at}" if key else None).accepted == 6
        except (ConflictError, BusyError, OSError):
            answered = False
        first._stop.set()
        _forget(target)
        last = ingest(target, partitions=partitions)
        last.take(*cards(f"l{at}"), None)
        if key and not answered:
            assert last.take(checked, content, f"{key}-{at}").accepted == 6
            answered = True
        mine = [number for part in of_partitions(target, partitions) for number in part if number.startswith(f"r{at}-")]
        assert len(mine) in ((6,) if answered else (0, 6)), at
        assert len(set(mine)) == len(mine)
        for one in (second, last):
            one.close()
        _forget(target)
        if files.left > 0:
            break
    assert at > 10


def test_two_processes_take_two_slots(volume: Volume) -> None:
    checked, content = body(2)
    first, second = ingest(volume), ingest(volume)
    settings = Settings(flashblade_path=volume.root, fsync=False)
    for one in (first, second):
        one._roster._lease = settings.lease_seconds
    segments = [one.take(checked, content + bytes([index]), None).segment for index, one in enumerate((first, second))]
    assert segments == ["e0001-h00-000000000001", "e0001-h01-000000000001"]
    first.close()
    second.close()
    assert list((volume.control / "slots").iterdir()) == []


def _forget(volume: Volume) -> None:
    """The lease of whoever beat has run out."""
    for path in volume.workers.glob("ingest-*"):
        path.unlink()


# Look-ups


def test_a_decision_is_found_by_its_number(api: Api) -> None:
    scorer = Scorer(api.volume)
    name = scorer.score(500)
    answer = api.get(f"/api/transactions/{7:032x}")
    schemas.Decision.model_validate(answer, strict=True)
    assert answer["segment"] == name
    assert (answer["amount"] > 0, answer["model_version"]) == (True, "v000001")
    missing = api.client.get("/api/transactions/unknown")
    assert (missing.status_code, missing.json()["success"]) == (404, False)
    assert api.client.get("/api/transactions/a%20b").status_code == 422


def test_signals_are_paged_newest_first_without_gap_or_repeat(api: Api) -> None:
    scorer = Scorer(api.volume)
    for _ in range(5):
        scorer.score(400)
    everything = api.get("/api/signals?limit=500")
    assert everything["next"] is None
    names = [signal["trans_num"] for signal in everything["signals"]]
    assert len(names) == len(set(names)) > 30
    paged: list[str] = []
    cursor = ""
    while cursor is not None:
        page = api.get(f"/api/signals?limit=7{cursor and '&cursor=' + cursor}")
        schemas.SignalPage.model_validate(page, strict=True)
        paged += [signal["trans_num"] for signal in page["signals"]]
        cursor = page["next"]
    assert paged == names


def test_signals_are_filtered(api: Api) -> None:
    scorer = Scorer(api.volume)
    scorer.score(3000)
    everything = api.get("/api/signals?limit=500")["signals"]
    assert all(signal["decision"] == "flagged" for signal in everything)
    wanted = [s for s in everything if s["category"] == "home" and s["risk_score"] >= 0.7]
    assert wanted
    assert api.get("/api/signals?limit=500&category=home&min_score=0.7")["signals"] == wanted
    state = everything[0]["state"]
    assert {s["state"] for s in api.get(f"/api/signals?state={state}")["signals"]} == {state}
    since = everything[0]["timestamp"]
    assert len(api.get(f"/api/signals?limit=500&since={since}")["signals"]) == len(everything)
    assert api.get("/api/signals?since=2999-01-01T00:00:00Z")["signals"] == []
    for bad in ("since=yesterday", "cursor=x", "cursor=1~2"):
        assert api.client.get(f"/api/signals?{bad}").status_code == 400
    for bad in ("limit=0", "limit=501", "min_score=2"):
        assert api.client.get(f"/api/signals?{bad}").status_code == 422
